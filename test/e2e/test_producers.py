"""Content that is made while it is sent: it goes on as it comes, it waits for
a slow client, and where it breaks off nobody takes it for the whole."""
import os
import threading
import time
import zlib

import pytest

import backends
import matrix_site
from backends import LARGE, MUCH, PARTS, Raw
from clients import Peer, line_of
from content import SEED
from hosts import wait_until
from rawhttp import Connection, declined, field
from status import wait_for

CONF = f"""
RdmaEnable On
LoadModule cgid_module {matrix_site.MODULES}/mod_cgid.so
LoadModule proxy_module {matrix_site.MODULES}/mod_proxy.so
LoadModule proxy_http_module {matrix_site.MODULES}/mod_proxy_http.so
LoadModule proxy_fcgi_module {matrix_site.MODULES}/mod_proxy_fcgi.so
LoadModule filter_module {matrix_site.MODULES}/mod_filter.so
LoadModule deflate_module {matrix_site.MODULES}/mod_deflate.so
LoadModule include_module {matrix_site.MODULES}/mod_include.so
<Location /programs>
    Options +ExecCGI
    SetHandler cgi-script
</Location>
<Location /fcgi>
    SetHandler proxy:fcgi://127.0.0.1:{matrix_site.FCGI}/
</Location>
<Proxy fcgi://127.0.0.1:{matrix_site.FCGI}/>
    ProxySet flushpackets=on
</Proxy>
# Another address, so that it is another worker, with httpd's defaults.
ProxyPass /late/ fcgi://127.0.0.2:{matrix_site.FCGI}/fcgi/
<FilesMatch "\\.php$">
    SetHandler proxy:fcgi://127.0.0.1:{matrix_site.PHP}
</FilesMatch>
<Proxy fcgi://127.0.0.1:{matrix_site.PHP}/>
    ProxySet flushpackets=on
</Proxy>
ProxyPass /raw/websocket http://127.0.0.1:{matrix_site.RAW}/websocket \
    upgrade=websocket
ProxyPass /raw/ http://127.0.0.1:{matrix_site.RAW}/ flushpackets=on
ProxyPass /squeezed/ http://127.0.0.1:{matrix_site.RAW}/
ProxyPass /slow/ http://127.0.0.2:{matrix_site.RAW}/
<Location /squeezed>
    SetOutputFilter DEFLATE
</Location>
<Location /included>
    Options +Includes
    SetOutputFilter INCLUDES
</Location>
<Location /raw/much-chunked>
    RdmaMinSize 1G
</Location>
<Location /raw/waits>
    ErrorDocument 502 /programs/mark
</Location>
ProxyTimeout 60
"""
pytestmark = pytest.mark.httpd(CONF)
MODES = pytest.mark.parametrize("mode", ["write", "read"])


@pytest.fixture(scope="module", autouse=True)
def behind():
    servers = [backends.serve(backends.Raw, matrix_site.RAW),
               backends.serve(backends.Fcgi, matrix_site.FCGI)]
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


def goes_on_as_it_comes(client, path, release, parts, mode, *options,
                        read=None, before=lambda: None):
    """Each part is with the client's reader before the next one is made.
    before() is called when it has been asked for."""
    process = client.start_rwget(path, *options, rdma=mode, target="-")
    before()
    read = read or (lambda out, _: line_of(out, 30))
    for part in parts:
        assert read(process.stdout.fileno(), part) == part
        release()
    ended, _, err = client.finish(process)
    assert ended == 0, err
    assert f'"path":"{mode}"' in err.replace(" ", ""), err
    client.tally.body(True, sum(map(len, parts)))
    client.httpd.skip_access()


@MODES
@pytest.mark.parametrize("path,parts", [
    ("/fcgi/pauses", PARTS), ("/raw/pauses", PARTS),
    pytest.param("/raw/pauses-with-length", LARGE, marks=pytest.mark.long)],
    ids=["FastCGI", "proxied", "proxied, with length"])
def test_parts_do_not_wait_for_each_other(client, path, mode, parts):
    Raw.gate = threading.Semaphore(0)
    goes_on_as_it_comes(client, path, Raw.gate.release, parts, mode)


