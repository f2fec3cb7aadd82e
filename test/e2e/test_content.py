"""Bodies that are not simply files: programs, filters, ranges, pages that
httpd makes itself."""
import gzip

import pytest

from content import differs, make
from rawhttp import Connection, declined, field, get_all, rdma_field

CONF = """
RdmaEnable On
RdmaMinSize 1
LoadModule cgid_module /usr/lib/apache2/modules/mod_cgid.so
LoadModule filter_module /usr/lib/apache2/modules/mod_filter.so
LoadModule deflate_module /usr/lib/apache2/modules/mod_deflate.so
LoadModule include_module /usr/lib/apache2/modules/mod_include.so
LoadModule env_module /usr/lib/apache2/modules/mod_env.so
LoadModule ratelimit_module /usr/lib/apache2/modules/mod_ratelimit.so
LoadModule lua_module /usr/lib/apache2/modules/mod_lua.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
ErrorDocument 400 /programs/env
ErrorDocument 417 /programs/env
DirectoryIndex index.bin
<Location /programs>
    Options +ExecCGI
    SetHandler cgi-script
</Location>
<Location /squeezed>
    SetOutputFilter DEFLATE
</Location>
<Location /included>
    Options +Includes
    SetOutputFilter INCLUDES
</Location>
<Location /errors>
    ErrorDocument 404 /programs/env
</Location>
<Location /lua>
    SetHandler lua-script
</Location>
<Location /limited>
    SetOutputFilter RATE_LIMIT
    SetEnv rate-limit 4000
</Location>
"""
pytestmark = pytest.mark.httpd(CONF)
SIZE = 200_000


def program(client, name, text):
    return client.site.text(f"programs/{name}", f"#!/bin/sh\n{text}\n", 0o755)


TOKEN = b"0123456789abcdef"
SECRET = "MDEyMzQ1Njc4OWFiY2RlZg"  # as the field has it


def environment(client):
    """Puts a program there that shows its environment."""
    return program(client, "env", "echo Content-Type: text/plain; echo; env")


def shown(text):
    """What it has shown; nothing that a program may not see."""
    assert "GATEWAY_INTERFACE" in text, text
    assert "HTTP_RDMA" not in text
    assert SECRET not in text
    seen = dict(line.split("=", 1) for line in text.splitlines()
                if "=" in line)
    assert "rdma" not in seen.get("HTTP_CONNECTION", "").lower()
    return seen


@pytest.mark.parametrize("path", ["/programs/env", "/included/env.shtml",
                                  "/errors/nothing"])
def test_programs_see_that_rdma_is_offered(client, path):
    """And nothing else of it, however they are called."""
    environment(client)
    client.site.text("included/env.shtml",
                     '<!--#include virtual="/programs/env" -->')
    with Connection(client.lab) as connection:
        for connection_field, offered in (("RDMA, keep-alive", "1"),
                                          ("keep-alive", None)):
            answer = connection.get(path, field(token=TOKEN),
                                    connection=connection_field)
            seen = shown(answer.body.decode())
            assert seen.get("RDMA_OFFERED") == offered, seen
    client.httpd.access(2)


def answered(client, line, *fields):
    """All that comes for a request with an offer, whatever it may be. The
    server is to close the connection."""
    lines = [line, *fields, "Connection: RDMA, close",
             f"RDMA: {field(token=TOKEN, port=41804)}", "", ""]
    with Connection(client.lab) as connection:
        connection.socket.sendall("\r\n".join(lines).encode())
        data = b""
        while more := connection.socket.recv(65536):
            data += more
    head, _, body = data.decode("latin-1").partition("\r\n\r\n")
    return int(head.split()[1]), head, body


@pytest.mark.parametrize("status,line,fields", [
    (400, "GET /50000.bin HTTP/1.1", ()),
    (417, "GET /50000.bin HTTP/1.1", ("Host: server", "Expect: something")),
    (400, "GET * HTTP/1.1", ("Host: server",)),
    (414, f"GET /{'x' * 9000} HTTP/1.1", ("Host: server",)),
    (400, "GET /50000.bin HTTP/1.1", ("Host: server", "A: " + "b" * 9000)),
    (400, "GET /50000.bin HTTP/1.1", ("Host: server", "A b: c")),
], ids=["no Host", "Expect", "star", "huge URI", "huge field", "bad field"])
def test_answers_before_the_request_was_read(client, status, line, fields):
    """They go over TCP, and an error page's program sees no token."""
    environment(client)
    client.httpd.expect({"AH01270": None})
    got, head, body = answered(client, line, *fields)
    assert got == status, head
    assert "rdma" not in head.lower(), head
    assert SECRET not in body
    if "GATEWAY_INTERFACE" in body:
        shown(body)
    else:
        assert fields and "Expect: something" not in fields, body
    client.httpd.skip_access()


