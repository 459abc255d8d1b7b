"""What the kernel says about a sandbox, against what it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from executor.core.layers import (
    CAPABILITIES,
    NO_DESCRIPTORS,
    NO_NEW_PRIVS,
    RLIMITS,
    SECCOMP,
    USER,
)

Proof = tuple[str, Callable[[str], bool]]


def _is(wanted: str, *names: str) -> tuple[Proof, ...]:
    return tuple((name, lambda text: text == wanted) for name in names)


# Layer → what /proc/PID/status and /proc/PID/limits must say, limits as "soft hard". The others
# leave no trace there that this user may read.
_PROOFS: Final[dict[str, tuple[Proof, ...]]] = {
    NO_NEW_PRIVS: _is("1", "NoNewPrivs"),
    SECCOMP: (*_is("2", "Seccomp"), *_is("1", "Threads")),
    CAPABILITIES: _is("0" * 16, "CapInh", "CapPrm", "CapEff", "CapAmb"),
    USER: (("Uid", lambda text: "0" not in text.split()),
           ("Gid", lambda text: "0" not in text.split())),
    RLIMITS: (
        *_is("0 0", "Max core file size", "Max file size", "Max processes", "Max locked memory",
             "Max msgqueue size"),
        ("Max data size", lambda text: "unlimited" not in text),
        ("Max address space", lambda text: "unlimited" not in text),
    ),
    NO_DESCRIPTORS: _is("0 0", "Max open files"),
}  # fmt: skip
_LIMIT_NAME: Final = 26  # columns


def contradicted(pid: int, layers: Iterable[str]) -> frozenset[str]:
    """Which of the layers that a sandbox claims the kernel does not confirm."""
    try:
        status, limits = (_lines(pid, name) for name in ("status", "limits"))
    except OSError:
        return frozenset(layers)
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    for line in limits:
        facts[line[:_LIMIT_NAME].strip()] = " ".join(line[_LIMIT_NAME:].split()[:2])
    return denied(facts, layers)


def denied(facts: Mapping[str, str], layers: Iterable[str]) -> frozenset[str]:
    """Which of the layers these lines do not prove; a line that is missing proves nothing."""
    return frozenset(
        layer for layer in layers
        if not all(name in facts and holds(facts[name].strip())
                   for name, holds in _PROOFS.get(layer, ()))
    )  # fmt: skip


def _lines(pid: int, name: str) -> list[str]:
    with open(f"/proc/{pid}/{name}", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return file.read().splitlines()
