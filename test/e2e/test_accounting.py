"""What httpd says of a body that took another way than its connection: the log,
the scoreboard, the environment."""
import re
import urllib.request

import pytest

from hosts import wait_until
from httpd import PORT, STATUS_PORT, conf

SIZE = 400_000
STREAM = 2_000_001
WINDOW = 500_000
LOGS = ("accounts.log", "by-rdma.log")

pytestmark = pytest.mark.httpd(conf(f"""
LoadModule status_module /usr/lib/apache2/modules/mod_status.so
RdmaEnable On
RdmaMinSize 1000
ExtendedStatus On
<Location /seen>
    SetHandler server-status
</Location>
LogFormat "%b %B %O %D %{{RDMA_MODE}}n/%{{RDMA_MODE}}e \
%{{RDMA_BYTES}}n/%{{RDMA_BYTES}}e %{{RDMA_DECLINED}}n/%{{RDMA_DECLINED}}e" all
CustomLog {LOGS[0]} all "expr=%{{SERVER_PORT}} == '{PORT}'"
CustomLog {LOGS[1]} "%U" env=RDMA_BYTES
"""))


class Accounts:
    """The lines that a test adds to the logs, and what the scoreboard adds."""

    def __init__(self, httpd):
        self.root = httpd.root
        self.begin = [len(self.lines(name)) for name in LOGS]
        self.before = self.scoreboard()

    def lines(self, name):
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []

    def new(self, name=LOGS[0]):
        begin = self.begin[LOGS.index(name)]
        wait_until(lambda: len(self.lines(name)) > begin, 10, name)
        line, = self.lines(name)[begin:]
        return line.split()

    @staticmethod
    def scoreboard():
        """Requests and KiB of this server, after a request of our own."""
        url = f"http://127.0.0.1:{STATUS_PORT}/seen?auto"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return [int(re.search(rf"^Total {what}: (\d+)", text, re.M).group(1))
                for what in ("Accesses", "kBytes")]

    def added(self):
        return [now - then for now, then in
                zip(self.scoreboard(), self.before)]


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("size", [SIZE, STREAM])
def test_by_rdma(client, mode, size):
    accounts = Accounts(client.httpd)
    options = (f"--rdma-window={WINDOW}",) if size > WINDOW else ()
    client.fetch(size, *options, by=mode)
    b, B, O, D, way, count, why = accounts.new()
    # The body, as ever; of the connection what was written to it.
    assert int(b) == int(B) == size
    assert 0 < int(O) < 4096
    assert 0 < int(D) < 60_000_000
    assert (way, count, why) == (f"{mode}/{mode}", f"{size}/{size}", "-/-")
    accounts.new(LOGS[1])
    # With mod_logio the scoreboard counts what went over connections, too; one
    # request of ours besides, whose page has some KiB.
    requests, kib = accounts.added()
    assert requests == 2
    assert kib < 64


def test_declined(client):
    accounts = Accounts(client.httpd)
    client.fetch(500, by="tcp")
    b, B, O, _, way, count, why = accounts.new()
    assert int(b) == int(B) == 500
    assert int(O) > 500
    assert (way, count, why) == ("tcp/tcp", "-/-", "small/small")
    assert accounts.lines(LOGS[1])[accounts.begin[1]:] == []


def test_not_asked(client):
    """Who does not ask leaves no trace."""
    accounts = Accounts(client.httpd)
    result = client.rwget(client.site.file(SIZE), rdma="off")
    assert result.status == 0
    assert accounts.new()[4:] == ["-/-", "-/-", "-/-"]
