"""Memory that has been read from, or was to be, and is used again: whatever a
network still carries out of it, no client gets a wrong byte. Only a driver that
sends from the pages themselves can show it."""
import time

import pytest

from clients import Peer
from hosts import command
from httpd import conf
from status import wait_for

SIZE = 60_000  # goes into TCP at once, so that it outlives its connection
OTHER = 0x0DD << 40
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


def late(lab, address):
    """What the server sends there arrives LATE seconds later."""
    interface = lab.env["SERVER_IF"]
    lab.netem()
    command("modprobe", "-a", "sch_prio", "cls_u32")
    command("tc", "qdisc", "add", "dev", interface, "root", "handle", "1:",
            "prio", "bands", "2", "priomap", *["0"] * 16)
    command("tc", "qdisc", "add", "dev", interface, "parent", "1:2",
            "netem", "delay", f"{LATE}s", "limit", "10000")
    command("tc", "filter", "add", "dev", interface, "parent", "1:",
            "protocol", "ip", "u32", "match", "ip", "dst", f"{address}/32",
            "flowid", "1:2")


def overtaken(client):
    """READs that are answered, and whose packets arrive when the lease is over,
    the connection gone and others have been served since. What came of them."""
    away = client.lab.env["CLIENTS4"].split()[1]
    path = client.site.file(SIZE)
    readers = client.peer_at([path], "before-read", "--bind", away,
                             "--clients", 4, count=4, mode="read", full=False)
    late(client.lab, away)
    try:
        readers.stdin.write("on\n")
        readers.stdin.flush()
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
