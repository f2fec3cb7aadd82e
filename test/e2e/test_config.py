"""The configuration files that are installed, and values that are wrong."""
import os
import shutil
from pathlib import Path

import pytest

from httpd import MODULES, conf
from status import status

CONF = Path(__file__).parents[2] / "conf"

# What a server may have that is started without privileges, as in a container.
UNPRIVILEGED = ("setpriv", "--reuid=www-data", "--regid=www-data",
                "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
SMALL_MEMLOCK = ("prlimit", "--memlock=8388608:8388608", *UNPRIVILEGED)
FEW_DESCRIPTORS = ("prlimit", "--memlock=unlimited:unlimited",
                   "--nofile=512:512", *UNPRIVILEGED)


@pytest.fixture
def check(lab, the_httpd):
    """check(text): whether apache2 -t likes it, and what it says."""
    def check_one(text, **options):
        the_httpd.stop()
        status, output = the_httpd.check(conf(text, **options))
        return status == 0, output
    return check_one


@pytest.fixture
def installed():
    path = Path(MODULES, "mod_rdma.so")
    shutil.copy("/build/module/mod_rdma.so", path)
    yield path
    path.unlink()


def test_the_installed_files(check, installed):
    ok, output = check(f"Include {CONF}/rdma.conf",
                       load=f"Include {CONF}/rdma.load")
    assert ok and "Syntax OK" in output, output


def test_every_default_is_a_value(check):
    lines = [line[1:] for line in
             (CONF / "rdma.conf").read_text().splitlines()
             if line.startswith("#Rdma")]
    assert len(lines) == 12
    ok, output = check("\n".join(lines))
    assert ok, output


WRONG = [
    ("RdmaEnable", "Maybe"), ("RdmaMode", "both"), ("RdmaMinSize", "-1"),
    ("RdmaMemory", "1023K"), ("RdmaMemory", "2T"), ("RdmaMemory", "64 M"),
    ("RdmaConnectTimeout", "9ms"), ("RdmaTimeout", "2h"),
    ("RdmaLeaseTimeout", "10sec"), ("RdmaIdleTimeout", "0"),
    ("RdmaMaxConnections", "0"), ("RdmaMaxConnectionsPerClient", "65537"),
    ("RdmaAllow", "10.77.0.0/33"), ("RdmaAllow", "example.com"),
    ("RdmaOverTLS", "1"), ("RdmaAllow", "0.0.0.0/0"),
]


@pytest.mark.parametrize(
    "directive,value",
    [pytest.param(*pair, marks=[] if i % 5 == 1 else pytest.mark.long)
     for i, pair in enumerate(WRONG)])
def test_wrong_values(check, directive, value):
    ok, output = check(f"{directive} {value}")
    assert not ok
    assert directive in output


def test_engine_directives_are_global(check):
    ok, output = check("<VirtualHost *:8080>\nRdmaMemory 8M\n</VirtualHost>")
    assert not ok and "RdmaMemory" in output


@pytest.mark.httpd(conf("""
RdmaEnable On
<Directory SITE/overridden>
    AllowOverride All
</Directory>
"""))
@pytest.mark.parametrize("line", ["RdmaAllow 10.77.0.0/16", "RdmaOverTLS On"])
def test_not_for_htaccess(client, line):
    """Whoever may write files may not say where the server connects to, nor
    that a body goes unencrypted."""
    path = client.site.file(50_000, "overridden")
    override = client.site.root / "overridden/.htaccess"
    override.write_text(line)
    client.httpd.expect({f"{line.split()[0]} not allowed here": 1})
    try:
        result = client.rwget(path)
    finally:
        override.unlink()
    assert (result.status, result.json["status"]) == (8, 500)
    client.httpd.access()
    client.fetch(50_000, by="write", folder="overridden")


@pytest.mark.httpd(conf("", load="", expect=()))
def test_without_the_module(httpd):
    """What the other tests know about this httpd is known without us."""
    assert httpd.children()


@pytest.mark.httpd(conf("RdmaEnable On"))
def test_the_start_is_announced(httpd):
    lines = (httpd.root / "error.log").read_text().splitlines()
    assert sum("RDMA0001" in line for line in lines) == 1


@pytest.mark.httpd(conf("RdmaEnable Off"))
def test_nothing_is_opened_when_off(httpd, lab):
    assert not lab.objects()


@pytest.mark.httpd(conf(before=SMALL_MEMLOCK, expect=[("RDMA0003", 1)]))
def test_little_locked_memory(client):
    """One warning, and as much RDMA as there is memory for."""
    ways = set()
    for mode in ("write", "read"):
        for size in (65536, 1 << 20, 4 << 20):
            result = client.rwget(client.site.file(size), rdma=mode)
            assert result.status == 0, result.err
            assert result.path == mode or result.declined in ("memory",
                                                              "window")
            ways.add(result.path)
            client.httpd.access()
    assert {"write", "read"} <= ways


@pytest.mark.httpd(conf("""
RdmaEnable On
RdmaMaxConnections 1000
RdmaMaxConnectionsPerClient 1000
AsyncRequestWorkerFactor 32
""", before=FEW_DESCRIPTORS, expect=[("RDMA0008", 1)]))
def test_few_descriptors(client):
    """One warning; connections leave httpd the half of them, however many clients
    there are."""
    path = client.site.file(65536)
    client.httpd.expect({"AH00484": None})
    held = [client.peer_at([path], "done", "--clients", 40, "--close", count=40,
                           mode="write", full=False) for _ in range(4)]
    for entry in client.httpd.access(160):
        assert entry.status == "200", entry
    assert 64 < status()["ConnectionsOpenWrite"] <= 128
    client.fetch(65536, by="read", alone=False)
    for process in held:
        process.kill()
        client.finish(process)
