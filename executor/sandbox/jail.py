"""The jail: what a process gives up before it meets bytes of a guest.

`lock_down` walks a list of named steps in an order that matters; a further layer (Landlock, a
system call filter) is another row of that list. Every return value is checked and nothing is
skipped silently: a layer that cannot be had ends the process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor.errors import ExecutorError
from executor.model import KIB

NOBODY: Final = 65_534
COMPILER_CPU_SECONDS: Final = 10
COMPILER_MEMORY_BYTES: Final = 1024 * 1024 * KIB

# From linux/prctl.h, linux/capability.h and signal.h.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_GET_DUMPABLE: Final = 3
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_CAPABILITY_VERSION_3: Final = 0x20080522
_SIGKILL: Final = 9
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Plan:
    """What the steps need to know. `parent` is the parent's id when this process started."""

    parent: int
    file_bytes: int = 0
    address_space: int = 0  # bytes beyond what is mapped now; 0: no such limit
    cpu_seconds: int = 0  # 0: no such limit


Step = tuple[str, Callable[[Plan], None]]


def lock_down(plan: Plan, steps: Iterable[Step] | None = None) -> tuple[str, ...]:
    """Take every step in order and give the names of the layers.

    Errors  `sandbox.containment-missing` with the name of the step.
    """
    layers = []
    for name, step in STEPS if steps is None else steps:
        try:
            step(plan)
        except (OSError, ValueError) as error:
            raise ExecutorError("sandbox.containment-missing", f"{name}: {error}") from error
        layers.append(name)
    return tuple(layers)


def prove() -> None:
    """Try what must fail now: open a file, make a socket.

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


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor but 0-2 and `keep`, and look again.

    Errors  `sandbox.containment-missing` if one is left.
    """
    kept = {0, 1, 2, *keep}
    for descriptor in descriptors() - kept:
        os.close(descriptor)
    left = descriptors() - kept
    if left:
        raise ExecutorError("sandbox.containment-missing", f"descriptors left open: {left}")


def descriptors() -> set[int]:
    """The descriptors that are open now; the one that lists them is closed again and left out."""
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {descriptor for descriptor in listed if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _rlimits(plan: Plan) -> None:
    limits = {
        resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: plan.file_bytes,
        resource.RLIMIT_NPROC: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0,
    }  # fmt: skip
    if plan.address_space:
        # Relative: an engine reserves gigabytes before anything runs.
        limits[resource.RLIMIT_AS] = _mapped_bytes() + plan.address_space
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    if plan.cpu_seconds:
        # One second apart: the soft limit ends the process with SIGXCPU, which says why.
        resource.setrlimit(resource.RLIMIT_CPU, (plan.cpu_seconds, plan.cpu_seconds + 1))


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _user(_plan: Plan) -> None:
    """As root become nobody; RLIMIT_NPROC does not bind root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if 0 in os.getresuid() + os.getresgid():
        raise OSError("still root")


def _capabilities(_plan: Plan) -> None:
    """Empty the three sets, which a user other than root may hold as well."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc = _libc()
    _checked(libc.capset(header, nothing), "capset")
    held = (ctypes.c_uint32 * 6)(*[1] * 6)
    _checked(libc.capget(header, held), "capget")
    if any(held):
        raise OSError("capabilities are left")


def _dumpable(_plan: Plan) -> None:
    _prctl(_PR_SET_DUMPABLE, 0)
    if _prctl(_PR_GET_DUMPABLE, 0) != 0:
        raise OSError("still dumpable")


def _parent_death(plan: Plan) -> None:
    """After the change of user, which resets it; the check closes the race with a dying parent."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != plan.parent:
        raise OSError("the parent is gone")


def _no_new_privs(_plan: Plan) -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if _prctl(_PR_GET_NO_NEW_PRIVS, 0) != 1:
        raise OSError("not set")


def _no_descriptors(_plan: Plan) -> None:
    """Open descriptors keep working; no new one can exist."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


STEPS: Final[tuple[Step, ...]] = (
    ("rlimits", _rlimits),
    ("user", _user),
    ("capabilities", _capabilities),
    ("not-dumpable", _dumpable),
    ("parent-death", _parent_death),
    ("no-new-privs", _no_new_privs),
    ("no-descriptors", _no_descriptors),  # last: the steps above may read files
)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> int:
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    return _checked(_libc().prctl(ctypes.c_int(option), *arguments), f"prctl {option}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
