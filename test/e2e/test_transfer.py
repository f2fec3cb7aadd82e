"""Bodies are right in every byte, and go the way they should: each driver,
mode, address family and MPM."""
import os

import pytest

from clients import Rwget
from content import SEED, differs
from hosts import wait_until
from httpd import PLACES, conf
from status import changes, status, wait_for
from tally import ALL_CELLS, SOME_CELLS, name
from test_abort import CONF as PROGRAMS

WINDOW = 2 << 20
SIZES = (1, 4095, 4096, 4097, 65536, 1 << 20, WINDOW - 1, WINDOW)
ALL_SIZES = "RdmaEnable On\nRdmaMinSize 1"


def cells():
    for cell in sorted(ALL_CELLS):
        driver, mode, family, mpm = cell
        marks = [pytest.mark.driver(driver),
                 pytest.mark.httpd(conf(ALL_SIZES, mpm))]
        if cell not in SOME_CELLS:
            marks.append(pytest.mark.long)
        yield pytest.param(cell, id=name(cell), marks=marks)


def check_bodies(run, mode, sizes):
    assert run.status == 0, run.err + str(run.json)
    assert [(body["path"], body["bytes"], body["mismatched"], body["status"])
            for body in run.details] == \
        [(mode, size, 0, 200) for size in sizes]
    assert (run.unexpected, run.aside, run.errors) == (0, 0, {})


@pytest.mark.parametrize("cell", cells())
def test_cell(client, cell):
    _, mode, family, _ = cell
    client.mark()
    run = client.peer([client.site.file(size) for size in SIZES],
                      "--window", WINDOW, mode=mode, family=family)
    for body, size in zip(run.details, SIZES):
        client.tally.body(body["path"] == mode, size)
    check_bodies(run, mode, SIZES)
    assert run.connections_made == {"write": 0, "read": 0, mode: 1}
    client.prove(mode, SIZES, client.httpd.access(len(SIZES)))
    # Nothing to send; more than fits.
    run = client.peer([client.site.file(size) for size in (0, WINDOW + 1)],
                      "--window", WINDOW, mode=mode, family=family)
    assert run.status == 0, run.err + str(run.json)
    empty, large = client.httpd.access(2)
    assert empty.mode == "-"
    assert (large.mode, large.declined) == (mode, "-")  # streamed
    # The client that people use.
    client.fetch(1 << 20, "--rdma-require", by=mode, family=family)
    client.tally.cells.add(cell)


@pytest.mark.httpd(PLACES)
class TestConnections:
    def test_one_for_each_kind(self, client):
        paths = [client.site.file(65536, folder) for folder in
                 ("write", "read")]
        run = client.peer(paths, "--concurrency", 4, requests=24)
        assert (run.status, run.ok) == (0, 24), run.json
        assert run.paths == {"write": 12, "read": 12, "tcp": 0}
        assert run.connections_made == {"write": 1, "read": 1}
        for _ in range(24):
            client.tally.body(True, 65536)
        client.httpd.access(24)

    @pytest.mark.parametrize("prefer,way", [
        ("write,read", "write"), ("read,write", "read")])
    def test_the_clients_preference(self, client, prefer, way):
        run = client.peer([client.site.file(65536)], mode=prefer)
        client.tally.body(run.paths[way] == 1, 65536)
        assert (run.status, run.paths[way]) == (0, 1), run.json
        client.httpd.access()

    @pytest.mark.parametrize("prefer,folder", [
        ("write,read", "read"), ("read,write", "write")])
    def test_the_servers_choice(self, client, prefer, folder):
        run = client.peer([client.site.file(65536, folder)], mode=prefer)
        client.tally.body(run.paths[folder] == 1, 65536)
        assert (run.status, run.paths[folder]) == (0, 1), run.json
        client.httpd.access()

    def test_its_own_address_by_name(self, client):
        address = client.lab.client(6)
        run = client.peer([client.site.file(65536)], "--addr", address,
                          family=6)
        client.tally.body(run.paths["write"] == 1, 65536)
        assert (run.status, run.paths["write"]) == (0, 1), run.json
        client.httpd.access()

    def test_fields_with_more_in_them(self, client):
        """Unknown members and parameters, another order, two values."""
        write = 'write;stag="{stag}";to="{to}";len={len}'
        fields = [
            f"{write}, id={{id}}, token=:{{token}}:, port={{port}}, v=1",
            f"v=1;x=1.5, new=(1 2);q, port={{port}}, token=:{{token}}:, "
            f"id={{id}}, {write};more=tok/en, z=@1659578233",
            f"v=1, port=80, port={{port}}, token=:{{token}}:, id={{id}}, "
            f"write=?0, {write}",
        ]
        path = client.folder / "fields"
        # rdma_peer knows the token with its colons or without.
        path.write_text("\n".join(fields) + "\n")
        run = client.peer([client.site.file(65536)], "--fields", path,
                          mode="write")
        assert run.paths["write"] == len(fields), run.json
        for _ in fields:
            client.tally.body(True, 65536)
        client.httpd.access(len(fields))


