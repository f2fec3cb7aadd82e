"""Content that is made while it is sent: it goes on as it comes, it waits for
a slow client, and where it breaks off nobody takes it for the whole."""
import os
import threading
import time

import pytest

import backends
import matrix
from backends import MUCH, PARTS, Raw
from clients import Peer, line_of
from rawhttp import Connection
from status import wait_for

CONF = f"""
RdmaEnable On
LoadModule cgid_module {matrix.MODULES}/mod_cgid.so
LoadModule proxy_module {matrix.MODULES}/mod_proxy.so
LoadModule proxy_http_module {matrix.MODULES}/mod_proxy_http.so
LoadModule proxy_fcgi_module {matrix.MODULES}/mod_proxy_fcgi.so
<Location /programs>
    Options +ExecCGI
    SetHandler cgi-script
</Location>
<Location /fcgi>
    SetHandler proxy:fcgi://127.0.0.1:{matrix.FCGI}/
</Location>
<Proxy fcgi://127.0.0.1:{matrix.FCGI}/>
    ProxySet flushpackets=on
</Proxy>
ProxyPass /raw/ http://127.0.0.1:{matrix.RAW}/ flushpackets=on
ProxyTimeout 60
"""
pytestmark = pytest.mark.httpd(CONF)
MODES = pytest.mark.parametrize("mode", ["write", "read"])


@pytest.fixture(scope="module", autouse=True)
def behind():
    servers = [backends.serve(backends.Raw, matrix.RAW),
               backends.serve(backends.Fcgi, matrix.FCGI)]
    yield
    for server in servers:
        server.shutdown()
        server.server_close()


class Gate:
    """A CGI program that waits for open() after each part."""

    def __init__(self, site):
        fifo = site.root / "programs/gate"
        text = "#!/bin/sh\necho Content-Type: text/plain\necho\n"
        for part in PARTS:
            text += f"echo {part.decode().strip()}\nread _ <{fifo}\n"
        self.path = site.text("programs/pauses", text, 0o755)
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        self.fifo = fifo
        self.fd = os.open(fifo, os.O_RDWR)  # waits for nobody

    def open(self):
        os.write(self.fd, b"\n")

    def close(self):
        os.close(self.fd)
        self.fifo.unlink()


@pytest.fixture
def gate(site):
    made = Gate(site)
    yield made
    made.close()


@MODES
@pytest.mark.parametrize("source", ["CGI", "FastCGI", "proxied"])
def test_parts_do_not_wait_for_each_other(client, gate, mode, source):
    """Each part is with the client's reader before the next one is made."""
    if source == "CGI":
        path, release = gate.path, gate.open
    else:
        path = {"FastCGI": "/fcgi/pauses", "proxied": "/raw/pauses"}[source]
        Raw.gate = threading.Semaphore(0)
        release = Raw.gate.release
    process = client.start_rwget(path, rdma=mode, target="-")
    for part in PARTS:
        assert line_of(process.stdout.fileno(), 30) == part
        release()
    ended, _, err = client.finish(process)
    assert ended == 0, err
    assert f'"path":"{mode}"' in err.replace(" ", ""), err
    client.tally.body(True, sum(map(len, PARTS)))
    client.httpd.access()


@MODES
def test_a_slow_client_holds_the_source_back(client, mode):
    """While nothing is taken, no more is made than fits on the way."""
    process = client.peer_at(["/raw/much"], "before-consumed", "--window",
                             1 << 20, mode=mode)
    while True:
        before = Raw.sent
        time.sleep(1)
        if Raw.sent == before > 0:
            break
    assert Raw.sent < MUCH // 2, "the source was not held back"
    process.stdin.write("go on\n")
    process.stdin.flush()
    run = Peer(*client.finish(process, 120))
    assert (run.status, run.bytes[mode]) == (0, MUCH), run.json
    client.tally.body(True, MUCH)
    client.httpd.access()


@pytest.mark.parametrize("path", [
    "/raw/breaks-with-length", "/raw/breaks-chunked", "/raw/breaks-late",
    "/fcgi/breaks"])
def test_a_source_that_breaks_off(client, path):
    """The client of either mode fails, as that of TCP does."""
    client.httpd.expect(dict.fromkeys(
        ["RDMA0020", "AH01067", "AH01068", "AH01075", "AH01102", "AH01110"]))
    if not path.startswith("/fcgi"):  # there httpd lets TCP clients wait
        with Connection(client.lab) as connection:
            connection.send(path, connection=None)
            assert not connection.answer().complete
    for mode in ("write", "read"):
        result = client.rwget(path, "--timeout=5", rdma=mode)
        assert result.status not in (0, 9), (mode, result.json)
        wait_for(StreamsOpen=0)
    client.httpd.skip_access()
    client.fetch(100_000, by="write")
