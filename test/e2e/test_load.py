"""Many clients at once: each has its own connection, none waits for another,
and none goes without RDMA."""
import collections

import pytest

from httpd import conf
from status import changes, status, wait_for

WINDOW = 256 << 10
# One that waits, one that fits, one byte too many, and round three times.
SIZES = (20_000, 100_000, WINDOW + 1, 3 * WINDOW)

# Every client may have a body under way, and half of the workers may stream.
MANY = """
RdmaEnable On
RdmaMemory 256M
RdmaMaxConnections 1000
RdmaMaxConnectionsPerClient 1000
RdmaConnectTimeout 20
"""


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
    paths = [client.site.file(size) for size in SIZES]
    total = processes * clients * requests
    started = [client.start_peer(paths, "--clients", clients, "--window",
                                 WINDOW, "--expect-path", mode, "--header",
                                 f"X-Client: {number}", *options, mode=mode,
                                 requests=requests, full=False)
               for number in range(processes)]
    for process in started:
        ended, out, err = client.finish(process, 400)
        assert ended == 0, out + err
    entries = client.httpd.access(total)
    for entry in entries:
        client.tally.body(entry.mode == mode, int(entry.bytes))
        assert entry.mode == mode, entry
    return entries


@pytest.mark.parametrize("processes,clients,requests", [
    (2, 8, 12),
    pytest.param(4, 16, 50, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.httpd(conf(many(1, 160)))
def test_one_child(client, mode, processes, clients, requests):
    """A connection for each client, whoever asks for it first."""
    before = status()
    run_all(client, processes, clients, requests, mode)
    done = changes(before)
    assert done["ConnectionsMade"] == processes * clients, done
    assert done["ConnectionsReused"] == processes * clients * (requests - 1)


@pytest.mark.parametrize("clients,requests", [
    (6, 8), pytest.param(64, 50, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.httpd(conf(many(4, 64)))
def test_four_children(client, mode, clients, requests):
    """One for each child and client that have met. Each request is on an HTTP
    connection of its own, which any child may take."""
    before = status()
    entries = run_all(client, clients, 1, requests, mode, "--close")
    met = collections.Counter(entry.method for entry in entries)
    assert changes(before)["ConnectionsMade"] == len(met), met


@pytest.mark.parametrize("leases", [
    16, pytest.param(64, marks=pytest.mark.long)])
@pytest.mark.httpd(conf("""
RdmaEnable On
RdmaMaxConnectionsPerClient 100
RdmaConnectTimeout 20
ThreadsPerChild 8
MaxRequestWorkers 8
MaxSpareThreads 8
AsyncRequestWorkerFactor 16
"""))
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
    for _ in range(12):
        plain = client.rwget(client.site.file(60_000), rdma="off")
        assert (plain.status, plain.path) == (0, "tcp"), plain.err
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
