"""rwget against servers that are no httpd of ours: that break off, break the
protocol, never end, or stand behind a proxy. It gets the right bytes, or says
that it did not."""
import contextlib
import os
import re
import socket
import socketserver
import ssl
import subprocess
import threading

import pytest

from clients import PEER, line_of
from content import SEED, differs, make
from hosts import wait_until

PORT = 8095
SIZE = 100_000
BODY = make(SIZE)
MUCH = 64 << 20  # nobody wants so much


class Hostile(socketserver.StreamRequestHandler):
    """One request for each connection. Without the field every answer is right,
    except where it says otherwise."""

    requests = []  # (path, the id or None)
    sent = 0       # bytes of an endless body
    held = ()      # what the client had of its device at the last hop
    lab = None

    def handle(self):
        lines = []
        while line := self.rfile.readline().strip().decode("latin-1"):
            lines.append(line)
        if not lines:
            return
        found = re.search(r"^RDMA: .*\bid=(\d+)", "\n".join(lines), re.M)
        self.id = found and found[1]
        self.path = lines[0].split()[1]
        Hostile.requests.append((self.path, self.id))
        name, *more = self.path[1:].replace("-", "_").split("/")
        try:
            getattr(self, name)(*more)
        except OSError:
            pass  # the client has left, which is its right

    def say(self, status, *fields, body=b""):
        lines = [f"HTTP/1.1 {status} So", "Connection: close", *fields, "", ""]
        self.wfile.write("\r\n".join(lines).encode("latin-1") + body)

    def good(self):
        self.say(200, f"Content-Length: {SIZE}", body=BODY)

    def head(self, name):
        if self.id is None:
            self.good()
        else:
            self.wfile.write(HEADS[name].format(id=self.id, other=int(self.id) + 1)
                             .replace("\n", "\r\n").encode())

    def cut_head(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nServer: x\r\n")

    def cut_once(self):
        self.good() if self.id is None else self.cut_head()

    def bad_redirect(self):
        self.say(302, "Location: http://\xff\xfe/", "Content-Length: 0")

    def hop(self, count):
        if count == "0":
            Hostile.held = self.lab.in_client(
                lambda: self.lab.objects("rwget"))
            self.good()
        else:
            address, port = self.server.server_address
            self.say(302, "Content-Length: 0", f"Location: http://{address}:"
                     f"{port + 1}/hop/{int(count) - 1}")

    def endless(self):
        while Hostile.sent < MUCH:
            self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            Hostile.sent += 65536

    def endless_redirect(self):
        self.say(302, "Location: /good", "Transfer-Encoding: chunked")
        self.endless()

    def endless_page(self):
        self.say(404, "Transfer-Encoding: chunked")
        self.endless()


# What may be wrong with the head of an answer by RDMA, to a request whose id no
# connection has ever been made for.
W1 = """HTTP/1.1 200 OK
Connection: RDMA, close
RDMA: v=1, id={id}, conn=1, write;total=100000
Content-Length: 0

"""
HEADS = {
    "conn": W1,
    "id": W1.replace("{id}", "{other}"),
    "version": W1.replace("v=1", "v=2"),
    "malformed": W1.replace("100000", "0"),
    "not_nominated": W1.replace("RDMA, close", "close"),
    "http10": W1.replace("HTTP/1.1", "HTTP/1.0"),
    "no_length": W1.replace("Content-Length: 0\n", ""),
    "body": W1.replace("Length: 0\n", "Length: 5\n") + "bytes",
    "read": W1.replace("write;total=100000",
                       'read;stag="00000001";to="0000000000001000";len=5;fin'),
    "failed": W1.replace("write;total=100000", "declined=failed"),
}


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


@contextlib.contextmanager
def serving(address, *handlers):
    """On one port after the other, from PORT on."""
    servers = [Server((address, PORT + i), handler)
               for i, handler in enumerate(handlers)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,),
                         daemon=True).start()
    yield
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hostile(request, lab):
    Hostile.requests = []
    Hostile.sent = 0
    Hostile.lab = lab
    with serving(lab.server(), *[Hostile] * getattr(request, "param", 1)):
        yield Hostile


def get(client, path, *options, port=PORT, **more):
    return client.rwget(path, *options, url=client.url(path, port=port),
                        **more)


def is_right(result):
    return not differs(result.target.read_bytes(), SIZE)


@pytest.mark.parametrize("head", [
    name if name in ("conn", "body")
    else pytest.param(name, marks=pytest.mark.long) for name in HEADS])
