"""The server's own numbers: what is known to have happened is what they say."""
import http.client
import os
import re
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

import status as numbers
from hosts import wait_until
from httpd import SHORT, STATUS_PATH, STATUS_PORT, conf
from rawhttp import Connection, declined, field
from status import changes, status, wait_for

ROOT = Path(__file__).parents[2]
SIZE = 65536


def documented():
    text = (ROOT / "docs/STATUS.md").read_text()
    return re.findall(r"^\| ([A-Z][A-Za-z]+) \|", text, re.M)


@pytest.fixture
def before(client):
    """The status when nothing is under way any more."""
    return wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0,
                    LeasesOpen=0, StreamsOpen=0, ConnectsInFlight=0,
                    ConnectsQueued=0)


def settled():
    return wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0,
                    LeasesOpen=0, StreamsOpen=0, ArenasOpen=0)


def check(before, wanted):
    """How many arenas it takes is for the engine to choose."""
    seen = changes(before, settled())
    assert (seen.pop("ArenasAttached", 0) > 0) == ("LeasesGranted" in wanted)
    assert seen == wanted


@pytest.mark.httpd(SHORT)
class TestCounts:
    @pytest.mark.parametrize("mode", ["write", "read"])
    def test_bodies(self, client, before, mode):
        run = client.peer([client.site.file(SIZE), client.site.file(SIZE + 1)],
                          mode=mode, requests=6)
        assert (run.status, run.paths[mode]) == (0, 6), run.json
        client.httpd.access(6)
        way = mode.capitalize()
        wanted = {"RequestsAsked": 6, f"Requests{way}": 6,
                  f"Bytes{way}": 3 * SIZE + 3 * (SIZE + 1),
                  "ConnectionsMade": 1, "ConnectionsReused": 5,
                  "ConnectionsClosedPeer": 1}
        if mode == "read":
            wanted.update(LeasesGranted=6, LeasesDone=6)
        check(before, wanted)

    @pytest.mark.parametrize("mode", ["write", "read"])
    def test_streams(self, client, before, mode):
        size = 3_000_001  # more than the window, and an arena of 8M
        run = client.peer([client.site.file(size)], "--window", SIZE,
                          mode=mode)
        assert (run.status, run.paths[mode]) == (0, 1), run.json
        client.httpd.access()
        way = mode.capitalize()
        wanted = {"RequestsAsked": 1, f"Requests{way}Streamed": 1,
                  f"Bytes{way}Streamed": size, "ConnectionsMade": 1,
                  "ConnectionsClosedPeer": 1}
        if mode == "read":
            wanted.update(LeasesGranted=1, LeasesDone=1)
        check(before, wanted)

    @pytest.mark.parametrize("mode", ["write", "read"])
    def test_a_stream_that_is_cut(self, client, before, mode):
        size = 64_000_001  # more than can have gone before the head is read
        client.peer([client.site.sparse(size)], "--window", SIZE, "--step",
                    "head=abort", mode=mode, verify=None)
        client.httpd.skip_access()
        seen = changes(before, settled())
        streamed = seen.pop(f"Bytes{mode.capitalize()}Streamed")
        assert 0 < streamed < size
        assert (seen["StreamsCut"], seen["ConnectionsMade"]) == (1, 1)
        assert seen[f"Requests{mode.capitalize()}Streamed"] == 1
        assert "LeasesGranted" not in seen

    def test_declined(self, client, before):
        """Each reason that a request alone can bring about, with the bytes."""
        small, body = client.site.file(4096), client.site.file(SIZE)
        asked = [
            (small, field(), "small"),
            (body, field(addr="10.77.0.3"), "policy"),
            (body, field(port=41990), "connect"),
            (body, "v=1, port=80", "malformed"),
            (body, "v=2", "version"),
            (body, field(window=1000, offers=["write"]), "window"),
        ]
        with Connection(client.lab) as connection:
            for path, rdma, why in asked:
                assert declined(connection.get(path, rdma)) == why
            # Who does not ask is not counted.
            connection.get(body)
            connection.get(body, field(), connection=None)
        client.httpd.access(len(asked) + 2)
        # Two connects: for a window that is too small it has begun before it
        # knows how long the body is.
        after = wait_for(ConnectsQueued=0, ConnectsInFlight=0)
        assert changes(before, after) == {
            "RequestsAsked": 6, "RequestsTcp": 6, "BytesTcp": 4096 + 5 * SIZE,
            "DeclinedSmall": 1, "DeclinedPolicy": 1, "DeclinedConnect": 1,
            "DeclinedMalformed": 1, "DeclinedVersion": 1, "DeclinedWindow": 1,
            "ConnectionsFailedUnreachable": 2}

    def test_rejected(self, client, before):
        run = client.peer([client.site.file(SIZE)], "--step",
                          "connect-request=reject:6", mode="write")
        assert run.paths["tcp"] == 1, run.json
        client.httpd.access()
        assert changes(before) == {
            "RequestsAsked": 1, "RequestsTcp": 1, "BytesTcp": SIZE,
            "DeclinedConnect": 1, "ConnectionsFailedRejected": 1}

    def test_an_expired_lease(self, client, before):
        process = client.peer_at([client.site.file(SIZE)], "head",
                                 mode="read")
        client.httpd.access()
        assert status()["LeasesOpen"] == 1
        assert changes(before, settled()) == {
            "RequestsAsked": 1, "RequestsRead": 1, "BytesRead": SIZE,
            "ConnectionsMade": 1, "ConnectionsClosedSilent": 1,
            "LeasesGranted": 1, "LeasesExpired": 1, "ArenasAttached": 1}
        process.kill()
        client.finish(process)

    def test_an_aborted_lease(self, client, before):
        client.peer([client.site.file(SIZE)], "--step", "before-read=abort",
                    mode="read")
        client.httpd.skip_access()
        seen = changes(before, settled())
        assert (seen["LeasesGranted"], seen["LeasesAborted"]) == (1, 1)

    def test_a_client_that_lies(self, client, before):
        client.peer([client.site.file(SIZE)], "--step", "head=lie:bad-type",
                    "--timeout", 10, "--linger", 300, mode="read")
        client.httpd.skip_access()
        assert changes(before, settled())["ConnectionsClosedProtocol"] == 1


