"""Many clients, some of whom mean no good or cannot be reached: the others do
not notice, and go by RDMA."""
import base64
import os
import statistics
import threading
import time

import pytest

from clients import Peer
from content import differs
from hosts import wait_until
from httpd import conf
from rawhttp import Connection, declined
from status import changes, status, wait_for

HONEST = 60
SIZE = 60_000
HOLE = "10.77.0.98"
CONF = """
RdmaEnable On
RdmaMemory 256M
RdmaAllow 10.77.0.0/24
RdmaConnectTimeout 10
RdmaTimeout 2s
RdmaLeaseTimeout 2s
RdmaMaxConnections 1200
RdmaMaxConnectionsPerClient 1100
MaxKeepAliveRequests 0
AsyncRequestWorkerFactor 16
ThreadLimit 96
ThreadsPerChild 96
MaxRequestWorkers 96
MaxSpareThreads 96
"""


def endpoint_field(number, address, port):
    """The field of an endpoint that nobody has."""
    token = base64.b64encode(os.urandom(16)).decode()
    return (f'v=1, port={port}, addr="{address}", token=:{token}:, '
            f"id={number}, read")


class Unreachable:
    """Clients whose RDMA address is a black hole, and who ask again and again,
    each time as another endpoint."""

    def __init__(self, client, count, path, size):
        self.client = client
        self.answers = []
        self.wrong = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(
            number, path, size)) for number in range(count)]

    def _run(self, number, path, size):
        try:
            while not self._over.is_set():
                with Connection(self.client.lab) as connection:
                    answer = connection.get(path, endpoint_field(
                        1, HOLE, 41000 + number))
                assert answer.status == 200
                assert not differs(answer.body, size)
                self.answers.append(declined(answer))
                self._over.wait(1)
        except Exception as error:  # judged by the test
            self.wrong.append(error)

    def __enter__(self):
        self.client.lab.black_hole(HOLE)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.client.lab.mend()


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.long
@pytest.mark.httpd(conf(CONF))
def test_black_holes(client, mode):
    """4 of 60: the 56 connect while the others' connects hang, and all of their
    bodies go by RDMA."""
    path = client.site.file(SIZE)
    with Unreachable(client, 4, path, SIZE) as holes:
        wait_until(lambda: status()["ConnectsInFlight"], 10, "a connect hangs")
        run = client.peer([path], "--clients", HONEST - 4, "--expect-path",
                          mode, mode=mode, requests=4, full=False)
        assert run.status == 0, run.json
    assert not holes.wrong, holes.wrong
    assert set(holes.answers) <= {"connect", "busy"} and holes.answers
    for _ in range(4 * (HONEST - 4)):
        client.tally.body(True, SIZE)
    client.httpd.skip_access()


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.long
@pytest.mark.httpd(conf(CONF))
def test_all_go_at_once(client, mode):
    """64 clients, busy when they die: with leases open, or in the middle of
    streams, as many as there may be."""
    size = 20_000 if mode == "read" else 300_000
    crowd = client.peer_at(
        [client.site.file(size)],
        "head" if mode == "read" else "first-message", "--clients", 64,
        "--window", 65536, count=64 if mode == "read" else 48, mode=mode,
        full=False)
    now = status()
    assert now["LeasesOpen" if mode == "read" else "StreamsOpen"] >= 48, now
    crowd.kill()
    client.finish(crowd)
    wait_for(10, LeasesOpen=0, StreamsOpen=0, ConnectionsOpenWrite=0,
             ConnectionsOpenRead=0)
    client.httpd.skip_access()
    client.fetch(SIZE, by="write", alone=False)
    client.fetch(SIZE, by="read", alone=False)


