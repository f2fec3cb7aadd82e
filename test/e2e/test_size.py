"""Bodies of any size go through memory that does not grow with them."""
import pytest

from content import SEED
from httpd import conf
from pinned import Pinned
from status import changes, status

MIB = 1 << 20
WINDOW = 4 * MIB
MEMORY = 8 * MIB


@pytest.mark.parametrize("size", [
    96 * MIB + 4097,
    pytest.param(5 << 30, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.driver("tuned")
@pytest.mark.httpd(conf(f"RdmaEnable On\nRdmaMemory {MEMORY}"))
def test_larger_than_all_memory(client, mode, size):
    """Every byte is looked at as it comes, and none is kept."""
    before = status()
    with Pinned(client.httpd) as pinned:
        run = client.peer([client.site.sparse(size)], "--window", WINDOW,
                          "--expect-path", mode, "--timeout", 800, mode=mode,
                          seconds=900, verify=f"sparse:{SEED:#x}", full=False)
    assert run.status == 0, run.json
    client.tally.body(run.paths[mode] == 1, size)
    entry, = client.httpd.access()
    client.prove(mode, [size], [entry], alone=size < 1 << 30)
    done = changes(before)
    kind = mode.capitalize()
    assert done[f"Requests{kind}Streamed"] == 1, done
    assert done[f"Bytes{kind}Streamed"] == size, done
    # By the kernel's account, and by the engine's own.
    assert 0 < pinned.most <= MEMORY
    assert pinned.most <= status()["MemoryPeak"] <= MEMORY