@pytest.mark.parametrize("path,mode", [
    ("/late/pauses-large", "write"), ("/slow/pauses-with-length", "read"),
    pytest.param("/late/pauses-large", "read", marks=pytest.mark.long),
    pytest.param("/slow/pauses-with-length", "write", marks=pytest.mark.long)])
def test_nor_those_that_nobody_flushes(client, path, mode):
    """That the source has paused is seen when the second part comes, and then
    the first one goes, too; no other waits."""
    Raw.gate = threading.Semaphore(0)
    Raw.pausing.clear()

    def second():
        assert Raw.pausing.wait(30)
        time.sleep(0.5)  # the pause
        Raw.gate.release()
    goes_on_as_it_comes(client, path, Raw.gate.release, LARGE, mode,
                        before=second)


@MODES
def test_nor_do_those_of_a_program(client, gate, mode):
    goes_on_as_it_comes(client, gate.path, gate.open, PARTS, mode)


@pytest.mark.long
@MODES
def test_nor_those_that_ssi_includes(client, gate, mode):
    page = client.site.text("included/gate.shtml",
                            f'<!--#include virtual="{gate.path}" -->')
    goes_on_as_it_comes(client, page, gate.open, PARTS, mode)


@pytest.mark.long
@MODES
def test_nor_those_that_are_compressed(client, mode):
    Raw.gate = threading.Semaphore(0)
    inflate = zlib.decompressobj(31)

    def read(out, part):
        got = b""
        while len(got) < len(part):
            byte = os.read(out, 1)
            assert byte, got
            got += inflate.decompress(byte)
        return got
    goes_on_as_it_comes(client, "/squeezed/pauses", Raw.gate.release, PARTS,
                        mode, "--header=Accept-Encoding: gzip", read=read)


@pytest.fixture
def php(site):
    folder = site.root / "php-fpm"
    folder.mkdir(exist_ok=True)
    process = backends.php_fpm(folder, matrix_site.PHP)
    yield
    process.terminate()
    process.wait(30)


@pytest.mark.long
@MODES
def test_nor_those_of_php(client, gate, php, mode):
    path = client.site.text("gate.php", "<?php while (ob_get_level()) "
                            "ob_end_flush();\n" + "".join(
        f"echo '{part.decode().strip()}', \"\\n\"; flush();\n"
        f"fgets(fopen('{gate.fifo}', 'r'));\n" for part in LARGE))
    goes_on_as_it_comes(client, path, gate.open, LARGE, mode)


def held_back(sent=lambda: Raw.sent):
    """No more is made than fits on the way."""
    def stands():
        before = sent()
        time.sleep(1)
        return sent() == before > 0
    wait_until(stands, 60, "the source stands still")
    assert sent() < MUCH // 2, "the source was not held back"


def a_slow_client(client, path, mode, sent, verify):
    process = client.peer_at([path], "before-consumed", "--window", 1 << 20,
                             mode=mode, verify=verify)
    held_back(sent)
    process.stdin.write("go on\n")
    process.stdin.flush()
    run = Peer(*client.finish(process, 120))
    assert (run.status, run.bytes[mode]) == (0, MUCH), run.json
    client.tally.body(True, MUCH)
    client.httpd.access()


@pytest.mark.parametrize("path,mode", [
    pytest.param(f"/{path}", mode, marks=[] if (path, mode) == ("raw/much", "read")
                 else pytest.mark.long)
    for path in ("raw/much", "raw/much-streamed", "fcgi/much")
    for mode in ("write", "read")])
def test_a_slow_client_holds_the_source_back(client, mode, path):
    Raw.sent = 0
    a_slow_client(client, path, mode, lambda: Raw.sent, f"stamp:{SEED:#x}")


@pytest.mark.long
@MODES
def test_a_slow_client_holds_a_program_back(client, mode):
    made = client.httpd.root / "made"
    made.write_bytes(b"")
    made.chmod(0o666)
    path = client.site.text("programs/much", f"""#!/bin/sh
echo Content-Type: application/octet-stream
echo
for n in $(seq {MUCH >> 18}); do
    head -c {1 << 18} /dev/zero
    printf . >>{made}
done
""", 0o755)
    a_slow_client(client, path, mode, lambda: made.stat().st_size << 18, None)


