"""Landlock: no file, no TCP port, no abstract socket, no signal beyond this process.

A ruleset that handles every right the running kernel knows and allows none. What a newer kernel
adds is not handled until it stands here; the system call filter refuses it all the same.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from executor.core.layers import LANDLOCK_FILES, LANDLOCK_SCOPES, LANDLOCK_TCP
from executor.sandbox import kernel

_VERSION: Final = 1  # flag: tell the version of the interface
# Version of the interface → the first bit that it did not know yet.
_FILE_BITS: Final = ((1, 13), (2, 14), (3, 15), (5, 16))
_TCP_SINCE: Final = 4
_TCP_BITS: Final = 2  # bind, connect
_SCOPES_SINCE: Final = 6
_SCOPE_BITS: Final = 2  # abstract UNIX sockets, signals


def version() -> int:
    """The kernel's version of the interface. Errors  `OSError` when it has none."""
    return kernel.syscall("landlock_create_ruleset", None, 0, _VERSION)


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def rights(of: int) -> tuple[int, int, int]:
    """What version `of` can handle, as bit masks: files, TCP, scopes."""
    files = max(bits for since, bits in _FILE_BITS if of >= since)
    return (
        _mask(files),
        _mask(_TCP_BITS) if of >= _TCP_SINCE else 0,
        _mask(_SCOPE_BITS) if of >= _SCOPES_SINCE else 0,
    )


def restrict() -> tuple[str, ...]:
    """Give up every right; the names of the parts that this kernel has. Errors  `OSError`.

    Needs no-new-privs and one free descriptor.
    """
    handled = rights(version())
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", *handled), 24)
    # A kernel that knows fewer fields takes the longer form when the rest is zero.
    ruleset = kernel.syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        kernel.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    names = (LANDLOCK_FILES, LANDLOCK_TCP, LANDLOCK_SCOPES)
    return tuple(name for name, mask in zip(names, handled, strict=True) if mask)
