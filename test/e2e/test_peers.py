"""Clients that do not behave: the server stays well, and serves the next."""
import time
from pathlib import Path

import pytest

from clients import Peer, go_on
from hosts import wait_until
from httpd import SHORT, conf
from status import changes, status, wait_for

TIGHT = "RdmaEnable On\nRdmaLeaseTimeout 1s\nRdmaTimeout 1s\nRdmaMemory 1M"
LARGE = 120_000  # nearly all that a body gets of 1M, and too small for a stream
SILENCE = 5300  # ms: after 5 s a connection is asked
CONNECT = 2     # s: RdmaConnectTimeout's default


def well(client):
    """The next one is served, by RDMA, both ways."""
    client.fetch(65536, by="write", folder="well", alone=False)
    client.fetch(65537, by="read", folder="well", alone=False)


@pytest.mark.httpd(TIGHT)
class TestLeases:
    def test_never_consumed(self, client):
        """While they last there is no memory for others; then there is."""
        process = client.peer_at([client.site.file(LARGE)], "head",
                                 "--clients", 12, count=12, mode="read")
        entries = client.httpd.access(12)
        ways = [(entry.mode, entry.declined) for entry in entries]
        assert ("read", "-") in ways and ("tcp", "memory") in ways, ways

        def served():
            result = client.rwget(client.site.file(LARGE), rdma="read")
            assert result.status == 0
            return result.path == "read"
        wait_until(served, 10, "the memory is back")
        process.kill()
        client.finish(process)
        well(client)

    def test_killed_with_a_lease(self, client):
        for _ in range(3):
            process = client.peer_at([client.site.file(LARGE)], "head",
                                     mode="read")
            process.kill()
            client.finish(process)
        well(client)

    def test_given_back_when_revoked(self, client):
        """A client that is slow, but answers, keeps its connection."""
        process = client.peer_at([client.site.file(LARGE)], "before-read",
                                 mode="read")
        time.sleep(1.6)
        process.stdin.close()
        process.stdin = None
        client.finish(process)
        well(client)

    def test_stop_does_not_wait_for_it(self, client):
        process = client.peer_at([client.site.file(LARGE)], "head",
                                 mode="read")
        assert client.httpd.stop() < 3
        assert not client.lab.objects()
        process.kill()
        client.finish(process)


@pytest.mark.httpd("RdmaEnable On")
def test_an_idle_child_sleeps(client):
    """Eight connections cost nothing while nobody asks."""
    process = client.peer_at([client.site.file(65536)], "done@1/8",
                             "--clients", 8)
    client.httpd.access(8)
    time.sleep(0.5)

    def switches():
        total = 0
        for child in client.httpd.children():
            for file in Path(f"/proc/{child}/task").glob("*/status"):
                for line in file.read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        total += int(line.split()[1])
        return total
    before = switches()
    time.sleep(2)
    assert switches() - before < 2 * 10
    process.stdin.close()
    process.stdin = None
    client.finish(process)


@pytest.mark.parametrize("mode", [
    "write", pytest.param("read", marks=pytest.mark.long)])
@pytest.mark.httpd(conf())
def test_silent(client, mode):
    """A client that has stopped, which its device does not tell, is asked
    before it is relied on; then it goes without, in time."""
    before = status()
    process = client.peer_at(
        [client.site.file(300_000)], "done@3", "--concurrency", 2, "--step",
        "done@1=stall", "--step", f"before-request@2=wait:{SILENCE}",
        count=2, mode=mode, requests=3)
    process.stdin.close()
    process.stdin = None
    run = Peer(*client.finish(process))
    assert (run.status, run.ok) == (0, 3), run.json
    assert [body["path"] for body in run.details] == [mode, "tcp", mode]
    second = run.details[1]
    assert second["declined"] == "connect"
    assert CONNECT - 0.1 < second["seconds"] < CONNECT + 1.5
    assert run.connections_made[mode] == 2, run.json
    done = changes(before)
    assert done["ConnectionsClosedSilent"] == 1, done
    for _ in range(2):
        client.tally.body(True, 300_000)
    client.httpd.access(3)