@pytest.mark.httpd(CONF + """
LoadModule log_forensic_module /usr/lib/apache2/modules/mod_log_forensic.so
ForensicLog forensic.log
LogFormat "%r %{RDMA}i" fields
CustomLog fields.log fields
""")
def test_no_log_has_the_token(client):
    """Not even one that has all fields, or that of a request which failed early."""
    client.httpd.expect({"AH01270": None})
    environment(client)
    path = client.site.file(50_000)
    assert answered(client, f"GET {path} HTTP/1.1", "Host: server")[0] == 200
    assert answered(client, f"GET {path}?early HTTP/1.1")[0] == 400
    client.httpd.access(2)
    for name in ("forensic.log", "fields.log"):
        text = (client.httpd.root / name).read_text()
        assert f"GET {path} HTTP/1.1" in text, text
        assert SECRET not in text, text


def test_an_interim_status_as_the_final_one(client):
    """httpd ends its answer with it."""
    path = program(client, "switches", "echo Status: 101 Switching Protocols; "
                   "echo Content-Type: text/plain; echo; echo something else")
    status, head, body = answered(client, f"GET {path} HTTP/1.1",
                                  "Host: server")
    assert status == 101
    assert "rdma" not in head.lower(), head
    assert "something else\n" in body
    client.httpd.access()


def test_programs_cannot_forge_the_field(client):
    path = program(client, "forge", """
echo 'Content-Type: text/plain'
echo 'RDMA: v=1, id=1, conn=1, write;total=7'
echo
echo forged""")
    with Connection(client.lab) as connection:
        answer = connection.get(path, field(port=41800))
    assert answer.body == b"forged\n"
    assert declined(answer) in ("connect", "window")
    assert len(get_all(answer, "RDMA")) == 1
    client.httpd.access()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_output_of_a_program(client, mode):
    """Of a length that nobody knows before."""
    client.site.file(SIZE)
    path = program(client, "cat", f"""
echo 'Content-Type: application/octet-stream'
echo
cat {client.site.root}/{SIZE}.bin""")
    run = client.peer([path], mode=mode, requests=3)
    assert (run.status, run.ok) == (0, 3), run.json
    assert {body["bytes"] for body in run.details} == {SIZE}
    for entry in client.httpd.access(3):
        assert (entry.mode, entry.bytes, entry.b) == (mode, str(SIZE),
                                                      str(SIZE)), entry


def test_a_program_that_fails(client):
    path = program(client, "fail", "exit 3")
    client.httpd.expect({"End of script output before headers": 1})
    with Connection(client.lab) as connection:
        answer = connection.get(path, field(port=41801))
    assert answer.status == 500 and answer.complete and answer.body
    assert declined(answer) in ("connect", "busy")
    client.httpd.access()


@pytest.mark.parametrize("mode,how", [
    ("write", "return 500"), ("read", "error('it fails')"),
    pytest.param("read", "return 500", marks=pytest.mark.long),
    pytest.param("write", "error('it fails')", marks=pytest.mark.long),
    pytest.param("write", "return apache2.OK", marks=pytest.mark.long)])
def test_a_handler_that_fails_at_its_end(client, mode, how):
    """Where the head had gone over TCP: the same, or a visible failure; but
    never a success that TCP would not have had."""
    path = client.site.text("lua/fails.lua", f"""
function handle(r)
    r.content_type = 'text/plain'
    for i = 1, 10 do r:puts(string.rep('x', 10000)) end
    {how}
end
""")
    client.httpd.expect({"AH01471": None, "AH01474": None})
    with Connection(client.lab) as connection:
        plain = connection.get(path, connection="close")
    folder = client.folder / "saved"
    folder.mkdir()
    run = client.peer([path], "--save", folder, mode=mode, verify=None)
    detail, = run.details
    if how == "return apache2.OK":
        assert (detail["result"], detail["path"]) == ("ok", mode), run.json
    if detail["result"] == "ok":
        assert detail["status"] == plain.status
        assert (folder / "1.body").read_bytes() == plain.body
    client.httpd.access(2)


@pytest.mark.parametrize("mode,line", [
    ("write", "X Foo: a"), ("read", r"Foo: b\001"),
    pytest.param("read", "X Foo: a", marks=pytest.mark.long),
    pytest.param("write", r"Foo: b\001", marks=pytest.mark.long)])
