"""Servers that restart, stop or crash while clients are being served: what the
manner of it promises is kept, and nothing is left."""
import itertools
import os
import signal
import time

import pytest

from hosts import wait_until
from httpd import conf
from rawhttp import Connection, field
from status import changes, status, wait_for

LEASE = 2  # seconds
SIZES = (50_000, 300_000, 900_000)
HOLE = "10.77.0.98"
# KeepAliveTimeout: mpm_worker ends no sooner than the connections it keeps.
SHORT = f"""
KeepAliveTimeout {LEASE}
RdmaEnable On
RdmaLeaseTimeout {LEASE}s
RdmaTimeout {LEASE}s
RdmaConnectTimeout 10
RdmaAllow 10.77.0.0/24
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
"""
EVENT = conf(SHORT)
WORKER = conf(SHORT, mpm="worker")
# Each mode and MPM, of several hows the first; one MPM for each mode has all of
# them, and is what is in check, where not said otherwise.
MPMS = {"event": EVENT, "worker": WORKER}
IN_CHECK = {("write", "event"), ("read", "worker")}


def each(*hows, check=None, modes=("write", "read")):
    """Parameters for mode, or with hows for mode and how; check: the pairs of
    mode and how in check."""
    for mode, (mpm, server), how in itertools.product(
            modes, MPMS.items(), hows or [None]):
        if (mode, mpm) not in IN_CHECK and how not in (None, *hows[:1]):
            continue
        marks = [pytest.mark.httpd(server)]
        if (mode, mpm) not in IN_CHECK or (check and (mode, how) not in check):
            marks.append(pytest.mark.long)
        values = (mode, how) if hows else (mode,)
        yield pytest.param(*values, marks=marks,
                           id="-".join([mode, mpm] + ([how] if hows else [])))


MODES = pytest.mark.parametrize("mode", list(each()))


def modes_and(*hows, **options):
    return pytest.mark.parametrize("mode,how", each(*hows, **options))


@pytest.fixture
def load(client):
    """start(mode, requests) has four clients ask for that many bodies each;
    goes_on() sees that they do; end() comes back with what they have got."""
    running = []

    def served():
        now = status()
        return now["RequestsWrite"] + now["RequestsRead"]

    def goes_on():
        before = served()
        wait_until(lambda: served() - before > 8, 20, "the load goes on")
        assert running[0].poll() is None

    def start(mode, requests=40, *options):
        paths = [client.site.file(size) for size in SIZES]
        running.append(client.start_peer(
            paths, "--clients", 4, "--window", 256 << 10, "--timeout", 20,
            "--progress", LEASE, *(options or ["--retry"]), mode=mode,
            requests=requests, full=False))
        goes_on()

    def end(requests=40):
        """All of them were served: by RDMA, or over TCP by a child that was
        about to go."""
        ended, out, err = client.finish(running.pop(), 120)
        run = clients_json(out)
        assert run["mismatched"] == 0 and run["unexpected"] == 0, out
        assert (ended, run["ok"]) == (0, 4 * requests), out + err
        assert set(run["declined"]) <= {"busy"}, out
        return run

    def end_cut():
        """Some were not; but not a byte was wrong."""
        ended, out, err = client.finish(running.pop(), 120)
        run = clients_json(out)
        assert ended >= 0, err
        assert run["mismatched"] == 0 and run["unexpected"] == 0, out
        client.httpd.skip_access()
        return run
    start.goes_on, start.end, start.end_cut = goes_on, end, end_cut
    return start


def clients_json(out):
    import json
    return json.loads(out[out.index("{"):])


def gone(client, old, since=None):
    """The children that were told to go, at that time or now, do in time."""
    now = time.monotonic()
    wait_until(lambda: not set(old) & set(client.httpd.children()),
               (since or now) + LEASE + 5 - now, "the old children end")


@pytest.mark.parametrize("kept", [
    pytest.param(False, id="each"),
    pytest.param(True, id="kept", marks=pytest.mark.long)])
@MODES
def test_graceful_restarts(client, load, mode, kept):
    """Nothing is lost, and each old generation goes while clients ask for more.
    A connection that is kept may be closed when its client has just asked; then
    the server has not begun. And mpm_worker waits for what is kept."""
    requests = 140
    before = wait_for(LeasesOpen=0, StreamsOpen=0)
    load(mode, requests, "--retry" if kept else "--close")
    for _ in range(2):
        since = time.monotonic()
        old = client.httpd.graceful()
        load.goes_on()
        if not kept:
            gone(client, old, since)
    run = load.end(requests)
    client.tally.body(run["paths"][mode] > 0, sum(SIZES))
    gone(client, old)
    assert kept or run["repeated"] == 0, run
    for entry in client.httpd.access(4 * requests):
        assert entry.status == "200", entry
    wait_for(LeasesOpen=0)
    done = changes(before)
    assert not done.keys() & {"LeasesAborted", "LeasesExpired", "LeasesLost",
                              "ConnectionsLost", "StreamsCut"}, done
    assert done.get("LeasesGranted") == done.get("LeasesDone"), done
    client.fetch(100_000, by=mode, alone=False)


