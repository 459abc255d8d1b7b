"""The import section, read for the author: what the module asks for must stand in `task.toml`."""

from __future__ import annotations

import re
from typing import Final

from executor.core import abi, manifest, wasm
from executor.errors import ExecutorError

_IMPORT_SECTION: Final = 2
_CAPABILITY: Final = re.compile(r"executor:[a-z]+@[0-9]+")
# Bytes behind the kind of an import: a table and a memory have flags that say if a maximum follows.
_FUNCTION, _TABLE, _MEMORY, _GLOBAL = range(4)


def read(module: bytes) -> tuple[tuple[str, str], ...]:
    """List (module, name) of every import, in the order of the file.

    Errors  `module.invalid` for what is not a Wasm file.
    """
    found: list[tuple[str, str]] = []
    for section in wasm.sections(module):
        if section.id != _IMPORT_SECTION:
            continue
        count, at = wasm.read_uleb(module, section.payload, minimal=False)
        for _ in range(count):
            if at >= section.end:
                raise ExecutorError("module.invalid", "the import section ends too early")
            owner, at = _name(module, at)
            name, at = _name(module, at)
            at = _skip_type(module, at)
            found.append((owner, name))
    return tuple(found)


def _name(module: bytes, at: int) -> tuple[str, int]:
    size, start = wasm.read_uleb(module, at, minimal=False)
    return module[start : start + size].decode(errors="replace"), start + size


def _skip_type(module: bytes, at: int) -> int:
    kind = module[at] if at < len(module) else _GLOBAL + 1
    if kind == _FUNCTION:
        return wasm.read_uleb(module, at + 1, minimal=False)[1]
    if kind in (_TABLE, _MEMORY):
        flags, at = wasm.read_uleb(module, at + 1 + (kind == _TABLE), minimal=False)
        for _ in range(1 + (flags & 1)):
            at = wasm.read_uleb(module, at, minimal=False)[1]
        return at
    if kind == _GLOBAL:
        return at + 3
    raise ExecutorError("module.invalid", f"an import of the unknown kind {kind}")


def check(module: bytes, uses: tuple[manifest.Want, ...]) -> tuple[str, ...]:
    """Compare imports with `uses`; returns what is listed and not imported.

    Names that are no capability (`env.system`) are left to the host, which refuses them.
    Errors  `config.invalid` with the lines that `task.toml` lacks.
    """
    asked = {owner for owner, _ in read(module) if _CAPABILITY.fullmatch(owner)} - {abi.TASK}
    listed = {want.capability for want in uses}
    if unlisted := sorted(asked - listed):
        lines = "".join(f'\n[[uses]]\ncapability = "{name}"\nreason = ""' for name in unlisted)
        raise ExecutorError("config.invalid", f"the code uses what task.toml lacks, add:{lines}")
    return tuple(sorted(listed - asked))
