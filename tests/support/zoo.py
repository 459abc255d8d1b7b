"""The hostile zoo: `zoo.toml` of `tasks_wasm/zoo` as rows, and the bytes of each attack.

What no assembler can write is made here: bombs for the compiler, sections that lie, whole files.
A made function takes the task's name and returns a bare module, or a file that is released as it
is when its row says `kind = "file"`.
"""

from __future__ import annotations

import functools
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import wasmtime

from executor.core import abi, complexity, manifest, signature, wasm
from executor.core.manifest import Manifest
from guest_sdk.build import core
from tests.support import guests

FOLDER: Final = Path(__file__).parents[2] / "tasks_wasm" / "zoo"
# What can stop an attack, from the file to the outcome.
LAYERS: Final = frozenset({
    "file framing", "signature", "manifest",
    "static caps", "compiler process", "compiler rlimits", "compile deadline", "engine validation",
    "import check", "export check", "grants", "linker",
    "fuel", "deadline", "store limits", "stack cap", "engine trap", "start check",
    "fresh instance", "memory check", "argument check", "call cap", "output cap", "log cap",
    "message cap", "escaping", "outcome table",
})  # fmt: skip
_KEYS: Final = frozenset({
    "source", "made", "kind", "attack", "code", "layer", "limits", "also",
})  # fmt: skip
_VERSION: Final = "1.0.0"

Make = Callable[[str], bytes]

MADE: Final[dict[str, Make]] = {}  # by the name in the table


def _made(make: Make) -> Make:
    MADE[make.__name__.removeprefix("_")] = make
    return make


@dataclass(frozen=True)
class Row:
    """One attack; see the README of the zoo."""

    name: str
    attack: str
    code: str
    layer: str
    limits: dict[str, int]
    also: tuple[str, ...]
    source: str = ""
    made: str = ""
    kind: str = ""

    @functools.cached_property
    def module(self) -> bytes:
        """The file to release: signed by `guests.AUTHOR`, unless the row is about files."""
        if self.source.endswith(".wat"):
            text = (FOLDER / self.source).read_text(encoding="utf-8")
            return _sign(bytes(wasmtime.wat2wasm(text)), self.name)
        if self.source:
            return signature.sign_module(_compiled()[self.name], guests.AUTHOR)
        made = MADE[self.made](self.name)
        return made if self.kind == "file" else _sign(made, self.name)


@functools.cache
def rows() -> list[Row]:
    """All attacks, in the order of the table."""
    table = tomllib.loads((FOLDER / "zoo.toml").read_text(encoding="utf-8"))
    found = []
    for name, entry in table.items():
        assert entry.keys() <= _KEYS, name
        assert ("source" in entry) != ("made" in entry), name
        values = {"limits": {}, **entry, "also": tuple(entry.get("also", ()))}
        found.append(Row(name=name, **values))
    return found


@functools.cache
def _compiled() -> dict[str, bytes]:
    """The attacks in C and Zig, built one after the other with one cache of the toolchain."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for row in rows():
            if row.source.endswith((".c", ".zig")):
                folder = work / row.name
                folder.mkdir()
                (folder / row.source).write_bytes((FOLDER / row.source).read_bytes())
                (folder / "task.toml").write_text(
                    f'name = "{row.name}"\nversion = "{_VERSION}"\nsource = "{row.source}"\n',
                    encoding="utf-8",
                )
                found[row.name] = core.build(folder, work / "work").module
    return found


def _describe(code: bytes, task: str) -> bytes:
    wants = [n for n in abi.SHORT_NAMES if n != "task" and abi.SHORT_NAMES[n].encode() in code]
    return guests.described(code, task, version=_VERSION, wants=wants)


def _sign(code: bytes, task: str) -> bytes:
    return signature.sign_module(_describe(code, task), guests.AUTHOR)


# Modules in bytes.

_HEAD: Final = b"\0asm\1\0\0\0"
_TYPE, _IMPORT, _FUNCTION, _MEMORY, _EXPORT, _CODE = 1, 2, 3, 5, 7, 10
_RUN: Final = b"\x60\0\1\x7f"  # the type () -> i32
_ZERO: Final = b"\x41\0"  # i32.const 0
_LOAD: Final = _ZERO + b"\x28\2\0"  # i32.load of address 0: a value no compiler can foresee
_ADD: Final = b"\x6a"
_TRAP: Final = b"\0"


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + wasm.uleb(len(content)) + content


def _vector(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return wasm.uleb(len(listed)) + b"".join(listed)


def _body(code: bytes, locals_count: int = 0) -> bytes:
    groups = b"\1" + wasm.uleb(locals_count) + b"\x7f" if locals_count else b"\0"
    content = groups + code + b"\x0b"
    return wasm.uleb(len(content)) + content


def _get(index: int) -> bytes:
    return b"\x20" + wasm.uleb(index)


def _set(index: int) -> bytes:
    return b"\x21" + wasm.uleb(index)


def _branches(targets: Iterable[int]) -> bytes:
    """A br_table; the last target is the default."""
    listed = [wasm.uleb(target) for target in targets]
    return b"\x0e" + wasm.uleb(len(listed) - 1) + b"".join(listed)


def _module(
    bodies: Iterable[bytes], *, types: Iterable[bytes] = (), imports: Iterable[bytes] = ()
) -> bytes:
    """A module whose first own body is `run`; type 0 is `run`'s, `types` follow it."""
    code, imported = list(bodies), list(imports)
    run = wasm.uleb(len(imported))
    return b"".join((
        _HEAD,
        _section(_TYPE, _vector([_RUN, *types])),
        _section(_IMPORT, _vector(imported)) if imported else b"",
        _section(_FUNCTION, _vector([b"\0"] * len(code))),
        _section(_MEMORY, b"\1\0\1"),
        _section(_EXPORT, _vector([b"\6memory\2\0", b"\3run\0" + run])),
        _section(_CODE, _vector(code)),
    ))  # fmt: skip


