"""What stands between rdma_peer and httpd, on the client's host, for requests
that rdma_peer cannot send by itself, over TLS or pipelined, and to see what it
is answered."""
import re
import select
import socket
import ssl
import threading


class Relay:
    """Listens at `address`; connections to httpd come from there too, because
    that is where httpd connects back to."""

    def __init__(self, lab, server):
        self.lab = lab
        self.server = server
        self._sockets = []
        self._listener = lab.in_client(self._listen)
        self.address = "%s:%d" % self._listener.getsockname()[:2]
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in [self._listener, *self._sockets]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def _listen(self):
        return socket.create_server((self.lab.client(), 0))

    def _connect(self):
        sock = socket.create_connection(
            self.server, 30, source_address=(self.lab.client(), 0))
        self._sockets.append(sock)
        return sock

    def _accept(self):
        sock, _ = self._listener.accept()
        self._sockets.append(sock)
        return sock

    def _run(self):
        try:
            self.run()
        except OSError:
            pass  # the test is over, or judges what has not come


class Tls(Relay):
    """Each connection goes on as TLS."""

    def run(self):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        while True:
            near = self._accept()
            far = context.wrap_socket(self.lab.in_client(self._connect))
            threading.Thread(target=_shuttle, args=(near, far),
                             daemon=True).start()


def _shuttle(near, far):
    """Both ways in one thread: OpenSSL's connections are for one at a time."""
    try:
        while True:
            ready = [far] if far.pending() else \
                select.select([near, far], [], [])[0]
            if near in ready:
                data = near.recv(65536)
                if not data:
                    break
                far.settimeout(30)
                far.sendall(data)
            if far in ready:
                far.settimeout(0)  # what has come may be no data
                try:
                    data = far.recv(65536)
                except ssl.SSLWantReadError:
                    continue
                if not data:
                    break
                near.sendall(data)
        near.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the test is over, or judges what has not come
    far.close()


class Tap(Relay):
    """One connection; `answer` is what httpd has said on it, all of it when
    `ended` is set."""

    answer = b""

    def __init__(self, lab, server):
        self.ended = threading.Event()
        super().__init__(lab, server)

    def run(self):
        near = self._accept()
        far = self.lab.in_client(self._connect)
        threading.Thread(target=_pump, args=(near, far), daemon=True).start()
        _pump(far, near, self._keep)
        self.ended.set()

    def _keep(self, data):
        self.answer += data


def _pump(source, sink, keep=None):
    try:
        while data := source.recv(65536):
            if keep:
                keep(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end has gone, which the other pump tells


class Pipeline(Relay):
    """So many connections bring one request each; they leave together, on one
    connection, and the answers go back to where they belong."""

    def __init__(self, lab, server, count):
        self.count = count
        super().__init__(lab, server)

    def run(self):
        near = []
        for _ in range(self.count):
            sock = self._accept()
            request = b""
            while b"\r\n\r\n" not in request:
                request += sock.recv(65536)
            order = int(re.search(rb"X-Row: (\d+)", request).group(1))
            near.append((order, request, sock))
        near.sort(key=lambda item: item[0])
        far = self.lab.in_client(self._connect)
        far.sendall(b"".join(request for _, request, _ in near))
        with far.makefile("rb") as stream:
            for _, request, sock in near:
                for piece in _answer(stream, request.startswith(b"HEAD ")):
                    sock.sendall(piece)


def _answer(stream, head_only):
    """The next answer, as it comes."""
    length, chunked = 0, False
    status = stream.readline()
    yield status
    while True:
        line = stream.readline()
        yield line
        name, _, value = line.decode("latin-1").lower().partition(":")
        if name == "content-length":
            length = int(value)
        elif name == "transfer-encoding":
            chunked = True
        elif not line.strip():
            break
    if head_only or status.split()[1] in (b"204", b"304"):
        return
    if not chunked:
        yield stream.read(length)
    while chunked:
        line = stream.readline()
        yield line
        length = int(line, 16)
        yield stream.read(length + 2)
        chunked = length > 0