@pytest.mark.httpd("RdmaEnable On\nRdmaMemory 1M\n")
def test_memory(client, before):
    """Too small to be streamed, and too many: 1M holds some of the leases. It has
    to hold the messages of each connection, too."""
    client.httpd.expect({"RDMA0053": None})
    process = client.peer_at([client.site.file(120_000)], "head",
                             "--clients", 12, count=12, mode="read")
    entries = client.httpd.access(12)
    held = sum(entry.mode == "read" for entry in entries)
    assert 0 < held < 12
    after = status()
    assert after["LeasesOpen"] == held == after["ArenasOpen"]
    assert changes(before, after)["DeclinedMemory"] == 12 - held
    assert held * 120_000 < after["MemoryInUse"] <= after["MemoryPeak"] \
        <= after["MemoryLimit"] == 1 << 20
    process.kill()
    client.finish(process)
    assert changes(before, settled())["LeasesAborted"] == held


TWO = "RdmaEnable On\nRdmaIdleTimeout 3s\nRdmaMaxConnections 2\n"


@pytest.mark.httpd(TWO)
def test_busy(client, before):
    """Connections with a lease make no room."""
    process = client.peer_at([client.site.file(SIZE)], "head", "--clients", 2,
                             count=2, mode="read")
    client.httpd.access(2)
    assert client.rwget(client.site.file(SIZE)).declined == "busy"
    client.httpd.access()
    seen = changes(before)
    assert (seen["DeclinedBusy"], seen["ConnectionsOpenRead"],
            seen["LeasesOpen"]) == (1, 2, 2)
    process.kill()
    client.finish(process)


@pytest.mark.httpd(TWO)
def test_why_connections_are_closed(client, before):
    process = client.peer_at([client.site.file(SIZE)], "done", "--clients", 2,
                             count=2, mode="write")
    client.httpd.access(2)
    assert status()["ConnectionsOpenWrite"] == 2
    client.fetch(SIZE, by="write", alone=False)
    after = wait_for(30, ConnectionsOpenWrite=0)
    assert changes(before, after) == {
        "RequestsAsked": 3, "RequestsWrite": 3, "BytesWrite": 3 * SIZE,
        "ConnectionsMade": 3, "ConnectionsClosedEvicted": 1,
        "ConnectionsClosedPeer": 1, "ConnectionsClosedIdle": 1}
    process.kill()
    client.finish(process)


class TestLives:
    """Of children: what they have done stays, what they held goes."""

    @pytest.mark.httpd("RdmaEnable On")
    def test_graceful_restart(self, client, before):
        process = client.peer_at([client.site.file(SIZE)], "done@1",
                                 mode="write")
        client.httpd.access()
        first = status()
        assert (first["ConnectionsOpenWrite"], first["Children"]) == (1, 1)
        old = client.httpd.graceful()
        wait_until(lambda: not set(old) & set(client.httpd.children()), 20,
                   "the old generation ends")
        after = wait_for(Children=1, ConnectionsOpenWrite=0)
        assert changes(first, after) == {"ConnectionsClosedStopping": 1,
                                         "ConnectionsOpenWrite": -1}
        process.kill()
        client.finish(process)
        client.fetch(SIZE, by="read")
        assert status()["RequestsRead"] == first["RequestsRead"] + 1

    @pytest.mark.httpd("RdmaEnable On")
    def test_restart(self, client, before):
        """The hard one: its children may be gone before they have closed."""
        process = client.peer_at([client.site.file(SIZE)], "done@1",
                                 mode="read")
        client.httpd.access()
        first = wait_for(LeasesOpen=0)
        old, = client.httpd.children()
        client.httpd.process.send_signal(signal.SIGHUP)
        wait_until(lambda: set(client.httpd.children()) - {old}, 30,
                   "a new child")
        seen = changes(first, wait_for(Children=1, ConnectionsOpenRead=0))
        assert seen.pop("ConnectionsOpenRead") == -1
        assert seen.pop("ArenasOpen", -1) == -1
        assert seen in ({"ConnectionsClosedStopping": 1},
                        {"ConnectionsLost": 1})
        process.kill()
        client.finish(process)

    @pytest.mark.httpd("RdmaEnable On")
    def test_killed_child(self, client, before):
        process = client.peer_at([client.site.file(SIZE)], "before-read",
                                 mode="read")
        client.httpd.access()
        first = status()
        assert (first["ConnectionsOpenRead"], first["LeasesOpen"],
                first["ArenasOpen"]) == (1, 1, 1)
        assert first["MemoryInUse"] > SIZE
        child, = client.httpd.children()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: set(client.httpd.children()) - {child}, 20,
                   "another child")
        after = wait_for(Children=1, LeasesOpen=0)
        assert changes(first, after) == {
            "ConnectionsOpenRead": -1, "ConnectionsLost": 1,
            "LeasesOpen": -1, "LeasesLost": 1, "ArenasOpen": -1}
        assert after["MemoryInUse"] == 0
        assert after["MemoryPeak"] == first["MemoryPeak"]
        process.kill()
        client.finish(process)
        client.fetch(SIZE, by="write")


