"""rwget: what it fetches, what it leaves behind, what it says, how it ends."""
import time

import pytest

from content import differs
from hosts import wait_until
from httpd import PLACES, PORT, conf
from rawhttp import field

SIZE = 1 << 20


@pytest.mark.parametrize("mode,family", [
    ("write", 4), ("read", 6),
    pytest.param("write", 6, marks=pytest.mark.long),
    pytest.param("read", 4, marks=pytest.mark.long)])
def test_by_rdma(client, mode, family):
    result, _ = client.fetch(SIZE, "--rdma-require", by=mode, family=family)
    assert result.attempts == 1
    assert "RDMA, " in result.err


def test_off(client):
    result = client.rwget(client.site.file(SIZE), rdma="off")
    assert (result.status, result.path) == (0, "tcp")
    assert not differs(result.target.read_bytes(), SIZE)
    entry, = client.httpd.access()
    assert entry.mode == "-"  # the server was not asked


def test_declined_is_told(client):
    result, entry = client.fetch(1000, by="tcp")
    assert result.declined == entry.declined == "small"
    assert result.why_tcp


def test_window_declined(client):
    result, entry = client.fetch(SIZE, "--rdma-window=32K", "--rdma=write",
                                 by="tcp")
    assert result.declined == entry.declined == "window"


@pytest.mark.parametrize("mode", ["write", "read"])
def test_streamed(client, mode):
    """Through less memory than the body is long."""
    client.fetch(20 * 1024 * 1024 + 4321, "--rdma-window=256K",
                 "--rdma-require", by=mode)


def test_required_and_declined(client):
    result = client.rwget(client.site.file(1000), "--rdma-require")
    assert result.status == 9
    assert "small" in result.err or "small" in (result.declined or "")
    assert not list(client.folder.iterdir())


@pytest.mark.httpd(conf("", load=""))
class TestStranger:
    """A server that does not know RDMA."""

    def test_by_tcp(self, client):
        result, entry = client.fetch(SIZE, by="tcp")
        assert result.declined is None and entry.mode == "-"

    def test_required(self, client):
        result = client.rwget(client.site.file(SIZE), "--rdma-require")
        assert result.status == 9
        assert not list(client.folder.iterdir())


def test_not_found(client):
    result = client.rwget("/nothing")
    assert (result.status, result.json["status"]) == (8, 404)
    assert "404" in result.err
    assert not list(client.folder.iterdir())


def test_no_server(client):
    result = client.rwget("/", url=client.url("/", port=PORT + 7))
    assert result.status == 4
    assert not list(client.folder.iterdir())


@pytest.mark.parametrize("words", [
    ["--rdma=both"],
    pytest.param(["--rdma-window=0"], marks=pytest.mark.long),
    pytest.param(["--rdma-ports=80-90"], marks=pytest.mark.long),
    pytest.param(["--header=RDMA: v=1"], marks=pytest.mark.long),
    pytest.param(["--rdma-require", "--rdma=off"], marks=pytest.mark.long),
    pytest.param(["--nonsense"], marks=pytest.mark.long),
])
def test_usage(client, words):
    result = client.rwget("/", *words)
    assert result.status == 2
    assert result.err


def test_no_folder(client):
    result = client.rwget(client.site.file(SIZE), target="no/folder")
    assert result.status == 3
    client.httpd.skip_access()


def test_an_old_file_stays_until_the_new_one_is_whole(client):
    (client.folder / "fetched").write_text("old")
    result = client.rwget("/nothing")
    assert result.status == 8
    assert (client.folder / "fetched").read_text() == "old"
    client.httpd.access()
    client.fetch(SIZE, by="write")


def test_ended_in_the_middle(client):
    """Nothing partial is left, and the server is as well as before."""
    client.lab.netem("rate", "2mbit")
    try:
        before = client.lab.sent()[0]
        process = client.start_rwget(client.site.file(SIZE))
        wait_until(lambda: client.lab.sent()[0] - before > SIZE // 16, 10,
                   "the transfer begins")
        process.terminate()
        client.finish(process, 10)
    finally:
        client.lab.mend()
    assert not list(client.folder.iterdir())
    client.httpd.expect({"RDMA0020": None})
    time.sleep(0.5)
    client.httpd.skip_access()
    client.fetch(SIZE, by="write")


@pytest.mark.httpd(PLACES)
class TestMore:
    def test_range(self, client):
        path = client.site.file(SIZE)
        client.mark()
        result = client.rwget(path, "--header=Range: bytes=1000-66535",
                              rdma="write")
        assert (result.status, result.json["status"]) == (0, 206)
        whole = (client.site.root / path[1:]).read_bytes()
        assert result.target.read_bytes() == whole[1000:66536]
        client.tally.body(result.path == "write", 65536)
        client.prove("write", [65536], client.httpd.access())

    def test_error_page(self, client):
        """A page that is large enough goes like any other body."""
        client.site.file(65536)
        client.mark()
        result = client.rwget("/nothing", rdma="write")
        assert (result.status, result.json["status"]) == (8, 404)
        client.tally.body(result.path == "write", 65536)
        client.prove("write", [65536], client.httpd.access())
        assert not list(client.folder.iterdir())

    def test_not_modified(self, client):
        result = client.rwget(client.site.file(SIZE),
                              "--header=If-None-Match: *")
        assert result.json["status"] == 304
        entry, = client.httpd.access()
        assert entry.mode == "-"


@pytest.mark.httpd(conf("RdmaEnable On", listen="Listen {port}"))
def test_dual_stack(client):
    """The client's IPv4 address comes in IPv6 clothes."""
    client.fetch(SIZE, "--rdma-require", by="write")
    client.fetch(SIZE, "--rdma-require", by="read", family=6)


def test_a_field_of_its_own(client):
    result = client.rwget("/", f"--header=RDMA: {field()}")
    assert result.status == 2
