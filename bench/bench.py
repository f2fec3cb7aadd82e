"""Measures what bodies cost by RDMA and by TCP; see docs/BENCH.md.

    bench.py [--quick] [--cells PATTERN] [--ways NAME,...] [--rounds N]
             [--seconds N] [--bytes N] [--cpu MODEL] [--build DIR]

Boots a pair of guests (test/lab/lab.sh), in which it starts itself again: as
server.py in one and client.py in the other.
"""
import argparse
import fnmatch
import json
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cells
import report

SOURCE = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024


def options():
    parser = argparse.ArgumentParser(prog="bench.py")
    parser.add_argument("--quick", action="store_true",
                        help="one cell, and no variants")
    parser.add_argument("--cells", metavar="PATTERN",
                        help="those cells of the full table, by name: "
                             "driver-MTU-size-clients, as in 'tuned-9000-*'")
    parser.add_argument("--ways", metavar="NAME,...", help="only these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10,
                        help="that a measurement takes at least (10)")
    parser.add_argument("--bytes", type=int, default=200 * MIB,
                        help="that it moves at least")
    parser.add_argument("--cpu", default="max",
                        help="QEMU's model for the guests' processors (max)")
    parser.add_argument("--build", default=str(SOURCE / "build"))
    opts = parser.parse_args()
    everything = [way.name for way in cells.WAYS]
    if opts.ways:
        opts.ways = opts.ways.split(",")
    else:
        opts.ways = cells.QUICK_WAYS if opts.quick else everything
    unknown = set(opts.ways) - set(everything)
    if unknown:
        parser.error(f"ways are {', '.join(everything)}")
    opts.cells = [cell for cell in (cells.QUICK if opts.quick else cells.FULL)
                  if fnmatch.fnmatch(cell.name, opts.cells or "*")]
    if not opts.cells:
        parser.error("no such cell")
    return opts


def busy():
    """CPU seconds that this machine has worked, since its boot."""
    user, nice, system = (int(n) for n in Path("/proc/stat").read_text()
                          .split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def used_by_us():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def ahead():
    """Ahead of whatever else runs on this machine, where we may: what a guest
    waits for a processor looks like work in there."""
    group = Path("/proc/self/autogroup")  # where it exists, niceness is within
    try:
        os.nice(-20)
        if group.exists():
            group.write_text("-20")
    except OSError:
        group = None
    try:
        yield
    finally:
        if group and group.exists():
            group.write_text("0")


def boot(opts, folder):
    """Runs both guests to their end: status, and CPUs that others used."""
    measurements = sum(len(cell.ways(opts.ways)) for cell in opts.cells) \
        * opts.rounds
    # Starting programs, and slow ways that take longer for the volume.
    limit = 300 + 60 * len(opts.cells) + measurements * (3 * opts.seconds + 20)
    begun, before = time.monotonic(), busy() - used_by_us()
    with ahead():
        status = subprocess.run(
            [str(SOURCE / "test/lab/lab.sh"), "pair", "--build", opts.build,
             "--out", str(folder / "lab"), "--timeout", str(limit),
             "--cpu", opts.cpu, "--",
             "/usr/bin/python3", "bench/bench.py", *sys.argv[1:]],
            check=False).returncode
    others = busy() - used_by_us() - before
    return status, max(0, others / (time.monotonic() - begun))


def main():
    opts = options()
    if os.environ.get("LAB") == "guest":
        role = __import__(os.environ["LAB_ROLE"])
        return role.main(opts)
    folder = Path(opts.build) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "lab/client/results.json"
    raw.unlink(missing_ok=True)
    status, others = boot(opts, folder)
    if status:
        print(f"bench: failed with status {status}; see {folder}/lab",
              file=sys.stderr)
        return 1
    results = json.loads(raw.read_text())
    results["mod_rdma"] = re.search(
        r'MOD_RDMA_VERSION\s+"(.*?)"',
        (SOURCE / "rdma_version.h").read_text()).group(1)
    results["others"] = others
    results["cpu"] = opts.cpu
    for cell in results["cells"]:
        cell["medians"] = report.summary(cell)
    path = folder / ("quick.json" if opts.quick else "full.json")
    path.write_text(json.dumps(results, indent=1))
    print("\n" + report.text(results))
    print(f"\nEverything that was counted: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