def test_what_may_be_too_small_does_not_pile_up(client):
    """However much RdmaMinSize wants to see first."""
    client.httpd.expect(dict.fromkeys(["AH01110"]))
    Raw.sent = 0
    with Connection(client.lab) as connection:
        connection.send("/raw/much-chunked", field(port=41820))
        held_back()
    client.httpd.access()


class Saved:
    """What one run of rdma_peer has got: its result and the answer's parts."""

    def __init__(self, client, path, mode, *options):
        folder = client.folder / f"saved-{mode}"
        folder.mkdir(exist_ok=True)
        for name in ("1.head", "1.body"):
            (folder / name).write_bytes(b"")
        run = client.peer([path], "--save", folder, *options, mode=mode,
                          verify=None)
        self.head = (folder / "1.head").read_text("latin-1")
        self.body = (folder / "1.body").read_bytes()
        self.status = int(self.head.split()[1]) if self.head else 0
        # All of it has come; rdma_peer calls a status a failure, too.
        self.whole = not set(run.errors) - {f"status {self.status}"}


BREAKS = dict.fromkeys(["RDMA0020", "AH01067", "AH01068", "AH01075",
                        "AH01102", "AH01110"])


@pytest.mark.parametrize("path", [
    "/raw/breaks-with-length", "/raw/breaks-chunked", "/raw/breaks-late",
    "/late/breaks-5000", "/late/breaks-100000",
    pytest.param("/fcgi/breaks-100000", marks=pytest.mark.long)])
def test_a_source_that_breaks_off(client, path):
    """The client of either mode fails, as that of TCP does; or it gets an
    error page and nothing but that."""
    client.httpd.expect(BREAKS)
    with Connection(client.lab) as connection:
        connection.send(path, connection="close")
        assert not connection.answer().complete
    client.httpd.access()
    for mode in ("write", "read"):
        answer = Saved(client, path, mode, "--timeout", 10)
        entry, = client.httpd.access()
        if answer.whole:
            assert answer.status // 100 == 5, (mode, answer.head)
            assert answer.body.startswith(b"<!DOCTYPE HTML"), answer.body[:99]
            assert answer.body.endswith(b"</html>\n"), answer.body[-99:]
            assert int(entry.b) == len(answer.body), entry
        if path == "/raw/breaks-late":  # its head was out
            assert (entry.status, entry.mode) == ("200", mode), entry
            assert 0 < int(entry.bytes) <= 3 << 20, entry
        wait_for(StreamsOpen=0)
    client.fetch(100_000, by="write")


def test_who_leaves_before_the_head(client):
    """The log tells of the answer that was made; no other is made for nobody."""
    marked = client.httpd.root / "marked"
    client.site.text("programs/mark", f"#!/bin/sh\necho >{marked}\n"
                     "echo Content-Type: text/plain\necho\n", 0o755)
    client.httpd.expect(BREAKS)
    Raw.gate = threading.Semaphore(0)
    Raw.pausing.clear()
    path = client.site.file(100_000)
    process = client.start_peer([path, "/raw/waits"], "--step",
                                "request-sent@2=reset-http", "--linger", 20000,
                                mode="write", verify=None)
    client.httpd.access(path=path)
    assert Raw.pausing.wait(30)
    Raw.gate.release()
    entry, = client.httpd.access(path="/raw/waits")
    assert entry.status == "200", entry
    assert not marked.exists()
    wait_for(StreamsOpen=0)
    process.kill()
    client.finish(process)


def test_another_protocol(client):
    """What mod_proxy_http hands on is not touched."""
    with Connection(client.lab) as connection:
        connection.send("/raw/websocket", field(port=41821),
                        connection="Upgrade, RDMA",
                        fields=["Upgrade: websocket"])
        answer = connection.answer()
        assert answer.status == 101
        assert declined(answer) is None
        connection.socket.sendall(b"to and fro")
        assert connection.socket.recv(100) == b"to and fro"
    client.httpd.access()
