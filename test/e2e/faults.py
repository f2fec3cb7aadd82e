"""Faults at every step of the protocol: what can go wrong, when, and how long
the server may hold anything for it. test_faults.py brings them about;
docs/FAULTS.md has the table.

    faults.py    prints the table as it stands here
"""
from dataclasses import dataclass

MODES = ("write", "read")

# Seconds, in the server's configuration.
CONNECT, TIMEOUT, LEASE, HTTP, RESPAWN = 2, 1, 2, 2, 1
SIW = 10  # its own, for a peer that does not answer its MPA request

# What ends what the server holds, and when at the latest.
DEADLINES = {
    "at once": 0,
    "driver": SIW,                 # the request waits for CONNECT only
    "progress": 2 * TIMEOUT,       # until ABORT, and for its answer
    "lease": LEASE + TIMEOUT,      # the same, when all has been handed over
    "next child": RESPAWN,         # httpd looks once a second
}


@dataclass(frozen=True)
class Step:
    name: str
    at: dict              # where rdma_peer stops, by mode
    gated: bool = False   # the content comes after the fault
    slow: bool = False    # the wire is so slow that the step lasts
    stream: bool = False


def _both(step):
    return dict.fromkeys(MODES, step)


STEPS = (
    Step("before connect", _both("connect-request")),
    Step("after connect", _both("established")),
    Step("before the first WRITE or part", _both("hello"), gated=True),
    Step("during WRITE", {"write": "request-sent"}, slow=True),
    Step("after WRITE, before WRITTEN is consumed", {"write": "written-fin"}),
    Step("head sent", _both("head")),
    Step("during READ", {"read": "during-read"}, slow=True),
    Step("before CONSUMED", _both("before-consumed")),
    Step("mid stream", {"write": "first-message", "read": "before-consumed"},
         stream=True),
)
FAULTS = ("kill", "stop", "link down", "loss", "HTTP reset", "device removed",
          "child crash")
# HTTP is as silent as RDMA: a worker that has gone back to it may have to wait.
SILENT = {"stop", "link down", "loss"}


def deadline(fault, step, mode):
    """The name of the one that applies."""
    first = step.name == "before connect"
    if fault == "child crash":
        return "next child"
    if first and fault in ("stop", "loss", "link down", "device removed"):
        return "driver"
    if fault in ("stop", "loss"):
        return "progress" if step.stream else "lease"
    # A client that has not seen the head does not know what it could give back.
    if fault == "HTTP reset" and mode == "read" and (
            first or step.gated or step.name == "after connect"):
        return "lease"
    return "at once"


def table_of(seen):
    """The table of what was seen: {(mode, step's name): {fault: text}}; what
    was not tried is empty."""
    lines = ["| step | " + " | ".join(FAULTS) + " |",
             "|---" * (len(FAULTS) + 1) + "|"]
    for mode in MODES:
        group = f"| **server-{mode}** |" if mode == "write" \
            else f"| **client-{mode}** |"
        lines.append(group + " |" * len(FAULTS))
        for step in STEPS:
            row = seen.get((mode, step.name))
            if row:
                lines.append(f"| {step.name} | " + " | ".join(
                    row.get(fault, "") for fault in FAULTS) + " |")
    return lines


def wanted():
    """The table of a run in which everything has passed."""
    return {(mode, step.name): {fault: deadline(fault, step, mode)
                                for fault in FAULTS}
            for mode in MODES for step in STEPS if mode in step.at}


if __name__ == "__main__":
    print("\n".join(table_of(wanted())))
