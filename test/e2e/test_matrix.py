"""Every row of the support matrix, over TCP without the field and in each
mode: the same status, the same fields, the same bytes, and no other way than
the row says."""
import gzip
import hashlib
import re
from collections import namedtuple

import pytest

import backends
import matrix_site
import relays
from clients import HTTP_MOST
from content import differs
from hosts import wait_until
from httpd import PORT, conf
from matrix import ROWS, Row, expected
from matrix_site import (BACK_END, CACHES, FILE, HTTP2, PROGRAM, SIZE, TLS,
                         TLS_OPEN)
from rawhttp import Connection, declined, field, get_all

WAYS = ("plain", "write", "read")
MODES = {"plain": "none", "write": "write", "read": "read"}
# What belongs to one hop or one moment, or tells of the way itself.
LEFT_OUT = {"rdma", "content-length", "transfer-encoding", "date"}
BOUNDARY = re.compile(r'boundary="?([^";]+)')

Answer = namedtuple("Answer", "line status interim fields trailers body path "
                              "declined problem")
Log = namedtuple("Log", "row port status b O mode bytes declined")

EXPECTED = [(name, None) for name in matrix_site.EXPECTED]
EVENT = conf(matrix_site.CONF, expect=EXPECTED)
WORKER = conf(matrix_site.CONF, mpm="worker", expect=EXPECTED)
SERVERS = {"event": pytest.mark.httpd(EVENT),
           "worker": pytest.mark.httpd(WORKER)}
# `check` asks a worker for these.
FIRST = {row.group: row for row in reversed(ROWS)
         if row.via == "http" and not row.tcp}.values()
mpms = pytest.mark.parametrize("mpm", [
    pytest.param("event", marks=SERVERS["event"]),
    pytest.param("worker", marks=[SERVERS["worker"], pytest.mark.long])])
rows = pytest.mark.parametrize("row,mpm", [
    pytest.param(row, mpm, id=f"{row.identity}-{mpm}",
                 marks=[server] if mpm == "event" or row in FIRST
                 else [server, pytest.mark.long])
    for mpm, server in SERVERS.items() for row in ROWS])


@pytest.fixture(scope="module", autouse=True)
def pages(site):
    """The files, before a server starts that wants some of them."""
    matrix_site.build(site.root)


@pytest.fixture(scope="module", autouse=True)
def behind(site, pages):
    """The servers behind httpd."""
    servers = [backends.serve(backends.Raw, matrix_site.RAW),
               backends.serve(backends.Fcgi, matrix_site.FCGI)]
    php = backends.php_fpm(site.root / "matrix-var", matrix_site.PHP)
    yield
    php.terminate()
    php.wait(30)
    for server in servers:
        server.shutdown()
        server.server_close()


# ---- asking -----------------------------------------------------------------

def parse(head):
    """What comes before the final answer, its first line, status, fields and
    trailers."""
    blocks = [block.split("\r\n") for block
              in head.decode("latin-1").split("\r\n\r\n") if block]
    interim = []
    while blocks and re.match(r"HTTP/\S+ 1", blocks[0][0]):
        interim.append((blocks[0][0], _fields(blocks.pop(0)[1:])))
    assert blocks, "no head"
    final = blocks.pop(0)
    trailers = _fields(blocks[0]) if blocks else []
    return (interim, final[0], int(final[0].split()[1]), _fields(final[1:]),
            trailers)


def _fields(lines):
    pairs = (line.partition(":") for line in lines if line)
    return [(name.lower(), value.strip()) for name, _, value in pairs]


def ask(client, way, rows, *options, digest=""):
    """One run of rdma_peer over the rows: {ordinal: Answer}."""
    folder = client.folder / f"{way}-{rows[0].via}"
    folder.mkdir()
    asks = folder / "asks"
    asks.write_text("".join(row.ask(way).replace("{digest}", digest) + "\n"
                            for row in rows))
    run = client.peer([], "--asks", asks, "--save", folder, *options,
                      mode=MODES[way], verify=None)
    answers = {}
    for number, (row, detail) in enumerate(
            zip(rows, run.details, strict=True), 1):
        answers[row.ordinal] = _answer(
            folder / f"{number}.head", folder / f"{number}.body",
            detail["path"], detail["declined"],
            "" if detail["result"] == "ok" else f"failed: {run.errors}")
    return answers


def ask_by_http2(client, way, row):
    """curl's answer; nobody listens where the field says."""
    folder = client.folder / f"{way}-{row.via}"
    folder.mkdir()
    words = ["curl", "--silent", "--max-time", "30", "--interface",
             client.lab.client(), "-H", f"X-Row: {row.ordinal}",
             "-H", f"Host: {row.host}", "-D", folder / "head",
             "-o", folder / "body",
             "--http2" if row.via == "h2-upgrade" else
             "--http2-prior-knowledge",
             client.url(row.path, port=HTTP2)]
    if way != "plain":
        words += ["-H", "Connection: RDMA", "-H", f"RDMA: {field(port=41000)}"]
    status, _, _ = client.finish(client.start(words))
    answer = _answer(folder / "head", folder / "body", "tcp", None,
                     f"curl: {status}" if status else "")
    return answer._replace(declined=declined(answer))


