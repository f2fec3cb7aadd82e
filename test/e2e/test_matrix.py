"""Every row of the support matrix, over TCP without the field and in each
mode: the same status, the same fields, the same bytes, and no other way than
the row says."""
import re
from collections import namedtuple

import pytest

import backends
import matrix
from clients import HTTP_MOST
from httpd import conf
from matrix import ROWS, expected
from rawhttp import get_all

WAYS = ("plain", "write", "read")
MODES = {"plain": "none", "write": "write", "read": "read"}
# What belongs to one hop or one moment, or tells of the way itself.
LEFT_OUT = {"rdma", "connection", "content-length", "transfer-encoding", "date"}
BOUNDARY = re.compile(r'boundary="?([^";]+)')

Answer = namedtuple("Answer", "status interim fields trailers body path "
                              "declined problem log")
Log = namedtuple("Log", "row port status O mode bytes declined")

EVENT = conf(matrix.CONF)
WORKER = conf(matrix.CONF, mpm="worker")
mpms = pytest.mark.parametrize("mpm", [
    pytest.param("event", marks=pytest.mark.httpd(EVENT)),
    pytest.param("worker", marks=[pytest.mark.httpd(WORKER),
                                  pytest.mark.long]),
])


@pytest.fixture(scope="module", autouse=True)
def pages(site):
    """The files, before a server starts that wants some of them."""
    matrix.build(site.root)


@pytest.fixture(scope="module", autouse=True)
def behind():
    """The servers behind httpd."""
    servers = [backends.serve(backends.Raw, matrix.RAW),
               backends.serve(backends.Fcgi, matrix.FCGI)]
    yield
    for server in servers:
        server.shutdown()
        server.server_close()


# ---- asking -----------------------------------------------------------------

def parse(head):
    """Statuses before the final one, that, fields and trailers."""
    blocks = [block.split("\r\n") for block
              in head.decode("latin-1").split("\r\n\r\n") if block]
    interim = []
    while blocks and re.match(r"HTTP/\S+ 1", blocks[0][0]):
        interim.append((blocks[0][0], _fields(blocks.pop(0)[1:])))
    assert blocks, "no head"
    final = blocks.pop(0)
    trailers = _fields(blocks[0]) if blocks else []
    return interim, int(final[0].split()[1]), _fields(final[1:]), trailers


def _fields(lines):
    pairs = (line.partition(":") for line in lines)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


def ask(client, way, rows, *options):
    """One run of rdma_peer over the rows: {ordinal: Answer}."""
    folder = client.folder / way
    folder.mkdir()
    asks = folder / "asks"
    asks.write_text("".join(row.ask(way) + "\n" for row in rows))
    run = client.peer([], "--asks", asks, "--save", folder, *options,
                      mode=MODES[way], verify=None)
    answers = {}
    for number, (row, detail) in enumerate(zip(rows, run.details,
                                               strict=True), 1):
        problem = "" if detail["result"] == "ok" else \
            f"{detail['result']}: {run.errors}"
        try:
            interim, status, fields, trailers = parse(
                (folder / f"{number}.head").read_bytes())
        except (AssertionError, OSError, ValueError) as error:
            interim, status, fields, trailers = [], 0, [], []
            problem = problem or f"no head: {error}"
        body = folder / f"{number}.body"
        answers[row.ordinal] = Answer(
            status, interim, fields, trailers,
            body.read_bytes() if body.exists() else b"", detail["path"],
            detail["declined"] or None, problem, None)
    return answers


class Run:
    """All rows, each way, asked once for each server."""

    def __init__(self, client):
        client.httpd.expect({name: None for name in matrix.EXPECTED})
        self.answers = {}
        self.wire = {}
        for way in WAYS:
            client.mark()
            answers = ask(client, way, ROWS)
            http = client.wire.take()
            sent, _ = client.lab.sent()
            self.wire[way] = http, sent - client._sent[0] - http
            self.answers[way] = answers


RUNS = {}


@pytest.fixture
def run(client):
    key = client.httpd.running
    if key not in RUNS:
        RUNS[key] = None
        RUNS[key] = Run(client)
    assert RUNS[key], "the run has failed before"
    return RUNS[key]


# ---- judging ----------------------------------------------------------------

def essence(answer, row):
    """What has to be the same each way."""
    body = answer.body
    fields = sorted((name, value) for name, value in answer.fields
                    if name not in LEFT_OUT
                    and name not in (n.lower() for n in row.differs))
    if row.boundary:
        kind = dict(fields).get("content-type", "")
        mark = BOUNDARY.search(kind).group(1)
        body = body.replace(mark.encode(), b"BOUNDARY")
        fields = [(name, value.replace(mark, "BOUNDARY"))
                  for name, value in fields]
    return {"status": answer.status, "interim": answer.interim,
            "fields": fields, "trailers": answer.trailers, "body": body}


def differences(plain, other, row):
    one, two = essence(plain, row), essence(other, row)
    for name in ("status", "interim", "fields", "trailers"):
        if one[name] != two[name]:
            yield f"{name}: {one[name]} without the field, but {two[name]}"
    if one["body"] != two["body"]:
        at = next((i for i, (a, b) in enumerate(zip(one["body"], two["body"]))
                   if a != b), "its end")
        yield (f"the body: {len(one['body'])} bytes without the field, "
               f"{len(two['body'])} with it, which differ at {at}")


def unproved(answer, row):
    """Whether the feature was at work at all."""
    if answer.status != row.status:
        yield f"status {answer.status}, not {row.status}"
    for name, pattern in row.shows.items():
        values = get_all(answer, name)
        if not any(re.fullmatch(pattern, value) for value in values):
            yield f"{name}: {values}, not {pattern}"
    if row.holds not in answer.body:
        yield f"{row.holds} is not in the body"
    if row.length is not None and len(answer.body) != row.length:
        yield f"{len(answer.body)} bytes, not {row.length}"
    if row.interim and [int(line.split()[1]) for line, _ in answer.interim] \
            != [row.interim]:
        yield f"before it {answer.interim}, not {row.interim}"


def astray(answer, row, way):
    """Whether the body went another way than the row says."""
    wanted = "tcp" if way == "plain" or row.tcp else way
    if answer.path != wanted:
        yield f"by {answer.path} (declined={answer.declined}), not {wanted}"
    elif way != "plain" and answer.declined != row.declined:
        yield f"declined={answer.declined}, not {row.declined}"


@mpms
@pytest.mark.parametrize("row", ROWS, ids=[row.identity for row in ROWS])
def test_row(run, tally, mpm, row):
    plain = run.answers["plain"][row.ordinal]
    wrong = []
    for way in WAYS:
        answer = run.answers[way][row.ordinal]
        found = [answer.problem] if answer.problem else [
            *unproved(answer, row), *astray(answer, row, way),
            *differences(plain, answer, row)]
        wrong += [f"{way}: {line}" for line in found]
        if way != "plain":
            tally.row(row.identity, way, "FAIL" if found else expected(row))
            if not row.tcp:
                tally.body(answer.path == way, len(answer.body))
    assert not wrong, "\n".join(wrong)


@mpms
@pytest.mark.parametrize("way", WAYS[1:])
def test_the_packets_say_so_too(run, mpm, way):
    http, other = run.wire[way]
    answers = run.answers[way].values()
    by_tcp = sum(len(a.body) for a in answers if a.path == "tcp")
    by_rdma = sum(len(a.body) for a in answers if a.path == way)
    assert by_rdma > 0
    assert http < by_tcp + HTTP_MOST * len(run.answers[way])
    assert other >= by_rdma