STEPS = ("request-sent", "connect-request", "accepted", "established",
         "hello", "first-message", "written-fin", "head", "before-read",
         "during-read", "before-consumed", "consumed-sent")
ENDS = ("exit", "disconnect", "destroy-qp", "close-http", "reset-http",
        "abort")
CHECKED = {("hello", "exit"), ("head", "reset-http"),
           ("first-message", "disconnect"), ("before-read", "abort"),
           ("connect-request", "close-http"), ("during-read", "destroy-qp")}


@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("step,end", [
    pytest.param(step, end, marks=[] if (step, end) in CHECKED
                 else pytest.mark.long)
    for step in STEPS for end in ENDS])
def test_leaving(client, step, end):
    """At every step, in every way; three clients, one of them leaves."""
    for mode in ("write", "read"):
        run = client.peer([client.site.file(300_000)], "--clients", 3,
                          "--step", f"{step}/2={end}", "--timeout", 10,
                          "--progress", 2, "--linger", 300, mode=mode,
                          requests=2)
        if end != "exit":
            assert run.mismatched == 0 and run.unexpected == 0, run.json
            others = [(body["path"], body["result"]) for body in run.details
                      if body["client"] != 2]
            assert others == [(mode, "ok")] * 4, run.json
    wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0, LeasesOpen=0,
             StreamsOpen=0, ConnectsQueued=0, ConnectsInFlight=0)
    well(client)


LIES = ("bad-type", "wrong-type", "bad-length", "long-message", "bad-hello",
        "zero-id", "huge-id", "unknown-id", "unknown-abort",
        "consumed-beyond", "consumed-falls", "early-fin", "wrong-fin",
        "extra-credits", "flood", "silent", "read-beyond", "read-before",
        "read-far", "read-after-done", "many-reads", "write-attempt",
        "accept-magic", "accept-version", "accept-kind", "accept-depth",
        "accept-deep", "accept-conn", "accept-short", "accept-bare")
PUNISHED = {"bad-type", "wrong-type", "bad-length", "long-message",
            "bad-hello", "zero-id", "huge-id", "consumed-beyond", "wrong-fin",
            "extra-credits", "read-far", "write-attempt"}
SHOWN_NOTHING = {"read-beyond", "read-before", "read-far"}
CHECKED_LIES = {"consumed-beyond", "flood", "read-far", "accept-conn"}


def step_of(lie):
    if lie.startswith("accept-"):
        return "connect-request"
    return "consumed-sent" if lie == "read-after-done" else "head"


@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("lie", [
    pytest.param(lie, marks=[] if lie in CHECKED_LIES else pytest.mark.long)
    for lie in LIES])
def test_lies(client, lie):
    """An honest client at the same time does not notice."""
    honest = client.start_peer([client.site.file(300_000)], requests=20)
    for mode in ("write", "read"):
        liar = client.peer([client.site.file(300_000)], "--step",
                           f"{step_of(lie)}@1=lie:{lie}", "--timeout", 10,
                           "--progress", 2, "--linger", 300, mode=mode,
                           requests=2)
    # The last one had a lease when it lied.
    if lie in PUNISHED:
        assert liar.json["connections"]["lost"] >= 1, liar.json
    forbidden = liar.json["forbidden"]
    if lie in SHOWN_NOTHING:
        assert forbidden["done"] + forbidden["refused"] == 1, liar.json
        assert forbidden["bytes_seen"] == 0, liar.json
    if lie == "read-far":
        assert forbidden["refused"] == 1, liar.json
    ended, out, _ = client.finish(honest)
    assert ended == 0, out
    well(client)


def rob(client, *what):
    """The second of two clients does that when the first is about to READ: it
    costs the second its connection, and the first nothing."""
    run = client.peer(
        [client.site.file(100_000)], "--clients", 2, "--timeout", 10,
        "--step", "before-read/1=wait:700", "--step",
        "before-request/2=wait:300",
        *(option for one in what for option in ("--step", f"head/2={one}")),
        mode="read", requests=1)
    assert run.json["connections"]["lost"] == 1, run.json
    one, other = sorted(run.details, key=lambda body: body["client"])
    assert (one["path"], one["result"]) == ("read", "ok"), run.json
    assert other["result"] != "ok", run.json
    client.tally.body(True, 100_000)
    well(client)
    return run