def _answer(head, body, path, why, problem):
    try:
        interim, line, status, fields, trailers = parse(head.read_bytes())
        content = body.read_bytes()
    except (AssertionError, OSError, ValueError) as error:
        interim, line, status, fields, trailers = [], "", 0, [], []
        content = b""
        problem = problem or f"no answer: {error!r}"
    return Answer(line, status, interim, fields, trailers, content, path,
                  why or None, problem)


def authorization(client, path, user, secret):
    """A Digest for this path, for as many requests as like."""
    with Connection(client.lab) as connection:
        answer = connection.get(path)
    challenge, = get_all(answer, "WWW-Authenticate")
    nonce = re.search('nonce="([^"]*)"', challenge).group(1)

    def md5(*words):
        return hashlib.md5(":".join(words).encode()).hexdigest()
    response = md5(md5(user, "matrix", secret), nonce, "00000001", "cnonce",
                   "auth", md5("GET", path))
    return (f'Digest username="{user}", realm="matrix", nonce="{nonce}", '
            f'uri="{path}", algorithm=MD5, qop=auth, nc=00000001, '
            f'cnonce="cnonce", response="{response}"')


def wanted(items, mpm):
    """The rows that tests are about to judge. Those of a cache build on what
    comes before them, and some tests need all rows."""
    params = [item.callspec.params for item in items
              if item.module.__name__ == __name__]
    params = [values for values in params if values["mpm"] == mpm]
    if any("row" not in values for values in params):
        return ROWS
    judged = [values["row"] for values in params]
    last = {row.group: row.ordinal for row in judged
            if row.group.startswith("mod_cache")}
    return [row for row in ROWS if row in judged
            or row.ordinal < last.get(row.group, -1)]


class Run:
    """Rows, each way, asked once for each server."""

    def __init__(self, client, asked):
        self.client = client
        self.rows = asked
        self.answers = {}
        self.wire = {}
        self.logs = {}
        client.httpd.expect(dict(EXPECTED))
        matrix_site.forget(client.site.root)
        backends.Raw.asked.clear()
        digest = authorization(client, f"/digest{FILE}", "user",
                               "secret")
        self._log_at = 0
        self._log()
        for way in WAYS:
            client.mark()
            answers = self._ask(way, "http", digest=digest)
            http = client.wire.take()
            sent, _ = client.lab.sent()
            by_http = list(answers.values())
            self.wire[way] = http, sent - client._sent[0] - http, by_http
            answers |= self._ask_otherwise(way)
            self.answers[way] = answers
            self.logs[way] = {}
            wait_until(lambda: self._log_has_all(way), 20,
                       "an entry of each row in matrix.log")

    def _ask(self, way, via, *options, **more):
        asked = self.of(via)
        return ask(self.client, way, asked, *options, **more) if asked else {}

    def _ask_otherwise(self, way):
        client, lab = self.client, self.client.lab
        answers = {}
        for via, port in (("tls", TLS), ("tls-open", TLS_OPEN)):
            with relays.Tls(lab, (lab.server(), port)) as relay:
                answers |= self._ask(way, via, "--server", relay.address,
                                     "--no-address-check")
        with relays.Pipeline(lab, (lab.server(), PORT),
                             len(self.of("pipeline"))) as relay:
            answers |= self._ask(way, "pipeline", "--share", "--server",
                                 relay.address, "--no-address-check")
        for row in self.of("h2") + self.of("h2-upgrade"):
            answers[row.ordinal] = ask_by_http2(client, way, row)
        return answers

    def _log(self):
        """New entries of rows, those of the back end's host not among them."""
        path = self.client.httpd.root / "matrix.log"
        data = path.read_bytes()[self._log_at:]
        data = data[:data.rfind(b"\n") + 1]
        self._log_at += len(data)
        entries = (Log(*line.split()) for line in data.decode().splitlines())
        return [entry for entry in entries
                if entry.row != "-" and entry.port != str(BACK_END)]

    def _log_has_all(self, way):
        for entry in self._log():
            self.logs[way].setdefault(int(entry.row), []).append(entry)
        return len(self.logs[way]) == len(self.rows)

    def of(self, via):
        return [row for row in self.rows if row.via == via]


RUNS = {}


@pytest.fixture
def run(request, client, mpm):
    if mpm not in RUNS:
        RUNS[mpm] = None
        RUNS[mpm] = Run(client, wanted(request.session.items, mpm))
    assert RUNS[mpm], "the run has failed before"
    return RUNS[mpm]


# ---- judging ----------------------------------------------------------------

def without_nomination(name, value):
    """Of the Connection field what is not ours."""
    if name == "connection":
        value = ", ".join(sorted(option for option
                                 in value.lower().split(", ")
                                 if option != "rdma"))
    return name, value


