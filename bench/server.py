"""The server's host: does what the client's host tells it, line by line as
JSON, over a connection of its own."""
import json
import resource
import shutil
import socket
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

import host

sys.path.insert(0, str(host.SOURCE / "test/e2e"))
from content import make  # noqa: E402

ROOT = Path("/tmp/bench")
APACHE = "/usr/sbin/apache2"


class Servers:
    """Everything that serves bodies; all of it runs, one is used at a time."""

    def __init__(self):
        self.running = {}  # name to Popen
        self.read = {}     # name to how much of its log has been read
        self.site = ROOT / "site"
        self.site.mkdir(parents=True)

    # ---- what can be asked for ----------------------------------------------

    def network(self, driver, mtu):
        self.stop()
        host.network(driver, mtu)

    def start(self, sizes):
        for size in sizes:
            path = self.site / f"{size}.bin"
            if not path.exists():
                path.write_bytes(make(size))
        self.stop()
        self._httpd("plain", 8081)
        self._httpd("rdma", 8080, "-C",
                    f"Define RDMA_MODULE {host.BUILD}/module/mod_rdma.so")
        self.running["verbs"] = subprocess.Popen(
            [f"{host.BUILD}/bench/verbs", "serve", host.SERVER,
             str(host.VERBS)], stdout=subprocess.PIPE)
        if not self.running["verbs"].stdout.readline():
            raise RuntimeError("verbs does not start")

    def sample(self):
        groups = {name: [process.pid, *host.children(process.pid)]
                  for name, process in self.running.items()}
        groups["siw"] = host.kernel_threads("siw_tx")
        return host.sample(groups)

    def log(self, server):
        """How many requests have gone which way, since the last call."""
        with open(ROOT / server / "access.log", encoding="ascii") as log:
            log.seek(self.read.get(server, 0))
            lines = log.read().split()
            self.read[server] = log.tell()
        return Counter(lines)

    def errors(self):
        return {name: (ROOT / name / "error.log").read_text()
                for name in ("plain", "rdma")
                if (ROOT / name / "error.log").exists()}

    def stop(self):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(60)
        self.running = {}

    # ---- and how ------------------------------------------------------------

    def _httpd(self, name, port, *words):
        root = ROOT / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        self.read[name] = 0
        self.running[name] = subprocess.Popen(
            [APACHE, "-d", str(root), "-C", f"Define SITE {self.site}", "-C",
             f"Define ADDRESS {host.SERVER}", *words, "-f",
             str(host.SOURCE / "bench/httpd.conf"), "-DFOREGROUND"],
            start_new_session=True)
        host.connect(host.SERVER, port).close()


def main(_):
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    host.network("none", 9000)
    servers = Servers()
    with socket.create_server((host.SERVER, host.CONTROL)) as listener:
        client, _ = listener.accept()
    with client, client.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            what, *arguments = json.loads(line)
            try:
                answer = {"is": getattr(servers, what)(*arguments)}
            except Exception:  # pylint: disable=broad-except
                answer = {"error": traceback.format_exc()}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    servers.stop()
    return 0
