"""The two hosts of the lab: what test/lab/hosts.sh makes, as Python sees it."""
import ctypes
import os
import re
import resource
import subprocess
import threading
import time
from pathlib import Path

HOSTS_SH = Path(__file__).parent.parent / "lab" / "hosts.sh"
ENVIRONMENT = Path("/run/lab.env")
CLONE_NEWNET = 0x40000000
CORES = Path("/tmp/cores")  # of whatever program crashes
DRIVERS = ("none", "stock", "rxe", "tuned")  # in the order of a run


def wait_until(test, seconds, what, pause=0.05):
    """Returns test()'s first true value; fails after that many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = test()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(pause)


def command(*words, check=True, timeout=60):
    """Runs a program in the server's host; its output."""
    done = subprocess.run(words, stdout=subprocess.PIPE, timeout=timeout,
                          stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)}: status {done.returncode}\n"
                             f"{done.stdout}")
    return done.stdout


class Lab:
    """One driver at a time; switching is slow."""

    def __init__(self):
        self.driver = None
        self.env = {}
        self._dmesg = 0
        CORES.mkdir(exist_ok=True)
        CORES.chmod(0o1777)
        Path("/proc/sys/kernel/core_pattern").write_text(f"{CORES}/%e.%p\n")
        resource.setrlimit(resource.RLIMIT_CORE, 2 * (resource.RLIM_INFINITY,))

    def up(self, driver):
        """Both hosts with this driver. No program may have a device open."""
        if driver == self.driver:
            return
        self.driver = None
        command("sh", str(HOSTS_SH), "up", driver, timeout=120)
        self.env = {}
        for line in ENVIRONMENT.read_text().splitlines():
            name, _, value = line.partition("=")
            self.env[name] = value.strip("'")
        self.driver = driver

    def server(self, family=4):
        return self.env[f"SERVER{family}"]

    def client(self, family=4):
        return self.env[f"CLIENT{family}"]

    @property
    def two_namespaces(self):
        return bool(self.env["CLIENT_EXEC"])

    def in_client(self, function):
        """function(), as a program of the client's host would do it: sockets
        and processes that it makes belong there."""
        if not self.two_namespaces:
            return function()
        answer = {}

        def enter():
            libc = ctypes.CDLL(None, use_errno=True)
            with open("/run/netns/client", "rb") as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    answer["error"] = OSError(ctypes.get_errno(), "setns")
                    return
            try:
                answer["value"] = function()
            except Exception as error:  # handed to the caller
                answer["error"] = error

        # Only this thread changes over; it ends with the call.
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if "error" in answer:
            raise answer["error"]
        return answer["value"]

    # ---- what the server's end has done --------------------------------

    def sent(self):
        """Bytes and, for rxe, RDMA packets that the server's end has sent; no
        packets when the device is gone."""
        base = Path("/sys/class")
        end = base / "net" / self.env["SERVER_IF"] / "statistics/tx_bytes"
        packets = (base / "infiniband" / self.env["SERVER_DEV"]
                   / "ports/1/hw_counters/sent_pkts")
        return (int(end.read_text()),
                int(packets.read_text())
                if self.driver == "rxe" and packets.exists() else 0)

    def objects(self, program="apache2"):
        """What programs of this name hold of the RDMA devices."""
        held = []
        for kind in ("qp", "cm_id", "cq", "mr", "pd", "ctx"):
            out = command("rdma", "res", "show", kind, check=False)
            held += [line for line in out.splitlines()
                     if f"comm {program}" in line]
        return held

    def holder(self, program="apache2"):
        """The one process of this name that holds queue pairs."""
        pid, = {re.search(r" pid (\d+) ", line).group(1)
                for line in self.objects(program) if " lqpn " in line}
        return int(pid)

    # ---- faults ---------------------------------------------------------

    def netem(self, *words, at="SERVER"):
        """One end delays, loses, reorders what it sends; without words no
        more."""
        tc = [*self.env["CLIENT_EXEC"].split(), "tc"] if at == "CLIENT" \
            else ["tc"]
        interface = self.env[f"{at}_IF"]
        command(*tc, "qdisc", "del", "dev", interface, "root", check=False)
        if words:
            command(*tc, "qdisc", "add", "dev", interface, "root", "netem",
                    *words)

    def black_hole(self, address):
        """Whatever the server sends to this address is lost."""
        command("ip", "neigh", "replace", address, "lladdr",
                "02:00:00:00:00:77", "dev", self.env["SERVER_IF"],
                "nud", "permanent")

    def mend(self):
        """No fault is left."""
        self.netem()
        self.netem(at="CLIENT")
        command("ip", "neigh", "flush", "dev", self.env["SERVER_IF"],
                "nud", "permanent", check=False)

    # ---- the kernel ------------------------------------------------------

    def complaints(self):
        """What the kernel has complained about since the last call."""
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        found = []
        try:
            while True:
                try:
                    record = os.read(log, 8192).decode(errors="replace")
                except BlockingIOError:
                    break
                except BrokenPipeError:
                    continue  # overwritten meanwhile
                number = int(record.split(",", 2)[1])
                if number < self._dmesg:
                    continue
                self._dmesg = number + 1
                if re.search(r"WARNING: |BUG: |Oops|general protection",
                             record):
                    found.append(record.split(";", 1)[1].strip())
        finally:
            os.close(log)
        return found

    @staticmethod
    def cores():
        """Names of the programs that have left a core since the last call."""
        found = []
        for core in CORES.iterdir():
            found.append(core.name.rpartition(".")[0])
            core.unlink()
        return found