@pytest.mark.httpd(SHORT)
def test_a_tag_of_another_client(client):
    """It shows nothing."""
    run = rob(client, "lie:read-other")
    assert run.json["forbidden"] == {"done": 0, "refused": 1, "bytes_seen": 0}


@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("mode", [
    "write", pytest.param("read", marks=pytest.mark.long)])
def test_flood(client, mode):
    """Who asks again and again and returns no credit gets no answer one day,
    and then has none left itself: the server counts, and ends it."""
    before = status()
    liar = client.peer(
        [client.site.file(300_000)], "--step", "before-consumed=lie:flood",
        "--step", "before-consumed=wait:800", "--timeout", 10, "--linger", 300,
        mode=mode, requests=1)
    assert liar.json["connections"]["lost"] == 1, liar.json
    wait_for(ConnectionsClosedProtocol=before["ConnectionsClosedProtocol"] + 1)
    well(client)


@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("mode, lie", [
    ("read", "own"),
    pytest.param("write", "guess", marks=pytest.mark.long),
    pytest.param("read", "guess", marks=pytest.mark.long)])
def test_invalidate(client, mode, lie):
    """SEND with Invalidate: whoever it meets, it is the liar who loses its
    connection."""
    step = "before-read" if mode == "read" else "before-consumed"
    honest = client.peer_at([client.site.file(300_000)], "done@3", mode=mode,
                            requests=20)
    liar = client.peer(
        [client.site.file(100_000)], "--step", f"{step}=lie:invalidate-{lie}",
        "--step", f"{step}=wait:500", "--timeout", 10, "--linger", 300,
        mode=mode, requests=1)
    assert liar.json["connections"]["lost"] == 1, liar.json
    body, = liar.details
    assert (body["result"] == "ok") == (mode == "write"), liar.json
    go_on(honest)
    ended, out, _ = client.finish(honest)
    assert ended == 0, out
    well(client)


@pytest.mark.httpd(SHORT)
def test_invalidate_another_clients(client):
    """It is of another domain."""
    rob(client, "lie:invalidate-other", "wait:500")


# What a field may say of the client's window that is not so, and what comes of it.
WINDOWS = {
    "another tag": ("deadbe00", "{to}", "{len}", "failed"),
    "the first tag": ("00000000", "{to}", "{len}", "failed"),
    "another address": ("{stag}", "0000000000001000", "{len}", "failed"),
    "longer than it is": ("{stag}", "{to}", "4294967295", "failed"),
    "round the end": ("{stag}", "ffffffffffff0000", "1048576", "malformed"),
    "of no byte": ("{stag}", "{to}", "0", "malformed"),
    "of one byte": ("{stag}", "{to}", "1", "window"),
}


@pytest.mark.driver("tuned")
@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("window", [
    pytest.param(name, marks=[] if name == "longer than it is"
                 else pytest.mark.long) for name in WINDOWS])
def test_a_window_that_is_none(client, window):
    """The client gets its answer over TCP, or sees that it has failed where the
    head was out already; an honest one at the same time does not notice."""
    stag, to, length, declined = WINDOWS[window]
    honest = client.start_peer([client.site.file(300_000)], requests=20)
    liar = client.peer(
        [client.site.file(300_000)], "--window", 65536, "--timeout", 10,
        "--progress", 2, "--linger", 300, "--field",
        f'v=1, port={{port}}, token=:{{token}}:, id={{id}}, write;stag="{stag}"'
        f';to="{to}";len={length}', mode="write")
    body, = liar.details
    assert (body["status"], body["mismatched"]) == (200, 0), liar.json
    if body["result"] == "ok" or declined != "failed":
        assert (body["result"], body["path"], body["declined"]) == \
            ("ok", "tcp", declined), liar.json
    ended, out, _ = client.finish(honest)
    assert ended == 0, out
    well(client)
