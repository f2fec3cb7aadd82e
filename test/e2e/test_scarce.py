"""What a child runs out of while it serves: TCP answers then, never an error,
and when there is enough again, RDMA does, in the same child."""
import itertools
import os
import resource
from pathlib import Path

import pytest

from content import differs
from hosts import wait_until
from httpd import conf
from rawhttp import Connection
from status import wait_for

SIZE = 100_000
BESIDES = 3  # descriptors: the HTTP connection, the file, and not enough
CGROUPS = Path("/sys/fs/cgroup")


def no_descriptors(child, _device):
    """The limit is one of numbers, and there are holes among those in use."""
    used = {int(fd) for fd in os.listdir(f"/proc/{child}/fd")}
    free = (n for n in itertools.count() if n not in used)
    return limited(child, resource.RLIMIT_NOFILE,
                   1 + list(itertools.islice(free, BESIDES))[-1])


def no_locked_memory(child, _device):
    return limited(child, resource.RLIMIT_MEMLOCK, 4096)


def limited(child, limit, few):
    was = resource.prlimit(child, limit)
    resource.prlimit(child, limit, (few, was[1]))
    return lambda: resource.prlimit(child, limit, was)


def few_objects(number):
    """Of the device: queue pairs, completion queues, domains and regions."""
    def objects(child, device):
        (CGROUPS / "cgroup.subtree_control").write_text("+rdma")
        group = CGROUPS / "scarce"
        group.mkdir()
        home = CGROUPS / Path(f"/proc/{child}/cgroup").read_text() \
            .strip().split("::/")[1]
        (group / "rdma.max").write_text(f"{device} hca_object={number}")
        (group / "cgroup.procs").write_text(str(child))

        def lift():
            (home / "cgroup.procs").write_text(str(child))
            # Removing a group with a limit damages a list of this kernel.
            (group / "rdma.max").write_text(
                f"{device} hca_handle=max hca_object=max")
            group.rmdir()
        return lift
    return objects


@pytest.mark.parametrize("warm", [False, True], ids=["the first", "others"])
@pytest.mark.parametrize("limit", [
    pytest.param(no_descriptors, id="descriptors"),
    pytest.param(no_locked_memory, id="locked memory"),
    pytest.param(few_objects(0), id="no object"),
    pytest.param(few_objects(3), id="few objects")])
@pytest.mark.long
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf("RdmaEnable On"))
def test_too_little(client, limit, warm):
    """New clients, whose connections would need more of it."""
    path = client.site.file(SIZE)
    client.httpd.expect({"RDMA0053": None, "RDMA0054": None, "RDMA0055": None})
    if warm:
        client.fetch(SIZE, by="write", alone=False)
        wait_for(ConnectionsOpenWrite=0)
        # Its descriptors go with its queue pair, a little later.
        wait_until(lambda: not [line for line in client.lab.objects()
                                if " lqpn " in line], 10, "it is taken apart")
    else:  # the first one of a child needs the most
        client.httpd.start(client.httpd.running)
        with Connection(client.lab) as connection:  # when it is all there
            assert connection.get(path).status == 200
        client.httpd.access()
    child, = client.httpd.children()
    lift = limit(child, client.lab.env["SERVER_DEV"])
    try:
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
    finally:
        lift()
    for mode in ("write", "read"):
        def by_rdma():
            result = client.rwget(path, rdma=mode)
            assert result.status == 0, result.err
            return result.path == mode
        wait_until(by_rdma, 10, f"{mode} is back")
    client.httpd.skip_access()
    client.fetch(SIZE, by="read", alone=False)
    assert client.httpd.children() == [child]
