"""The demonstration: demo.sh starts it where the RDMA device is. A private
Apache with conf/example.conf, rwget as the client, SHA-256 as the judge."""
import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from content import make

SOURCE = Path(__file__).resolve().parents[2]
MODES = (("TCP", "off", "tcp"), ("server-write", "write", "write"),
         ("client-read", "read", "read"))
SIZES = (1024, 64 * 1024, 1 << 20, 16 << 20)
EXTRA = """
RdmaMinSize 1
LogFormat "%U %O" demo
CustomLog {root}/demo.log demo
PidFile {root}/pid
"""


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--exec", default="")
    parser.add_argument("--what", required=True)
    return parser.parse_args()


def free_port(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        return sock.getsockname()[1]


class Server:
    """Apache, from conf/example.conf, with a few words of our own."""

    def __init__(self, opts, root):
        self.log = root / "demo.log"
        address = f"[{opts.server}]" if ":" in opts.server else opts.server
        self.url = f"http://{address}:{free_port(opts.server)}"
        (root / "extra.conf").write_text(EXTRA.format(root=root))
        defines = {
            "RDMA_MODULE": Path(opts.build, "module/mod_rdma.so").resolve(),
            "RDMA_LISTEN": self.url.removeprefix("http://"),
            "RDMA_DOCROOT": root / "htdocs",
            "RDMA_EXTRA": root / "extra.conf",
        }
        words = []
        for name, value in defines.items():
            words += ["-C", f"Define {name} {value}"]
        self.output = open(root / "output", "w+")
        self.process = subprocess.Popen(
            ["/usr/sbin/apache2", "-d", str(root), *words, "-f",
             str(SOURCE / "conf/example.conf"), "-DFOREGROUND"],
            stdout=self.output, stderr=self.output, start_new_session=True)
        self.errors = root / "error.log"
        self._wait()

    def _wait(self):
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((host.strip("[]"), int(port)),
                                         5).close()
                return
            except ConnectionRefusedError:
                pass
            if self.process.poll() is not None \
                    or time.monotonic() > deadline:
                self.complain()
                sys.exit("demo: Apache does not start")
            time.sleep(0.05)

    def complain(self):
        self.output.seek(0)
        sys.stderr.write(self.output.read())
        if self.errors.exists():
            sys.stderr.write(self.errors.read_text())

    def tcp_bytes(self, path):
        """What the last response for this path took of TCP."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = re.findall(rf"^{re.escape(path)} (\d+)$",
                               self.log.read_text(), re.M)
            if found:
                self.log.write_text("")
                return int(found[-1])
            time.sleep(0.02)
        return None

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(opts, url, mode, target):
    """One run of rwget: its JSON, or why there is none."""
    done = subprocess.run(
        [*opts.exec.split(), f"{opts.build}/client/rwget", "--json",
         f"--rdma={mode}", f"--bind-address={opts.client}", "-O", str(target), url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=300)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        result = {}
    if done.returncode:
        result["error"] = f"status {done.returncode}: {done.stderr.strip()}"
    return result


def amount(count):
    for unit, size in (("MiB", 1 << 20), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def content(root):
    """The files to fetch: a real one, which every machine that can run this
    has, one that is far larger than the window, which the lab always has, and
    generated ones."""
    docs = root / "htdocs"
    docs.mkdir()
    docs.chmod(0o755)
    release = os.uname().release
    modules = Path("/lib/modules") / release
    real = [next(
        path for path in (modules / "vmlinuz",
                          Path("/boot") / ("vmlinuz-" + release),
                          Path(os.path.realpath("/usr/bin/python3")))
        if os.access(path, os.R_OK))]
    if os.environ.get("LAB") == "guest":
        real.append(modules / "linux-image.deb")
    files = []
    for path in real:
        files.append(docs / path.name)
        shutil.copyfile(path, files[-1])
    for size in SIZES:
        files.append(docs / f"{size}.bin")
        files[-1].write_bytes(make(size))
    return files


def show(*cells):
    print("{:15}  {:14}  {:>10}  {:>7}  {:>7}  {:>10}  {}".format(*cells),
          flush=True)


def run(opts, server, files, root):
    """Every file each way; how many were right, and of how many."""
    show("file", "path", "size", "s", "MB/s", "TCP bytes", "verified")
    right = total = 0
    for file in files:
        size, digest = file.stat().st_size, sha256(file)
        for path, mode, expected in MODES:
            target = root / "fetched"
            result = fetch(opts, f"{server.url}/{file.name}", mode, target)
            problem = result.get("error")
            if not problem and sha256(target) != digest:
                problem = "SHA-256 differs"
            if not problem and result.get("path") != expected:
                problem = (f"went by {result.get('path')}: "
                           f"{result.get('why_tcp')}")
            tcp = server.tcp_bytes(f"/{file.name}") if not problem else None
            if not problem and expected != "tcp" and (tcp or 0) > 4096:
                problem = "the body went by TCP as well"
            seconds = result.get("seconds") or 0
            speed = f"{size / seconds / 1e6:.1f}" if seconds else "-"
            show(file.name, path, amount(size), f"{seconds:.3f}", speed,
                 "-" if tcp is None else tcp, problem or "yes")
            total += 1
            right += not problem
            target.unlink(missing_ok=True)
    return right, total


def raise_memlock():
    """Windows and RdmaMemory are locked memory; perhaps we may."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (OSError, ValueError):
        pass


def main():
    opts = options()
    raise_memlock()
    root = Path(tempfile.mkdtemp(prefix="mod_rdma-demo."))
    root.chmod(0o755)
    server = None
    try:
        files = content(root)
        server = Server(opts, root)
        print(f"demo: {opts.what}; every fetch is a program of its own, which "
              "makes its RDMA connection first")
        right, total = run(opts, server, files, root)
        if right < total:
            server.complain()
    finally:
        if server:
            server.stop()
        shutil.rmtree(root)
    print(f"demo: {right} of {total} transfers verified")
    return right != total


if __name__ == "__main__":
    sys.exit(main())
