"""Streams that are cut, and single bodies that are given up: the end that
remains sees it, and what shares the connection is not disturbed."""
import os
import signal
import time

import pytest

import relays
from clients import Peer
from hosts import wait_until
from httpd import MODULES, PORT, conf
from rawhttp import Connection, get_all
from status import status, wait_for

SIZE = 3_000_000
WINDOW = 65536
CONF = conf("""
RdmaEnable On
RdmaTimeout 2s
RdmaMemory 16M
RdmaLeaseTimeout 2s
LoadModule cgid_module /usr/lib/apache2/modules/mod_cgid.so
LoadModule env_module /usr/lib/apache2/modules/mod_env.so
SetEnv ap_trust_cgilike_cl 1
<Location /programs>
    Options +ExecCGI
    SetHandler cgi-script
</Location>
ThreadsPerChild 32
MaxRequestWorkers 32
MaxSpareThreads 32
""")
pytestmark = [pytest.mark.httpd(CONF), pytest.mark.driver("tuned")]
LEAVE_CHECKED = {("write", "abort"), ("write", "reset-http"),
                 ("read", "disconnect"), ("read", "close-http")}
MODES = pytest.mark.parametrize("mode", ["write", "read"])


def quiet():
    """Nothing is held for anybody."""
    wait_for(15, LeasesOpen=0, StreamsOpen=0, ArenasOpen=0)


@pytest.mark.parametrize("mode,how", [
    pytest.param(mode, how, marks=[] if (mode, how) in LEAVE_CHECKED
                 else pytest.mark.long)
    for mode in ("write", "read") for how in (
        "abort", "disconnect", "reset-http", "close-http", "destroy-qp",
        "stop", "stall")])
def test_the_client_leaves_its_stream(client, mode, how):
    """One of four, in the middle; the others get all of theirs."""
    step = "first-message" if mode == "write" else "before-consumed"
    hold = ["--hold", 8] if how in ("stop", "stall") else []
    run = client.peer([client.site.file(SIZE)], "--clients", 4, "--window",
                      WINDOW, "--step", f"{step}@2/3={how}", *hold,
                      "--timeout", 20, "--progress", 2, mode=mode, requests=3,
                      full=False)
    assert run.mismatched == 0 and run.unexpected == 0, run.json
    assert run.ok >= 3 * 3 + 1, run.json
    for _ in range(9):
        client.tally.body(run.paths[mode] >= 9, SIZE)
    client.httpd.skip_access()
    quiet()


@MODES
def test_the_client_is_killed(client, mode):
    process = client.start_peer(
        [client.site.file(SIZE)], "--window", WINDOW, "--step",
        "first-message=stall", "--step", "before-consumed=stall", mode=mode)
    wait_for(StreamsOpen=1)
    process.kill()
    client.finish(process)
    quiet()
    client.httpd.skip_access()


def program(client, name, length, part):
    """A program that announces more than it has."""
    return client.site.text(f"programs/{name}", f"""#!/bin/sh
echo Content-Type: application/octet-stream
echo Content-Length: {length}
echo
head -c {part} /dev/zero
""", 0o755)


@MODES
@pytest.mark.parametrize("how", ["truncated", "program", "killed"])
def test_the_server_cuts_a_stream(client, mode, how):
    """The client must not take it for the whole."""
    before = status()
    length, part = SIZE, SIZE // 2
    if how == "program":
        path = program(client, "breaks", length, part)
        client.httpd.expect({"RDMA0020": None})
    else:
        path = client.site.file(SIZE, how)
    client.lab.netem("rate", "2mbit", "limit", "10000")
    try:
        process = client.start_rwget(path, f"--rdma-window={WINDOW}",
                                     rdma=mode)
        wait_for(StreamsOpen=before["StreamsOpen"] + 1)
        time.sleep(0.5)
        if how == "truncated":
            os.truncate(client.site.root / path[1:], part)
            client.httpd.expect({"RDMA0021": None})
        elif how == "killed":
            client.httpd.expect({"AH00052": None})
            os.kill(client.lab.holder(), signal.SIGKILL)
    finally:
        client.lab.mend()
    ended, out, err = client.finish(process)
    if how == "truncated":
        (client.site.root / path[1:]).unlink()
    assert ended not in (0, 9) and ended > 0, (ended, out, err)
    client.httpd.skip_access()
    wait_until(client.httpd.children, 10, "a child")
    quiet()
    client.fetch(100_000, by=mode, alone=False)


def tapped(client, path, *options, **more):
    """What one body came to, and all that httpd has said on its connection."""
    with relays.Tap(client.lab, (client.lab.server(), PORT)) as tap:
        run = client.peer([path], "--server", tap.address,
                          "--no-address-check", *options, **more)
        assert tap.ended.wait(10)
    body, = run.details
    return body, tap.answer


