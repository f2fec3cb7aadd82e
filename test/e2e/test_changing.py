"""Files that change while they are served: the client gets the file as it was at
one moment, or sees that it failed; never a mixture, and never waits for ever."""
import os
import random
import re
import threading
import time

import pytest

from clients import Peer
from content import SEED, differs, make
from httpd import conf
from status import status, wait_for

WINDOW = 128 << 10
STREAM = 3_000_001
OTHER = 0x0DD << 40  # the seed of the other version
MODES = pytest.mark.parametrize("mode", ["write", "read"])
# So much that the kernel does not take all of it at once from the server.
WHOLE = 9_000_001

pytestmark = pytest.mark.httpd(conf("""
RdmaEnable On
RdmaMemory 4M
RdmaTimeout 10
"""))


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path):
    """In place, and the time of modification is what it was."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(make(before.st_size, OTHER))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    new = path.with_suffix(".new")
    new.write_bytes(make(path.stat().st_size, OTHER))
    new.rename(path)


def remove(path):
    path.unlink()


def move(path):
    path.rename(path.with_suffix(".moved"))


@MODES
@pytest.mark.parametrize("change,survives", [
    (append, False), (truncate, False), (rewrite, False),
    (replace, True), (remove, True),
    pytest.param(move, False, marks=pytest.mark.long)])
def test_stream(client, mode, change, survives):
    """Changed when some of it has gone. One that was appended to, or got another
    name, cannot be told from one that was rewritten."""
    path = client.site.file(STREAM, "changing")
    before = status()["StreamsOpen"]
    client.lab.netem("rate", "8mbit", "limit", "10000")
    try:
        process = client.start_rwget(path, f"--rdma-window={WINDOW}", rdma=mode)
        wait_for(StreamsOpen=before + 1)
        time.sleep(0.5)
        change(client.site.root / path[1:])
    finally:
        client.lab.mend()
    ended, out, err = client.finish(process)
    (client.site.root / path[1:]).unlink(missing_ok=True)
    entry, = client.httpd.access()
    assert entry.mode == mode, entry
    if survives:
        assert ended == 0, err
        got = (client.folder / "fetched").read_bytes()
        assert not differs(got, STREAM, SEED)
        client.tally.body(True, STREAM)
    else:
        assert ended not in (0, 9) and ended > 0, (ended, out, err)
    wait_for(StreamsOpen=before)
    client.fetch(100_000, by=mode, alone=False)


def parts_of(body):
    """The bytes of a body, or of its parts, without what stands around them."""
    mark = re.match(rb"\r\n--([^\r]*)\r\n", body)
    if not mark:
        return body
    parts = body.split(b"\r\n--" + mark.group(1))[1:-1]
    return b"".join(part.partition(b"\r\n\r\n")[2] for part in parts)


def ends_of(ranges, size):
    """The first and the last byte of each range; without one, of the file."""
    return [[int(end) for end in one.split("-")]
            for one in (ranges or f"0-{size - 1}").split(",")]


@pytest.mark.long
@pytest.mark.parametrize("ranges", ["", "1000000-8999999",
                                    "0-2999999,4000000-8999999"],
                         ids=["whole", "a range", "ranges"])
@pytest.mark.parametrize("change", [append, truncate, rewrite, replace])
def test_whole(client, change, ranges):
    """Changed when some of it lies in the client's window, and the head is not
    out: the client gets one version, over TCP if it is the new one, or an
    error."""
    path = client.site.file(WHOLE, "changing")
    folder = client.folder / "saved"
    folder.mkdir()
    options = ["--header", f"Range: bytes={ranges}"] if ranges else []
    before = status()["ConnectionsOpenWrite"]
    client.lab.netem("rate", "8mbit", "limit", "10000")
    try:
        process = client.start_peer([path], "--window", 16 << 20, "--save",
                                    folder, *options, mode="write",
                                    verify=None)
        wait_for(ConnectionsOpenWrite=before + 1)
        time.sleep(0.7)
        assert not (folder / "1.head").exists()
        change(client.site.root / path[1:])
    finally:
        client.lab.mend()
    run = Peer(*client.finish(process))
    (client.site.root / path[1:]).unlink(missing_ok=True)
    detail, = run.details
    client.httpd.skip_access()
    if change is replace:
        assert (detail["result"], detail["path"]) == ("ok", "write"), run.json
        client.tally.body(True, detail["bytes"])
    elif detail["result"] == "ok" and detail["status"] < 500:
        assert (detail["path"], detail["declined"]) == ("tcp", "failed"), \
            run.json
    if detail["result"] == "ok" and detail["status"] < 500:
        assert change is not truncate
        right = make(WHOLE, OTHER if change is rewrite else SEED)
        got = parts_of((folder / "1.body").read_bytes())
        assert got == b"".join(right[first:last + 1] for first, last
                               in ends_of(ranges, WHOLE))
    client.fetch(100_000, by="write", alone=False)


class Writer(threading.Thread):
    """Rewrites a file in place, in passes from its begin to its end: pass n
    fills it with blocks that say n. So at any moment there is n in front and
    n - 1 behind."""

    BLOCK = 4096
    BLOCKS = 100

    def __init__(self, path):
        super().__init__()
        self.ends = threading.Event()
        self.chance = random.Random(1)
        self.passes = 0
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.write()

    def write(self):
        self.passes += 1
        block = self.passes.to_bytes(8, "big") * (self.BLOCK // 8)
        for number in range(self.BLOCKS):
            os.pwrite(self.file, block, number * self.BLOCK)

    def run(self):
        while not self.ends.wait(self.chance.uniform(0, 0.03)):
            self.write()

    def end(self):
        self.ends.set()
        self.join()
        os.close(self.file)

    def judge(self, body, size=BLOCK * BLOCKS):
        """What is wrong with it, or None. Whole blocks of the file, in their
        order, are judged as all of it."""
        if len(body) != size:
            return f"{len(body)} bytes"
        blocks = [body[at:at + self.BLOCK] for at in range(0, size, self.BLOCK)]
        mixed = [at for at, block in enumerate(blocks)
                 if block != block[:8] * (self.BLOCK // 8)]
        passes = [int.from_bytes(block[:8], "big") for block in blocks]
        steps = [at for at in range(1, len(passes))
                 if passes[at] != passes[at - 1]]
        if not mixed and (not steps or (len(steps) == 1
                                        and passes[-1] == passes[0] - 1)):
            return None
        return f"blocks {mixed} are mixed, changes at {steps[:4]}: {passes}"


@MODES
@pytest.mark.parametrize("ranges", [
    "", pytest.param("4096-405503", marks=pytest.mark.long),
    pytest.param("0-40959,200704-241663,368640-409599",
                 marks=pytest.mark.long)],
    ids=["whole", "a range", "ranges"])
def test_rewritten_all_the_time(client, mode, ranges):
    path = client.site.root / "hot.bin"
    writer = Writer(path)
    path.chmod(0o644)
    writer.start()
    size = sum(last - first + 1 for first, last in ends_of(ranges, 409_600))
    options = [f"--header=Range: bytes={ranges}"] if ranges else []
    wanted = {mode} if ranges else {mode, "tcp"}
    ways = []
    try:
        # Chance has it which way each of them goes. With ranges there is less
        # time between the two looks.
        while len(ways) < 15 or (len(ways) < 60 and not wanted <= set(ways)):
            result = client.rwget("/hot.bin", *options, rdma=mode)
            if result.status == 0:
                wrong = writer.judge(parts_of(result.target.read_bytes()),
                                     size)
                assert not wrong, (result.json, wrong)
                ways.append(result.path)
            else:
                assert result.status not in (9,) and result.status > 0, \
                    (result.status, result.err)
                ways.append("failed")
    finally:
        writer.end()
    print(writer.passes, {way: ways.count(way) for way in set(ways)})
    assert wanted <= set(ways), ways
    client.httpd.skip_access()
    result = client.rwget("/hot.bin", rdma=mode)
    assert (result.status, result.path) == (0, mode), result.err
    client.httpd.access()
    client.tally.body(True, 409_600)
    path.unlink()
