"""Guest memory: the only file that touches it.

Rules kept here and nowhere else: a pointer and a length are masked to u32; their sum is compared
with the size in Python integers, which do not wrap; nothing is ever cut short. An instance's memory
never moves (`memory_may_move` is off) and never shrinks, so what was inside when it was looked at
last is inside now; a range beyond that is looked for anew before it is refused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

U32_MASK: Final = 0xFFFF_FFFF
PAGE: Final = 65_536

_NOTHING: Final = memoryview(b"")
_WRITABLE: Final = 0x200


def _view() -> Any:
    # A prototype of our own beside the one that all share.
    made = ctypes.pythonapi["PyMemoryView_FromMemory"]
    made.restype = ctypes.py_object
    made.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
    return made


_VIEW: Final = _view()

Locate = Callable[[], tuple[int, int]]


class BadPointer(Exception):  # noqa: N818 - an ending of an attempt, not an error of ours
    """The guest named a range that is not wholly inside its memory."""

    def __init__(self, *, pointer: int, length: int, size: int) -> None:
        self.pointer = pointer
        self.length = length
        self.size = size
        super().__init__(f"{length} bytes at {pointer} of {size}")


class GuestMemory:
    """The memory of the instance that runs: `locate` gives its address and size in bytes, now."""

    __slots__ = ("_all", "_locate", "_place", "_size")

    def __init__(self, locate: Locate) -> None:
        self._place = (0, 0)
        self._all = _NOTHING
        self.begin(locate)

    def begin(self, locate: Locate) -> None:
        """From now on this is the memory of another instance."""
        self._locate = locate
        self._look()

    def _look(self) -> None:
        place = self._locate()
        self._size = place[1]
        if place != self._place:
            # The next instance mostly lies in the same place.
            self._all = _VIEW(*place, _WRITABLE) if place[1] else _NOTHING
            self._place = place

    def range(self, pointer: int, length: int) -> memoryview:
        """The bytes of a range that lies wholly inside, to be read or written in this host call.

        Never kept beyond it: memory goes. Python bounds every use by the range itself.

        Shapes  two i32 as the engine gives them: signed and unchecked. An empty range may lie at
                the very end, not behind it.
        Errors  `BadPointer`.
        """
        # Masked, not refused: a pointer above 2 GiB is legal and arrives negative.
        pointer &= U32_MASK
        length &= U32_MASK
        end = pointer + length
        if end > self._size:
            self._look()  # it may have grown
            if end > self._size:
                raise BadPointer(pointer=pointer, length=length, size=self._size)
        return self._all[pointer:end]
