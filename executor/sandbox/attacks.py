"""What code that escaped from Wasm would try, as native calls: the jail's own enemy.

Before the first task the supervisor spends a few locked processes on some of them (`CANARIES` of
`core.layers`): each tries one attack and must die of it. The tests try all of them, and each layer
alone. An attack returns when the system let it pass, and raises `OSError` when it was refused; a
filter ends the process.

Buffers are made here and now, so that an attack itself needs no memory, file or import.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Callable
from typing import Final, NoReturn

from executor.errors import ExecutorError
from executor.sandbox import kernel

# name → numbers as in `kernel.SYSCALLS`, of calls that no process of ours makes.
_NUMBERS: Final[dict[str, tuple[int, int]]] = {
    "openat": (257, 56), "openat2": (437, 437), "newfstatat": (262, 79), "statx": (332, 291),
    "getdents64": (217, 61), "readlinkat": (267, 78), "unlinkat": (263, 35), "mkdirat": (258, 34),
    "mount": (165, 40), "chroot": (161, 51), "pivot_root": (155, 41), "umount2": (166, 39),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "execve": (59, 221), "execveat": (322, 281),
    "clone": (56, 220), "clone3": (435, 435), "ptrace": (101, 117), "kill": (62, 129),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "setuid": (105, 146),
    "setresuid": (117, 147), "setgroups": (116, 159), "capset": (126, 91), "prctl": (157, 167),
    "unshare": (272, 97), "setns": (308, 268), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "keyctl": (250, 219),
    "add_key": (248, 217), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmctl": (31, 195),
    "msgget": (68, 186), "msgctl": (71, 187), "mq_open": (240, 180), "pipe2": (293, 59),
    "dup": (32, 23), "eventfd2": (290, 19), "epoll_create1": (291, 20), "inotify_init1": (294, 26),
    "init_module": (175, 105), "kexec_load": (246, 104), "reboot": (169, 142),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "personality": (135, 92),
    "sched_setaffinity": (203, 122), "syslog": (103, 116), "modify_ldt": (154, 1_000_000),
    "mremap": (25, 216), "mmap": (9, 222), "mprotect": (10, 226), "fcntl": (72, 25),
    "ioctl": (16, 29), "ftruncate": (77, 46), "pkey_mprotect": (329, 288), "sendto": (44, 206),
    "process_madvise": (440, 440), "landlock_create_ruleset": (444, 444),
    "rt_sigqueueinfo": (129, 138), "tgkill": (234, 131), "futex": (202, 98),
}  # fmt: skip
_PATH: Final = ctypes.create_string_buffer(b"/etc/passwd")
_FOLDER: Final = ctypes.create_string_buffer(b"/tmp")
_SHELL: Final = ctypes.create_string_buffer(b"/bin/sh")
_NEW: Final = ctypes.create_string_buffer(b"/tmp/escaped")
_NEW_FOLDER: Final = ctypes.create_string_buffer(b"/tmp/escaped-folder")
_OUT: Final = ctypes.create_string_buffer(4096)
_ZERO: Final = ctypes.create_string_buffer(256)
_NAME: Final = ctypes.create_string_buffer(b"x")
_AT_FDCWD: Final = (1 << 64) - 100
_RW: Final = 3
_RWX: Final = 7
_PRIVATE_ANONYMOUS: Final = 0x22
_NOWHERE: Final = (1 << 64) - 1

# A callback that nobody calls, and what returns from one.
_Procedure: Final = ctypes.CFUNCTYPE(None)
_CALLBACK: Final = _Procedure(lambda: None)
_RETURN: Final = {"x86_64": b"\xc3", "aarch64": b"\xc0\x03\x5f\xd6"}
_MUCH: Final = 16 << 30  # beyond the budget and what is reserved

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _stack_end() -> int:
    """Where the stack of the main thread ends; its last page is what the kernel left at exec."""
    with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
        spans = [line.split()[0] for line in maps if line.rstrip().endswith(b"[stack]")]
    return int(spans[0].split(b"-")[1], 16) if spans else 4096


_STACK_END: Final = _stack_end()

Argument = int | ctypes.Array[ctypes.c_char]


def _call(name: str, *arguments: Argument) -> int:
    place = kernel.MACHINES.index(platform.machine())
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(_NUMBERS[name][place]), *passed)
    return kernel.checked(result, name)


def _simple(name: str, *arguments: Argument) -> Callable[[], object]:
    return lambda: _call(name, *arguments)


def _own_pid() -> int:
    return os.getpid()


def _fork() -> None:
    """A child that would only leave."""
    if _call("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def _write_and_execute() -> None:
    """Memory to put machine code into."""
    _call("mmap", 0, 4096, _RWX, _PRIVATE_ANONYMOUS, _NOWHERE, 0)


def _execute_later() -> None:
    """Write first, make it executable afterwards: how a JIT does it."""
    address = _call("mmap", 0, 4096, _RW, _PRIVATE_ANONYMOUS, _NOWHERE, 0)
    _call("mprotect", address, 4096, 5)


def _code_in_callbacks() -> None:
    """Machine code into the memory where ctypes keeps the entries of callbacks, and call it."""
    address = ctypes.cast(_CALLBACK, ctypes.c_void_p).value
    assert address is not None
    ctypes.memmove(address, _RETURN[platform.machine()], len(_RETURN[platform.machine()]))
    _Procedure(address)()


def _stretch_the_stack() -> None:
    """Move a page of the stack to where it can be larger than any limit of data."""
    _call("mremap", _STACK_END - 4096, 4096, _MUCH, 1)


def _sleep() -> None:
    """No attack at all: what tests of the supervisor take for a locked process."""
    while True:
        _libc.clock_nanosleep(1, 0, ctypes.byref((ctypes.c_long * 2)(3600, 0)), None)


def _nothing() -> None:
    """The harmless twin: memory, time and randomness."""
    _call("mmap", 0, 1 << 20, _RW, _PRIVATE_ANONYMOUS, _NOWHERE, 0)
    os.urandom(64)


# Address family and type.
_FAMILIES: Final = {
    "unix": (1, 1), "inet": (2, 1), "inet6": (10, 1), "netlink": (16, 3), "packet": (17, 3),
    "alg": (38, 5), "vsock": (40, 1), "xdp": (44, 3),
}  # fmt: skip

ATTACKS: Final[dict[str, Callable[[], object]]] = {
    "open": _simple("openat", _AT_FDCWD, _PATH, 0, 0),
    "open-for-writing": _simple("openat", _AT_FDCWD, _NEW, 0o101, 0o600),
    "openat2": _simple("openat2", _AT_FDCWD, _PATH, _ZERO, 24),
    "open-proc": lambda: os.open("/proc/self/maps", os.O_RDONLY),
    "stat": _simple("newfstatat", _AT_FDCWD, _PATH, _OUT, 0),
    "statx": _simple("statx", _AT_FDCWD, _PATH, 0, 0xFFF, _OUT),
    "list-a-folder": lambda: os.listdir("/proc"),  # noqa: PTH208
    "readlink": _simple("readlinkat", _AT_FDCWD, _PATH, _OUT, 100),
    "unlink": _simple("unlinkat", _AT_FDCWD, _NEW, 0),
    "mkdir": _simple("mkdirat", _AT_FDCWD, _NEW_FOLDER, 0o700),
    "chroot": _simple("chroot", _FOLDER),
    "mount": _simple("mount", _NAME, _FOLDER, _NAME, 0, 0),
    **{f"socket-{name}": _simple("socket", *what, 0) for name, what in _FAMILIES.items()},
    "socket-udp": _simple("socket", 2, 2, 0),
    "socketpair": _simple("socketpair", 1, 1, 0, _OUT),
    "receive-descriptors": _simple("recvmsg", 3, _ZERO, 0x40),
    "send-descriptors": _simple("sendmsg", 3, _ZERO, 0x40),
    "send-to-stdin": _simple("sendto", 0, _ZERO, 1, 0, 0, 0),
    "exec": _simple("execve", _SHELL, _ZERO, _ZERO),
    "execveat": _simple("execveat", _AT_FDCWD, _SHELL, _ZERO, _ZERO, 0),
    "fork": _fork,
    "clone3": _simple("clone3", _ZERO, 64),
    "new-namespaces": _simple("unshare", kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET),
    "setns": _simple("setns", 0, 0),
    "ptrace-parent": lambda: _call("ptrace", 0x4206, os.getppid(), 0, 0),
    "ptrace-me": _simple("ptrace", 0, 0, 0, 0),
    "read-parents-memory": lambda: _call("process_vm_readv", os.getppid(), _ZERO, 1, _ZERO, 1, 0),
    "write-parents-memory": lambda: _call("process_vm_writev", os.getppid(), _ZERO, 1, _ZERO, 1, 0),
    "signal-parent": lambda: _call("kill", os.getppid(), 0),
    "signal-everyone": _simple("kill", (1 << 64) - 1, 0),
    "signal-queue": lambda: _call("rt_sigqueueinfo", os.getppid(), 10, _ZERO),
    "signal-itself": lambda: _call("tgkill", os.getpid(), os.getpid(), 0),
    "pidfd-of-parent": lambda: _call("pidfd_open", os.getppid(), 0),
    "pidfd-getfd": _simple("pidfd_getfd", 0, 0, 0),
    "write-and-execute": _write_and_execute,
    "execute-later": _execute_later,
    "pkey-mprotect": _simple("pkey_mprotect", 0, 0, 5, _NOWHERE),
    "shared-memory": _simple("mmap", 0, 4096, _RW, 0x21, _NOWHERE, 0),
    "stack-mapping": _simple("mmap", 0, 4096, _RW, _PRIVATE_ANONYMOUS | 0x100, _NOWHERE, 0),
    "io-uring": _simple("io_uring_setup", 4, _ZERO),
    "bpf": _simple("bpf", 0, _ZERO, 72),
    "userfaultfd": _simple("userfaultfd", 1),
    "perf-events": _simple("perf_event_open", _ZERO, 0, _NOWHERE, _NOWHERE, 0),
    "keyring": _simple("keyctl", 0, (1 << 64) - 3, 1, 0, 0),
    "add-key": _simple("add_key", _NAME, _NAME, _NAME, 1, (1 << 64) - 3),
    "memfd": _simple("memfd_create", _NAME, 0),
    "memfd-secret": _simple("memfd_secret", 0),
    "shared-segment": lambda: _call("shmctl", _call("shmget", 0, 4096, 0o1600), 0, 0),
    "message-queue": lambda: _call("msgctl", _call("msgget", 0, 0o1600), 0, 0),
    "posix-queue": _simple("mq_open", _NAME, 0o102, 0o600, 0),
    "pipe": _simple("pipe2", _OUT, 0),
    "duplicate": _simple("dup", 2),
    "eventfd": _simple("eventfd2", 0, 0),
    "epoll": _simple("epoll_create1", 0),
    "inotify": _simple("inotify_init1", 0),
    "fcntl-duplicate": _simple("fcntl", 2, 0, 0),
    "ioctl": _simple("ioctl", 2, 0x5401, _OUT),
    "setuid-root": _simple("setuid", 0),
    "setresuid": _simple("setresuid", 0, 0, 0),
    "setgroups": _simple("setgroups", 1, _ZERO),
    "capset": _simple("capset", _ZERO, _ZERO),
    "be-dumpable": _simple("prctl", kernel.PR_SET_DUMPABLE, 1, 0, 0, 0),
    "outlive-parent": _simple("prctl", kernel.PR_SET_PDEATHSIG, 0, 0, 0, 0),
    "raise-a-limit": _simple("prlimit64", 0, 7, _ZERO, _OUT),
    "personality": _simple("personality", 0xFFFF_FFFF),
    "kernel-module": _simple("init_module", _ZERO, 1, _NAME),
    "kexec": _simple("kexec_load", 0, 0, 0, 0),
    "kernel-log": _simple("syslog", 10, 0, 0),
    "affinity": _simple("sched_setaffinity", 0, 128, _OUT),
    "another-filter": _simple("landlock_create_ruleset", 0, 0, 1),
}  # fmt: skip

# Stopped by other layers than the filter: by memory that is either written or executed, which ends
# the process, and by the limit of address space.
ELSEWHERE: Final[dict[str, Callable[[], object]]] = {
    "code-in-callbacks": _code_in_callbacks,
    "stretch-the-stack": _stretch_the_stack,
    "map-without-end": _simple("mmap", 0, 1 << 40, 1, _PRIVATE_ANONYMOUS | 0x4000, _NOWHERE, 0),
    "data-beyond-the-budget": _simple("mmap", 0, 1 << 30, _RW, _PRIVATE_ANONYMOUS, _NOWHERE, 0),
}

HARMLESS: Final = {"nothing": _nothing, "sleep": _sleep}

EXIT_PASSED: Final = 3  # the system let it happen
EXIT_REFUSED: Final = 4  # with an error; a filter would have killed


def attempt(name: str) -> NoReturn:
    """Try one by name and leave with how it went. Errors  `sandbox.protocol-violation`."""
    action = ATTACKS.get(name) or ELSEWHERE.get(name) or HARMLESS.get(name)
    if action is None:
        raise ExecutorError("sandbox.protocol-violation", "no such attack")
    with contextlib.suppress(OSError):
        action()
        os._exit(EXIT_PASSED)
    os._exit(EXIT_REFUSED)