_HARMLESS: Final = _module([_body(_ZERO)])


# Bombs for the compiler.


@_made
def _locals_many(_task: str) -> bytes:
    return _module([_body(_ZERO, 50_000)])


@_made
def _functions_many(_task: str) -> bytes:
    return _module([_body(_ZERO)] * 30_000)


@_made
def _types_many(_task: str) -> bytes:
    return _module([_body(_ZERO)], types=[b"\x60\0\0"] * 300_000)


@_made
def _params_many(_task: str) -> bytes:
    return _module([_body(_ZERO)], types=[b"\x60" + wasm.uleb(1_000) + b"\x7f" * 1_000 + b"\0"])


@_made
def _imports_many(_task: str) -> bytes:
    return _module([_body(_ZERO)], imports=[b"\x0fexecutor:task@1\x09input_len\0\0"] * 2_000)


@_made
def _body_long(_task: str) -> bytes:
    return _module([_body(_ZERO + (b"\x41\1" + _ADD) * 100_000)])


def _blocks(depth: int) -> bytes:
    return _module([_body(b"\2\x40" * depth + b"\x0b" * depth + _ZERO)])


@_made
def _blocks_deep(_task: str) -> bytes:
    return _blocks(50_000)


@_made
def _blocks_allowed(_task: str) -> bytes:
    return _blocks(21_800)  # 64 KiB


@_made
def _branches_many(_task: str) -> bytes:
    table = b"\2\x40" + _LOAD + _branches([0] * 60_000) + b"\x0b"
    return _module([_body(table * 8 + _ZERO), _body(table * 8 + _ZERO)])


def _sum_of_locals(count: int) -> bytes:
    return _ZERO + b"".join(_get(index) + _ADD for index in range(count))


@_made
def _values_memory(_task: str) -> bytes:
    """Every entry of the table carries every local to the place where two values of it meet."""
    count = 1_000
    code = b"\2\x40" + _LOAD + b"\x0d\0"
    code += b"".join(_LOAD + _set(index) for index in range(1, count))
    code += _LOAD + _branches([0] * 20_000) + b"\x0b" + _sum_of_locals(count)
    return _module([_body(code, count)])


@_made
def _values_time(_task: str) -> bytes:
    """A way into each of many nested blocks, and behind each of them one local is another."""
    count, depth = 1_000, 3_000
    code = b"".join(_get(0) + b"\x41\1" + _ADD + _set(index) for index in range(count))
    code += b"\2\x40" * depth + _get(0) + _branches(range(depth))
    for index in range(depth):
        code += b"\x0b" + _get(index * 7 % count) + b"\x41\1" + _ADD + _set(index * 13 % count)
    return _module([_body(code + _sum_of_locals(count), count)])


# Names and sections that lie.


def _named(name: bytes) -> bytes:
    """A function that traps, and the name that the name section gives it."""
    functions = b"\1\0" + wasm.uleb(len(name)) + name
    return _module([_body(_TRAP)]) + wasm.custom("name", _section(1, functions))


@_made
def _name_long(_task: str) -> bytes:
    return _named(b"A" * 100_000)


@_made
def _name_binary(_task: str) -> bytes:
    return _named(b"\xff\xfe\x1b[2J\xc0\x80")


@_made
def _sections_twice(_task: str) -> bytes:
    code = next(s for s in wasm.sections(_HARMLESS) if s.id == _CODE)
    return _HARMLESS + _HARMLESS[code.start : code.end]


def _exchanged(number: int, content: bytes) -> bytes:
    """The harmless module with another content of one section."""
    old = next(s for s in wasm.sections(_HARMLESS) if s.id == number)
    return _HARMLESS[: old.start] + _section(number, content) + _HARMLESS[old.end :]


@_made
def _code_cut(_task: str) -> bytes:
    return _exchanged(_CODE, b"\1" + wasm.uleb(500) + b"\0" + _ZERO)


@_made
def _count_lie(_task: str) -> bytes:
    return _exchanged(_FUNCTION, wasm.uleb(2**32 - 1) + b"\0")


