"""Nothing grows: what a child holds when it has served ten times as many
requests is what it held before, beside clients that fail in every way, too."""
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from clients import Peer, go_on, line_of
from httpd import conf
from status import changes, status, wait_for
from test_peers import ENDS, LIES, STEPS, step_of

CLIENTS = 4  # of each mode
MODES = ("write", "read")
WINDOW = 256 << 10
SEED = int(os.environ.get("SEED") or 1)
N = int(os.environ.get("N") or 0)
STACK = "8192"  # KiB, of each thread of a server
CONF = """
RdmaEnable On
RdmaMemory 24M
RdmaConnectTimeout 10
RdmaIdleTimeout 600
RdmaMaxConnectionsPerClient 100
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
MaxKeepAliveRequests 0
"""
# One heap for all threads, and nothing kept back for each of them: of eight
# heaps per core and of the caches of some seventy threads each keeps what it
# has ever needed, and they need it one after the other, for as long as one looks.
ONE_HEAP = ("env", "GLIBC_TUNABLES=glibc.malloc.arena_max=1:"
            "glibc.malloc.tcache_count=0")


def numbers_of(pid, file):
    """{name: value} of its lines in /proc that have a number."""
    lines = (line.split() for line
             in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines
            if len(words) > 1 and words[1].isdigit()}


def resident(pid):
    """KiB of the process, and of its threads' stacks apart: each may grow by a
    page when its thread comes for the first time to where few come. (VmRSS of
    `status` leaves out what each thread has not told yet.)"""
    kib = {"Rss": 0, "Stacks": 0}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0] == "Size:":
            name = "Stacks" if words[1] == STACK else "Rss"
        elif words[0] == "Rss:":
            kib[name] += int(words[1])
    return kib


def held(client):
    """What the child holds when all is quiet."""
    # Arenas that have been idle for five seconds are given back.
    wait_for(40, LeasesOpen=0, StreamsOpen=0, ArenasOpen=0,
             ConnectionsOpenWrite=CLIENTS, ConnectionsOpenRead=CLIENTS)
    child, = client.httpd.children()
    values = numbers_of(child, "status")
    kib = {**resident(child), "VmPin": values["VmPin"]}
    objects = client.lab.objects()
    # Before status() is asked again, whose own connection has one.
    descriptors = len(os.listdir(f"/proc/{child}/fd"))
    now = status()
    equal = {"descriptors": descriptors,
             "threads": values["Threads"],
             "QPs": sum(" lqpn " in line for line in objects),
             "MRs": sum(" mrn " in line for line in objects),
             "objects": len(objects),
             "connections": (now["ConnectionsOpenWrite"],
                             now["ConnectionsOpenRead"]),
             "registered": now["MemoryInUse"]}
    return equal, kib


class Trouble(threading.Thread):
    """Clients at another address that leave, lie, stop, are killed or cut off,
    at any step, and a wire that loses; one after the other, as chance will have
    it."""
    KINDS = ("leave", "lie", "kill", "stop", "vanish", "wire")

    def __init__(self, client, path, chance):
        super().__init__()
        self.client = client
        self.path = path
        self.chance = chance
        self._away = client.lab.env["CLIENTS4"].split()[1]
        self.done = Counter()
        self.wrong = []
        self._may = threading.Event()
        self._quiet = threading.Event()
        self._over = False

    def run(self):
        kinds = []
        while not self._over:
            if not kinds and not self._may.wait(0.1):
                self._quiet.set()
                continue
            if not kinds:
                kinds = [getattr(self, kind) for kind in self.KINDS]
                self.chance.shuffle(kinds)
            what = kinds.pop()
            try:
                what()
                self.done[what.__name__] += 1
            except Exception as error:  # judged when there is a pause
                self.wrong.append(error)

    def begin(self):
        self._quiet.clear()
        self._may.set()

    def pause(self):
        """Until each kind has had its turn and nothing is under way."""
        self._may.clear()
        assert self._quiet.wait(100)
        assert not self.wrong, self.wrong

    def end(self):
        self._over = True
        self.join()

    def _start(self, *options):
        return self.client.start_peer(
            [self.path], "--bind", self._away, "--window", WINDOW,
            "--timeout", 10, "--progress", 2, "--linger", 300, *options,
            mode=self.chance.choice(MODES), requests=2, full=False)

    def _judge(self, process):
        run = Peer(*self.client.finish(process))
        assert run.json.get("mismatched", 0) == 0, run.json

    def leave(self):
        step, end = self.chance.choice(STEPS), self.chance.choice(ENDS)
        self._judge(self._start("--clients", 3, "--step", f"{step}/2={end}"))

    def lie(self):
        lie = self.chance.choice(LIES)
        self._judge(self._start("--step", f"{step_of(lie)}@1=lie:{lie}"))

    def kill(self):
        process = self._start("--clients", 3)
        time.sleep(self.chance.uniform(0, 1))
        process.kill()
        self.client.finish(process)

    def stop(self):
        process = self._start("--clients", 3)
        time.sleep(self.chance.uniform(0, 1))
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0, 8))
        process.send_signal(self.chance.choice((signal.SIGCONT,
                                                signal.SIGKILL)))
        self._judge(process)

    def vanish(self):
        """For some time nothing reaches them any more."""
        process = self._start("--clients", 3)
        time.sleep(self.chance.uniform(0, 1))
        self.client.lab.black_hole(self._away)
        time.sleep(self.chance.uniform(0, 8))
        self.client.lab.mend()
        self._judge(process)

    def wire(self):
        self.client.lab.netem(
            "delay", f"{self.chance.randrange(1, 20)}ms", "1ms",
            "loss", f"{self.chance.randrange(3)}%",
            "reorder", f"{self.chance.randrange(1, 10)}%", "limit", "10000")
        time.sleep(self.chance.uniform(0.5, 3))
        self.client.lab.netem()