@pytest.mark.driver("none")
@pytest.mark.httpd(conf(expect=[("RDMA0002", 1)]))
def test_no_device(lab, httpd, site):
    before = status()
    with Connection(lab) as connection:
        assert declined(connection.get(site.file(SIZE), field())) == "device"
    httpd.access()
    assert changes(before) == {"RequestsAsked": 1, "RequestsTcp": 1,
                               "BytesTcp": SIZE, "DeclinedDevice": 1}


# ---- the page -----------------------------------------------------------------

@pytest.mark.httpd("RdmaEnable On")
class TestPage:
    def test_html(self, httpd):
        code, fields, text = numbers.ask()
        assert code == 200
        assert fields["Content-Type"] == "text/html; charset=utf-8"
        assert fields["Cache-Control"] == "no-store"
        page = ElementTree.fromstring(text.split("\n", 1)[1])
        cells = ["".join(cell.itertext()) for cell in page.iter("td")]
        for name in documented():
            assert name in cells
        child, = httpd.children()
        assert str(child) in cells

    def test_auto(self, httpd):
        for query in ("?auto", "?a=b&auto"):
            code, fields, text = numbers.ask(STATUS_PATH + query)
            assert code == 200
            assert fields["Content-Type"] == "text/plain; charset=utf-8"
            assert list(numbers.parse(text)) == documented()

    @pytest.mark.parametrize("method,code", [("HEAD", 200), ("POST", 405)])
    def test_methods(self, httpd, method, code):
        connection = http.client.HTTPConnection("127.0.0.1", STATUS_PORT, 30)
        connection.request(method, STATUS_PATH, headers={"Connection": "close"})
        answer = connection.getresponse()
        assert (answer.status, answer.read() == b"") == (code, code == 200)
        connection.close()


MOD_STATUS = """
RdmaEnable On
LoadModule status_module /usr/lib/apache2/modules/mod_status.so
<Location "/server-status">
    SetHandler server-status
</Location>
"""


@pytest.mark.httpd(MOD_STATUS)
def test_section_of_server_status(client):
    client.fetch(SIZE, by="write", alone=False)
    totals = status()
    assert totals["RequestsWrite"] == 1
    _, _, text = numbers.ask("/server-status?auto")
    for name, value in totals.items():
        assert f"\nRdma{name}: {value}\n" in text
    for query in ("", "?notable"):
        _, _, text = numbers.ask(f"/server-status{query}")
        assert text.count("<h2>RDMA</h2>") == 1
        for name in documented():
            assert name in text
    client.httpd.skip_access()


# ---- the configuration that is installed --------------------------------------

def section():
    """The lines of the status in conf/rdma.conf, which are a comment there."""
    text = (ROOT / "conf/rdma.conf").read_text()
    found = re.search(r'^#<Location "/rdma-status">\n(?:#.*\n)*?#</Location>$',
                      text, re.M)
    return found.group(0)


def get(lab, path):
    with Connection(lab) as connection:
        return connection.get(path).status


@pytest.mark.httpd(f"Include {ROOT}/conf/rdma.conf")
def test_off_by_default(httpd):
    code, _, _ = numbers.ask("/rdma-status")
    assert code == 404
    httpd.access()


@pytest.mark.httpd(
    "LoadModule authz_host_module /usr/lib/apache2/modules/mod_authz_host.so\n"
    + section().replace("#", ""))
def test_only_local_as_shipped(lab, httpd):
    code, _, text = numbers.ask("/rdma-status?auto")
    assert code == 200 and list(numbers.parse(text)) == documented()
    httpd.expect({"AH01630": 1})
    assert get(lab, "/rdma-status") == 403
    httpd.access(2)
