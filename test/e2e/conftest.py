"""Fixtures and order of the end-to-end tests; they run in the lab's guest.

A test says what it needs with the markers driver and httpd, and gets it from
the fixtures `lab` and `httpd`. Tests are sorted so that a driver is set up
once and a server started as rarely as can be. After each test the server's log
and the kernel's are judged: what is at warning or above, and was not declared
with httpd.expect(), fails it.
"""
import os
import shutil
import tempfile
from pathlib import Path

import pytest

import clients
import faults
import wire
from content import Site
from hosts import DRIVERS, Lab
from httpd import PORT, Conf, Httpd, conf
from matrix import table_of
from tally import Tally

KEEP = Path("/build/e2e")
TALLY = Tally()


def pytest_addoption(parser):
    parser.addoption("--suite", default="some",
                     choices=("check", "long", "some"))


def _driver(item):
    mark = item.get_closest_marker("driver")
    return mark.args[0] if mark else "tuned"


def _conf(item):
    mark = item.get_closest_marker("httpd")
    if not mark:
        return conf()
    return mark.args[0] if mark.args and isinstance(mark.args[0], Conf) \
        else conf(*mark.args, **mark.kwargs)


def _needs(item):
    """What has to be set up before the item can run."""
    return _driver(item), (_conf(item) if "httpd" in item.fixturenames
                           else None)


def pytest_collection_modifyitems(config, items):
    if not os.environ.get("SAN"):
        without = [item for item in items if item.get_closest_marker("san")]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    order = {}
    for item in items:
        order.setdefault(_needs(item), len(order))
    items.sort(key=lambda item: (DRIVERS.index(_driver(item)),
                                 order[_needs(item)]))
    for item, following in zip(items, [*items[1:], None]):
        item.following = following
        item.failed = False


@pytest.fixture(scope="session")
def tally():
    return TALLY


@pytest.fixture(scope="session")
def site():
    root = Path(tempfile.mkdtemp(prefix="e2e-site."))
    root.chmod(0o755)
    yield Site(root / "site")
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def the_lab():
    return Lab()


@pytest.fixture(scope="session")
def the_httpd(site, the_lab):
    root = Path(tempfile.mkdtemp(prefix="e2e-root."))
    root.chmod(0o777)  # some servers are not started by root
    server = Httpd(root, site, the_lab)
    yield server
    server.stop()
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def the_wire():
    counter = wire.Wire(PORT)
    yield counter
    counter.close()


@pytest.fixture
def lab(request, the_lab, the_httpd):
    """The lab with the test's driver."""
    if the_lab.driver != _driver(request.node):
        the_httpd.stop()
        the_lab.up(_driver(request.node))
    the_lab.complaints()
    yield the_lab
    wrong = [f"the kernel complained: {line}" for line in the_lab.complaints()]
    wrong += [f"a core of {program}" for program in the_lab.cores()]
    if wrong:
        pytest.fail("; ".join(wrong))


@pytest.fixture
def httpd(request, lab, the_httpd):
    """The server, running with the test's configuration; afterwards its log
    is judged. It goes on for the next test if that wants the same."""
    server = the_httpd
    wanted = _conf(request.node)
    if server.running != wanted or server.process.poll() is not None:
        server.start(wanted)
    server.skip_access()
    yield server
    following = request.node.following
    wrong = []
    if (following is None or _needs(following) != _needs(request.node)
            or request.node.failed):
        try:
            server.stop()
        except AssertionError as error:
            wrong.append(str(error))
        wrong += [f"after the server's end there is: {line}"
                  for line in lab.objects()]
    wrong += server.judge()
    if wrong:
        _keep(request.node, server)
        more = [f"... and {len(wrong) - 12} more"] if len(wrong) > 12 else []
        pytest.fail("the server:\n" + "\n".join(wrong[:12] + more))


@pytest.fixture
def client(request, lab, httpd, site, tally, the_wire):
    """The programs on the client's host."""
    programs = clients.Clients(lab, httpd, site, tally, the_wire)
    yield programs
    programs.end()
    if request.node.failed:
        path = _log_path(request.node, "client")
        path.write_text("\n".join(programs.transcript))


# ---- outcomes ---------------------------------------------------------------

def _log_path(item, what):
    KEEP.mkdir(exist_ok=True)
    name = "".join(c if c.isalnum() or c in "-_." else "_"
                   for c in item.name)
    return KEEP / f"{item.path.stem}.{name}.{what}.log"


def _keep(item, server):
    _log_path(item, "httpd").write_text(server.logs())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    item.failed = item.failed or report.failed
    if report.failed:  # the terminal tells it at the end of the run
        _log_path(item, f"{call.when}-failed").write_text(report.longreprtext)
    if call.when == "call" and report.failed:
        server = item.funcargs.get("httpd")
        if server:
            _keep(item, server)
    if call.when == "setup" and report.failed:
        server = item.funcargs.get("the_httpd")
        if server:
            _keep(item, server)


def pytest_runtest_logreport(report):
    group = Path(report.location[0]).stem.replace("test_", "")
    TALLY.seconds[group] += report.duration
    if report.failed:
        TALLY.outcome(group, "failed")
    elif report.skipped:
        TALLY.outcome(group, "skipped")
    elif report.when == "call":
        TALLY.outcome(group, "passed")


def pytest_sessionstart():
    if os.environ.get("LAB") != "guest":
        pytest.exit("these tests run in the lab: test/e2e/run.sh", 1)
    shutil.rmtree(KEEP, ignore_errors=True)


def pytest_sessionfinish(session):
    suite = session.config.getoption("suite")
    if session.exitstatus == 0 and TALLY.problem(suite):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    suite = config.getoption("suite")
    if TALLY.matrix:
        terminalreporter.section("support matrix")
        for line in table_of(TALLY.matrix):
            terminalreporter.write_line(line)
    if TALLY.faults:
        terminalreporter.section("faults")
        for line in faults.table_of(TALLY.faults):
            terminalreporter.write_line(line)
    terminalreporter.section("end to end")
    for line in TALLY.lines(suite):
        terminalreporter.write_line(line)
    problem = TALLY.problem(suite)
    if problem:
        terminalreporter.write_line(f"FAILED: {problem}", red=True)
