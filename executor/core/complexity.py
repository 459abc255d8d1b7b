"""Static caps: what a module may ask of the compiler, counted before it is compiled.

No instruction is decoded. Counts, vectors and declared sizes are read; a count is compared with the
bytes behind it before anything loops over it, and bodies are stepped over. What cannot be read that
way, because the engine refuses it or a constant expression stands in front, is left to the engine
with the rest of its section; the caps already counted hold. A `v128` in the type of an import or
export is refused here because the engine's C interface aborts on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from executor.core import wasm
from executor.errors import ExecutorError
from executor.sizes import KIB, MIB


@dataclass(frozen=True, slots=True)
class Caps:
    """What a module may contain; all caps are inclusive, and what is imported counts."""

    module_bytes: int = 1 * MIB
    sections: int = 4_096  # of all kinds
    types: int = 4_096
    params: int = 64  # of one type
    results: int = 16  # of one type
    imports: int = 1_000
    functions: int = 10_000
    tables: int = 4
    table_elements: int = 100_000  # declared minimum, of all tables
    memories: int = 1
    globals: int = 4_096
    exports: int = 1_000
    elements: int = 20_000  # segments, and items as far as they can be counted
    data_segments: int = 4_096
    body_bytes: int = 64 * KIB  # of one function
    locals_per_function: int = 1_000  # a declared group of none counts as one
    locals_total: int = 100_000


STANDARD: Final = Caps()
# For guests of Go, or of Rust with its standard library: 2 to 20 MB.
LARGE: Final = Caps(
    module_bytes=wasm.MODULE_MAX,
    types=16_384,
    functions=100_000,
    table_elements=1_000_000,
    globals=16_384,
    elements=200_000,
    data_segments=65_536,
    body_bytes=1 * MIB,
    locals_per_function=5_000,
    locals_total=2_000_000,
)

_FUNC: Final = 0x60  # the form of a function's type
_V128: Final = 0x7B
_FUNCREF: Final = 0x70
_VALUES: Final = bytes([0x7F, 0x7E, 0x7D, 0x7C, _V128, _FUNCREF])
_REF_NULL: Final = 0x63  # with func behind it the engine takes it for funcref
# The head of a global of type v128: type, mutability, and v128.const, which alone may begin its
# value unless a v128 is imported. Only bytes inside another constant could look the same.
_VECTOR_GLOBAL: Final = re.compile(rb"\x7b[\x00\x01]\xfd")
_KIND_MAX: Final = 4  # of an export
_LEB_MORE: Final = 0x80


class _OpaqueError(Exception):
    """The rest of this section is the engine's to judge."""


def check(module: bytes, caps: Caps) -> None:
    """Refuse a core module that exceeds a cap, is framed wrongly, or shows a v128 to the host.

    Errors  `module.too-complex` names the cap, its value and what was found; `module.invalid` for
            what is no core module, sections out of order, twice or unknown, counts and sizes beyond
            their section, bytes left over, functions without bodies; `module.abi-mismatch` for a
            v128 in the type of an imported or exported function or global.
    """
    tally = _Tally(caps)
    tally.add("module_bytes", len(module))
    if wasm.kind(module) != "core":
        raise _invalid("it is a component")
    file = _Cursor(module, wasm.HEADER, len(module))
    last = -1
    while file.at < file.end:
        tally.add("sections", 1)
        section = file.byte()
        inside = file.part(file.number())
        if section == wasm.CUSTOM:
            inside.part(inside.number())  # its name; what follows is nobody's business
            continue
        rank = _RANK.get(section, -1)
        if rank <= last:
            raise _invalid(f"the section with id {section} is unknown, out of order or there twice")
        last = rank
        tally.read(section, inside)
    tally.finish()


def _invalid(detail: str) -> ExecutorError:
    return ExecutorError("module.invalid", detail)


def _vector(what: str) -> ExecutorError:
    return ExecutorError("module.abi-mismatch", f"{what} has type v128, or takes or returns one")


