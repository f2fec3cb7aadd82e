"""A device that goes away while httpd runs, and comes back."""
import time

import pytest

from hosts import command, wait_until
from httpd import conf
from status import status, wait_for

SIZE = 100_000


@pytest.fixture
def device(client):
    """remove() and add() the server's; it is there again afterwards."""
    class Device:
        name = client.lab.env["SERVER_DEV"]
        interface = client.lab.env["SERVER_IF"]
        there = True

        def remove(self):
            """The kernel waits until all programs have let go of it; the
            seconds that it took."""
            began = time.monotonic()
            command("rdma", "link", "del", self.name, timeout=30)
            self.there = False
            return time.monotonic() - began

        def add(self):
            command("rdma", "link", "add", self.name, "type", "siw",
                    "netdev", self.interface)
            self.there = True
    device = Device()
    yield device
    if not device.there:
        device.add()


@pytest.mark.parametrize("state", ["idle", "lease", "stream"])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf("RdmaEnable On"))
def test_removed_and_added(client, device, mode, state):
    """TCP meanwhile, RDMA again, and the children stay the same."""
    children = client.httpd.children()
    client.fetch(SIZE, by=mode)
    process = None
    if state == "lease":
        process = client.peer_at([client.site.file(SIZE)], "before-consumed"
                                 if mode == "write" else "before-read",
                                 mode=mode)
    elif state == "stream":
        process = client.start_peer(
            [client.site.file(20_000_000)], "--window", 65536, "--step",
            "first-message=stall", "--step", "before-read=stall", mode=mode)
        wait_for(StreamsOpen=1)
    assert device.remove() < 10
    wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0)
    assert status()["MemoryInUse"] == 0
    if process:
        process.kill()
        client.finish(process)
        wait_for(LeasesOpen=0, StreamsOpen=0)
    client.httpd.skip_access()
    for _ in range(2):
        result, entry = client.fetch(SIZE, by="tcp", alone=False)
        assert entry.declined == "device", entry
    device.add()

    def by_rdma():
        result = client.rwget(client.site.file(SIZE), rdma=mode)
        assert result.status == 0, result.err
        return result.path == mode
    wait_until(by_rdma, 10, "RDMA is back")
    client.httpd.skip_access()
    client.fetch(SIZE, by=mode, alone=False)
    assert client.httpd.children() == children
