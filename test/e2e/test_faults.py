"""Every fault at every step of the protocol: within two seconds of the deadline
that applies nothing is held any more, and the next client is served by RDMA."""
import http.client
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

import backends
import faults
import status as numbers
from clients import go_on
from faults import CONNECT, HTTP, LEASE, TIMEOUT
from hosts import command, wait_until
from httpd import MODULES, conf

SIZE = 200_000
STREAM = 3_000_000  # more than a body may have of 16M
WINDOW = 256 << 10
MARGIN = 2
PORT = 8097
PAGE = "/faults-status"
CONF = f"""
RdmaEnable On
RdmaMemory 16M
RdmaConnectTimeout {CONNECT}
RdmaTimeout {TIMEOUT}
RdmaLeaseTimeout {LEASE}
RdmaIdleTimeout {LEASE + TIMEOUT}
Timeout {HTTP}
KeepAliveTimeout 1
ProxyTimeout 60
LoadModule status_module {MODULES}/mod_status.so
LoadModule proxy_module {MODULES}/mod_proxy.so
LoadModule proxy_http_module {MODULES}/mod_proxy_http.so
ProxyPass /gated http://127.0.0.1:{PORT}/gated
<Location {PAGE}>
    SetHandler server-status
</Location>
"""
GAUGES = ("ConnectionsOpenWrite", "ConnectionsOpenRead", "ConnectsQueued",
          "ConnectsInFlight", "LeasesOpen", "StreamsOpen", "ArenasOpen")


class Gated(backends.Raw):
    """Nothing comes before the gate is open."""

    open = threading.Event()

    def gated(self, body):
        Gated.open.wait(60)
        self._head(f"Content-Length: {len(body)}")
        self.wfile.write(body)


@pytest.fixture
def gate():
    server = backends.serve(Gated, PORT)
    yield Gated.open
    Gated.open.set()
    server.shutdown()
    server.server_close()


# ---- what is held -----------------------------------------------------------

def held(most):
    """What the server holds beyond `most` bytes of memory and one worker, the
    one that answers: {name: value}."""
    try:
        code, _, text = numbers.ask(PAGE + "?auto")
    except (OSError, http.client.HTTPException) as error:
        return {"no status": error}
    if code != 200:
        return {"status": code}
    lines = dict(line.split(": ", 1) for line in text.splitlines()
                 if ": " in line)
    found = {name: int(lines[f"Rdma{name}"]) for name in GAUGES}
    found["MemoryInUse"] = max(0, int(lines["RdmaMemoryInUse"]) - most)
    # In keep-alive, or waiting for the end of a connection, it is httpd's.
    found["workers"] = lines["Scoreboard"].count("W") - 1
    return {name: value for name, value in found.items() if value}


def queue_pairs():
    """What the kernel says to it."""
    out = command("rdma", "res", "show", "qp", check=False)
    return [line for line in out.splitlines() if "comm apache2" in line]


def gone(seconds, most, but=()):
    """Nothing is held any more, by then, but what may be."""
    seen = {}

    def test():
        seen.clear()
        seen.update({name: value for name, value in held(most).items()
                     if name not in but})
        return not seen
    try:
        wait_until(test, seconds, "gone")
    except AssertionError:
        raise AssertionError(f"after {seconds:.1f} s the server still holds "
                             f"{seen}") from None


def freed(since, name, silent, most, done):
    """By the deadline that applies nothing of RDMA is there, and the worker is
    free when HTTP, which may be as silent, has had its time too."""
    def left(deadline=faults.DEADLINES[name]):
        return max(since + deadline + MARGIN - time.monotonic(), 0)
    if name == "driver":  # for which no request waits
        gone(left(CONNECT + HTTP), most, but=(*GAUGES, "MemoryInUse"))
    gone(left(), most, but=("workers",) if silent else ())
    wait_until(lambda: not queue_pairs(), left(), "the end of queue pairs")
    wait_until(done, left(), "nobody holds the device")
    if silent:
        gone(left() + HTTP, most)


# ---- faults ----------------------------------------------------------------