def test_bad_head(client, hostile, head):
    """Asked again, without the field, it answers as servers do."""
    result = get(client, f"/head/{head}")
    assert (result.status, result.path) == (0, "tcp"), result.err
    assert is_right(result)
    assert [number is not None for _, number in hostile.requests] == \
        [True, False]


def test_cut_head(client, hostile):
    """libcurl is content with half a head."""
    result = get(client, "/cut-head")
    assert (result.status, result.attempts) == (4, 2), result.err
    assert not list(client.folder.iterdir())


@pytest.mark.long
def test_cut_head_once(client, hostile):
    result = get(client, "/cut-once")
    assert (result.status, result.attempts) == (0, 2), result.err
    assert is_right(result)


def test_redirect_to_no_url(client, hostile):
    result = get(client, "/bad-redirect")
    assert (result.status, result.redirects) == (7, 1), result.err


@pytest.mark.parametrize("path, status", [
    ("/endless-redirect", 0),
    pytest.param("/endless-page", 8, marks=pytest.mark.long)])
def test_endless(client, hostile, path, status):
    """What is not wanted is not waited for."""
    result = get(client, path)
    assert result.status == status, result.err
    assert status or is_right(result)
    assert hostile.sent < MUCH


@pytest.mark.long
@pytest.mark.parametrize("hostile", [19], indirect=True)
def test_many_origins(client, hostile):
    """Not all of them keep an endpoint."""
    result = get(client, "/hop/18")
    assert (result.status, result.redirects) == (0, 18), result.err
    assert is_right(result)
    listeners = [line for line in hostile.held if "LISTEN" in line]
    assert len(listeners) == 16, hostile.held


@pytest.mark.parametrize("lost", [
    "answers", pytest.param("requests", marks=pytest.mark.long)])
def test_unanswered(client, lost):
    """The field prescribes where the request comes from; if it never gets out
    from there, it is tried without."""
    if lost == "answers":
        client.lab.black_hole(client.lab.client())
    else:
        client.lab.netem("loss", "100%", at="CLIENT")
    try:
        result = get(client, "/", "--timeout=1")
    finally:
        client.lab.mend()
    assert (result.status, result.attempts) == (4, 2), result.err


def test_closed_descriptors(client):
    """Whatever gets the numbers 0 to 2 is not taken for a terminal."""
    path = client.site.file(SIZE)
    client.mark()
    process = client.start(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", "/build/client/rwget",
         f"--bind-address={client.lab.client()}", "--rdma-require", "-O",
         "fetched", client.url(path)])
    status, _, _ = client.finish(process)
    assert status == 0
    assert not differs((client.folder / "fetched").read_bytes(), SIZE)
    client.tally.body(True, SIZE)
    client.prove("write", [SIZE], client.httpd.access(path=path))


# ---- a proxy ----------------------------------------------------------------

def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


class Connect(socketserver.StreamRequestHandler):
    """CONNECT, and nothing else."""

    def handle(self):
        host, _, port = self.rfile.readline().split()[1].partition(b":")
        while self.rfile.readline().strip():
            pass
        with socket.create_connection((host.decode(), int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(far, self.connection),
                                    daemon=True)
            back.start()
            pump(self.connection, far)
            back.join()


class Https(socketserver.StreamRequestHandler):
    context = None

    def handle(self):
        with self.context.wrap_socket(self.connection,
                                      server_side=True) as tls:
            request = b""
            while b"\r\n\r\n" not in request:
                request += tls.recv(65536)
            path = request.split()[1]
            if path == b"/turn":
                head = b"302 Found\r\nLocation: /good"
            else:
                head = b"200 OK" if path == b"/good" else b"404 Not Found"
            tls.sendall(b"HTTP/1.1 %b\r\nConnection: close\r\n"
                        b"Content-Length: %d\r\n\r\n%b" %
                        (head, SIZE, BODY))
            tls.unwrap()


@pytest.fixture
def tunnel(lab, tmp_path):
    """An https server that libcurl trusts, and the environment of a client that
    gets there through a proxy."""
    pem = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
         "/CN=origin", "-addext", f"subjectAltName=IP:{lab.server()}",
         "-keyout", str(pem), "-out", str(tmp_path / "crt")],
        check=True, capture_output=True, timeout=60)
    name = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(tmp_path / "crt")],
        check=True, capture_output=True, text=True, timeout=60)
    trusted = f"/etc/ssl/certs/{name.stdout.strip()}.0"
    with open(trusted, "w", encoding="ascii") as file:  # the guest's own /etc
        file.write((tmp_path / "crt").read_text())
    with open(pem, "a", encoding="ascii") as file:
        file.write((tmp_path / "crt").read_text())
    Https.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Https.context.load_cert_chain(pem)
    with serving(lab.server(), Connect, Https):
        yield dict(os.environ, https_proxy=f"http://{lab.server()}:{PORT}")
    os.unlink(trusted)


