"""What a child runs out of while it serves: TCP answers then, never an error,
and when there is enough again, RDMA does, in the same child."""
import resource

import pytest

from content import differs
from hosts import wait_until
from httpd import conf
from status import wait_for

SIZE = 100_000
CGROUPS = Path("/sys/fs/cgroup")
# What a child has and cannot have more of.
LIMITS = {"descriptors": resource.RLIMIT_NOFILE,
          "locked memory": resource.RLIMIT_MEMLOCK}
BESIDES = 3  # descriptors: the HTTP connection, the file, and not enough

CHECKED = {("descriptors", True), ("hca_object=3", True)}


class Scarcity:
    """One child's, until lift()."""

    def __init__(self, child):
        self.child = child
        self.lift = lambda: None

    def limit(self, what):
        if what in LIMITS:
            was = resource.prlimit(self.child, LIMITS[what])
            few = 4096 if what == "locked memory" else BESIDES + len(
                list(Path(f"/proc/{self.child}/fd").iterdir()))
            resource.prlimit(self.child, LIMITS[what], (few, was[1]))
            self.lift = lambda: resource.prlimit(self.child, LIMITS[what], was)
            return
        (CGROUPS / "cgroup.subtree_control").write_text("+rdma")
        group = CGROUPS / "scarce"
        group.mkdir(exist_ok=True)
        home = CGROUPS / Path(f"/proc/{self.child}/cgroup").read_text() \
            .strip().split("::/")[1]
        (group / "rdma.max").write_text(f"{self.device} {what}")
        (group / "cgroup.procs").write_text(str(self.child))

        def lift():
            (home / "cgroup.procs").write_text(str(self.child))
            group.rmdir()
        self.lift = lift


@pytest.fixture
def scarcity(client):
    child, = client.httpd.children()
    made = Scarcity(child)
    yield made
    made.lift()


@pytest.mark.parametrize("what,warm", [
    pytest.param(what, warm, id=f"{what}, {'others' if warm else 'the first'}",
                 marks=[] if (what, warm) in CHECKED else pytest.mark.long)
    for what in ("descriptors", "locked memory", "hca_object=0",
                 "hca_object=3", "hca_handle=0")
    for warm in (False, True) if (what, warm) != ("hca_handle=0", True)])
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf("RdmaEnable On"))
def test_too_little(client, scarcity, warm, what):
    """New clients, whose connections would need more of it."""
    path = client.site.file(SIZE)
    client.httpd.expect({"RDMA0053": None, "RDMA0054": None, "RDMA0055": None})
    if not warm:  # the first one of a child needs the most
        client.httpd.start(client.httpd.running)
        scarcity.child, = client.httpd.children()
    else:
        client.fetch(SIZE, by="write", alone=False)
        wait_for(ConnectionsOpenWrite=0)
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
