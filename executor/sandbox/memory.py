"""Guest memory: the only file that touches it.

Rules kept here and nowhere else: a pointer and a length are masked to u32; their sum is compared
with the size in Python integers, which do not wrap; address and size are fetched anew on each use,
because both change when the guest grows its memory; nothing is ever cut short.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

U32_MASK: Final = 0xFFFF_FFFF
PAGE: Final = 65_536

Locate = Callable[[], tuple[int, int]]


class BadPointer(Exception):  # noqa: N818 - an ending of an attempt, not an error of ours
    """The guest named a range that is not wholly inside its memory."""

    def __init__(self, *, pointer: int, length: int, size: int) -> None:
        self.pointer = pointer
        self.length = length
        self.size = size
        super().__init__(f"{length} bytes at {pointer} of {size}")


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """One instance's memory. `locate` gives its address and its size in bytes, now."""

    locate: Locate

    def size(self) -> int:
        """Bytes now; a memory only ever grows."""
        return self.locate()[1]

    def check(self, pointer: int, length: int) -> int:
        """The length, masked to unsigned, of a range that lies wholly inside.

        Shapes  two i32 as the engine gives them: signed and unchecked. An empty range may lie at
                the very end, not behind it.
        Errors  `BadPointer`.
        """
        _, length = self._resolve(pointer, length)
        return length

    def read(self, pointer: int, length: int) -> bytes:
        """A copy of the range, never a shorter one. Errors  `BadPointer`."""
        address, length = self._resolve(pointer, length)
        return ctypes.string_at(address, length) if length else b""

    def write(self, pointer: int, data: bytes) -> None:
        """Copy `data` to `pointer`. Errors  `BadPointer`, and then nothing was written."""
        address, length = self._resolve(pointer, len(data))
        if length:
            ctypes.memmove(address, data, length)

    def _resolve(self, pointer: int, length: int) -> tuple[int, int]:
        # Masked, not refused: a pointer above 2 GiB is legal and arrives negative.
        pointer &= U32_MASK
        length &= U32_MASK
        address, size = self.locate()
        if pointer + length > size:
            raise BadPointer(pointer=pointer, length=length, size=size)
        return address + pointer, length
