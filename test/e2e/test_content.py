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
<Location /limited>
    SetOutputFilter RATE_LIMIT
    SetEnv rate-limit 4000
</Location>
"""
pytestmark = pytest.mark.httpd(CONF)
SIZE = 200_000


def program(client, name, text):
    return client.site.text(f"programs/{name}", f"#!/bin/sh\n{text}\n", 0o755)


def test_programs_do_not_see_the_field(client):
    path = program(client, "env", "echo Content-Type: text/plain; echo; env")
    rdma = field(token=b"0123456789abcdef")
    with Connection(client.lab) as connection:
        answer = connection.get(path, rdma, connection="RDMA, keep-alive")
    text = answer.body.decode()
    assert "GATEWAY_INTERFACE" in text
    assert "HTTP_RDMA" not in text
    assert "MDEyMzQ1Njc4OWFiY2RlZg" not in text
    assert "RDMA" not in "".join(line for line in text.splitlines()
                                 if line.startswith("HTTP_CONNECTION"))
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
    client.httpd.access(3)


def test_a_program_that_fails(client):
    path = program(client, "fail", "exit 3")
    client.httpd.expect({"End of script output before headers": 1})
    with Connection(client.lab) as connection:
        answer = connection.get(path, field(port=41801))
    assert answer.status == 500 and answer.complete and answer.body
    assert declined(answer) in ("connect", "busy")
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
            client.httpd.access()


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
