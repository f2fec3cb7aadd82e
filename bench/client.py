"""The client's host: measures cell after cell, and leaves what it has seen for
report.py."""
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cells
import host

sys.path.insert(0, str(host.SOURCE / "test/e2e"))
from content import make  # noqa: E402

FILES = Path("/tmp/bench")
PATIENCE = 120  # seconds that a program may take beside its measurement


class Server:
    """The other host, as server.py serves it."""

    def __init__(self):
        self.socket = host.connect(host.SERVER, host.CONTROL)
        self.socket.settimeout(300)
        self.lines = self.socket.makefile("rw", encoding="utf-8")

    def tell(self, *what):
        self.lines.write(json.dumps(what) + "\n")
        self.lines.flush()

    def hear(self):
        line = self.lines.readline()
        if not line:
            raise RuntimeError("the server's host has gone")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError("at the server: " + answer["error"])
        return answer["is"]

    def ask(self, *what):
        self.tell(*what)
        return self.hear()


def command(way, cell, opts):
    seconds, volume = str(opts.seconds), str(opts.bytes)
    if way.program == "verbs":
        return [f"{host.BUILD}/bench/verbs", "fetch", way.how, str(cell.size),
                seconds, volume, host.CLIENT, host.SERVER, str(host.VERBS)]
    return [f"{host.BUILD}/bench/load", way.how, str(cell.clients), seconds,
            volume, host.CLIENT, str(FILES / f"{cell.size}.bin"),
            f"http://{host.SERVER}:{way.port}/{cell.size}.bin"]


@contextmanager
def watchdog(program, seconds):
    """Kills what hangs, whose output ends then, and what nobody waits for."""
    timer = threading.Timer(seconds, program.kill)
    timer.start()
    try:
        yield
    except BaseException:
        program.kill()
        raise
    finally:
        timer.cancel()


def measure(server, way, cell, opts):
    """One way, once: a dictionary. Raises if a single request went another way
    or brought something else."""
    with subprocess.Popen(command(way, cell, opts), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as program, \
            watchdog(program, 5 * opts.seconds + PATIENCE):
        def samples():
            return (server.ask("sample"), host.sample(
                {"load": [program.pid],
                 "siw": host.kernel_threads("siw_tx")}))

        if program.stdout.readline() != "ready\n":
            raise RuntimeError(f"{way.name}: {program.args[0]} has failed")
        if way.log:
            server.ask("log", way.server)  # forget the first requests
        before = samples()
        program.stdin.write("go\n")
        program.stdin.flush()
        line = program.stdout.readline()
        after = samples()
        program.stdin.close()
        if program.wait(60) or not line:
            raise RuntimeError(f"{way.name}: {program.args[0]} has failed")
    result = json.loads(line)
    result["server"], result["client"] = map(host.between, before, after)
    if way.log:
        log = server.ask("log", way.server)
        result["log"] = log
        # Written after the answer: the last ones may be missing.
        if set(log) != {way.log} \
                or result["requests"] - log[way.log] > cell.clients:
            raise RuntimeError(f"{way.name}: {result['requests']} requests, "
                               f"and the server has logged {log}")
    return result


def run_cell(server, cell, opts):
    """Every way, round by round, so that what changes on the machine in the
    meantime hits all of them."""
    path = FILES / f"{cell.size}.bin"
    if not path.exists():
        path.write_bytes(make(cell.size))
    server.tell("network", cell.driver, cell.mtu)
    host.network(cell.driver, cell.mtu)
    server.hear()
    server.ask("start", [cell.size])
    ways = cell.ways(opts.ways)
    runs = {way.name: [] for way in ways}
    for number in range(opts.rounds):
        for way in ways:
            result = measure(server, way, cell, opts)
            runs[way.name].append(result)
            print(f"{cell.name}, round {number + 1}: {way.name}: "
                  f"{result['bytes'] / result['seconds'] / 1e6:.1f} MB/s",
                  flush=True)
    errors = server.ask("errors")
    server.ask("stop")
    return {"cell": cell._asdict(), "name": cell.name, "ways": runs,
            "errors": errors}


def idle(server, seconds=3):
    """What the hosts use of their processors when nothing happens."""
    before = server.ask("sample"), host.sample({})
    time.sleep(seconds)
    after = server.ask("sample"), host.sample({})
    done = map(host.between, before, after)
    return [one["busy"] / one["time"] for one in done]


def version(package):
    return subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package],
                          stdout=subprocess.PIPE, text=True,
                          check=False).stdout


def main(opts):
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    FILES.mkdir()
    host.network("none", 9000)
    server = Server()
    results = {"accel": os.environ["LAB_ACCEL"],
               "kernel": platform.release(),
               "packages": {name: version(name) for name in
                            ("apache2-bin", "libibverbs1", "librdmacm1",
                             "libcurl4")},
               "rounds": opts.rounds, "seconds": opts.seconds,
               "bytes": opts.bytes, "idle": idle(server), "cells": []}
    for cell in opts.cells:
        results["cells"].append(run_cell(server, cell, opts))
        Path("/out/results.json").write_text(json.dumps(results))
    return 0