def cut_after_its_head(client, path, mode, *options):
    """The body fails, and of HTTP nothing follows its head."""
    body, answer = tapped(client, path, "--window", WINDOW, *options,
                          mode=mode, verify=None)
    assert (body["status"], body["result"]) == (200, "failed"), body
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"\r\ntransfer-encoding: chunked" in head.lower(), answer
    assert rest == b"", answer
    client.httpd.access()
    quiet()


@MODES
def test_the_cut_shows_in_http(client, mode):
    """The last chunk, which would end the body, does not come."""
    path = program(client, "shows", SIZE, SIZE // 2)
    client.httpd.expect({"RDMA0020": None})
    cut_after_its_head(client, path, mode)


def lua(client):
    """A program in httpd that does not look at what becomes of its words."""
    return client.site.text("deaf.lua", f"""
function handle(r)
    r.content_type = "application/octet-stream"
    for i = 1, {SIZE // 1000} do
        r:write(("x"):rep(1000))
    end
    return apache2.OK
end
""")


def cached(client):
    """A file that mod_cache has, which makes an error page when it fails."""
    path = client.site.file(SIZE, "kept")
    with Connection(client.lab) as connection:
        for _ in range(2):  # mod_cache may have it from the test before
            answer = connection.get(path, None, connection=None)
        assert get_all(answer, "X-Cache")[0].startswith("HIT"), answer.fields
    client.httpd.access(2)
    return path


@pytest.mark.httpd(CONF.text + f"""
LoadModule lua_module {MODULES}/mod_lua.so
LoadModule cache_module {MODULES}/mod_cache.so
LoadModule cache_disk_module {MODULES}/mod_cache_disk.so
AddHandler lua-script .lua
CacheRoot SITE/kept-var
CacheMaxFileSize 10000000
CacheHeader on
CacheMinExpire 600
CacheEnable disk /kept
""")
@MODES
@pytest.mark.parametrize("source", [lua, cached])
def test_nothing_follows_the_cut(client, mode, source):
    """Whoever made the body, or httpd, would say more."""
    (client.site.root / "kept-var").mkdir(exist_ok=True)
    (client.site.root / "kept-var").chmod(0o777)
    cut_after_its_head(client, source(client), mode, "--step",
                       "first-message=disconnect")


@pytest.mark.httpd(CONF.text + f"""
LoadModule headers_module {MODULES}/mod_headers.so
<Location /bad>
    Header always set X-Control "a\x01b"
</Location>
""")
@MODES
@pytest.mark.parametrize("size", [100_000, SIZE], ids=["whole", "stream"])
def test_no_head_can_be_sent(client, mode, size):
    """httpd refuses each; then there is none, and not one without our field."""
    client.httpd.expect({"AH02430": None})
    body, answer = tapped(client, client.site.file(size, "bad"), "--window",
                          WINDOW if size == SIZE else size, mode=mode)
    assert body["result"] == "failed", body
    assert answer == b""
    client.httpd.access()
    quiet()


# ---- bodies that are given up before the head ------------------------------

def test_failed_by_its_connection(client):
    """It breaks in the middle of a body; all of that comes over TCP."""
    before = status()
    client.lab.netem("rate", "5mbit", "limit", "10000")
    try:
        process = client.start_peer(
            [client.site.file(SIZE)], "--window", 4 << 20, "--step",
            "hello=wait:500", "--step", "hello=disconnect", mode="write")
        wait_for(DeclinedFailed=before["DeclinedFailed"] + 1)
    finally:
        client.lab.mend()
    run = Peer(*client.finish(process))
    body, = run.details
    assert (body["declined"], body["conn"]) == ("failed", 1), run.json
    assert (body["result"], body["path"], body["bytes"]) == \
        ("ok", "tcp", SIZE), run.json
    assert run.mismatched == 0 and run.unexpected == 0, run.json
    entry, = client.httpd.access()
    assert (entry.mode, entry.declined) == ("tcp", "failed")
    quiet()


@pytest.mark.parametrize("mode,step", [
    ("write", "request-sent"), ("write", "first-message"), ("write", "head"),
    ("read", "request-sent"), ("read", "head"), ("read", "before-consumed")])
def test_one_of_several_on_a_connection(client, mode, step):
    """It is given up; whoever shares the connection keeps it."""
    run = client.peer([client.site.file(200_000), client.site.file(700_000)],
                      "--concurrency", 4, "--window", 256 << 10, "--step",
                      f"{step}@5=abort", "--timeout", 20, "--progress", 2,
                      mode=mode, requests=12, full=False)
    assert run.mismatched == 0 and run.unexpected == 0, run.json
    assert run.ok >= 11, run.json
    assert run.connections_made[mode] == 1, run.json
    assert run.json["connections"]["lost"] == 0, run.json
    client.httpd.skip_access()
    quiet()