def end_gracefully(client, how):
    """Within the time of a lease and five seconds."""
    since = time.monotonic()
    if how == "graceful-stop":
        assert client.httpd.stop(signal.SIGWINCH) < LEASE + 5
        assert not client.lab.objects()
    else:
        # What ends slowly keeps its place, and with MPM worker the next child
        # may find none.
        client.httpd.expect({"AH00288": None})
        gone(client, client.httpd.graceful(), since)


@modes_and("graceful", "graceful-stop", modes=["read"], check={()})
def test_a_lease_that_nobody_uses(client, mode, how):
    """Its client lets no child go on for longer than it lasts."""
    process = client.peer_at([client.site.file(200_000)], "before-read",
                             "--close", mode=mode)
    end_gracefully(client, how)
    process.kill()
    client.finish(process)
    client.httpd.skip_access()


def stalled_streams(client, mode):
    """Of four clients that consume nothing."""
    process = client.start_peer(
        [client.site.file(20_000_000)], "--clients", 4, "--window", 65536,
        "--step", "first-message=stall", "--step", "before-read=stall",
        mode=mode, full=False)
    wait_for(StreamsOpen=4)
    return process


@modes_and("graceful", "graceful-stop", check={
    ("write", "graceful"), ("read", "graceful-stop")})
def test_streams_that_stand_still(client, mode, how):
    """They are cut in time."""
    process = stalled_streams(client, mode)
    end_gracefully(client, how)
    process.kill()
    client.finish(process)
    client.httpd.skip_access()


@MODES
def test_children_that_serve_few_connections(client, load, mode):
    """One child follows another, without a signal."""
    server = client.httpd
    wanted = server.running
    server.start(wanted._replace(
        text=wanted.text + "\nMaxConnectionsPerChild 12\nMaxKeepAliveRequests 3"))
    # Children end more slowly than others begin.
    server.expect({"AH00288": None})
    first = server.children()
    try:
        load(mode, 30)
        run = load.end(30)
        for entry in server.access(run["ok"]):
            assert entry.status == "200", entry
        assert set(server.children()) - set(first), "no child has ended"
    finally:
        server.skip_access()
        server.start(wanted)


# Of httpd's workers when a hard stop has taken their pollset away.
LAST_WORDS = {"AH03093": None}


@MODES
def test_hard_restart(client, load, mode):
    """Requests may be cut, and are not wrong."""
    load(mode)
    client.httpd.expect(LAST_WORDS)
    old = client.httpd.children()
    client.httpd.process.send_signal(signal.SIGHUP)
    gone(client, old)
    load.end_cut()
    client.fetch(100_000, by=mode, alone=False)


@modes_and("stop", "graceful-stop", "both", check={
    ("write", "stop"), ("write", "graceful-stop"), ("read", "both")})
def test_stop(client, load, mode, how):
    load(mode, 400)
    client.httpd.expect(LAST_WORDS)
    if how == "both":
        client.httpd.process.send_signal(signal.SIGWINCH)
        time.sleep(0.3)
    took = client.httpd.stop(signal.SIGWINCH if how == "graceful-stop"
                             else signal.SIGTERM)
    assert took < (LEASE + 5 if how == "graceful-stop" else 3), took
    assert not client.lab.objects()
    load.end_cut()


@MODES
def test_hard_stop_while_workers_wait(client, mode):
    """Streams for clients that consume nothing, and a connect for one that
    does not answer."""
    waits = stalled_streams(client, mode)
    client.lab.black_hole(HOLE)
    with Connection(client.lab) as connection:
        connection.send(client.site.file(100_000),
                        field(addr=HOLE, port=41000))
        wait_for(StreamsOpen=4, ConnectsInFlight=1)
        took = client.httpd.stop()
    client.lab.mend()
    assert took < 3
    assert not client.lab.objects()
    waits.kill()
    client.finish(waits)


@pytest.mark.long
@MODES
def test_hard_stop_while_a_client_is_asked(client, mode):
    """Whether it is there still, which nobody answers."""
    before = status()
    process = client.peer_at(
        [client.site.file(100_000)], "request-sent@2", "--concurrency", 2,
        "--step", "done@1=stall", "--step", "before-request@2=wait:5300",
        count=2, mode=mode, requests=2)
    wait_for(RequestsAsked=before["RequestsAsked"] + 2,
             ConnectionsReused=before["ConnectionsReused"] + 1)
    assert client.httpd.stop() < 3
    assert not client.lab.objects()
    process.kill()
    client.finish(process)


@modes_and("SIGKILL", "SIGSEGV", check={
    ("write", "SIGKILL"), ("read", "SIGSEGV")})
def test_a_child_crashes(client, load, mode, how):
    """The kernel takes its part apart; the next child serves on."""
    load(mode)
    child, = client.httpd.children()
    # httpd's own line about it: its level and text differ by signal.
    client.httpd.expect({"AH00051": None, "AH00052": None})
    os.kill(child, signal.Signals[how])
    gone(client, [child])
    load.end_cut()
    client.fetch(100_000, by=mode, alone=False)
    if how == "SIGSEGV" and not os.environ.get("SAN"):
        assert client.lab.cores() == ["apache2"]
    assert status()["Children"] == 1
    wait_for(LeasesOpen=0)
