"""What a child runs out of while it serves: TCP answers then, never an error,
and when there is enough again, RDMA does, in the same child."""
import itertools
import os
import resource

import pytest

from content import differs
from hosts import wait_until
from httpd import conf
from status import wait_for

SIZE = 100_000
BESIDES = 3  # descriptors: the HTTP connection, the file, and not enough


class Scarcity:
    """One child's, until lift()."""

    def __init__(self, child):
        self.child = child
        self.lift = lambda: None

    def limit(self):
        limit = resource.RLIMIT_NOFILE
        was = resource.prlimit(self.child, limit)
        used = {int(fd) for fd in os.listdir(f"/proc/{self.child}/fd")}
        # The limit is one of numbers, and there are holes among them.
        free = (n for n in itertools.count() if n not in used)
        few = 1 + list(itertools.islice(free, BESIDES))[-1]
        resource.prlimit(self.child, limit, (few, was[1]))
        self.lift = lambda: resource.prlimit(self.child, limit, was)


@pytest.fixture
def scarcity(client):
    child, = client.httpd.children()
    made = Scarcity(child)
    yield made
    made.lift()


@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf("RdmaEnable On"))
def test_too_few_descriptors(client, scarcity):
    """New clients, whose connections would need more of it."""
    path = client.site.file(SIZE)
    client.httpd.expect({"RDMA0053": None, "RDMA0054": None, "RDMA0055": None})
    client.fetch(SIZE, by="write", alone=False)
    wait_for(ConnectionsOpenWrite=0)
    # Its descriptors go with its queue pair, a little later.
    wait_until(lambda: not [line for line in client.lab.objects()
                            if " lqpn " in line], 10, "it is taken apart")
    child = scarcity.child
    scarcity.limit()
    ways = []
    for mode in ("write", "read"):
        for _ in range(2):
            result = client.rwget(path, rdma=mode)
            assert result.status == 0, result.err
            assert not differs(result.target.read_bytes(), SIZE)
            ways.append(result.path)
    assert "tcp" in ways, f"nothing was short: {ways}"
    entries = client.httpd.access(4, path=path)
    assert {entry.status for entry in entries} == {"200"}, entries
    scarcity.lift()
    scarcity.lift = lambda: None
    for mode in ("write", "read"):
        def by_rdma():
            result = client.rwget(path, rdma=mode)
            assert result.status == 0, result.err
            return result.path == mode
        wait_until(by_rdma, 10, f"{mode} is back")
    client.httpd.skip_access()
    client.fetch(SIZE, by="read", alone=False)
    assert client.httpd.children() == [child]