def essence(answer, row):
    """What has to be the same each way."""
    body = answer.body
    left_out = LEFT_OUT | {name.lower() for name in row.differs}
    fields = sorted(without_nomination(name, value)
                    for name, value in answer.fields if name not in left_out)
    fields = [pair for pair in fields if pair != ("connection", "")]
    if row.boundary:
        kind = dict(fields).get("content-type", "")
        mark = BOUNDARY.search(kind).group(1)
        body = body.replace(mark.encode(), b"BOUNDARY")
        fields = [(name, value.replace(mark, "BOUNDARY"))
                  for name, value in fields]
    if row.gzipped:
        body = gzip.decompress(body)
    return {"status": answer.line, "interim": answer.interim,
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


def astray(answer, row, way, logged):
    """Whether the body went another way than the row says, or than httpd's
    log says."""
    wanted = "tcp" if way == "plain" or row.tcp else way
    if answer.path != wanted:
        yield f"by {answer.path} (declined={answer.declined}), not {wanted}"
    elif way != "plain" and answer.declined != row.declined:
        yield f"declined={answer.declined}, not {row.declined}"
    if wanted == "tcp":
        mode = "tcp" if way != "plain" and row.declined else "-"
        note = (mode, "-", answer.declined or "-")
    else:
        note = (wanted, str(len(answer.body)), "-")
    # An upgrade has an entry for either protocol.
    if {(entry.mode, entry.bytes, entry.declined) for entry in logged} \
            != {note}:
        yield f"in the log {logged}, not {note}"
    if wanted != "tcp" and any(int(entry.O) >= HTTP_MOST for entry in logged):
        yield f"too much over TCP: {logged}"


def miscounted(row, logged, plain):
    """Whether %b is another than over TCP. What is compressed as it comes has
    no certain length, and before a refused head httpd counts the content."""
    seen, right = ({entry.b for entry in entries} for entries
                   in (logged, plain))
    if seen != right and not row.gzipped and row.declined != "failed":
        yield f"%b {seen} in the log, not {right}"


@rows
def test_row(run, tally, mpm, row):
    plain = run.answers["plain"][row.ordinal]
    plain_logged = run.logs["plain"][row.ordinal]
    wrong = []
    for way in WAYS:
        answer = run.answers[way][row.ordinal]
        logged = run.logs[way][row.ordinal]
        found = [answer.problem] if answer.problem else [
            *unproved(answer, row),
            *astray(answer, row, way, logged),
            *miscounted(row, logged, plain_logged),
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
    http, other, answers = run.wire[way]
    by_tcp = sum(len(a.body) for a in answers if a.path == "tcp")
    by_rdma = sum(len(a.body) for a in answers if a.path == way)
    assert by_rdma > 0
    assert http < by_tcp + HTTP_MOST * len(answers)
    assert other >= by_rdma


# ---- caches -----------------------------------------------------------------

@mpms
@pytest.mark.parametrize("way", WAYS[1:])
def test_caches_give_what_others_have_stored(run, client, mpm, way):
    """What was asked for over TCP, and kept, goes by RDMA from there."""
    rows = [Row("", "", f"{FILE}?plain", host=name,
                ordinal=number) for number, (name, _, _)
            in enumerate(CACHES)]
    for answer in ask(client, way, rows).values():
        assert get_all(answer, "X-Cache")[0].startswith("HIT"), answer.fields
        assert (answer.path, answer.problem) == (way, "")
        assert not differs(answer.body, SIZE)
        client.tally.body(True, SIZE)


@mpms
def test_caches_hold_bodies_and_no_field(run, client, mpm, lab):
    """What was asked for by RDMA, and kept, is there for others; and it says
    nothing of RDMA."""
    for name, kind, _ in CACHES:
        for way in WAYS[1:]:
            with Connection(lab) as connection:
                connection.send(f"{FILE}?{way}", fields=[], host=name,
                                connection=None)
                answer = connection.answer()
            assert not differs(answer.body, SIZE), (name, way)
            assert get_all(answer, "X-Cache")[0].startswith("HIT"), (name, way)
            assert not get_all(answer, "RDMA")
            assert "rdma" not in ",".join(get_all(answer, "Connection")).lower()
        if kind == "disk":
            kept = [path for path
                    in (client.site.root / f"matrix-var/{name}").rglob("*")
                    if path.is_file()]
            heads = [path for path in kept if path.suffix == ".header"]
            bodies = [path for path in kept if path.suffix == ".data"]
            for path in heads:
                found = re.search(rb"rdma|token=", path.read_bytes(), re.I)
                assert not found, f"{path}: {found}"
            # One for each variant, and one that says that there are some.
            vary = [path for path in heads
                    if path.with_name(path.name + ".vary").exists()]
            assert len(vary) == 2 * len(WAYS)
            assert len(heads) == len(bodies) + len(vary)
            sizes = [path.stat().st_size for path in bodies
                     if ".vary" not in str(path.parent)]
            assert sorted(sizes) == sorted(
                [SIZE // 2, SIZE, SIZE, PROGRAM] * len(WAYS))
            assert len(bodies) == 7 * len(WAYS)
