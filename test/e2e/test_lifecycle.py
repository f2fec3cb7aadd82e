"""Clients that stop or die, servers that restart or stop: everything ends in
time, and nothing is left."""
import signal
import time

import pytest

from content import differs
from hosts import wait_until
from httpd import conf

SIZE = 1 << 20
SHORT = """
RdmaEnable On
RdmaLeaseTimeout 1s
RdmaTimeout 3s
"""


@pytest.fixture
def slow(client):
    """A wire on which SIZE takes about two seconds. Returns a function that
    starts rwget and comes back in the middle of the body."""
    client.lab.netem("rate", "4mbit", "limit", "10000")

    def start(mode):
        before = client.lab.sent()[0]
        process = client.start_rwget(client.site.file(SIZE), rdma=mode,
                                     target=f"slow-{len(client.transcript)}")
        wait_until(lambda: client.lab.sent()[0] - before > SIZE // 8, 10,
                   "the transfer begins")
        return process
    yield start
    client.lab.mend()


@pytest.mark.httpd(SHORT)
@pytest.mark.parametrize("mode", ["read", "write"])
class TestClients:
    def gone(self, client):
        """The server holds no connection any more."""
        wait_until(lambda: not [line for line in client.lab.objects()
                                if " lqpn " in line and "RTS" in line],
                   15, "the connection is gone")

    def test_killed(self, client, slow, mode):
        process = slow(mode)
        process.kill()
        client.finish(process)
        client.lab.mend()
        self.gone(client)
        client.httpd.access()
        client.fetch(SIZE, by=mode)

    def test_stopped(self, client, slow, mode):
        """It neither reads on nor says that it has done."""
        process = slow(mode)
        process.send_signal(signal.SIGSTOP)
        client.lab.mend()
        client.httpd.access()
        # Others are served meanwhile.
        client.fetch(SIZE, by=mode)
        # Lease, its revocation unanswered, end of the connection.
        self.gone(client)
        client.fetch(SIZE, by=mode)
        process.send_signal(signal.SIGCONT)
        client.mark()
        status, _, _ = client.finish(process, 90)
        assert status in (0, 4, 7)
        client.httpd.skip_access()


@pytest.mark.httpd(conf())
class TestServer:
    @pytest.mark.parametrize("mode", ["read", "write"])
    def test_graceful_restart(self, client, slow, mode):
        """What runs is finished, and the old generation goes."""
        process = slow(mode)
        old = client.httpd.graceful()
        status, _, err = client.finish(process)
        assert status == 0, err
        assert f"RDMA, {'client-read' if mode == 'read' else 'server-write'}" \
            in err
        client.lab.mend()
        wait_until(lambda: not set(old) & set(client.httpd.children()), 20,
                   "the old generation ends")
        client.httpd.access()
        client.fetch(SIZE, by=mode)

    @pytest.mark.parametrize("how,most", [
        (signal.SIGTERM, 3), (signal.SIGWINCH, 20)])
    def test_stop_while_a_lease_is_open(self, client, slow, how, most):
        """At once when hard; when graceful, as soon as the client has read."""
        process = slow("read")
        took = client.httpd.stop(how)
        assert took < most
        assert not client.lab.objects()
        client.lab.mend()
        status, _, err = client.finish(process, 90)
        if how == signal.SIGWINCH:
            assert status == 0, err
            assert "RDMA, client-read" in err
        else:
            assert status in (0, 4, 7), err

    def test_stop_right_after_graceful_stop(self, client, slow):
        """As systemd does it."""
        process = slow("read")
        client.httpd.process.send_signal(signal.SIGWINCH)
        time.sleep(0.2)
        assert client.httpd.stop() < 3
        assert not client.lab.objects()
        client.lab.mend()
        client.finish(process, 90)


@pytest.mark.long
@pytest.mark.httpd(conf("RdmaEnable On\nMaxConnectionsPerChild 3"))
def test_children_that_serve_three_connections(client):
    """A child that is about to go takes up nothing new by RDMA."""
    ways = []
    for number in range(12):
        result = client.rwget(client.site.file(65536),
                              rdma=("read", "write")[number % 2])
        assert result.status == 0, result.err
        assert not differs(result.target.read_bytes(), 65536)
        assert result.path != "tcp" or result.declined == "busy"
        ways.append(result.path)
    assert {"read", "write"} <= set(ways)
    client.httpd.access(12)