# A worker for each HTTP connection: httpd ends idle ones when it has too few.
# And little memory, so that it is used again while packets are missing.
MANY = """
RdmaEnable On
RdmaMemory 32M
RdmaMaxConnectionsPerClient 200
RdmaConnectTimeout 10
ThreadsPerChild 64
MaxRequestWorkers 64
MinSpareThreads 1
MaxSpareThreads 64
"""


@pytest.mark.parametrize("clients,requests", [
    (12, 4), pytest.param(24, 8, marks=pytest.mark.long)])
@pytest.mark.httpd(MANY)
def test_many_clients(client, clients, requests):
    paths = [client.site.file(size) for size in (65536, 262144 + 5)]
    total = clients * requests
    run = client.peer(paths, "--clients", clients, requests=requests,
                      seconds=300)
    moved = run.paths["write"] + run.paths["read"]
    for _ in range(total):
        client.tally.body(moved == total, 65536)
    assert (run.status, run.ok, moved) == (0, total, total), run.json
    assert run.connections_made["write"] == clients
    client.httpd.access(total)


NEAR = ("delay", "3ms", "1ms", "loss", "2%", "reorder", "10%")
FAR = ("delay", "20ms", "loss", "2%", "reorder", "5%", "limit", "10000")


@pytest.mark.parametrize("line,clients,at_once,requests", [
    pytest.param(NEAR, 1, 2, 15, id="near"),
    pytest.param(FAR, 2, 1, 5, id="far"),
    pytest.param(NEAR, 4, 2, 20, id="near-long", marks=pytest.mark.long),
    pytest.param(FAR, 10, 1, 25, id="far-long", marks=pytest.mark.long)])
@pytest.mark.parametrize("driver", [
    pytest.param("tuned", marks=pytest.mark.driver("tuned")),
    pytest.param("stock", marks=[pytest.mark.driver("stock"),
                                 pytest.mark.long])])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.httpd(MANY)
def test_loss_and_reorder(client, driver, mode, line, clients, at_once,
                          requests):
    """Every file has other bytes: what is sent again must not be what came
    into the memory later. The largest takes more memory than a body may have."""
    paths = [client.site.file(size, seed=SEED + (n << 50)) for n, size in
             enumerate((20_000, 90_000, 400_000, 1_300_000, 4_500_000), 1)]
    total = clients * requests
    # One address has a quarter of the memory, which is little for all of them.
    binds = [word for address in client.lab.env["CLIENTS4"].split()
             for word in ("--bind", address)]
    before = status()
    client.lab.netem(*line)
    if line is NEAR:  # and what the client sends, as well
        client.lab.netem(*line, at="CLIENT")
    try:
        run = client.peer(paths, "--clients", clients, "--concurrency",
                          at_once, "--window", 256 << 10, *binds, mode=mode,
                          verify=None, requests=requests, seconds=400)
    finally:
        client.lab.mend()
    assert (run.status, run.ok, run.paths[mode]) == (0, total, total), run.json
    assert changes(before)[f"Requests{mode.capitalize()}Streamed"] > 0
    sums = {path: client.site.sha256(path) for path in paths}
    for body in run.details:
        assert body["sha256"] == sums[body["url"]], body
        client.tally.body(body["path"] == mode, body["bytes"])
    client.httpd.access(total)


@pytest.mark.httpd(PROGRAMS)
def test_connects_while_the_content_is_made(client):
    """A program that has not said a word yet; its client is connected."""
    size = 300_000
    gate = client.site.root / "programs/gate"
    file = client.site.file(size)
    path = client.site.text("programs/late", f"""#!/bin/sh
read go <{gate}
echo Content-Type: application/octet-stream
echo Content-Length: {size}
echo
cat {client.site.root}{file}
""", 0o755)
    os.mkfifo(gate)
    gate.chmod(0o666)
    before = wait_for(ConnectionsOpenWrite=0, ConnectionsOpenRead=0)
    process = client.start_rwget(path, rdma="write")
    wait_for(ConnectionsOpenWrite=1)
    assert changes(before).keys() <= {
        "RequestsAsked", "ConnectionsMade", "ConnectionsOpenWrite"}

    def opened():
        try:
            return os.fdopen(os.open(gate, os.O_WRONLY | os.O_NONBLOCK), "w")
        except OSError:
            return None  # the program is not there yet
    with wait_until(opened, 10, "the program waits") as writer:
        writer.write("go\n")
    result = Rwget(*client.finish(process), client.folder / "fetched")
    assert (result.status, result.path) == (0, "write"), result.err
    assert not differs(result.target.read_bytes(), size)
    client.tally.body(True, size)
    client.httpd.access()
    gate.unlink()
