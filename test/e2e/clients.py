"""The programs on the client's host, and the proof of which way bodies went."""
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from content import SEED, differs
from httpd import PORT

RWGET = "/build/client/rwget"
PEER = "/build/peer/rdma_peer"
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
HTTP_MOST = 4096  # TCP bytes of a response whose body goes by RDMA
RXE_MTU = 4096    # bytes that one packet of rxe can carry at most


class Rwget:
    """How one run of rwget ended."""

    def __init__(self, status, out, err, target):
        self.status = status
        self.err = err
        self.target = target
        lines = out.strip().splitlines()
        self.json = json.loads(lines[-1]) if lines else {}

    def __getattr__(self, name):
        return self.json[name]


class Peer:
    """How one run of rdma_peer ended."""

    def __init__(self, status, out, err):
        self.status = status
        self.err = err
        start = out.find("{")
        self.json = json.loads(out[start:]) if start >= 0 else {}

    def __getattr__(self, name):
        return self.json[name]

    @property
    def connections_made(self):
        return {kind: self.json["connections"][kind]
                for kind in ("write", "read")}


def line_of(fd, seconds):
    """The next line of a pipe, and not a byte more: nobody but communicate()
    is to find what comes after it. Less when it does not come."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], seconds)
        byte = os.read(fd, 1) if ready else b""
        if not byte:
            break
        line += byte
    return line


def go_on(process):
    """Whatever of an rdma_peer has stopped at a step goes on."""
    process.stdin.write("on\n")
    process.stdin.flush()


class Clients:
    def __init__(self, lab, httpd, site, tally, wire):
        self.lab = lab
        self.httpd = httpd
        self.site = site
        self.tally = tally
        self.wire = wire
        self.transcript = []
        self.folder = Path(tempfile.mkdtemp(prefix="e2e-client."))
        self._processes = []
        self.mark()

    def end(self):
        """Nothing that was started is left."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder)

    # ---- programs -------------------------------------------------------

    def start(self, words, **options):
        self.transcript.append("$ " + " ".join(map(str, words)))

        def popen():
            return subprocess.Popen(
                [str(word) for word in words], text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=self.folder, **options)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, UNLIMITED)
        process = self.lab.in_client(popen)
        self._processes.append(process)
        return process

    def finish(self, process, seconds=60):
        """Status, output and messages of a program that has to end by then."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            out, err = process.communicate()
            self.transcript += [out, err]
            raise AssertionError(
                f"{process.args[0]}: no end within {seconds} s") from None
        self.transcript += [out, err, f"status {process.returncode}"]
        return process.returncode, out, err

    def url(self, path, family=4, port=PORT):
        server = self.lab.server(family)
        return f"http://{server if family == 4 else f'[{server}]'}:{port}{path}"

    def start_rwget(self, path, *options, family=4, rdma="auto",
                    target="fetched", url=None, **more):
        return self.start([RWGET, "--json", "-v", f"--rdma={rdma}",
                           f"--bind-address={self.lab.client(family)}",
                           "-O", target, *options,
                           url or self.url(path, family)], **more)

    def rwget(self, path, *options, seconds=60, target="fetched", **more):
        process = self.start_rwget(path, *options, target=target, **more)
        status, out, err = self.finish(process, seconds)
        return Rwget(status, out, err, self.folder / target)

    def fetch(self, size, *options, by, folder="", alone=True, **more):
        """rwget gets a file of that size, right in every byte, by "write",
        "read" or "tcp"; its result and the log's entry. alone: nobody else's
        answers are on the wire."""
        self.mark()
        path = self.site.file(size, folder)
        result = self.rwget(path, *options,
                            rdma={"tcp": "auto"}.get(by, by), **more)
        assert result.status == 0, result.err
        assert not differs(result.target.read_bytes(), size)
        entry, = self.httpd.access(path=path)
        if by == "tcp":
            assert result.path == "tcp", result.json
        else:
            self.tally.body(result.path == by, size)
            assert (result.path, result.bytes_rdma, result.bytes_tcp) == \
                (by, size, 0), result.json
            self.prove(by, [size], [entry], alone)
        return result, entry

    def start_peer(self, paths, *options, mode="write,read", family=4,
                   verify=f"stamp:{SEED:#x}", requests=None, full=True):
        """A run over these paths; options as rdma_peer --help says. full: with
        a line and a digest for each body, which takes time."""
        server = self.lab.server(family)
        words = [PEER, "--server", f"{server if family == 4 else f'[{server}]'}"
                 f":{PORT}", "--mode", mode, "--json=full" if full else "--json"]
        if "--bind" not in options:
            words += ["--bind", self.lab.client(family)]
        if verify:
            words += ["--verify", verify]
        if paths:
            words += ["--requests", requests or len(paths)]
        for path in paths:
            words += ["--path", path]
        return self.start([*words, *options], stdin=subprocess.PIPE)

    def peer(self, paths, *options, seconds=90, **more):
        process = self.start_peer(paths, *options, **more)
        peer = Peer(*self.finish(process, seconds))
        assert peer.status >= 0, f"rdma_peer: signal {-peer.status}"
        return peer

    def peer_at(self, paths, step, *options, count=1, **more):
        """Starts rdma_peer and comes back when it has stopped at that step
        count times; it goes on when told by its standard input."""
        process = self.start_peer(paths, "--step", f"{step}=stop", *options,
                                  **more)
        for _ in range(count):
            line = line_of(process.stdout.fileno(), 30)
            assert line.startswith(b"reached"), f"{step}: not reached: {line}"
        return process

    # ---- which way ------------------------------------------------------

    def mark(self):
        """What is proved is what comes after this."""
        self.wire.take()
        if self.lab.driver != "none":
            self._sent = self.lab.sent()

    def prove(self, mode, sizes, entries, alone=True):
        """These bodies went by RDMA and by nothing else: so says the log, and
        so do the packets. entries: the log's, one for each size."""
        for size, entry in zip(sizes, entries, strict=True):
            assert entry.mode == mode, entry
            assert entry.bytes == str(size), entry
            assert entry.declined == "-", entry
            assert int(entry.b) == int(entry.B) == size or size == 0, entry
            assert int(entry.O) < HTTP_MOST, entry
        if not alone:
            return
        http = self.wire.take()
        assert http < HTTP_MOST * len(sizes), f"{http} bytes of HTTP"
        sent, packets = self.lab.sent()
        other = sent - self._sent[0] - http
        assert other >= sum(sizes), f"{other} bytes beside HTTP"
        if self.lab.driver == "rxe":
            packets -= self._sent[1]
            assert packets * RXE_MTU >= sum(sizes), f"{packets} packets"