def soak(client, requests, trouble=None):
    """So many requests of both modes, whose bodies are all right and all by
    RDMA; what the child holds after a tenth of them (half of few) and at the
    end. Returns what the server has counted."""
    chance = random.Random(SEED)
    print(f"SEED={SEED} N={requests}")
    sizes = [int(16384 * 48 ** chance.random()) for _ in range(38)]
    # More than an eighth of the memory: chains of parts, and long rings. All
    # clients together never need the quarter that one address may have.
    sizes += [chance.randrange(3_200_000, 4_500_000) for _ in range(2)]
    paths = [client.site.file(size) for size in sizes]
    each = requests // (2 * CLIENTS)
    # After a tenth of few some threads have not served anything: what they
    # touch first is no growth.
    first = each // (10 if requests >= 10_000 else 2)
    before = status()
    runs = [client.start_peer(
        paths, "--clients", CLIENTS, "--window", WINDOW, "--expect-path", mode,
        "--step", f"done@{first}=stop", "--step", f"done@{each}=stop",
        mode=mode, requests=each, full=False) for mode in MODES]

    def all_have_stopped(seconds):
        for run in runs:
            for _ in range(CLIENTS):
                line = line_of(run.stdout.fileno(), seconds)
                assert line.startswith(b"reached"), f"not reached: {line}"
        if trouble:
            trouble.pause()
        return held(client)
    equal, kib = all_have_stopped(max(300, requests // 10))
    if trouble:
        trouble.begin()
    for run in runs:
        go_on(run)
    equal_then, kib_then = all_have_stopped(max(1500, requests))
    print(equal, kib, kib_then)
    # httpd may have had connections of clients that had vanished.
    assert equal_then.pop("descriptors") <= equal.pop("descriptors")
    assert equal_then == equal
    assert kib["VmPin"] > 0 and kib["Stacks"] > 0
    for name in ("Rss", "VmPin"):
        assert kib_then[name] - kib[name] <= max(256, kib[name] // 100), \
            (kib, kib_then)
    for run in runs:
        ended, out, err = client.finish(run)
        assert ended == 0, out + err
    for _ in range(2 * CLIENTS * each):
        client.tally.body(True, sum(sizes) // len(sizes))
    client.httpd.skip_access()
    return changes(before)


@pytest.mark.parametrize("requests", [
    pytest.param(400, id="brief"),
    pytest.param(10_000, id="full", marks=pytest.mark.long)])
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(CONF, before=ONE_HEAP))
def test_soak(client, requests):
    done = soak(client, requests)
    assert done["ConnectionsMade"] == 2 * CLIENTS, done
    for mode in ("Write", "Read"):
        assert done[f"Requests{mode}Streamed"] > 0, done
        moved = done[f"Requests{mode}"] + done[f"Requests{mode}Streamed"]
        assert moved == requests // 2, done
    assert "RequestsTcp" not in done, done


# As many requests as N says, when somebody has said so: `make soak`.
@pytest.mark.parametrize("requests", [
    pytest.param(1600, id="brief"),
    *([pytest.param(N, id="full")] if N else [])])
@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(CONF + """
RdmaTimeout 5s
RdmaLeaseTimeout 5s
ThreadsPerChild 64
MaxRequestWorkers 64
MaxSpareThreads 64
""", before=ONE_HEAP))
def test_under_fire(client, requests):
    trouble = Trouble(client, client.site.file(300_000), random.Random(SEED))
    trouble.start()
    trouble.begin()
    try:
        soak(client, requests, trouble)
    finally:
        trouble.end()
        client.lab.mend()
        print(dict(trouble.done))
    assert trouble.done.keys() == set(trouble.KINDS)