@pytest.mark.parametrize("path, status, redirects", [
    ("/turn", 0, 1), pytest.param("/none", 8, 0, marks=pytest.mark.long)])
def test_through_a_proxy(client, tunnel, path, status, redirects):
    """The proxy's "200 Connection established" is not the answer."""
    url = f"https://{client.lab.server()}:{PORT + 1}{path}"
    result = client.rwget(path, url=url, env=tunnel)
    assert (result.status, result.redirects) == (status, redirects), result.err
    assert status or is_right(result)


# ---- rdma_peer as the server ------------------------------------------------

@pytest.fixture
def peer_server(lab):
    process = subprocess.Popen(
        [PEER, "--serve", "--bind", lab.server(), "--port", str(PORT)],
        stdout=subprocess.PIPE)
    assert line_of(process.stdout.fileno(), 30) == b"ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: not lab.objects("rdma_peer"), 10, "rdma_peer's end")


def test_lost_field(client, peer_server):
    """The body has come by RDMA; of the head, which somebody has put right for
    those who know no RDMA, only an empty answer is left."""
    result = get(client, f"/{SEED}/{SIZE}?bare", rdma="write")
    assert (result.status, result.path, result.attempts) == (0, "tcp", 2), \
        result.err
    assert is_right(result)


@pytest.mark.parametrize("options, rdma, path", [
    pytest.param("fail", "write", "tcp", marks=pytest.mark.long),
    ("unknown&part=7000&dry", "read", "read")])
def test_other_server(client, peer_server, options, rdma, path):
    """Written from the document alone, and failing on request."""
    result = get(client, f"/{SEED}/{SIZE}?{options}", "--rdma-window=64K",
                 rdma=rdma)
    assert (result.status, result.path) == (0, path), result.err
    assert is_right(result)


@pytest.mark.long
@pytest.mark.parametrize("rdma", ["write", "read"])
def test_given_up(client, peer_server, rdma):
    """A stream that the server gives up is asked for again, unless some of it
    has been written out by then, which is a race: it is right or it is not."""
    result = get(client, f"/{SEED}/{SIZE}?abort&part=7000",
                 "--rdma-window=64K", rdma=rdma)
    if result.bytes_rdma == 0:
        assert (result.status, result.path) == (0, "tcp"), result.err
        assert is_right(result)
    else:
        assert (result.status, result.path) == (4, rdma), result.err
        assert not list(client.folder.iterdir())


# What may be wrong with the server's connect request, and why the client says
# that it rejects it.
SPOILT = {
    "connect-magic": "malformed private data",
    "connect-version": "unknown protocol version",
    "connect-kind": "wrong kind of connection",
    "connect-other": "wrong kind of connection",
    "connect-depth": "receive depth out of range",
    "connect-token": "wrong token",
    "connect-short": "malformed private data",
    "connect-bare": "malformed private data",
}
# What costs the connection, PROTOCOL.md, 11; by mode.
FORBIDDEN = ("late-hello", "second-hello", "bad-type", "wrong-type",
             "other-type", "bad-length", "long-message", "zero-id", "huge-id",
             "unknown-id", "extra-credits", "flood")
FORBIDDEN_BY = {
    "write": (*FORBIDDEN, "written-falls", "written-beyond"),
    "read": (*FORBIDDEN, "offer-nothing", "offer-wraps", "offer-all",
             "offer-gap", "offer-third"),
}
# What its device refuses, or somebody ends.
REFUSED = ("write-before", "write-beyond", "write-far", "write-tag")
CHECKED_LIES = {("write", "flood"), ("write", "written-beyond"),
                ("write", "write-beyond"), ("write", "connect-token"),
                ("read", "unknown-id"), ("read", "offer-third"),
                ("read", "part-tag"), ("write", "written-little")}


