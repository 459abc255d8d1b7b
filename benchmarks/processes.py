"""What processes cost, from /proc: CPU time of whole trees, resident and proportional memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    own_s: float  # user and system
    reaped_s: float  # of children that have ended and were waited for


def _stat(pid: int) -> _Stat | None:
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        user, system, user_reaped, system_reaped = map(int, fields[11:15])
        own, reaped = (user + system) / _TICK, (user_reaped + system_reaped) / _TICK
        return _Stat(int(fields[1]), own, reaped)
    return None


def tree(pid: int) -> list[int]:
    """A process and everything below it, the process first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        number = int(path.name)
        if (stat := _stat(number)) is not None:
            children.setdefault(stat.parent, []).append(number)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes, and of children that they have waited for."""
    stats = [_stat(pid) for pid in pids]
    return sum(stat.own_s + stat.reaped_s for stat in stats if stat is not None)


def own_cpu_s(pid: int) -> float:
    """User and system time of one process, its children aside."""
    stat = _stat(pid)
    return stat.own_s if stat is not None else 0.0


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / _MIB
    return 0.0


def proportional_mib(pid: int) -> float:
    """Its share of pages that several processes map; 0 where the kernel does not say it to us.

    A sandbox is not dumpable: only root reads this of one.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def command(pid: int) -> list[str]:
    """The arguments it was started with."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    return []


@dataclass(frozen=True, slots=True)
class Executor:
    """The processes of `executor serve`."""

    supervisor: int
    zygote: int
    sandboxes: tuple[int, ...]


def executor(supervisor: int) -> Executor:
    """The parts below a supervisor: its one child is the fork server, whose children are sandboxes.

    Errors  LookupError while they do not exist.
    """
    below = tree(supervisor)[1:]
    zygotes = [pid for pid in below if "zygote" in command(pid) and _parent(pid) == supervisor]
    if len(zygotes) != 1:
        raise LookupError(f"{len(zygotes)} fork servers below {supervisor}")
    sandboxes = tuple(pid for pid in below if _parent(pid) == zygotes[0])
    return Executor(supervisor, zygotes[0], sandboxes)


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return stat.parent if stat is not None else 0
