"""One host of the pair: its network, and what its processors have done."""
import os
import socket
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
BUILD = Path("/build")
SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
CONTROL, VERBS = 7777, 7778  # ports
TICK = os.sysconf("SC_CLK_TCK")


def network(driver, mtu):
    """This guest as a host with that driver. No program has a device open."""
    subprocess.run(["sh", str(SOURCE / "test/lab/hosts.sh"), "join", driver,
                    str(mtu)], check=True, timeout=120)


def connect(address, port, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((address, port), 5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def kernel_threads(prefix):
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm")
            if path.read_text().startswith(prefix)]


def cpu_of(pids):
    """Seconds that these processes, threads included, have run so far."""
    ticks = 0
    for pid in pids:
        # What is between parentheses may have spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        ticks += sum(int(n) for n in fields.split()[11:13])
    return ticks / TICK


def sample(groups):
    """What has been done since the boot. groups: name to process ids.

    Busy is what is left of the time when the idle task's is taken away: the
    kernel measures that one exactly, and all others by sampling.
    """
    stat = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *numbers = line.split()
        stat[name] = [int(n) for n in numbers]
    now = time.monotonic()
    user, nice, system, idle, iowait, irq, softirq = stat["cpu"][:7]
    tcp = [line.split()[1:] for line in
           Path("/proc/net/snmp").read_text().splitlines()
           if line.startswith("Tcp:")]
    tcp = dict(zip(*tcp))
    return {
        "time": now,
        "busy": now - (idle + iowait) / TICK,
        "user": (user + nice) / TICK,
        "system": system / TICK,
        "interrupts": (irq + softirq) / TICK,
        "switches": stat["ctxt"][0],
        "segments_in": int(tcp["InSegs"]),
        "segments_out": int(tcp["OutSegs"]),
        "retransmitted": int(tcp["RetransSegs"]),
        "processes": {name: cpu_of(pids) for name, pids in groups.items()},
    }


def between(before, after):
    """What was done between two samples of one host."""
    if isinstance(after, dict):
        return {key: between(before.get(key, 0), value)
                for key, value in after.items()}
    return after - before