def told(*lies):
    """(mode, lie) as parameters; few of them in check."""
    return pytest.mark.parametrize("rdma, lie", [
        pytest.param(*lie, marks=[] if lie in CHECKED_LIES
                     else pytest.mark.long) for lie in lies])


def lied_to(client, rdma, lie, *options, more="", timeout=10):
    """The lie has come to nothing: its request is answered over TCP, with a
    redirect, and the same endpoint gets the next one by RDMA."""
    result = get(client, f"/{SEED}/{SIZE}?lie={lie}{more}&turn", *options,
                 f"--timeout={timeout}", rdma=rdma, seconds=30)
    assert (result.status, result.path, result.redirects) == (0, rdma, 1), \
        result.err
    assert is_right(result)
    client.tally.body(True, SIZE)
    return result


@told(*((rdma, lie) for rdma in ("write", "read") for lie in SPOILT))
def test_spoilt_connects(client, peer_server, rdma, lie):
    result = lied_to(client, rdma, lie)
    assert re.search(f"rejected an RDMA connection from .*: {SPOILT[lie]}$",
                     result.err, re.M), result.err
    assert "declined=connect" in result.err, result.err


@told(*((rdma, lie) for rdma, lies in FORBIDDEN_BY.items() for lie in lies))
def test_server_breaks_the_protocol(client, peer_server, rdma, lie):
    """It is the client that ends the connection; the server admits it."""
    result = lied_to(client, rdma, lie)
    assert "RDMA connection 1 ended: protocol error" in result.err, result.err
    assert "declined=failed" in result.err, result.err


@told(*(("write", lie) for lie in FORBIDDEN_BY["write"]
        if not lie.endswith("-hello") and lie != "flood"))
def test_server_breaks_the_protocol_later(client, peer_server, rdma, lie):
    """The head has come, or is on its way: the client asks again."""
    result = lied_to(client, rdma, lie, more="&early")
    assert "RDMA connection 1 ended: protocol error" in result.err, result.err
    assert "asking again without" in result.err, result.err


@told(*(("write", lie) for lie in REFUSED),
      *((rdma, "disconnect") for rdma in ("write", "read")))
def test_server_reaches_beside(client, peer_server, rdma, lie):
    """Nobody writes but into the window; it costs the connection."""
    result = lied_to(client, rdma, lie)
    assert re.search("RDMA connection 1 ended: (?!closed here)", result.err), \
        result.err
    assert "declined=failed" in result.err, result.err


@told(*(("read", lie) for lie in ("part-tag", "part-far", "part-huge")))
def test_parts_that_are_none(client, peer_server, rdma, lie):
    result = lied_to(client, rdma, lie)
    assert re.search("RDMA failed: (an RDMA READ failed|the RDMA connection "
                     "was lost); asking again without", result.err), result.err


@told(*(("write", lie) for lie in ("written-much", "written-little")))
def test_server_contradicts_itself(client, peer_server, rdma, lie):
    """That costs it the id, and no more."""
    result = lied_to(client, rdma, lie)
    assert re.search("RDMA failed: .* contradicts .*; asking again without",
                     result.err), result.err
    assert "protocol error" not in result.err, result.err


@told(("write", "no-hello"), ("read", "no-hello"), ("write", "silence"))
def test_server_falls_silent(client, peer_server, rdma, lie):
    result = lied_to(client, rdma, lie, timeout=1)
    assert "RDMA failed: no progress by RDMA in time; asking again without" \
        in result.err, result.err


@told(("read", "silence"), ("read", "offer-little"),
      *(("read", f"{lie}&early") for lie in FORBIDDEN_BY["read"]
        if not lie.endswith("-hello") and lie != "flood"),
      ("read", "disconnect&early"))
def test_stream_that_goes_wrong(client, peer_server, rdma, lie):
    """As when it is given up: it is asked for again, unless some of it has been
    written out by then."""
    result = get(client, f"/{SEED}/{SIZE}?lie={lie}&turn", "--timeout=1",
                 rdma=rdma, seconds=30)
    if lie.removesuffix("&early") in FORBIDDEN_BY[rdma]:
        assert "RDMA connection 1 ended: protocol error" in result.err, \
            result.err
    if result.status == 0:
        assert (result.path, result.redirects) == (rdma, 1), result.err
        assert "asking again without" in result.err, result.err
        assert is_right(result)
    else:
        assert result.status in (4, 7), result.err
        assert result.bytes_rdma > 0, result.json
        assert result.error in result.err and result.error, result.err
        assert not list(client.folder.iterdir())
