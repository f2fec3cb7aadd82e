"""Many clients at once: each has its own connection, none waits for another,
and none goes without RDMA."""
import collections

import pytest

from content import differs
from httpd import conf
from pinned import Pinned
from rawhttp import Connection, rdma_field
from status import changes, status, wait_for

WINDOW = 256 << 10
# One that waits, one that fits, one byte too many, and round three times.
SIZES = (20_000, 100_000, WINDOW + 1, 3 * WINDOW)

MEMORY = 256 << 20
# Every client may have a body under way, and half of the workers may stream.
MANY = f"""
RdmaEnable On
RdmaMemory {MEMORY}
RdmaMaxConnections 1000
RdmaMaxConnectionsPerClient 1000
RdmaConnectTimeout 20
RdmaIdleTimeout 600
<Location /write>
    RdmaMode server-write
</Location>
<Location /read>
    RdmaMode client-read
</Location>
"""
MODES = {"write": ["write"], "read": ["read"], "both": ["write", "read"]}


def many(children, threads):
    return f"""{MANY}
ServerLimit {children}
StartServers {children}
ThreadLimit {threads}
ThreadsPerChild {threads}
MaxRequestWorkers {children * threads}
MinSpareThreads 1
MaxSpareThreads {children * threads}
LogFormat "%>s %b %B %O %{{RDMA_MODE}}n %{{RDMA_BYTES}}n \
%{{RDMA_DECLINED}}n %{{X-Client}}i:%P %U" e2e
"""


def run_all(client, processes, clients, requests, mode, *options):
    """So many rdma_peer at once, each with so many endpoints. The log's
    entries."""
    # Kinds take turns, and so do sizes.
    paths = [client.site.file(size, kind) for size in SIZES
             for kind in MODES[mode]]
    total = processes * clients * requests
    with Pinned(client.httpd) as pinned:
        started = [client.start_peer(
            paths, "--clients", clients, "--window", WINDOW, "--header",
            f"X-Client: {number}", *options, requests=requests, full=False)
            for number in range(processes)]
        for process in started:
            ended, out, err = client.finish(process, 400)
            assert ended == 0, out + err
    assert 0 < pinned.most <= MEMORY
    entries = client.httpd.access(total)
    for entry in entries:
        kind = entry.path.split("/")[1]
        client.tally.body(entry.mode == kind, int(entry.bytes))
        assert entry.mode == kind, entry
    return entries


@pytest.mark.parametrize("mode,processes,clients,requests", [
    pytest.param("both", 2, 8, 12, id="both, some"),
    pytest.param("write", 2, 8, 12, marks=pytest.mark.long, id="write, some"),
    pytest.param("read", 2, 8, 12, marks=pytest.mark.long, id="read, some"),
    pytest.param("both", 4, 16, 50, marks=pytest.mark.long, id="both, many")])
@pytest.mark.httpd(conf(many(1, 160)))
def test_one_child(client, mode, processes, clients, requests):
    """A connection for each client and kind, whoever asks for it first."""
    before = status()
    run_all(client, processes, clients, requests, mode)
    done = changes(before)
    made = processes * clients * len(MODES[mode])
    assert done["ConnectionsMade"] == made, done
    assert done["ConnectionsReused"] == processes * clients * requests - made


@pytest.mark.parametrize("mode,clients,requests", [
    pytest.param("both", 6, 8, id="both, some"),
    pytest.param("both", 64, 50, marks=pytest.mark.long, id="both, many")])
@pytest.mark.httpd(conf(many(4, 64)))
def test_four_children(client, mode, clients, requests):
    """One for each child, client and kind that have met. Each request is on an
    HTTP connection of its own, which any child may take, and all do."""
    before = status()
    entries = run_all(client, clients, 1, requests, mode, "--close")
    met = collections.Counter((entry.method, entry.mode) for entry in entries)
    assert changes(before)["ConnectionsMade"] == len(met), met
    pids = collections.Counter(entry.method.split(":")[1]
                               for entry in entries)
    assert set(pids) == set(map(str, client.httpd.children())), pids


WORKERS = 8
EIGHT = pytest.mark.httpd(conf(f"""
RdmaEnable On
RdmaMaxConnectionsPerClient 100
RdmaConnectTimeout 20
ThreadsPerChild {WORKERS}
MaxRequestWorkers {WORKERS}
MaxSpareThreads {WORKERS}
AsyncRequestWorkerFactor 16
"""))


def plain_requests(client, count):
    """So many at the same time: no answer is waited for before all are
    asked."""
    path = client.site.file(60_000)
    connections = [Connection(client.lab) for _ in range(count)]
    for connection in connections:
        connection.send(path)
    for connection in connections:
        answer = connection.answer()
        assert answer.complete and not differs(answer.body, 60_000)
        assert rdma_field(answer) is None
        connection.close()
    client.httpd.access(count, path)


@pytest.mark.parametrize("leases", [
    16, pytest.param(64, marks=pytest.mark.long)])
@EIGHT
def test_leases_hold_no_worker(client, leases):
    """Eight workers serve others while more clients than that have not yet
    read what is theirs, and do not let go of it."""
    before = status()
    # For a moment all of the eight are wanted: when everybody comes at once.
    client.httpd.expect({"AH00484": None})
    process = client.peer_at([client.site.file(200_000)], "before-read",
                             "--clients", leases, count=leases, mode="read",
                             full=False)
    wait_for(LeasesOpen=leases)
    client.httpd.access(leases)
    for _ in range(2):
        plain_requests(client, WORKERS)
    client.fetch(70_000, by="write", alone=False)
    assert status()["LeasesOpen"] == leases
    process.stdin.close()
    process.stdin = None
    ended, out, err = client.finish(process)
    assert ended == 0, out + err
    for _ in range(leases):
        client.tally.body(True, 200_000)
    wait_for(LeasesOpen=0)
    assert changes(before)["LeasesDone"] == leases


@pytest.mark.parametrize("mode", [
    "write", pytest.param("read", marks=pytest.mark.long)])
@EIGHT
def test_streams_take_half_of_the_workers(client, mode):
    """One more goes over TCP, and all else goes on."""
    size = 9_000_000  # more than an eighth of the memory
    client.httpd.expect({"AH00484": None})
    process = client.start_peer(
        [client.site.file(size)], "--clients", WORKERS // 2, "--window", 65536,
        "--step", "first-message=stall", "--step", "before-read=stall",
        mode=mode, full=False)
    wait_for(StreamsOpen=WORKERS // 2)
    stream = (size, f"--rdma={mode}", "--rdma-window=256K")
    _, entry = client.fetch(*stream, by="tcp", alone=False)
    assert entry.declined == "busy"
    client.fetch(100_000, by="write", alone=False)
    client.fetch(100_000, by="read", alone=False)
    plain_requests(client, 4 * WORKERS)
    assert status()["StreamsOpen"] == WORKERS // 2
    process.kill()
    client.finish(process)
    client.httpd.access(WORKERS // 2)
    wait_for(StreamsOpen=0)
    client.fetch(*stream, by=mode, alone=False)