@pytest.mark.long
@pytest.mark.httpd(conf(CONF + "RdmaIdleTimeout 600"))
def test_a_thousand_endpoints(client):
    """All at once on one child. Who cannot be connected to in time gets the answer
    over TCP, and nobody an error."""
    path = client.site.file(20_000)
    client.httpd.expect({"AH00484": None})
    before = status()
    runs = [client.start_peer([path], "--clients", 100, "--window", 65536,
                              "--close", "--timeout", 100, mode=mode,
                              requests=2, full=False)
            for mode in ("write", "read") for _ in range(5)]
    moved = 0
    for process in runs:
        run = Peer(*client.finish(process, 300))
        assert (run.status, run.ok, run.mismatched) == (0, 200, 0), run.json
        assert run.declined.keys() <= {"busy", "connect", "memory"}, run.json
        moved += run.paths["write"] + run.paths["read"]
    done = changes(before)
    print(moved, done)
    assert moved >= 1000, done
    for entry in client.httpd.access(2000):
        assert entry.status == "200", entry
    for _ in range(moved):
        client.tally.body(True, 20_000)
    wait_for(60, ConnectionsOpenWrite=0, ConnectionsOpenRead=0)
    client.fetch(SIZE, by="read", alone=False)


# Nothing of this takes much of the processors, which all clients here share
# with the server, and none asks often. And the 60 leave some of them free: where
# nothing is, whatever else runs costs them something, and an emulated guest is now
# faster and now slower by a fifth. What costs them is what the server does.
HOSTILE = {
    "write": ["before-request=wait:1000", "head@1=lie:flood",
              "head@2=lie:consumed-beyond", "head@3=lie:silent",
              "head@4=lie:bad-type", "head@5=disconnect",
              "connect-request@3=wait:1500", "written-fin@6=wait:2500",
              "head@7=lie:extra-credits", "first-message@8=reset-http"],
    "read": ["before-request=wait:1000", "head@1=lie:read-far",
             "before-read@2=wait:3000", "head@3=lie:many-reads",
             "head@4=lie:write-attempt", "during-read@5=disconnect",
             "head@6=lie:read-beyond", "consumed-sent@7=lie:read-after-done",
             "head@8=lie:silent", "before-read@9=reset-http"],
}


def rate(client, path, seconds):
    """Answers with this body, in a second."""
    client.httpd.skip_access()
    began = time.monotonic()
    time.sleep(seconds)
    done = client.httpd.count_access(path)
    return done / (time.monotonic() - began)


@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(CONF))
def test_hostile_neighbours(client):
    """60 honest clients, who ask more than once a second, keep nine tenths of
    their throughput: times with the others take turns with times without."""
    path, other = client.site.file(SIZE), client.site.file(20_000)
    honest = [client.start_peer(
        [path], "--clients", HONEST // 2, "--window", 65536, "--expect-path",
        mode, "--step", "before-request=wait:700", mode=mode, requests=20_000,
        full=False) for mode in ("write", "read")]
    wait_for(60, ConnectionsOpenWrite=HONEST // 2,
             ConnectionsOpenRead=HONEST // 2)
    alone, beside = [rate(client, path, 10)], []
    for _ in range(4):
        away = client.lab.env["CLIENTS4"].split()[1]
        bad = [client.start_peer(
            [other], "--bind", away, "--clients", 1, "--timeout", 10,
            "--progress", 2, *(word for step in HOSTILE[mode]
                               for word in ("--step", step)),
            mode=mode, requests=1000, full=False)
            for mode in ("write", "read")]
        time.sleep(1)  # what starting them costs is not theirs
        with Unreachable(client, 2, other, 20_000):
            beside.append(rate(client, path, 10))
        for process in bad:
            assert process.poll() is None
            process.kill()
            client.finish(process)
        time.sleep(1)
        alone.append(rate(client, path, 10))
    for process in honest:
        assert process.poll() is None, client.finish(process)
        process.kill()
        client.finish(process)
    print(alone, beside)
    wait_for(60, ConnectionsOpenWrite=0, ConnectionsOpenRead=0)
    client.httpd.skip_access()
    ratio = statistics.mean(beside) / statistics.mean(alone)
    assert ratio >= 0.9, (ratio, alone, beside)
    client.fetch(SIZE, by="write", alone=False)
