"""Memory that has been read from, or was to be, and is used again: whatever a
network still carries out of it, no client gets a wrong byte. Only a driver that
sends from the pages themselves can show it."""
import itertools
import os
import signal
import time

import pytest

from clients import Peer, go_on
from content import SEED
from hosts import command, wait_until
from httpd import conf
from status import wait_for

SIZE = 60_000  # goes into TCP at once, so that it outlives its connection
OTHER, THIRD = 0x0DD << 40, 0x3D << 40
SHORT = """
RdmaEnable On
RdmaConnectTimeout 20
RdmaTimeout 1s
RdmaLeaseTimeout 3s
"""
LATE = 9  # seconds, longer than a lease and its end
HANDS_ON = "LoadModule rdma_module /build/reuse/module/mod_rdma.so"


def start(client, size, seed, *options, **more):
    return client.start_peer([client.site.file(size, seed=seed)], *options,
                             verify=f"stamp:{seed:#x}", full=False, **more)


def ended(client, process, seconds=120):
    return Peer(*client.finish(process, seconds))


def late(lab, address, *others):
    """What the server sends there arrives LATE seconds later; and how the rest
    does, as words for netem."""
    interface = lab.env["SERVER_IF"]
    lab.netem()
    command("modprobe", "-a", "sch_prio", "cls_u32")
    command("tc", "qdisc", "add", "dev", interface, "root", "handle", "1:",
            "prio", "bands", "2", "priomap", *["0"] * 16)
    if others:
        command("tc", "qdisc", "add", "dev", interface, "parent", "1:1",
                "netem", *others)
    later(lab, LATE, how="add")
    command("tc", "filter", "add", "dev", interface, "parent", "1:",
            "protocol", "ip", "u32", "match", "ip", "dst", f"{address}/32",
            "flowid", "1:2")


def later(lab, seconds, how="change"):
    """From now on; what is on its way already is not overtaken."""
    command("tc", "qdisc", how, "dev", lab.env["SERVER_IF"], "parent", "1:2",
            "netem", "delay", f"{seconds}s", "limit", "10000")


def overtaken(client):
    """READs that are answered, and whose packets arrive when the lease is over,
    the connection gone and others have been served since. What came of them."""
    away = client.lab.env["CLIENTS4"].split()[1]
    path = client.site.file(SIZE)
    readers = client.peer_at([path], "before-read", "--bind", away,
                             "--clients", 4, count=4, mode="read", full=False)
    late(client.lab, away)
    try:
        go_on(readers)
        sent = time.monotonic()
        wait_for(LATE - 2, LeasesOpen=0, ConnectionsOpenRead=0, ArenasOpen=0)
        others = ended(client, start(client, SIZE, OTHER, "--clients", 8,
                                     mode="read", requests=2))
        took = time.monotonic() - sent
        assert took < LATE, f"after {took:.1f} s it is too late to be shown"
        assert (others.status, others.paths["read"]) == (0, 16), others.json
        readers.stdin.close()
        readers.stdin = None
        seen = ended(client, readers)
    finally:
        client.lab.netem()
    client.httpd.skip_access()
    return seen


@pytest.mark.driver("tuned")
@pytest.mark.httpd(SHORT)
def test_a_lease_that_ends_before_its_packets_arrive(client):
    seen = overtaken(client)
    assert (seen.ok, seen.mismatched) == (4, 0), seen.json
    for _ in range(4):
        client.tally.body(True, SIZE)


@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(SHORT, load=HANDS_ON))
def test_the_same_finds_memory_that_is_handed_on(client):
    """A module whose arenas go on to the next connection: there are wrong
    bytes, in bodies that their clients take for good."""
    assert overtaken(client).mismatched > 0


# Stalls around a lease of a second, answers that come too late, ids that are
# given up; each of them again and again, in turn.
STALLS = """before-read@3=wait:900 before-read@5=wait:1050
before-read@7=wait:1900 before-read@9=wait:2100 during-read@11=wait:950
during-read@13=wait:2050 before-consumed@15=wait:1000 head@17=abort
during-read@19=abort before-read@21=abort first-message@23=abort
written-fin@25=wait:1000 before-consumed@27=abort head@29=reset-http
during-read@31=disconnect before-consumed@33=disconnect
before-read@35=wait:1000""".split()
HELD_UP = 4  # seconds
LOSSY = ("delay", "3ms", "2ms", "loss", "1%", "reorder", "5%")
STORM = """
RdmaEnable On
RdmaConnectTimeout 20
RdmaTimeout 1s
RdmaLeaseTimeout 1s
RdmaIdleTimeout 1s
RdmaMaxConnectionsPerClient 200
ThreadsPerChild 48
MaxRequestWorkers 48
MaxSpareThreads 48
"""


def again(httpd, how):
    """A new child: the one before ends when it has done what it has begun, or
    at once."""
    old = httpd.children()
    if how == "graceful":
        httpd.process.send_signal(signal.SIGUSR1)
    else:
        for child in old:
            os.kill(child, signal.SIGKILL)
    wait_until(lambda: set(httpd.children()) - set(old), 30, "a new child")


def stormy(client):
    """2000 bodies and more over a bad wire, of clients that know each their own
    content and stall, give up or go, from children that end now and then; and
    some whose packets are held up for longer than a lease and its end. What the
    clients have got."""
    away = client.lab.env["CLIENTS4"].split()[1]
    steps = [word for step in STALLS for word in ("--step", step)]
    # Children that are killed, or told again to end, or have no workers yet.
    client.httpd.expect(dict.fromkeys(
        ["AH00045", "AH00046", "AH00051", "AH00052", "AH00484", "AH00485",
         "RDMA0056"]))
    usual = ("--close", "--timeout", 20, "--retry")
    late(client.lab, away, *LOSSY)
    later(client.lab, 0)
    try:
        runs = [start(client, 150_000 + 7 * number, seed, *steps, *usual,
                      "--clients", 10, "--progress", 3, mode=mode,
                      requests=70)
                for number, (mode, seed) in enumerate(
                    itertools.product(("write", "read"), (SEED, OTHER)))]
        runs.append(start(client, SIZE, THIRD, *usual, "--clients", 8,
                          "--bind", away, "--step", "before-read=wait:700",
                          mode="read", requests=20))
        for how in ("graceful", "kill") * 2:
            time.sleep(3)
            later(client.lab, HELD_UP)
            time.sleep(HELD_UP + 1)
            later(client.lab, 0)
            again(client.httpd, how)
        seen = [ended(client, run, 300) for run in runs]
    finally:
        client.lab.netem()
    client.httpd.skip_access()
    return seen


@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(STORM))
def test_no_wrong_byte(client):
    seen = stormy(client)
    assert all(run.mismatched == 0 for run in seen), [r.json for r in seen]
    right = sum(run.ok for run in seen)
    moved = sum(run.paths["write"] + run.paths["read"] for run in seen)
    print(f"{right} bodies, {moved} by RDMA")
    assert right >= 2000 and moved >= 1500, [r.json for r in seen]
    for _ in range(moved):
        client.tally.body(True, 150_000)
    wait_for(20, LeasesOpen=0, StreamsOpen=0, ConnectionsOpenWrite=0,
             ConnectionsOpenRead=0, ArenasOpen=0)


@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(STORM, load=HANDS_ON))
def test_the_storm_finds_memory_that_is_handed_on(client):
    assert sum(run.mismatched for run in stormy(client)) > 0
