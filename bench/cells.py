"""What is measured: the ways that a body can go, and the cells of the table. To
measure something else, change a list here."""
from collections import namedtuple
from itertools import product

KIB, MIB = 1024, 1024 * 1024

# program and what it is told; for `load` the port of bench/httpd.conf; server:
# whose processes serve it (host.py); log: how the server's log names the way
Way = namedtuple("Way", "name program how port server log")
WAYS = (
    Way("sendfile", "load", "tcp", 8081, "plain", "tcp"),
    Way("no sendfile", "load", "tcp", 8082, "plain", "tcp"),
    Way("server-write", "load", "write", 8080, "rdma", "write"),
    Way("client-read", "load", "read", 8080, "rdma", "read"),
    Way("verbs write", "verbs", "write", 0, "verbs", None),
    Way("verbs write, signaled", "verbs", "write-signaled", 0, "verbs", None),
    Way("verbs read", "verbs", "read", 0, "verbs", None),
)
BASE = WAYS[0]  # what the others are compared with
QUICK_WAYS = ("sendfile", "server-write", "client-read", "verbs write",
              "verbs read")


class Cell(namedtuple("Cell", "driver mtu size clients")):
    """One setting, in which every way is measured."""

    @property
    def name(self):
        return f"{self.driver}-{self.mtu}-{amount(self.size)}-{self.clients}"

    def ways(self, names):
        """bench/verbs is one client."""
        return [way for way in WAYS if way.name in names
                and (self.clients == 1 or way.program != "verbs")]


def amount(size):
    return f"{size // MIB}M" if size % MIB == 0 else f"{size // KIB}K"


QUICK = [Cell("tuned", 9000, MIB, 1)]

# Every driver, MTU and size for one client, and more clients where it is worth
# it. A driver is loaded once.
FULL = [Cell(*words) for words in product(
    ("stock", "tuned"), (1500, 9000, 65000),
    (16 * KIB, 256 * KIB, MIB, 16 * MIB), (1,))]
FULL += [Cell("tuned", 9000, *words)
         for words in product((16 * KIB, MIB), (4, 16))]
