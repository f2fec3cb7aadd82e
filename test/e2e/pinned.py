"""Pinned memory of the server's children by the kernel's account, all the
time, not just when a test looks."""
import re
import threading
from pathlib import Path

EVERY = 0.05  # seconds


class Pinned:
    """with Pinned(httpd) as pinned: ... -- then `most` is the largest number
    of bytes that any one child has had pinned."""

    def __init__(self, httpd):
        self._files = [Path(f"/proc/{child}/status")
                       for child in httpd.children()]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.most = 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _run(self):
        while not self._end.wait(EVERY):
            for file in self._files:
                found = re.search(r"^VmPin:\s+(\d+) kB", file.read_text(), re.M)
                self.most = max(self.most, int(found.group(1)) << 10)
