"""The kernel's numbers and calls that the jail needs and the standard library does not offer.

Numbers are those of the kernel's own headers for the two machines supported; a test compares the
system call numbers of both with libseccomp. Every call here checks its result and raises `OSError`:
a silent failure would be a missing layer.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

# name → (x86_64, aarch64). From 424 on the numbers are the same everywhere.
SYSCALLS: Final[dict[str, tuple[int, int]]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pwrite64": (18, 68), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "getpid": (39, 172), "sendto": (44, 206),
    "recvfrom": (45, 207), "exit": (60, 93), "gettid": (186, 178), "futex": (202, 98),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "exit_group": (231, 94), "tgkill": (234, 131), "sigaltstack": (131, 132), "seccomp": (317, 277),
    "getrandom": (318, 278), "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip

MACHINES: Final = ("x86_64", "aarch64")
# linux/audit.h: what a filter sees in `arch`.
AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

CAP_KILL: Final = 5
CAP_SETGID: Final = 6
CAP_SETUID: Final = 7
CAP_SETPCAP: Final = 8
_PROT_READ: Final = 1
_PROT_EXEC: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def machine() -> str:
    """The machine, if it is one whose numbers are known. Errors  `OSError`."""
    name = platform.machine()
    if name not in MACHINES:
        raise OSError(f"no system call numbers for {name}")
    return name


def number(name: str, of: str) -> int:
    """The number of a system call on the machine `of`."""
    return SYSCALLS[name][MACHINES.index(of)]


def checked(result: int, what: str) -> int:
    """The result of a C call. Errors  `OSError` from errno when it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """One system call, numbers as unsigned longs and buffers by address. Errors  `OSError`."""
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number(name, machine())), *passed)
    return checked(result, name)


def prctl(option: int, *values: int) -> int:
    """One prctl, four arguments filled up with zeros. Errors  `OSError`."""
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    return checked(_libc.prctl(ctypes.c_int(option), *arguments), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave namespaces. Errors  `OSError`."""
    checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def make_read_only_code(address: int, size: int) -> None:
    """Let these pages be read and executed, and never written. Errors  `OSError`."""
    syscall("mprotect", address, size, _PROT_READ | _PROT_EXEC)


def set_capabilities(kept: int) -> None:
    """Hold exactly the capabilities of the bit mask `kept`, inherit none, and look again.

    Errors  `OSError`.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = kept & 0xFFFF_FFFF, kept >> 32
    wanted = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    checked(_libc.capset(header, wanted), "capset")
    held = (ctypes.c_uint32 * 6)()
    checked(_libc.capget(header, held), "capget")
    if list(held) != list(wanted):
        raise OSError("capabilities are not what was asked for")


def drop_bounding_set(kept: int) -> None:
    """No exec can gain more than `kept` again; needs CAP_SETPCAP. Errors  `OSError`."""
    held = bounding_set() & ~kept
    for capability in range(_CAPABILITIES):
        if held >> capability & 1:
            prctl(PR_CAPBSET_DROP, capability)
    if bounding_set() & ~kept:
        raise OSError("the bounding set is not what was asked for")


def bounding_set() -> int:
    """The capabilities that an exec could still gain. Errors  `OSError`."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"CapBnd:"):
                return int(line.split()[1], 16)
    raise OSError("the kernel names no bounding set")