def test_a_head_that_httpd_refuses(client, mode, line):
    """Of a program, whose content has been sent already: the answer is httpd's
    error page, and the connection goes on behind it."""
    client.site.file(SIZE)
    path = program(client, "bad", f"""
echo 'Content-Type: application/octet-stream'
printf '{line}\\n\\n'
cat {client.site.root}/{SIZE}.bin""")
    client.httpd.expect(dict.fromkeys(["AH02429", "AH02430"]))
    folder = client.folder / "saved"
    folder.mkdir()
    run = client.peer([path, client.site.file(SIZE)], "--save", folder,
                      mode=mode, verify=None)
    first, second = run.details
    # That it is no success is all that rdma_peer has to say of it.
    assert first["status"] == 500, run.json
    assert run.errors == {"status 500": 1}, run.json
    page = (folder / "1.body").read_bytes()
    assert page.startswith(b"<!DOCTYPE HTML"), page[:99]
    assert page.endswith(b"</html>\n"), page[-99:]
    assert first["declined"] in ("", "failed"), first
    assert (second["result"], second["path"]) == ("ok", mode), run.json
    entry, _ = client.httpd.access(2)
    assert entry.status == "500", entry
    if first["declined"]:
        assert (entry.mode, entry.bytes, entry.declined) == (
            "tcp", "-", "failed"), entry


def test_a_window_that_is_too_small(client):
    """Who offers to read, too, gets it so."""
    path = client.site.file(SIZE)
    run = client.peer([path], "--window", 5000, mode="write,read")
    assert (run.status, run.bytes["read"]) == (0, SIZE), run.json
    client.tally.body(True, SIZE)
    client.httpd.access()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_compressed(client, mode):
    path = client.site.file(SIZE, "squeezed")
    result = client.rwget(path, "--header=Accept-Encoding: gzip", rdma=mode)
    assert result.status == 0, result.err
    body = result.target.read_bytes()
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    assert not differs(body, SIZE)
    client.httpd.access()


def test_included(client):
    client.site.text("included/part.txt", "part of it\n")
    path = client.site.text(
        "included/page.txt", '<!--#include virtual="part.txt" -->' * 500)
    result = client.rwget(path, rdma="write")
    assert result.status == 0, result.err
    assert result.target.read_text() == "part of it\n" * 500
    client.httpd.access()


def test_a_rate_limit_is_kept(client):
    """A filter that we do not know stands behind us: it has to see the body."""
    path = client.site.file(SIZE, "limited")
    result, _ = client.fetch(SIZE, by="tcp", folder="limited")
    assert result.declined == "policy", path


def test_ranges(client):
    whole = make(SIZE)
    path = client.site.file(SIZE)
    for value, body in (("bytes=0-0", whole[:1]),
                        ("bytes=-5000", whole[-5000:]),
                        ("bytes=100000-", whole[100000:])):
        for mode in ("write", "read"):
            result = client.rwget(path, f"--header=Range: {value}", rdma=mode)
            assert (result.status, result.json["status"]) == (0, 206)
            assert result.path == mode
            assert result.target.read_bytes() == body
            client.tally.body(True, len(body))
            entry, = client.httpd.access()
            assert (entry.mode, entry.bytes, entry.b) == (
                mode, str(len(body)), str(len(body))), entry


def test_several_ranges(client):
    whole = make(SIZE)
    result = client.rwget(client.site.file(SIZE),
                          "--header=Range: bytes=1000-1999,50000-89999",
                          rdma="write")
    assert (result.status, result.json["status"]) == (0, 206)
    body = result.target.read_bytes()
    assert whole[1000:2000] in body and whole[50000:90000] in body
    assert body.count(b"Content-range: bytes") == 2
    client.httpd.access()


def test_range_beyond_the_end(client):
    with Connection(client.lab) as connection:
        answer = connection.get(client.site.file(SIZE), field(port=41802),
                                fields=[f"Range: bytes={SIZE}-"])
    assert answer.status == 416 and answer.complete
    client.httpd.access()


def test_directory_index(client):
    (client.site.root / "inside").mkdir(exist_ok=True)
    (client.site.root / "inside/index.bin").write_bytes(make(SIZE))
    result = client.rwget("/inside/", rdma="write")
    client.tally.body(result.path == "write", SIZE)
    assert (result.status, result.path) == (0, "write"), result.err
    assert not differs(result.target.read_bytes(), SIZE)
    client.httpd.access()


def test_redirect(client):
    (client.site.root / "inside").mkdir(exist_ok=True)
    (client.site.root / "inside/index.bin").write_bytes(make(SIZE))
    result = client.rwget("/inside", rdma="read")
    assert (result.status, result.redirects) == (0, 1), result.err
    assert result.path == "read"
    client.tally.body(True, SIZE)
    client.httpd.access(2)


def test_pipelined(client):
    """Answers come in order, each with its own field."""
    path = client.site.file(SIZE)
    with Connection(client.lab) as connection:
        for number in (1, 2, 3):
            connection.send(path, field(number, port=41803,
                                        token=b"x" * 16))
        for number in ("1", "2", "3"):
            answer = connection.answer()
            assert not differs(answer.body, SIZE)
            assert rdma_field(answer)["id"] == number
    client.httpd.access(3)