@dataclass(slots=True)
class _Cursor:
    """A place in a module, and the end behind which nothing is read."""

    module: bytes
    at: int
    end: int

    def byte(self) -> int:
        if self.at == self.end:
            raise _invalid(f"cut short at byte {self.at}")
        self.at += 1
        return self.module[self.at - 1]

    def number(self) -> int:
        if self.at < self.end and (value := self.module[self.at]) < _LEB_MORE:
            self.at += 1
            return value
        value, self.at = wasm.read_uleb(self.module, self.at, minimal=False)
        if self.at > self.end:
            raise _invalid(f"cut short at byte {self.end}")
        return value

    def count(self) -> int:
        """The length of a vector, each of whose entries takes a byte or more."""
        start = self.at
        value = self.number()
        if value > self.end - self.at:
            raise _invalid(f"the count {value} at byte {start} is more than its section holds")
        return value

    def part(self, size: int) -> _Cursor:
        """The next `size` bytes, which are stepped over."""
        part = _Cursor(self.module, self.at, self.at + size)
        if part.end > self.end:
            raise _invalid(f"the {size} bytes from byte {self.at} reach past the end")
        self.at = part.end
        return part

    def value_type(self) -> bool:
        """Step over a value type: whether it is v128."""
        value = self.byte()
        if value not in _VALUES and not (value == _REF_NULL and self.byte() == _FUNCREF):
            raise _OpaqueError
        return value == _V128

    def has_vector(self, count: int) -> bool:
        """Step over `count` value types: whether one is v128."""
        plain = self.module[self.at : self.at + count]
        if not plain.translate(None, _VALUES):  # all of one byte; the section holds that many
            self.at += count
            return _V128 in plain
        return True in [self.value_type() for _ in range(count)]

    def minimum(self) -> int:
        flags = self.byte()
        if flags > 1:
            raise _OpaqueError
        value = self.number()
        if flags:
            self.number()
        return value


