"""A device that goes away while httpd runs, and comes back."""
import itertools
import subprocess
import time

import pytest

from clients import Peer
from hosts import command, wait_until
from httpd import conf
from status import status, wait_for
from test_transfer import ALL_SIZES

SIZE = 100_000
CLIENTS = 4  # of a load
LOAD = 100   # bodies for each of them


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
            # Who waits in the kernel cannot be killed, so nobody waits for it.
            waiting = subprocess.Popen(["rdma", "link", "del", self.name])
            self.there = False
            try:
                status = waiting.wait(30)
            except subprocess.TimeoutExpired:
                pytest.exit(f"{self.name} is held; what comes next would hang")
            assert status == 0
            return time.monotonic() - began

        def add(self):
            command("rdma", "link", "add", self.name, "type",
                    self.name.split("_")[0], "netdev", self.interface)
            self.there = True
    device = Device()
    yield device
    if not device.there:
        device.add()


STATES = ("idle", "lease", "stream", "load")
CHECKED = {("tuned", "event", "write", "idle"),
           ("tuned", "event", "read", "lease"),
           ("tuned", "event", "write", "stream"),
           ("tuned", "worker", "read", "load")}

# All states with one driver and MPM; some of them with the others.
OTHERS = {("stock", "event", "write", "lease"),
          ("stock", "event", "read", "stream"),
          ("rxe", "event", "write", "stream"),
          ("rxe", "event", "read", "lease"),
          ("tuned", "worker", "write", "idle"),
          ("tuned", "worker", "read", "load")}


def cases():
    for driver, mpm in (("stock", "event"), ("rxe", "event"),
                        ("tuned", "event"), ("tuned", "worker")):
        for mode, state in itertools.product(("write", "read"), STATES):
            marks = [pytest.mark.driver(driver),
                     pytest.mark.httpd(conf(ALL_SIZES, mpm))]
            if (driver, mpm) != ("tuned", "event") and \
                    (driver, mpm, mode, state) not in OTHERS:
                continue
            if (driver, mpm, mode, state) not in CHECKED:
                marks.append(pytest.mark.long)
            yield pytest.param(mode, state, marks=marks,
                               id=f"{driver}-{mpm}-{mode}-{state}")


def start(client, mode, state):
    """What goes on when the device is removed."""
    if state == "lease":
        return client.peer_at([client.site.file(SIZE)], "before-consumed"
                              if mode == "write" else "before-read", mode=mode)
    if state == "stream":
        process = client.start_peer(
            [client.site.file(20_000_000)], "--window", 65536, "--step",
            "first-message=stall", "--step", "before-read=stall", mode=mode)
        wait_for(StreamsOpen=1)
        return process
    if state == "load":
        count = f"Requests{mode.capitalize()}"
        before = status()[count]
        process = client.start_peer(
            [client.site.file(300_000)], "--clients", CLIENTS, "--timeout", 20,
            "--progress", 2, mode=mode, requests=LOAD, full=False)
        wait_until(lambda: status()[count] - before > 2 * CLIENTS, 20,
                   "the load begins")
        return process
    return None


def end_load(client, process, mode):
    """Each client may have lost the one body that it was about to take."""
    run = Peer(*client.finish(process))
    assert run.status >= 0
    assert run.mismatched == 0 and run.unexpected == 0, run.json
    assert run.ok >= CLIENTS * (LOAD - 1), run.json
    assert run.paths[mode] > 0 and run.paths["tcp"] > 0, run.json
    assert run.declined.keys() <= {"device", "connect", "failed"}, run.json


@pytest.mark.parametrize("mode,state", cases())
def test_removed_and_added(client, device, mode, state):
    """TCP meanwhile, RDMA again, and the children stay the same."""
    children = client.httpd.children()
    client.fetch(SIZE, by=mode)
    process = start(client, mode, state)
    assert device.remove() < 10
    wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0)
    assert status()["MemoryInUse"] == 0
    if state == "load":
        end_load(client, process, mode)
    elif process:
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