@_made
def _opcode_unknown(_task: str) -> bytes:
    return _exchanged(_CODE, _vector([_body(b"\xff" + _ZERO)]))


# Files.


def _good(task: str) -> bytes:
    return guests.signed(guests.ECHO, task, version=_VERSION)


@_made
def _file_empty(_task: str) -> bytes:
    return b""


@_made
def _file_native(_task: str) -> bytes:
    # x86-64, an executable, version 1; behind its header the program would stand.
    return b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(8) + b"\x40" + bytes(4_000)


@_made
def _file_text(_task: str) -> bytes:
    return b'(module (memory (export "memory") 1) (func (export "run") (result i32) i32.const 0))'


@_made
def _file_truncated(task: str) -> bytes:
    return _good(task)[:-7]


@_made
def _file_relabelled(task: str) -> bytes:
    return b"\0asm\x0d\0\1\0" + _good(task)[wasm.HEADER :]


@_made
def _file_section_past_end(task: str) -> bytes:
    return _good(task) + b"\0" + wasm.uleb(100_000) + b"\4name"


@_made
def _file_name_past_section(task: str) -> bytes:
    return _good(task) + b"\0\x05" + wasm.uleb(200) + b"abc"


@_made
def _file_name_huge(task: str) -> bytes:
    return _good(task) + _section(wasm.CUSTOM, wasm.uleb(300) + b"A" * 300)


@_made
def _file_name_not_text(task: str) -> bytes:
    return _good(task) + _section(wasm.CUSTOM, b"\4\xff\xfe\xc0\x80")


@_made
def _file_number_endless(task: str) -> bytes:
    return _good(task) + b"\0" + b"\x80" * 64


@_made
def _file_sections_many(task: str) -> bytes:
    return _good(task) + b"\0\1\0" * 5_000


@_made
def _file_large(task: str) -> bytes:
    return _good(task) + wasm.custom("padding", bytes(complexity.STANDARD.module_bytes))


@_made
def _file_unsigned(task: str) -> bytes:
    return _describe(guests.assemble(guests.ECHO), task)


@_made
def _file_stranger(task: str) -> bytes:
    return guests.signed(guests.ECHO, task, version=_VERSION, key=guests.STRANGER)


@_made
def _file_forged(task: str) -> bytes:
    strange = guests.signed(guests.ECHO, task, version=_VERSION, key=guests.FORGER)
    return strange.replace(guests.FORGER.public.key_id, guests.AUTHOR.public.key_id, 1)


def _signatures(module: bytes) -> bytes:
    section = wasm.sections(module)[0]
    assert section.name == signature.SECTION
    return module[section.start : section.end]


@_made
def _file_signature_second(task: str) -> bytes:
    module = _good(task)
    signed = _signatures(module)
    before = wasm.custom("note", b"reviewed")
    return module[: wasm.HEADER] + before + signed + module[wasm.HEADER + len(signed) :]


@_made
def _file_signature_twice(task: str) -> bytes:
    module = _good(task)
    return module[: wasm.HEADER] + _signatures(module) + module[wasm.HEADER :]


@_made
def _file_appended(task: str) -> bytes:
    return _good(task) + wasm.custom("note", b"added later")


@_made
def _file_padded(task: str) -> bytes:
    module = _good(task)
    last = wasm.sections(module)[-1]
    size, payload = wasm.read_uleb(module, last.start + 1, minimal=True)
    low, high = size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80
    return module[: last.start + 1] + bytes([low, high, 0]) + module[payload:]


@_made
def _file_parts(task: str) -> bytes:
    return _good(task) + wasm.custom(signature.DELIMITER, bytes(16))


def _claims(data: bytes) -> bytes:
    """A signed module with any bytes for a manifest."""
    code = guests.assemble(guests.ECHO) + wasm.custom(manifest.SECTION, data)
    return signature.sign_module(code, guests.AUTHOR)


@_made
def _file_two_manifests(task: str) -> bytes:
    other = manifest.encode(Manifest(task=task, version=_VERSION, summary="harmless"))
    code = _file_unsigned(task) + wasm.custom(manifest.SECTION, other)
    return signature.sign_module(code, guests.AUTHOR)


@_made
def _file_no_manifest(_task: str) -> bytes:
    return signature.sign_module(guests.assemble(guests.ECHO), guests.AUTHOR)


@_made
def _file_other_task(_task: str) -> bytes:
    return _good("billing")


@_made
def _file_manifest_deep(_task: str) -> bytes:
    return _claims(b'{"abi":' + b"[" * 30_000 + b"]" * 30_000 + b"}")


@_made
def _file_manifest_number(_task: str) -> bytes:
    return _claims(b'{"abi":' + b"9" * 50_000 + b"}")


@_made
def _file_undeclared(task: str) -> bytes:
    code = guests.described(guests.assemble(guests.KV), task, version=_VERSION)
    return signature.sign_module(code, guests.AUTHOR)
