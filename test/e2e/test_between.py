"""Servers that know nothing of us, between the client and us: whatever they make
of our field, the answer is right, and nobody gets what was meant for another."""
import os
import shutil
import tempfile

import pytest

from between import KINDS, PORT, Between
from content import SEED, differs
from httpd import PORT as HTTPD_PORT
from httpd import conf
from rawhttp import Connection, field, get_all
from status import changes, status

SIZE = 300_000

pytestmark = pytest.mark.httpd(conf("""
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
RdmaEnable On
RdmaConnectTimeout 5
Header set Cache-Control "max-age=600"
"""))


@pytest.fixture
def between(request, lab, httpd):
    """The server that the test wants, where it wants it."""
    where, kind = request.param
    folder = tempfile.mkdtemp(prefix="e2e-between.")
    at = lab.server() if where == "server" else lab.client()
    server = Between(kind, folder, at, lab.server(), HTTPD_PORT)
    server.host = where
    here = lab.in_client if where == "client" else lambda function: function()
    here(server.start)
    try:
        here(server.wait)
        yield server
    finally:
        server.stop()
        if request.node.failed:
            print(server.logs())
        shutil.rmtree(folder)


def plain(lab, server, path):
    """What somebody gets who does not know of RDMA."""
    with Connection(lab, server=server.at, port=PORT) as connection:
        answer = connection.get(path, connection="close")
    assert answer.status == 200 and answer.complete, answer
    # Who does not take off what concerns one hop only may not store more of it
    # than that a body came over TCP, as it did.
    assert all("declined=" in line for line in get_all(answer, "RDMA")), \
        answer.fields
    assert not differs(answer.body, SIZE), differs(answer.body, SIZE)


# In `check` each of them in one place: where it lets the field through, if it can.
CHECKED = {("server", "nginx, forwards"), ("server", "haproxy"),
           ("server", "squid"), ("server", "httpd, keeps the field"),
           ("client", "nginx, caches"), ("client", "varnish, forwards")}
PLACES = [
    pytest.param((where, kind), id=f"{where}:{kind}",
                 marks=[] if (where, kind) in CHECKED else [pytest.mark.long])
    for where in ("server", "client") for kind in KINDS
    if kind != "squid, a proxy by name"]


@pytest.mark.parametrize("between", PLACES, indirect=True)
def test_in_front(client, between):
    """In front of the server, and in front of the client. A server that takes the
    other for the client finds nobody there, or who rejects it: it does not have
    the address that the client speaks to.
    """
    path = client.site.file(SIZE)
    url = f"http://{between.at}:{PORT}{path}"
    before = status()
    ways = []
    for mode in ("auto", "write", "read"):
        result = client.rwget(path, url=url, rdma="auto" if mode == "auto"
                              else mode)
        if mode == "auto":
            assert result.status == 0, result.err
        else:  # who wants RDMA or nothing may get nothing
            assert result.status in (0, 9), result.err
        if result.status == 0:
            assert not differs(result.target.read_bytes(), SIZE, SEED)
            ways.append(result.path)
        plain(client.lab, between, path)
    assert set(ways) == {"tcp"}, ways
    seen = changes(before)
    assert ("RequestsAsked" in seen) == between.forwards, seen
    client.httpd.skip_access()


@pytest.mark.parametrize("between", [
    pytest.param(("server", "squid, a proxy by name"), id="server",
                 marks=pytest.mark.long),
    pytest.param(("client", "squid, a proxy by name"), id="client")],
    indirect=True)
def test_a_proxy_by_name(client, between):
    """rwget does not offer RDMA through it; who does gets the right answer."""
    path = client.site.file(SIZE)
    process = client.start_rwget(path, env=dict(
        os.environ, http_proxy=f"http://{between.at}:{PORT}"))
    ended, _, err = client.finish(process)
    assert ended == 0, err
    got = (client.folder / "fetched").read_bytes()
    assert not differs(got, SIZE, SEED)
    for _ in range(2):
        with Connection(client.lab, server=between.at, port=PORT) as connection:
            answer = connection.get(client.url(path), field())
            assert answer.status == 200 and answer.complete
            assert not differs(answer.body, SIZE)
    client.httpd.skip_access()


@pytest.mark.parametrize("between", [
    pytest.param(("server", "nginx"), id="nginx"),
    *(pytest.param(("server", kind), id=kind, marks=pytest.mark.long)
      for kind in ("haproxy", "varnish", "squid", "httpd"))], indirect=True)
@pytest.mark.httpd(conf(f"""
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
RdmaEnable On
ProxyPass /behind http://10.77.0.1:{PORT}
Header set Cache-Control "max-age=600"
"""))
def test_behind(client, between):
    """The back end of a server that moves its answers by RDMA."""
    path = client.site.file(SIZE)
    for mode in ("write", "read", "write", "read"):
        result = client.rwget("/behind" + path, rdma=mode)
        assert (result.status, result.path) == (0, mode), result.err
        assert not differs(result.target.read_bytes(), SIZE, SEED)
        client.tally.body(True, SIZE)
        plain(client.lab, between, path)
    client.httpd.skip_access()