class Fault:
    """One that has been brought about, until mend()."""

    def __init__(self, client, process, name, number):
        self.client = client
        self.process = process
        self.name = name
        self.number = number
        self.lab = client.lab
        self.device = self.lab.env["SERVER_DEV"]
        self.interface = self.lab.env["SERVER_IF"]
        self.removal = None

    def begin(self):
        if self.name == "kill":
            self.process.kill()
        elif self.name == "stop":
            self.process.send_signal(signal.SIGSTOP)
        elif self.name == "link down":
            # IPv6 addresses would go, too, and not come back.
            Path(f"/proc/sys/net/ipv6/conf/{self.interface}"
                 "/keep_addr_on_down").write_text("1")
            command("ip", "link", "set", self.interface, "down")
        elif self.name == "loss":
            self.lab.netem("loss", "100%")
        elif self.name == "HTTP reset":  # it is what the script does next
            go_on(self.process)
        elif self.name == "device removed":
            # The kernel waits until every process has let go of it.
            self.removal = subprocess.Popen(["rdma", "link", "del",
                                             self.device])
        elif self.name == "child crash":
            self.client.httpd.expect({"AH00051": None, "AH00052": None})
            child, = self.client.httpd.children()
            how = (signal.SIGKILL, signal.SIGSEGV)[self.number % 2]
            os.kill(child, how)
            if how == signal.SIGSEGV and not os.environ.get("SAN"):
                # It ends when the kernel has let go of all that it had.
                wait_until(lambda: not Path(f"/proc/{child}").exists(), 15,
                           "its end")
                assert self.lab.cores() == ["apache2"]

    def done(self):
        return self.removal is None or self.removal.poll() is not None

    def mend(self):
        if self.name == "link down":
            command("ip", "link", "set", self.interface, "up")
        elif self.name == "loss":
            self.lab.netem()
        elif self.name == "device removed":
            wait_until(self.done, 60, "the device's removal")
            command("rdma", "link", "add", self.device, "type", "siw",
                    "netdev", self.interface)
        state = Path(f"/sys/class/infiniband/{self.device}/ports/1/state")
        wait_until(lambda: "ACTIVE" in state.read_text(), 10, "the device")


def start(client, mode, step, fault):
    """rdma_peer, stopped at that step."""
    options = ["--window", 65536 if step.stream else WINDOW, "--linger", 6000]
    if step.gated:
        Gated.open.clear()
        paths = ["/gated"]
    else:
        paths = [client.site.file(STREAM if step.stream else SIZE)]
    if step.slow:
        client.lab.netem("rate", "1mbit", "limit", "10000")
    before = client.lab.sent()[0]
    after = ["--step", f"{step.at[mode]}=reset-http"] \
        if fault == "HTTP reset" else []
    process = client.peer_at(paths, step.at[mode], *options, *after, mode=mode,
                             full=False)
    if step.slow:
        wait_until(lambda: client.lab.sent()[0] - before > SIZE // 5, 10,
                   "the transfer begins", pause=0.01)
    if step.stream:
        wait_until(lambda: numbers.status()["StreamsOpen"] == 1, 5,
                   "the stream")
    return process


def one(client, mode, step, name, number, most):
    """One cell of the table."""
    process = start(client, mode, step, name)
    fault = Fault(client, process, name, number)
    silent = name in faults.SILENT
    deadline = faults.deadline(name, step, mode)
    began = time.monotonic()
    try:
        fault.begin()
        if step.gated:
            Gated.open.set()
        if step.slow and name != "loss":
            client.lab.netem()
        freed(began, deadline, silent, most, fault.done)
    finally:
        process.kill()
        client.finish(process)
        fault.mend()
    client.fetch(65536, by=mode, folder="next", alone=False)


def level(client, mode):
    """The memory that stays when nobody is there."""
    client.fetch(65536, by=mode, folder="next", alone=False)
    gone(10, 1 << 40)
    return numbers.status()["MemoryInUse"]


def run(client, gate, mode, fault, steps):
    """These steps; every one is tried, whatever came of those before."""
    client.httpd.expect({"RDMA0053": None} if fault == "device removed" else {})
    wrong = []
    most = level(client, mode)
    objects = len(client.lab.objects()) if len(steps) > 1 else 0
    for number, step in enumerate(steps):
        began = time.monotonic()
        name = faults.deadline(fault, step, mode)
        try:
            one(client, mode, step, fault, number, most)
        except AssertionError as error:
            name = "FAIL"
            wrong.append(f"{fault}, {step.name}, {mode}: {error}")
            client.lab.mend()
            client.httpd.start(client.httpd.running)
            level(client, mode)
        client.tally.fault(mode, step.name, fault, name)
        print(f"{mode}: {step.name}: {fault}: {name}, "
              f"{time.monotonic() - began:.1f} s")
    client.httpd.skip_access()
    assert not wrong, "\n".join(wrong)
    gone(MARGIN, most)
    if objects:
        # A device that was removed has taken its pool along.
        wait_until(lambda: len(client.lab.objects()) <= objects, 10,
                   "no more objects than before")


# One case of each, for `check`.
SOME = {
    "kill": ("write", "during WRITE"),
    "stop": ("read", "before CONSUMED"),
    "link down": ("write", "mid stream"),
    "loss": ("read", "head sent"),
    "HTTP reset": ("read", "during READ"),
    "device removed": ("read", "before CONSUMED"),
    "child crash": ("read", "mid stream"),
}


@pytest.mark.httpd(conf(CONF))
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_one_step(client, gate, fault):
    mode, name = SOME[fault]
    run(client, gate, mode, fault,
        [step for step in faults.STEPS if step.name == name])


@pytest.mark.long
@pytest.mark.parametrize("fault", faults.FAULTS)
@pytest.mark.parametrize("mode", faults.MODES)
@pytest.mark.parametrize("mpm", [
    pytest.param(mpm, marks=pytest.mark.httpd(conf(CONF, mpm)))
    for mpm in ("event", "worker")])
def test_every_step(client, gate, mpm, mode, fault):
    run(client, gate, mode, fault,
        [step for step in faults.STEPS if mode in step.at])
