"""What is installed, and what of it belongs to this project: its requirements, and theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT: Final = "wasm-task-executor"


@dataclass(frozen=True, slots=True)
class Package:
    """One installed distribution and the names of what it needs here."""

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]


def applying(requirements: Iterable[str], extras: Iterable[str] = ()) -> list[Requirement]:
    """The requirements whose markers hold on this host, with these extras."""
    parsed = [Requirement(text) for text in requirements]
    wanted = ["", *extras]
    return [
        one for one in parsed
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in wanted)
    ]  # fmt: skip


def version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requires(name: str) -> list[str]:
    """What an installed distribution asks for."""
    return metadata.requires(name) or []


def closure(roots: Iterable[Requirement]) -> Mapping[str, Package]:
    """Every installed distribution that `roots` lead to, by name; what is missing is left out."""
    found: dict[str, Package] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        needs = applying(distribution.requires or [], one.extras)
        known = found.get(name)
        names = {canonicalize_name(each.name) for each in needs} | set(known.needs if known else ())
        if known is not None and names == set(known.needs):
            continue
        found[name] = Package(
            name, distribution.version, _licence(distribution), tuple(sorted(names))
        )
        waiting += needs
    return found


def _licence(distribution: metadata.Distribution) -> str:
    """What its metadata says in one line, in the newer field or the older."""
    info = distribution.metadata
    for field in ("License-Expression", "License"):
        if field in info:
            return next(iter(info[field].splitlines()), "")
    return ""
