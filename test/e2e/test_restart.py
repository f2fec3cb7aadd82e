"""Servers that restart, stop or crash while clients are being served: what the
manner of it promises is kept, and nothing is left."""
import os
import signal
import time

import pytest

from hosts import wait_until
from httpd import conf
from status import status, wait_for

LEASE = 2  # seconds
SIZES = (50_000, 300_000, 900_000)
SHORT = f"""
RdmaEnable On
RdmaLeaseTimeout {LEASE}s
RdmaTimeout {LEASE}s
RdmaConnectTimeout 10
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
"""
EVENT = conf(SHORT)
WORKER = conf(SHORT, mpm="worker")
EACH = [pytest.param("write", marks=pytest.mark.httpd(EVENT)),
        pytest.param("read", marks=pytest.mark.httpd(WORKER)),
        pytest.param("read", marks=[pytest.mark.httpd(EVENT),
                                    pytest.mark.long]),
        pytest.param("write", marks=[pytest.mark.httpd(WORKER),
                                     pytest.mark.long])]


@pytest.fixture
def load(client):
    """start(mode, requests) has four clients ask for that many bodies each;
    end() comes back with what they have got."""
    running = []

    def start(mode, requests=40):
        paths = [client.site.file(size) for size in SIZES]
        before = status()[f"Requests{mode.capitalize()}"]
        running.append(client.start_peer(
            paths, "--clients", 4, "--window", 256 << 10, "--retry",
            "--timeout", 20, "--progress", LEASE, mode=mode,
            requests=requests, full=False))
        wait_until(lambda: status()[f"Requests{mode.capitalize()}"]
                   - before > 8, 20, "the load begins")

    def end(requests=40):
        """All of them were served: by RDMA, or over TCP by a child that was
        about to go."""
        ended, out, err = client.finish(running.pop(), 120)
        run = clients_json(out)
        assert run["mismatched"] == 0 and run["unexpected"] == 0, out
        assert (ended, run["ok"]) == (0, 4 * requests), out + err
        assert set(run["declined"]) <= {"busy"}, out
        client.httpd.skip_access()
        return run

    def end_cut():
        """Some were not; but not a byte was wrong."""
        ended, out, err = client.finish(running.pop(), 120)
        run = clients_json(out)
        assert ended >= 0, err
        assert run["mismatched"] == 0 and run["unexpected"] == 0, out
        client.httpd.skip_access()
        return run
    start.end, start.end_cut = end, end_cut
    return start


def clients_json(out):
    import json
    return json.loads(out[out.index("{"):])


def gone(client, old):
    wait_until(lambda: not set(old) & set(client.httpd.children()),
               LEASE + 5, "the old children end")


@pytest.mark.parametrize("mode", EACH)
def test_graceful_restarts(client, load, mode):
    """Nothing is lost, and the old generation goes."""
    before = status()
    load(mode)
    for _ in range(2):
        old = client.httpd.graceful()
        time.sleep(0.5)
    run = load.end()
    client.tally.body(run["paths"][mode] > 0, sum(SIZES))
    gone(client, old)
    assert status()["LeasesLost"] == before["LeasesLost"]
    assert status()["ConnectionsLost"] == before["ConnectionsLost"]
    client.fetch(100_000, by=mode, alone=False)


@pytest.mark.parametrize("mode", EACH)
def test_children_that_serve_few_connections(client, load, mode):
    """One child follows another, without a signal."""
    server = client.httpd
    wanted = server.running
    server.start(wanted._replace(
        text=wanted.text + "MaxConnectionsPerChild 12\nMaxKeepAliveRequests 3"))
    first = server.children()
    try:
        load(mode, 30)
        load.end(30)
        assert set(server.children()) - set(first), "no child has ended"
    finally:
        server.skip_access()
        server.start(wanted)


# Of httpd's workers when a hard stop has taken their pollset away.
LAST_WORDS = {"AH03093": None}


@pytest.mark.parametrize("mode", EACH)
def test_hard_restart(client, load, mode):
    """Requests may be cut, and are not wrong."""
    load(mode)
    client.httpd.expect(LAST_WORDS)
    old = client.httpd.children()
    client.httpd.process.send_signal(signal.SIGHUP)
    gone(client, old)
    load.end_cut()
    client.fetch(100_000, by=mode, alone=False)


@pytest.mark.parametrize("how", ["stop", "graceful-stop", "both"])
@pytest.mark.parametrize("mode", EACH)
def test_stop(client, load, mode, how):
    load(mode, 400)
    client.httpd.expect(LAST_WORDS)
    if how == "both":
        client.httpd.process.send_signal(signal.SIGWINCH)
        time.sleep(0.3)
    took = client.httpd.stop(signal.SIGWINCH if how == "graceful-stop"
                             else signal.SIGTERM)
    assert took < (LEASE + 8 if how == "graceful-stop" else 3), took
    assert not client.lab.objects()
    load.end_cut()


@pytest.mark.parametrize("mode", EACH[:2])
def test_hard_stop_while_workers_wait(client, mode):
    """Streams wait for a client that consumes nothing, connects for one that
    does not answer."""
    waits = client.start_peer(
        [client.site.file(20_000_000)], "--clients", 4, "--window", 65536,
        "--step", "first-message=stall", "--step", "before-read=stall",
        mode=mode, full=False)
    wait_for(StreamsOpen=4)
    assert client.httpd.stop() < 3
    assert not client.lab.objects()
    waits.kill()
    client.finish(waits)


@pytest.mark.parametrize("crash", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("mode", EACH[:2])
def test_a_child_crashes(client, load, mode, crash):
    """The kernel takes its part apart; the next child serves on."""
    load(mode)
    child, = client.httpd.children()
    # httpd's own line about it: its level and text differ by signal.
    client.httpd.expect({"AH00051": None, "AH00052": None})
    os.kill(child, crash)
    gone(client, [child])
    load.end_cut()
    client.fetch(100_000, by=mode, alone=False)
    assert status()["Children"] == 1
    wait_for(LeasesOpen=0)