@dataclass(slots=True)
class _Tally:
    """What the sections read so far declare."""

    caps: Caps
    counts: Counter[str] = field(default_factory=Counter)  # by the name of the cap
    vector_types: list[bool] = field(default_factory=list)  # for each type if it has a v128
    functions: list[int] = field(default_factory=list)  # their types, imported ones first
    vector_global: bool = False
    globals_imported: int = 0
    indices_known: bool = True
    defined: int = 0
    bodies: int = 0
    data_declared: int | None = None

    def hold(self, name: str, found: int) -> None:
        if found > (cap := getattr(self.caps, name)):
            raise ExecutorError("module.too-complex", f"`{name}` is {cap}, found {found}")

    def add(self, name: str, more: int) -> int:
        self.counts[name] += more
        self.hold(name, self.counts[name])
        return more

    def read(self, section: int, inside: _Cursor) -> None:
        try:
            _READERS[section](self, inside)
        except _OpaqueError:
            return
        if inside.at != inside.end:
            raise _invalid(f"{inside.end - inside.at} bytes are left over at byte {inside.at}")

    def finish(self) -> None:
        if self.defined != self.bodies:
            raise _invalid(f"{self.defined} functions are declared, {self.bodies} have a body")
        if self.data_declared not in {None, self.counts["data_segments"]}:
            raise _invalid("the declared number of data segments is not theirs")

    def read_types(self, inside: _Cursor) -> None:
        for _ in range(self.add("types", inside.count())):
            if inside.byte() != _FUNC:
                raise _OpaqueError
            self.hold("params", params := inside.count())
            vector = inside.has_vector(params)
            self.hold("results", results := inside.count())
            self.vector_types.append(inside.has_vector(results) or vector)

    def read_imports(self, inside: _Cursor) -> None:
        self.indices_known = False  # until the last import is read; else the engine refuses it
        for _ in range(self.add("imports", inside.count())):
            inside.part(inside.number())  # the module's name
            inside.part(inside.number())
            match inside.byte():
                case 0:
                    self.add("functions", 1)
                    self.functions.append(inside.number())
                    self.refuse_vector(len(self.functions) - 1, "imported")
                case 1:
                    self.add("tables", 1)
                    self.read_table(inside)
                case 2:
                    self.add("memories", 1)
                    inside.minimum()
                case 3:
                    self.globals_imported += self.add("globals", 1)
                    if inside.value_type():
                        raise _vector("an imported global")
                    inside.byte()  # whether it is mutable
                case _:
                    raise _OpaqueError
        self.indices_known = True

    def refuse_vector(self, function: int, how: str) -> None:
        """Errors  `module.abi-mismatch`. An index that means nothing is the engine's to refuse."""
        if function < len(self.functions):
            kind = self.functions[function]
            if kind < len(self.vector_types) and self.vector_types[kind]:
                raise _vector(f"the {how} function {function}")

    def read_functions(self, inside: _Cursor) -> None:
        self.defined = self.add("functions", inside.count())
        self.functions += [inside.number() for _ in range(self.defined)]

    def read_tables(self, inside: _Cursor) -> None:
        for _ in range(self.add("tables", inside.count())):
            self.read_table(inside)

    def read_table(self, inside: _Cursor) -> None:
        inside.value_type()
        self.add("table_elements", inside.minimum())

    def read_memories(self, inside: _Cursor) -> None:
        for _ in range(self.add("memories", inside.count())):
            inside.minimum()  # how large it may be is policy

    def read_globals(self, inside: _Cursor) -> None:
        if self.add("globals", inside.count()):
            self.vector_global = bool(_VECTOR_GLOBAL.search(inside.module, inside.at, inside.end))
            raise _OpaqueError

    def read_exports(self, inside: _Cursor) -> None:
        count = self.add("exports", inside.count())
        if not self.indices_known:
            raise _OpaqueError
        for _ in range(count):
            inside.part(inside.number())  # its name
            match inside.byte(), inside.number():
                case 0, function:
                    self.refuse_vector(function, "exported")
                case 3, index if self.vector_global and index >= self.globals_imported:
                    # Which one has the v128 stands behind expressions, so none may be exported.
                    raise _vector("a global of a module that exports one")
                case kind, _ if kind > _KIND_MAX:
                    raise _OpaqueError

    def read_tags(self, _inside: _Cursor) -> None:
        raise _OpaqueError

    def read_start(self, inside: _Cursor) -> None:
        inside.number()

    def read_elements(self, inside: _Cursor) -> None:
        for _ in range(self.add("elements", inside.count())):
            match inside.number():
                case 1 | 3:  # indices, no expression in front
                    inside.byte()
                    for _item in range(self.add("elements", inside.count())):
                        inside.number()
                case 5 | 7:  # expressions behind their number
                    inside.value_type()
                    if self.add("elements", inside.count()):
                        raise _OpaqueError
                case _:
                    raise _OpaqueError

    def read_data_count(self, inside: _Cursor) -> None:
        self.data_declared = inside.number()
        self.hold("data_segments", self.data_declared)

    def read_code(self, inside: _Cursor) -> None:
        self.bodies = inside.count()
        self.hold("functions", self.bodies)
        for _ in range(self.bodies):
            size = inside.number()
            body = inside.part(size)
            self.hold("body_bytes", size)
            self.add("locals_total", self.locals(body))

    def locals(self, body: _Cursor) -> int:
        found = 0
        with suppress(_OpaqueError):
            for _ in range(body.count()):
                found += body.number() or 1
                self.hold("locals_per_function", found)
                body.value_type()
        return found

    def read_data(self, inside: _Cursor) -> None:
        if self.add("data_segments", inside.count()):
            raise _OpaqueError


# In the order in which the sections must stand.
_READERS: Final[dict[int, Callable[[_Tally, _Cursor], None]]] = {
    1: _Tally.read_types, 2: _Tally.read_imports, 3: _Tally.read_functions, 4: _Tally.read_tables,
    5: _Tally.read_memories, 13: _Tally.read_tags, 6: _Tally.read_globals, 7: _Tally.read_exports,
    8: _Tally.read_start, 9: _Tally.read_elements, 12: _Tally.read_data_count, 10: _Tally.read_code,
    11: _Tally.read_data,
}  # fmt: skip
_RANK: Final = {section: rank for rank, section in enumerate(_READERS)}
