"""Bodies are right in every byte, and go the way they should: each driver,
mode, address family and MPM."""
import pytest

from content import SEED
from httpd import conf
from tally import ALL_CELLS, SOME_CELLS, name

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


PINNED = """
RdmaEnable On
<Location /write>
    RdmaMode server-write
</Location>
<Location /read>
    RdmaMode client-read
</Location>
"""


@pytest.mark.httpd(PINNED)
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
MANY = """
RdmaEnable On
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


@pytest.mark.parametrize("driver", [
    pytest.param("tuned", marks=pytest.mark.driver("tuned")),
    pytest.param("stock", marks=[pytest.mark.driver("stock"),
                                 pytest.mark.long])])
@pytest.mark.parametrize("mode", ["write", "read"])
def test_loss_and_reorder(client, driver, mode):
    """Every file has other bytes: what is sent again must not be what came
    into the memory later."""
    paths = [client.site.file(400_000, seed=SEED + (n << 50))
             for n in range(1, 7)]
    requests = 24
    client.lab.netem("delay", "3ms", "1ms", "loss", "2%", "reorder", "10%")
    try:
        run = client.peer(paths, "--concurrency", 2, mode=mode, verify=None,
                          requests=requests, seconds=240)
    finally:
        client.lab.mend()
    assert (run.status, run.ok) == (0, requests), run.json
    sums = {path: client.site.sha256(path) for path in paths}
    for body in run.details:
        assert body["sha256"] == sums[body["url"]], body
        client.tally.body(body["path"] == mode, 400_000)
        assert body["path"] == mode
    client.httpd.access(requests)


@pytest.mark.long
@pytest.mark.parametrize("driver", [
    pytest.param("tuned", marks=pytest.mark.driver("tuned")),
    pytest.param("stock", marks=pytest.mark.driver("stock"))])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.httpd(MANY)
def test_five_hundred_over_a_bad_line(client, driver, mode):
    paths = [client.site.file(size, seed=SEED + (n << 50))
             for n, size in enumerate((20_000, 90_000, 400_000, 1_300_000), 1)]
    client.lab.netem("delay", "20ms", "loss", "2%", "reorder", "5%",
                     "limit", "10000")
    try:
        run = client.peer(paths, "--clients", 10, mode=mode, verify=None,
                          requests=50, seconds=400)
    finally:
        client.lab.mend()
    assert (run.status, run.ok, run.paths[mode]) == (0, 500, 500), run.json
    sums = {path: client.site.sha256(path) for path in paths}
    for body in run.details:
        assert body["sha256"] == sums[body["url"]], body
        client.tally.body(body["path"] == mode, body["bytes"])
    client.httpd.access(500)
