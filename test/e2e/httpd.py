"""The server under test: a real apache2 in a ServerRoot of its own."""
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections import Counter, namedtuple
from pathlib import Path

from hosts import wait_until

PORT = 8080
STATUS_PORT = 8081  # of the server's own host, so that it is not on the wire
STATUS_PATH = "/e2e-status"
MODULES = "/usr/lib/apache2/modules"
APACHE = "/usr/sbin/apache2"

# One child, so that what is per child can be counted; the slots beyond it are
# for the generations that end gracefully. CoreDumpDirectory, because what changes
# its user leaves no core else.
BASE = """
ServerRoot "{root}"
ServerName server
PidFile "{root}/pid"
DefaultRuntimeDir "{root}"
{listen}
Listen 127.0.0.1:{status_port}
LoadModule mpm_{mpm}_module {modules}/mod_mpm_{mpm}.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule mime_module {modules}/mod_mime.so
TypesConfig /dev/null
{load}
User www-data
Group www-data
ServerLimit 4
StartServers 1
{threads}
MaxRequestWorkers {workers}
KeepAliveTimeout 60
GracefulShutdownTimeout 60
ErrorLog "{root}/error.log"
CoreDumpDirectory "{root}"
LogLevel info {rdma_level}
LogFormat "%>s %b %B %O %{{RDMA_MODE}}n %{{RDMA_BYTES}}n \
%{{RDMA_DECLINED}}n %m %U" e2e
CustomLog "{root}/access.log" e2e "expr=%{{REQUEST_URI}} != '{status}'"
DocumentRoot "{site}"
<Directory "{site}">
    AllowOverride None
    Require all granted
</Directory>
<Location "{status}">
    SetHandler rdma-status
</Location>
"""
THREADS = """
ThreadsPerChild 16
MinSpareThreads 1
MaxSpareThreads 16
"""
LISTEN = "Listen {server4}:{port}\nListen [{server6}]:{port}"
LOAD = "LoadModule rdma_module /build/module/mod_rdma.so"

# What belongs to one server, and what to one driver.
Conf = namedtuple("Conf", "text mpm expect listen load before")
Entry = namedtuple("Entry", "status b B O mode bytes declined method path")

LINE = re.compile(r"\] \[([a-z0-9_]*):([a-z0-9]+)\] ")
IDENTITY = re.compile(r"\b(RDMA\d{4}|AH\d{5})\b")
BAD_LEVELS = {"warn", "error", "crit", "alert", "emerg"}
CRASH = re.compile(r"AH0005[0-2]\b|exit signal")


def conf(text="RdmaEnable On", mpm="event", expect=(), listen=LISTEN,
         load=LOAD, before=()):
    """A configuration, as a marker has it. expect: pairs of id and count that
    starting brings about; before: words before the server's command line."""
    return Conf(text.strip(), mpm, tuple(expect), listen, load, tuple(before))


# For what is over soon; who can do with it shares its server with others.
SHORT = conf("""
RdmaEnable On
RdmaLeaseTimeout 1s
RdmaTimeout 1s
RdmaMemory 8M
""")
# What holds for a part of the site only.
PLACES = conf("""
RdmaEnable On
ErrorDocument 404 /65536.bin
<Location /off>
    RdmaEnable Off
</Location>
<Location /write>
    RdmaMode server-write
</Location>
<Location /read>
    RdmaMode client-read
</Location>
<Location /large>
    RdmaMinSize 1M
</Location>
""")


