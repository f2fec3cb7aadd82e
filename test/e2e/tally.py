"""What a run has shown, for its summary and its exit status."""
from collections import Counter
from itertools import product

DRIVERS = ("stock", "tuned", "rxe")
MODES = ("write", "read")
FAMILIES = (4, 6)
MPMS = ("event", "worker")
ALL_CELLS = set(product(DRIVERS, MODES, FAMILIES, MPMS))
# `check` takes a few of them: each driver with each mode, family and MPM.
SOME_CELLS = {
    ("stock", "write", 4, "event"), ("stock", "read", 6, "worker"),
    ("tuned", "read", 4, "event"), ("tuned", "write", 6, "worker"),
    ("rxe", "write", 6, "event"), ("rxe", "read", 4, "worker"),
}


class Tally:
    def __init__(self):
        self.wanted = 0  # bodies that should go by RDMA
        self.moved = 0   # of them that did
        self.bytes = 0   # their bytes
        self.cells = set()
        self.groups = {}
        self.seconds = Counter()  # what each group took
        self.matrix = {}  # {row: {mode: rdma, tcp or FAIL}}
        self.faults = {}  # {(mode, step): {fault: deadline or FAIL}}

    def body(self, moved, size):
        self.wanted += 1
        if moved:
            self.moved += 1
            self.bytes += size

    def row(self, identity, mode, seen):
        """What a row of the support matrix has come to; a failure stays."""
        row = self.matrix.setdefault(identity, {})
        if row.get(mode) != "FAIL":
            row[mode] = seen

    def fault(self, mode, step, fault, seen):
        """What a cell of the table of faults has come to; a failure stays."""
        row = self.faults.setdefault((mode, step), {})
        if row.get(fault) != "FAIL":
            row[fault] = seen

    def outcome(self, group, outcome):
        self.groups.setdefault(group, Counter())[outcome] += 1

    def problem(self, suite):
        """Why the run must not count as passed, or None."""
        needed = {"check": SOME_CELLS, "long": ALL_CELLS}.get(suite, set())
        empty = sorted(needed - self.cells)
        if empty:
            return "EMPTY: " + ", ".join(name(cell) for cell in empty)
        if self.moved == 0 and (self.wanted or suite != "some"):
            return "not a single byte went by RDMA"
        return None

    def lines(self, suite):
        for group, counts in sorted(self.groups.items()):
            yield f"{group:14} {self.seconds[group]:5.0f} s" + "".join(
                f"  {count} {outcome}" for outcome, count
                in sorted(counts.items()))
        yield (f"by RDMA: {self.moved} of {self.wanted} bodies that should, "
               f"{self.bytes / 2**20:.1f} MiB")
        yield (f"cells of driver x mode x family x MPM: {len(self.cells)} of "
               f"{len(ALL_CELLS)}")
        if suite != "long":
            yield from (f"  {name(cell)}" for cell in sorted(self.cells))


def name(cell):
    driver, mode, family, mpm = cell
    return f"{driver}/{mode}/IPv{family}/{mpm}"
