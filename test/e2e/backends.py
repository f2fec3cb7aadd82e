"""Servers behind httpd, that say what httpd itself would not say."""
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path

from content import SEED, make
from hosts import wait_until


PARTS = [b"the first\n", b"the second\n", b"the last\n"]
# What httpd sends on at once, with no flush behind it; more than RdmaMinSize.
LARGE = [part.rstrip().ljust(7000, b".") + b"\n" for part in PARTS]
MUCH = 32 << 20
PHP_FPM = "/usr/sbin/php-fpm8.2"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that leaves is none of our business."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serve(handler, port):
    """Serves, at all addresses of the server's host, until the returned server
    is told to shutdown() and server_close()."""
    server = _Server(("", port), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,),
                     daemon=True).start()
    return server


def _chunked(body, size=7000):
    for at in range(0, len(body), size):
        part = body[at:at + size]
        yield b"%x\r\n%b\r\n" % (len(part), part)


class Raw(socketserver.StreamRequestHandler):
    """HTTP/1.1 as it is written here; one request for each connection."""

    SIZE = 200_000
    gate = None  # the semaphore that pause() waits for
    pausing = threading.Event()  # it does
    sent = 0     # bytes of `much`
    asked = set()  # URLs of `flaky`

    @staticmethod
    def pause():
        Raw.pausing.set()
        Raw.gate.acquire(timeout=60)

    def handle(self):
        line = self.rfile.readline().decode()
        while self.rfile.readline().strip():
            pass
        self.url = line.split()[1]
        name = self.url.partition("?")[0].strip("/").replace("-", "_")
        getattr(self, name)(make(self.SIZE))

    def _head(self, *fields):
        self.wfile.write("\r\n".join(
            ["HTTP/1.1 200 OK", "Content-Type: application/octet-stream",
             "Connection: close", *fields, "", ""]).encode())

    def until_close(self, body):
        self._head()
        self.wfile.write(body)

    def early(self, body):
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n"
                         b"Link: </style.css>; rel=preload\r\n\r\n")
        self._head(f"Content-Length: {len(body)}")
        self.wfile.write(body)

    def trailers(self, body):
        self._head("Transfer-Encoding: chunked", "Trailer: X-After")
        for chunk in _chunked(body):
            self.wfile.write(chunk)
        self.wfile.write(b"0\r\nX-After: it came\r\n\r\n")

    def pauses(self, _):
        self._head("Transfer-Encoding: chunked")
        for part in PARTS:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            Raw.pause()
        self.wfile.write(b"0\r\n\r\n")

    def pauses_with_length(self, _):
        self._head(f"Content-Length: {sum(map(len, LARGE))}")
        for part in LARGE:
            self.wfile.write(part)
            Raw.pause()

    def waits(self, body):
        """With its content, until told."""
        self._head("Transfer-Encoding: chunked")
        Raw.pause()
        for chunk in _chunked(body):
            self.wfile.write(chunk)
        self.wfile.write(b"0\r\n\r\n")

    def much(self, _):
        self._head(f"Content-Length: {MUCH}")
        self._much(lambda part: part)

    def much_chunked(self, _):
        self._head("Transfer-Encoding: chunked")
        self._much(lambda part: b"%x\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    much_streamed = much_chunked

    def _much(self, framed):
        Raw.sent = 0
        for at in range(0, MUCH, 1 << 20):
            self.wfile.write(framed(make(1 << 20, SEED + at)))
            Raw.sent += 1 << 20

    def websocket(self, _):
        """Another protocol: what comes goes back."""
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while data := self.request.recv(4096):
            self.wfile.write(data)

    def breaks_with_length(self, body):
        self._head(f"Content-Length: {2 * len(body)}")
        self.wfile.write(body)

    def breaks_chunked(self, body):
        self._head("Transfer-Encoding: chunked")
        for chunk in _chunked(body):
            self.wfile.write(chunk)

    def breaks_late(self, _):
        self._head("Transfer-Encoding: chunked")
        for chunk in _chunked(make(3 << 20), 70_000):
            self.wfile.write(chunk)

    def flaky(self, body):
        """Answers a URL once."""
        if self.url in Raw.asked:
            self.wfile.write(b"HTTP/1.1 500 Not Again\r\nContent-Length: 0\r\n"
                             b"Connection: close\r\n\r\n")
            return
        Raw.asked.add(self.url)
        self._head(f"Content-Length: {len(body)}", 'ETag: "once"')
        self.wfile.write(body)

    def forged(self, body):
        self._head(f"Content-Length: {len(body)}",
                   "RDMA: v=1, id=1, conn=1, write;total=7")
        self.wfile.write(body)


class Fcgi(socketserver.StreamRequestHandler):
    """A FastCGI responder: a body in records of odd sizes, with its length
    announced when the path ends so."""

    SIZE = 200_000
    RECORD = struct.Struct("!BBHHBB")
    END, STDOUT = 3, 6
    STDIN = 5

    def _send(self, kind, number, data=b""):
        self.wfile.write(self.RECORD.pack(1, kind, number, len(data), 0, 0)
                         + data)

    def handle(self):
        head = True
        params = b""
        while head:
            head = self.rfile.read(self.RECORD.size)
            if len(head) < self.RECORD.size:
                return
            _, kind, number, size, pad, _ = self.RECORD.unpack(head)
            data = self.rfile.read(size + pad)[:size]
            if kind == self.STDIN and not data:
                break
            params += data if kind != self.STDIN else b""
        if b"/fcgi/pauses" in params:
            self._pauses(number, LARGE if b"/fcgi/pauses-large" in params
                         else PARTS)
            return
        if b"/fcgi/much" in params:
            self._much(number)
            return
        breaks = re.search(rb"/fcgi/breaks-(\d+)", params)
        body = make(self.SIZE)
        lines = ["Content-Type: application/octet-stream"]
        if b"/fcgi/length" in params:
            lines.append(f"Content-Length: {len(body)}")
        out = "\r\n".join([*lines, "", ""]).encode() + body
        if breaks:
            out = out[:int(breaks.group(1))]
        for at in range(0, len(out), 7001):
            self._send(self.STDOUT, number, out[at:at + 7001])
        if breaks:
            return
        self._send(self.STDOUT, number)
        self._send(self.END, number, bytes(8))

    def _pauses(self, number, parts):
        self._send(self.STDOUT, number, b"Content-Type: text/plain\r\n\r\n")
        for part in parts:
            self._send(self.STDOUT, number, part)
            Raw.pause()
        self._send(self.STDOUT, number)
        self._send(self.END, number, bytes(8))

    def _much(self, number):
        Raw.sent = 0
        self._send(self.STDOUT, number, b"Content-Type: text/plain\r\n\r\n")
        for at in range(0, MUCH, 1 << 15):
            self._send(self.STDOUT, number, make(1 << 15, SEED + at))
            Raw.sent += 1 << 15
        self._send(self.STDOUT, number)
        self._send(self.END, number, bytes(8))


def php_fpm(folder, port):
    """PHP-FPM: the process."""
    settings = Path(folder) / "php-fpm.conf"
    settings.write_text(f"""[global]
error_log = {folder}/php-fpm.log
daemonize = no
[www]
listen = 127.0.0.1:{port}
user = www-data
pm = static
pm.max_children = 2
""")
    process = subprocess.Popen(
        [PHP_FPM, "--nodaemonize", "--no-php-ini", "--fpm-config",
         str(settings)], stdin=subprocess.DEVNULL)

    def answers():
        assert process.poll() is None, "php-fpm has ended"
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except ConnectionRefusedError:
            return False
        return True
    wait_until(answers, 60, "php-fpm answers")
    return process
