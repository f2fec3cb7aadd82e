"""Whatever stands in the way of RDMA, the same bytes come over TCP, soon, and
the answer says why. The requests here are written by hand."""
import re
import threading
import time
from pathlib import Path

import pytest

from content import differs
from httpd import PLACES, conf
from rawhttp import Connection, declined, field, rdma_field

SIZE = 65536
PROTOCOL = Path(__file__).parents[2] / "docs/PROTOCOL.md"


@pytest.fixture
def get(lab, httpd, site):
    """get(rdma, ...): a request of a connection of its own; checks that the
    body came by TCP, whole."""
    def get_one(rdma=None, family=4, size=SIZE, folder="", **options):
        with Connection(lab, family) as connection:
            answer = connection.get(site.file(size, folder), rdma, **options)
        assert answer.status == 200
        if options.get("method", "GET") == "GET":
            assert answer.complete and not differs(answer.body, size)
        entry, = httpd.access()
        assert (entry.mode == "tcp") == (rdma_field(answer) is not None)
        assert entry.declined == (declined(answer) or "-")
        return answer
    return get_one


def malformed_fields():
    text = PROTOCOL.read_text()
    for block in re.findall(r"^```rdma-request malformed\n(.*?)^```", text,
                            re.M | re.S):
        for line in block.splitlines():
            if not line.startswith("#"):
                yield line
    right = field()
    yield ""
    yield "v=1"
    yield right + ", x" * 2000  # beyond 4096 bytes
    yield right + ', a="unfinished'
    yield right + ", A=1"
    yield right.replace("port=", "port=-")
    yield right.replace("port=1024", "port")
    yield right.replace(", id=1,", ', id="1",')
    yield right.replace(", id=1,", ", id=1.0,")
    yield right.replace("len=", "len=-")
    yield right.replace("len=1048576", "len=1099511627777")
    yield right.replace('stag="00000100"', 'stag="000001000"')
    yield right.replace('stag="00000100"', "stag=00000100")
    yield right.replace(", read", ", read=1")
    yield right.encode() + b', x="\xff"'
    yield [right, "port=80"]
    yield [right, "write"]


def test_malformed_fields(lab, httpd, site):
    count = 0
    with Connection(lab) as connection:
        for value in malformed_fields():
            answer = connection.get(site.file(4096), value)
            assert answer.status == 200, value
            assert not differs(answer.body, 4096), value
            assert rdma_field(answer) == {"v": "1", "declined": "malformed"}, \
                value
            count += 1
    assert count > 30
    entries = httpd.access(count)
    assert {(entry.mode, entry.declined) for entry in entries} == \
        {("tcp", "malformed")}


def test_a_later_version(get):
    assert rdma_field(get("v=2, what=?1")) == {"v": "1", "declined": "version"}


def test_no_field_asked_none_given(get):
    assert rdma_field(get()) is None


@pytest.mark.parametrize("connection", [None, "close", "keep-alive, xrdma"])
def test_not_nominated(get, connection):
    assert rdma_field(get(field(), connection=connection)) is None


def test_http_1_0(get):
    assert rdma_field(get(field(), version="1.0")) is None


def test_head(get):
    assert rdma_field(get(field(), method="HEAD")) is None


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_listens(get, family):
    began = time.monotonic()
    answer = get(field(port=41999), family=family)
    assert declined(answer) == "connect"
    assert time.monotonic() - began < 1.5


def test_nobody_listens_again_and_again(lab, httpd, site):
    """The second request does not even try."""
    rdma = field(port=41998).replace("id=1,", "id={},")
    with Connection(lab) as connection:
        for number in range(1, 9):
            answer = connection.get(site.file(SIZE), rdma.format(number))
            assert declined(answer) in ("connect", "busy")
            assert not differs(answer.body, SIZE)
    httpd.access(8)


def test_too_small(get):
    assert declined(get(field(), size=4096)) == "small"


