"""The status page: which attempt runs, and since when.

4096 bytes of a memfd that the supervisor made and maps too: u64 sequence number at 0 (0: idle),
u64 start at 8, in nanoseconds of CLOCK_MONOTONIC. Two aligned stores of eight bytes, the sequence
number last, so that a reader never sees a new number with an old time.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from typing import Final

PAGE_BYTES: Final = 4096


class StatusPage:
    """This process's side of the page. The descriptor may be closed once this exists."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self._words = (ctypes.c_uint64 * 2).from_buffer(self._map)

    def begin(self, seq: int) -> None:
        """Attempt `seq` starts now."""
        words = self._words
        words[0] = 0
        words[1] = time.monotonic_ns()
        words[0] = seq

    def end(self) -> None:
        """Nothing runs."""
        self._words[0] = 0