class Httpd:
    """One server, from start() to stop()."""

    def __init__(self, root, site, lab):
        self.root = Path(root)
        self.site = site
        self.lab = lab
        self.process = None
        self.running = None  # the Conf
        self.expected = Counter()
        self._unjudged = []  # of the servers before this one
        self._read = {"error.log": 0, "access.log": 0}

    # ---- life -------------------------------------------------------------

    def write(self, wanted):
        text = BASE.format(
            root=self.root, mpm=wanted.mpm, modules=MODULES,
            load=wanted.load, site=self.site.root,
            threads="" if wanted.mpm == "prefork" else THREADS,
            workers=4 if wanted.mpm == "prefork" else 16,
            rdma_level="rdma:debug" if "rdma_module" in wanted.load else "",
            status=STATUS_PATH, status_port=STATUS_PORT,
            listen=wanted.listen.format(server4=self.lab.server(4),
                                        server6=self.lab.server(6),
                                        port=PORT))
        (self.root / "httpd.conf").write_text(
            text + wanted.text.replace("SITE", str(self.site.root)) + "\n")

    def command(self, *words):
        return [APACHE, "-d", str(self.root), "-f",
                str(self.root / "httpd.conf"), *words]

    def check(self, wanted):
        """apache2 -t: status and output."""
        self.write(wanted)
        done = subprocess.run(self.command("-t"), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60)
        return done.returncode, done.stdout

    def start(self, wanted):
        self.stop()
        self._unjudged += self._new("error.log")
        for name in self._read:
            path = self.root / name
            if path.exists():
                path.unlink()
            self._read[name] = 0
        self.write(wanted)
        # What a shell has; root may raise it, and the module does.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
        environment = dict(os.environ)
        if os.environ.get("SAN"):
            environment.update(self._sanitized())
        # A session of its own: prefork ends its whole process group.
        with open(self.root / "output", "wb") as output:
            self.process = subprocess.Popen(
                [*wanted.before, *self.command("-DFOREGROUND")],
                stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
                env=environment)
        wait_until(self._answers, 60, "httpd answers")
        self.running = wanted
        self.expect(dict(wanted.expect))

    def _sanitized(self):
        """httpd itself is not built with it, so it has to be loaded first.
        What httpd leaks at its end is not looked for."""
        found = subprocess.run(["gcc", "-print-file-name=libasan.so"],
                               check=True, capture_output=True, text=True)
        for report in self.root.glob("sanitizer.*"):
            report.unlink()
        log = f"log_path={self.root}/sanitizer"
        return {"LD_PRELOAD": found.stdout.strip(),
                "ASAN_OPTIONS": f"{log}:detect_leaks=0",
                "UBSAN_OPTIONS": f"{log}:print_stacktrace=1"}

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError("httpd has ended:\n" + self.logs())
        try:
            socket.create_connection((self.lab.server(4), PORT), 5).close()
        except ConnectionRefusedError:
            return False
        # It listens before there are children.
        return self.children()

    def stop(self, how=signal.SIGTERM, seconds=30):
        """Returns the seconds that it took; None when nothing ran."""
        if not self.process:
            return None
        process, self.process, self.running = self.process, None, None
        # event closes the sockets of all workers on a hard stop, and may crash
        # when a worker is just closing one itself, with no module of ours, too:
        # what the test has fetched last is over by then.
        time.sleep(0.2)
        began = time.monotonic()
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise AssertionError(f"httpd was still there {seconds} s after "
                                 f"{signal.Signals(how).name}") from None
        assert process.returncode == 0, \
            f"httpd ended with status {process.returncode}"
        return time.monotonic() - began

    def graceful(self):
        """A graceful restart; returns the pids of the old generation."""
        old = self.children()
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: set(self.children()) - set(old), 30,
                   "a new generation")
        return old

    @staticmethod
    def _descendants(pid):
        path = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in path.read_text().split()]

    def children(self):
        """Process ids of the children, CGI's daemon not among them."""
        return self._descendants(self.process.pid)

    # ---- logs -------------------------------------------------------------

    def _new(self, name):
        path = self.root / name
        if not path.exists():
            return []
        with open(path, "rb") as log:
            log.seek(self._read[name])
            data = log.read()
        data = data[:data.rfind(b"\n") + 1]  # whole lines
        self._read[name] += len(data)
        return data.decode(errors="replace").splitlines()

    def access(self, count=1, path=None):
        """The next entries of the access log, which may come a little after
        the answers; with a path, those for others are dropped."""
        entries = []

        def enough():
            for line in self._new("access.log"):
                entry = Entry(*line.split(" ", 8))
                if path in (None, entry.path):
                    entries.append(entry)
            return len(entries) >= count
        wait_until(enough, 20, f"{count} entries in the access log")
        assert len(entries) == count, f"access log: {entries}"
        return entries

    def count_access(self, path):
        """How many new entries there are for a path."""
        return sum(Entry(*line.split(" ", 8)).path == path
                   for line in self._new("access.log"))

    def skip_access(self):
        self._new("access.log")

    def expect(self, messages):
        """Messages that must come before the test's end, by id (or, without
        one, by their text) and count; a count of None is any number, none
        too."""
        for identity, count in messages.items():
            if count is None or self.expected.get(identity, 0) is None:
                self.expected[identity] = None
            else:
                self.expected[identity] += count

    def judge(self):
        """What is wrong with the error log since the last call: a list."""
        seen = Counter()
        wrong = []
        lines = self._unjudged + self._new("error.log")
        self._unjudged = []
        for line in lines:
            where = LINE.search(line)
            identity = IDENTITY.search(line)
            name = identity.group(1) if identity else next(
                (text for text in self.expected if text in line), None)
            if name in self.expected:
                seen[name] += 1
            elif CRASH.search(line) or not where:
                wrong.append(line)
            elif where.group(2) in BAD_LEVELS:
                wrong.append(line)
        for name, count in self.expected.items():
            if count is not None and seen[name] != count:
                wrong.append(f"{name}: {seen[name]} times, not {count}")
        self.expected = Counter()
        for report in self.root.glob("sanitizer.*"):
            wrong += report.read_text(errors="replace").splitlines()[:12]
        return wrong

    def logs(self):
        """All that it has written, for people."""
        text = []
        for path in (*(self.root / name for name in (
                "httpd.conf", "output", "error.log", "access.log")),
                     *self.root.glob("sanitizer.*")):
            if path.exists():
                text.append(f"==== {path.name}\n{path.read_text(errors='replace')}")
        return "\n".join(text)
