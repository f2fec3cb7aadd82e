"""Nothing grows: what a child holds when it has served ten times as many
requests is what it held before."""
import os
import random
from pathlib import Path

import pytest

from clients import line_of
from httpd import conf
from status import changes, status, wait_for

CLIENTS = 4  # of each mode
WINDOW = 256 << 10
SEED = int(os.environ.get("SEED") or 1)
N = int(os.environ.get("N") or 20_000)


def held(client):
    """What the child holds when all is quiet."""
    # Arenas that have been idle for five seconds are given back.
    wait_for(20, LeasesOpen=0, StreamsOpen=0, ArenasOpen=0)
    child, = client.httpd.children()
    values = dict(
        line.split(":", 1) for line in
        Path(f"/proc/{child}/status").read_text().splitlines())
    kib = {name: int(values[name].split()[0]) for name in ("VmRSS", "VmPin")}
    objects = client.lab.objects()
    now = status()
    equal = {"descriptors": len(os.listdir(f"/proc/{child}/fd")),
             "threads": int(values["Threads"]),
             "QPs": sum(" lqpn " in line for line in objects),
             "MRs": sum(" mrn " in line for line in objects),
             "objects": len(objects),
             "connections": (now["ConnectionsOpenWrite"],
                             now["ConnectionsOpenRead"]),
             "registered": now["MemoryInUse"]}
    return equal, kib


@pytest.mark.parametrize("requests", [
    pytest.param(400, id="brief"),
    pytest.param(N, id="full", marks=pytest.mark.long)])
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf("""
RdmaEnable On
RdmaMemory 24M
RdmaConnectTimeout 10
RdmaIdleTimeout 600
RdmaMaxConnectionsPerClient 100
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
MaxKeepAliveRequests 0
"""))
def test_soak(client, requests):
    chance = random.Random(SEED)
    print(f"SEED={SEED} N={requests}")
    sizes = [int(16384 * 48 ** chance.random()) for _ in range(36)]
    # More than an eighth of the memory: chains of parts, and long rings. All
    # clients together never need the quarter that one address may have.
    sizes += [chance.randrange(3_200_000, 4_500_000) for _ in range(4)]
    paths = [client.site.file(size) for size in sizes]
    each = requests // (2 * CLIENTS)
    before = status()
    runs = [client.start_peer(
        paths, "--clients", CLIENTS, "--window", WINDOW, "--expect-path", mode,
        "--step", f"done@{each // 10}=stop", "--step", f"done@{each}=stop",
        mode=mode, requests=each, full=False) for mode in ("write", "read")]

    def all_have_stopped(seconds):
        for run in runs:
            for _ in range(CLIENTS):
                line = line_of(run.stdout.fileno(), seconds)
                assert line.startswith(b"reached"), f"not reached: {line}"
    all_have_stopped(300)
    equal, kib = held(client)
    for run in runs:
        run.stdin.write("on\n")
        run.stdin.flush()
    all_have_stopped(1500)
    equal_then, kib_then = held(client)
    print(equal, kib, kib_then)
    assert equal_then == equal
    assert kib["VmPin"] > 0
    for name, value in kib.items():
        assert kib_then[name] - value <= max(256, value // 100), (kib, kib_then)
    for run in runs:
        ended, out, err = client.finish(run)
        assert ended == 0, out + err
    done = changes(before)
    total = 2 * CLIENTS * each
    assert done["ConnectionsMade"] == 2 * CLIENTS, done
    for mode in ("Write", "Read"):
        assert done[f"Requests{mode}Streamed"] > 0, done
        moved = done[f"Requests{mode}"] + done[f"Requests{mode}Streamed"]
        assert moved == total // 2, done
        for _ in range(moved):
            client.tally.body(True, sum(sizes) // len(sizes))
    assert "RequestsTcp" not in done, done
    client.httpd.skip_access()
