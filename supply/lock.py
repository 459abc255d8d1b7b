"""Locked versions with their hashes: read, and held against `pyproject.toml` and what is installed.

The files are those of `pip install --require-hashes`; README.md says how they are made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from supply import installed

FOLDER: Final = Path(__file__).parent
PYPROJECT: Final = FOLDER.parent / "pyproject.toml"
# Lock → the extras of pyproject.toml that it is for.
LOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "production.lock": ("otlp",), "development.lock": ("otlp", "dev", "embedded", "sdk"),
}  # fmt: skip

_PIN: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+]+)")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Pin:
    """One version and the SHA-256 of each of its files."""

    name: str
    version: str
    hashes: frozenset[str]


def parse(text: str) -> dict[str, Pin]:
    """The pins of a lock. Raises `ValueError` for a line of another form, or a pin without hash."""
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    pins: dict[str, Pin] = {}
    for entry in re.sub(r"\\\s*\n", " ", "\n".join(lines)).splitlines():
        head, *hashes = entry.split()
        pin, found = _PIN.fullmatch(head), [_HASH.fullmatch(each) for each in hashes]
        if pin is None or not found or None in found:
            raise ValueError(f"not a version with its hashes: {entry[:80]}")
        name = canonicalize_name(pin[1])
        if name in pins:
            raise ValueError(f"`{name}` twice")
        pins[name] = Pin(name, pin[2], frozenset(each[1] for each in found if each is not None))
    return pins


def read(name: str) -> dict[str, Pin]:
    """The pins of one of ours."""
    return parse((FOLDER / name).read_text(encoding="utf-8"))


def roots(extras: Iterable[str]) -> list[Requirement]:
    """What `pyproject.toml` asks for itself, with these extras; our own name is left out."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    parsed = installed.applying(texts)
    return [one for one in parsed if canonicalize_name(one.name) != installed.PROJECT]


def problems(pins: Mapping[str, Pin], wanted: Iterable[Requirement]) -> list[str]:
    """What is asked for and not locked, or locked outside its range.

    What a locked version asks for itself is known where that version is installed.
    """
    found = []
    waiting, seen = list(wanted), set()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        pin = pins.get(name)
        if pin is None:
            found.append(f"`{name}` is not locked")
            continue
        if not one.specifier.contains(pin.version, prereleases=True):
            found.append(f"`{name}` {pin.version} is locked, {one.specifier} is asked for")
        key = (name, frozenset(one.extras))
        if key in seen or installed.version(name) != pin.version:
            continue
        seen.add(key)
        waiting += installed.applying(installed.requires(name), one.extras)
    return sorted(set(found))
