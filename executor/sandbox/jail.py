"""The jail: what a process gives up before it meets bytes of a guest.

`lock_down` walks a list of named steps in an order that matters: the user before what a change of
user resets, Landlock while a descriptor can still exist, limits that count from what is mapped now
when all is mapped, the system call filter last. A sandbox loads its artifacts between `FIRST` and
`LAST`: those who read them are nobody already, and none of their code has run before the filter.
Every return value is checked and nothing is skipped silently: a layer that cannot be had ends the
process, or is left out of the list that it reports.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from executor.core.layers import (
    CAPABILITIES,
    LANDLOCK_FILES,
    NO_DESCRIPTORS,
    NO_NEW_PRIVS,
    NOT_DUMPABLE,
    PARENT_DEATH,
    REQUIRED,
    RLIMITS,
    SECCOMP,
    USER,
    WRITE_OR_EXECUTE,
)
from executor.errors import ExecutorError
from executor.sandbox import kernel, landlock, seccomp

_WINDOWS: Final = ("fd", "maps", "statm")
_READ_BYTES: Final = 65_536
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SIGKILL: Final = 9
# Users for the slots of one host, where nobody else has any: the first range that is mapped here.
_USERS: Final = (1_900_000_000, 60_578)
USERS_MAX: Final = 384


@dataclass(frozen=True, slots=True)
class Plan:
    """What the steps need to know. Sizes in bytes beyond what is mapped now; 0: no such limit."""

    parent: int  # its pid
    rules: tuple[seccomp.Rule, ...]
    user: int = -1  # as root, become this one; -1: no user is left for us
    data: int = 0
    address_space: int = 0
    cpu_seconds: int = 0
    file_bytes: int = 0
    best_effort: bool = False
    # Files of /proc/self that were opened while that was possible: name → descriptor.
    windows: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Open them: once Landlock is on, nothing is opened any more."""
        for name in _WINDOWS:
            if name not in self.windows:
                self.windows[name] = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, name: str) -> bytes:
        """The whole of one of them, as it is now. Errors  `OSError`."""
        if name not in self.windows:
            return _whole(f"/proc/self/{name}")
        parts: list[bytes] = []
        size = 0
        while part := os.pread(self.windows[name], _READ_BYTES, size):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of them."""
        while self.windows:
            os.close(self.windows.popitem()[1])


# Names the layers that it put on.
Step = Callable[[Plan], tuple[str, ...]]


def lock_down(plan: Plan, steps: Iterable[tuple[str, Step]] | None = None) -> tuple[str, ...]:
    """Take every step in order and give the names of the layers.

    Errors  `sandbox.containment-missing` with the name of the step, unless the layer is optional
            or the plan says best effort.
    """
    layers: list[str] = []
    for name, step in STEPS if steps is None else steps:
        try:
            layers += step(plan)
        except (OSError, ValueError) as error:
            if name in REQUIRED and not plan.best_effort:
                raise ExecutorError("sandbox.containment-missing", f"{name}: {error}") from error
    return tuple(layers)


def user_of_slot(slot: int) -> int:
    """The user of a slot: one that the user namespace has, or -1."""
    # In bytes: a codec that is needed here for the first time would be a file to open.
    lines = _whole("/proc/self/uid_map").splitlines()
    spans = [tuple(map(int, line.split())) for line in lines]
    for first in _USERS:
        if any(start <= first and first + USERS_MAX <= start + size for start, _, size in spans):
            return first + slot
    return -1


def prove() -> None:
    """Try what must fail now: open a file, make a socket. Before the filter, which would kill.

    Errors  `sandbox.containment-missing` if one of them succeeds.
    """
    attempts: tuple[tuple[str, Callable[[], object]], ...] = (
        # The root directory is always there, so a failure is a refusal.
        ("a file opens", lambda: os.open("/", _OPEN_DIRECTORY)),
        ("a socket opens", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    )
    for what, attempt in attempts:
        try:
            attempt()
        except OSError:
            continue
        raise ExecutorError("sandbox.containment-missing", what)


def rehearse() -> None:
    """Do what the lock-down computes, so that a child has copied those pages before its order."""
    seccomp.assemble(seccomp.sandbox_rules(pid=1, socket=3), kernel.machine())
    user_of_slot(0)
    kernel.bounding_set()
    plan = Plan(parent=0, rules=())
    plan.look()
    settle_code(plan)
    _pages(plan)
    descriptors(plan)
    plan.close()


def close_others(keep: Iterable[int], plan: Plan | None = None) -> None:
    """Close every descriptor but 0-2, `keep` and the plan's windows, and look again.

    Errors  `sandbox.containment-missing` if one is left.
    """
    kept = {0, 1, 2, *keep, *(plan.windows.values() if plan else ())}
    for descriptor in descriptors(plan) - kept:
        os.close(descriptor)
    left = descriptors(plan) - kept
    if left:
        raise ExecutorError("sandbox.containment-missing", f"descriptors left open: {left}")


def descriptors(plan: Plan | None = None) -> set[int]:
    """The descriptors that are open now, through the plan's window where it has one.

    The one that lists them otherwise is closed again and left out.
    """
    window = plan.windows.get("fd") if plan else None
    if window is not None:
        os.lseek(window, 0, os.SEEK_SET)
    place = "/proc/self/fd" if window is None else window
    listed = [int(name) for name in os.listdir(place)]  # noqa: PTH208 - 10 times faster
    return {descriptor for descriptor in listed if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def threads() -> int:
    """How many threads this process has."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def _rlimits(plan: Plan) -> tuple[str, ...]:
    limits = {
        resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: plan.file_bytes,
        resource.RLIMIT_NPROC: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0,
    }  # fmt: skip
    # Relative: an engine reserves gigabytes before anything runs.
    mapped, data = _pages(plan)
    if plan.data:
        limits[resource.RLIMIT_DATA] = data + plan.data
    if plan.address_space:
        limits[resource.RLIMIT_AS] = mapped + plan.address_space
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if plan.cpu_seconds:
        # One second apart: the soft limit ends the process with SIGXCPU, which says why.
        resource.setrlimit(resource.RLIMIT_CPU, (plan.cpu_seconds, plan.cpu_seconds + 1))
    return (RLIMITS,)