def test_an_address_that_is_not_the_peers(get):
    answer = get(field(addr="10.77.0.3"))
    assert declined(answer) == "policy"


def test_nothing_to_send(lab, httpd, site):
    with Connection(lab) as connection:
        answer = connection.get(site.file(0), field())
    assert (answer.status, answer.body) == (200, b"")
    assert rdma_field(answer) is None
    httpd.access()


def test_not_modified(lab, httpd, site):
    with Connection(lab) as connection:
        tag, = [v for k, v in connection.get(site.file(SIZE)).fields
                if k == "etag"]
        answer = connection.get(site.file(SIZE), field(),
                                fields=[f"If-None-Match: {tag}"])
    assert answer.status == 304
    assert rdma_field(answer) is None
    httpd.access(2)


def test_a_window_that_is_too_small(get):
    answer = get(field(window=1000, offers=["write"]))
    assert declined(answer) == "window"


def test_field_in_two_lines(get):
    first, second = field(port=41997).split(", token", 1)
    assert declined(get([first, "token" + second])) == "connect"


@pytest.mark.httpd(PLACES)
class TestDirectories:
    def test_off(self, get):
        assert rdma_field(get(field(), folder="off")) is None

    def test_pinned_to_write(self, get):
        answer = get(field(offers=["read"]), folder="write")
        assert declined(answer) == "policy"

    def test_pinned_to_read(self, get):
        answer = get(field(offers=["write"]), folder="read")
        assert declined(answer) == "policy"

    def test_minimal_size(self, get):
        assert declined(get(field(), folder="large")) == "small"


@pytest.mark.httpd("RdmaEnable On\n"
                   "RdmaAllow 0.0.0.0/1 128.0.0.0/1 ::/1 8000::/1")
@pytest.mark.parametrize("address", [
    "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "239.255.255.255",
    "255.255.255.255", "::", "ff02::1", "ff05::2", "fe80::1"])
def test_an_address_of_nobody_or_of_many(get, address):
    """Where even every address is allowed."""
    assert declined(get(field(addr=address))) == "policy"


@pytest.mark.httpd("RdmaEnable On\nRdmaConnectTimeout 1s\n"
                   "RdmaAllow 10.77.0.0/24\n")
class TestBlackHole:
    HOLE = "10.77.0.99"

    def test_others_are_served(self, lab, httpd, site):
        lab.black_hole(self.HOLE)
        waits = {}

        def ask():
            with Connection(lab) as connection:
                began = time.monotonic()
                answer = connection.get(site.file(SIZE),
                                        field(addr=self.HOLE, port=41000))
                waits["asker"] = time.monotonic() - began
                waits["answer"] = answer
        asker = threading.Thread(target=ask)
        asker.start()
        try:
            with Connection(lab) as connection:
                for _ in range(5):
                    began = time.monotonic()
                    answer = connection.get(site.file(SIZE))
                    assert not differs(answer.body, SIZE)
                    assert time.monotonic() - began < 0.8
        finally:
            asker.join()
            lab.mend()
        assert declined(waits["answer"]) == "connect"
        assert not differs(waits["answer"].body, SIZE)
        assert 0.5 < waits["asker"] < 1 + 1.5
        httpd.access(6)


@pytest.mark.driver("none")
@pytest.mark.httpd(conf(expect=[("RDMA0002", 1)]))
class TestNoDevice:
    def test_over_tcp(self, get):
        assert declined(get(field())) == "device"

    def test_malformed_all_the_same(self, get):
        assert declined(get("v=1, nonsense")) == "malformed"


@pytest.mark.httpd(conf(mpm="prefork", expect=[("RDMA0004", 1)]))
def test_prefork_is_passive(get):
    assert declined(get(field())) == "device"


@pytest.mark.httpd(conf("RdmaEnable Off"))
def test_off_is_off(get):
    assert rdma_field(get(field())) is None
