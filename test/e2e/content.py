"""Files whose every 8-byte word, big-endian, is its own offset xor a seed:
whatever lands in the wrong place is seen."""
import array
import functools
import hashlib

SEED = 0x5EED << 40  # above all offsets, so that xor is a sum


def make(size, seed=SEED):
    # It takes its time where the guest is emulated.
    return (_kept if size < 1 << 22 else _made)(size, seed)


def _made(size, seed):
    words = array.array("Q", range(seed, seed + size, 8))
    words.byteswap()
    return words.tobytes()[:size]


_kept = functools.lru_cache(maxsize=16)(_made)


def differs(body, size, seed=SEED):
    """None, or what is wrong with a body that should be make(size)."""
    if len(body) != size:
        return f"{len(body)} bytes instead of {size}"
    right = make(size, seed)
    if body == right:
        return None
    at = next(i for i in range(size) if body[i] != right[i])
    word = int.from_bytes(body[at & ~7:(at & ~7) + 8], "big")
    return f"differs at {at}: that word belongs to offset {word ^ seed:#x}"


class Site:
    """A document root with a file for each size that is asked for."""

    def __init__(self, root):
        self.root = root
        root.mkdir()
        root.chmod(0o755)

    def file(self, size, folder="", seed=SEED):
        """The path, for a URL, of a file of that size."""
        name = f"{size}.bin" if seed == SEED else f"{size}-{seed:x}.bin"
        path = self.root / folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(make(size, seed))
        return f"/{path.relative_to(self.root)}"

    def sparse(self, size, seed=SEED):
        """The path of a file of that size in which the first word of each
        64 KiB is its offset xor the seed, and there is nothing else."""
        path = self.root / f"{size}-sparse.bin"
        if not path.exists():
            with open(path, "wb") as file:
                file.truncate(size)
                for at in range(0, size, 1 << 16):
                    file.seek(at)
                    word = (at ^ seed).to_bytes(8, "big")
                    file.write(word[:size - at])
        return f"/{path.name}"

    def sha256(self, path):
        return hashlib.sha256((self.root / path[1:]).read_bytes()).hexdigest()

    def text(self, name, text, mode=0o644):
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return f"/{name}"