def _pages(plan: Plan) -> tuple[int, int]:
    """Bytes mapped in all, and those that are private and writable."""
    fields = plan.read("statm").split()
    size = resource.getpagesize()
    return int(fields[0]) * size, int(fields[5]) * size


def _whole(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _user(plan: Plan) -> tuple[str, ...]:
    """As root become the slot's user for good; RLIMIT_NPROC does not bind root."""
    if os.geteuid() == 0:
        if plan.user < 0:
            raise OSError("no user to become is mapped here")
        kernel.drop_bounding_set(0)
        kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
        os.setgroups([])
        os.setresgid(plan.user, plan.user, plan.user)
        os.setresuid(plan.user, plan.user, plan.user)
    if 0 in os.getresuid() + os.getresgid():
        raise OSError("still root")
    return (USER,)


def _capabilities(_plan: Plan) -> tuple[str, ...]:
    """Empty the three sets, which a user other than root may hold as well."""
    kernel.set_capabilities(0)
    return (CAPABILITIES,)


def _dumpable(_plan: Plan) -> tuple[str, ...]:
    hide_memory()
    return (NOT_DUMPABLE,)


def hide_memory() -> None:
    """No core file, and no other process of this user reads this memory. Errors  `OSError`."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if kernel.prctl(kernel.PR_GET_DUMPABLE) != 0:
        raise OSError("still dumpable")


def _parent_death(plan: Plan) -> tuple[str, ...]:
    """After the change of user, which resets it; the check closes the race with a dying parent."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != plan.parent:
        raise OSError("the parent is gone")
    return (PARENT_DEATH,)


def _no_new_privs(_plan: Plan) -> tuple[str, ...]:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) != 1:
        raise OSError("not set")
    return (NO_NEW_PRIVS,)


def _landlock(plan: Plan) -> tuple[str, ...]:
    plan.look()
    return landlock.restrict()


def _write_or_execute(plan: Plan) -> tuple[str, ...]:
    settle_code(plan)
    return (WRITE_OR_EXECUTE,)


def settle_code(plan: Plan) -> None:
    """No page stays both writable and executable: what was written there is now only executed.

    The library behind ctypes keeps the entries of callbacks in such a page. All of them were made
    by imports; making one now ends the process.

    Errors  `OSError` if one is left.
    """
    found = _writable_code(plan.read("maps"))
    for start, end in found:
        kernel.make_read_only_code(start, end - start)
    if found and _writable_code(plan.read("maps")):
        raise OSError("memory is both writable and executable")


def _writable_code(maps: bytes) -> list[tuple[int, int]]:
    if b"wx" not in maps:  # hundreds of lines, of which hardly one matters
        return []
    rows = [line.split(maxsplit=2) for line in maps.splitlines()]
    spans = [row[0].split(b"-") for row in rows if b"wx" in row[1]]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


def _no_descriptors(plan: Plan) -> tuple[str, ...]:
    """Open descriptors keep working; no new one can exist."""
    plan.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    prove()
    return (NO_DESCRIPTORS,)


def _seccomp(plan: Plan) -> tuple[str, ...]:
    """From here on whatever is not on the list kills the process."""
    sys.stderr.flush()
    seccomp.install(plan.rules)
    return (SECCOMP,)


# Before artifacts are loaded, and after.
FIRST: Final[tuple[tuple[str, Step], ...]] = (
    (USER, _user),
    (CAPABILITIES, _capabilities),
    (NOT_DUMPABLE, _dumpable),
    (PARENT_DEATH, _parent_death),
    (NO_NEW_PRIVS, _no_new_privs),
    (LANDLOCK_FILES, _landlock),
)
LAST: Final[tuple[tuple[str, Step], ...]] = (
    (RLIMITS, _rlimits),
    (WRITE_OR_EXECUTE, _write_or_execute),
    (NO_DESCRIPTORS, _no_descriptors),
    (SECCOMP, _seccomp),
)
STEPS: Final = (*FIRST, *LAST)
