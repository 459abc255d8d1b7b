"""Static caps: each holds at its bound, and nothing that a module declares makes a check long."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest

from executor.core import complexity
from executor.core.complexity import LARGE, STANDARD, Caps, check
from executor.core.wasm import uleb
from executor.errors import ExecutorError
from tests.support import malformed
from tests.support.malformed import END, RICH, ZERO, body, build, export, func, join, section

MODULES = sorted((Path(__file__).parents[2] / "tasks_wasm").rglob("*.wasm"))
CORE, sized, vec = malformed.CORE, malformed.sized, malformed.vec
TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT = range(1, 8)
START, ELEMENT, CODE, DATA, COUNT, TAG = range(8, 14)
HUGE = uleb(2**32 - 1)
PLAIN = func()
FUNCREF_LONG = b"\x63\x70"
VECTOR = func(b"\x7b")
VECTOR_GLOBAL = b"\x7b\0\xfd\x0c" + bytes(16) + END
NUMBER_GLOBAL = b"\x7f\0" + ZERO + END
EMPTY_BODY = body(END)

Sections = list[tuple[int, bytes]]


def imported(what: bytes) -> bytes:
    """One import from `m`."""
    return sized(b"m") + sized(b"n") + what


def entries(id: int, entry: bytes, number: int) -> bytes:
    """A module with one section of the same entry `number` times."""
    return CORE + section(id, vec(*[entry] * number))


def functions(number: int, code: bytes = EMPTY_BODY) -> bytes:
    """A module with `number` functions that are all alike."""
    return join([
        (TYPE, vec(PLAIN)), (FUNCTION, vec(*[b"\0"] * number)), (CODE, vec(*[code] * number))
    ])  # fmt: skip


def one_body(code: bytes) -> bytes:
    """A module with one function."""
    return functions(1, code)


def groups(*numbers: int) -> bytes:
    """A body that declares so many locals in each group."""
    return body(END, vec(*[uleb(number) + b"\x7f" for number in numbers]))


def refused(module: bytes, caps: Caps = STANDARD) -> tuple[str, str]:
    """The code and the detail with which `module` is refused."""
    with pytest.raises(ExecutorError) as caught:
        check(module, caps)
    return caught.value.code, caught.value.detail


SMALL = Caps(
    module_bytes=4_096, sections=15, types=5, params=6, results=7, imports=8, functions=9, tables=2,
    table_elements=40, memories=1, globals=11, exports=12, elements=13, data_segments=14,
    body_bytes=50, locals_per_function=16, locals_total=20,
)  # fmt: skip
IMPORTED_FUNCTION = imported(b"\0\0")
IMPORTED_GLOBAL = imported(b"\3\x7f\0")
IMPORTED_TABLE = imported(b"\1\x70\1\1\2")

# The cap, a module at its bound, one above it, and what is found there.
BOUNDS: list[tuple[str, str, bytes, bytes, int]] = [
    ("bytes", "module_bytes", CORE + section(0, sized(b"n") + bytes(4_083)),
     CORE + section(0, sized(b"n") + bytes(4_084)), 4_097),
    ("sections", "sections", CORE + section(0, b"\0") * 15, CORE + section(0, b"\0") * 16, 16),
    ("types", "types", entries(TYPE, PLAIN, 5), entries(TYPE, PLAIN, 6), 6),
    ("params", "params", entries(TYPE, func(b"\x7f" * 6), 1),
     entries(TYPE, func(b"\x7f" * 7), 1), 7),
    ("results", "results", entries(TYPE, func(b"", b"\x7f" * 7), 1),
     entries(TYPE, func(b"", b"\x7f" * 8), 1), 8),
    ("imports", "imports", entries(IMPORT, IMPORTED_GLOBAL, 8),
     entries(IMPORT, IMPORTED_GLOBAL, 9), 9),
    ("functions", "functions", functions(9), functions(10), 10),
    ("bodies", "functions", functions(9), entries(CODE, EMPTY_BODY, 10), 10),
    ("tables", "tables", entries(TABLE, b"\x70\0\1", 2), entries(TABLE, b"\x70\0\1", 3), 3),
    ("imported tables", "tables", entries(IMPORT, IMPORTED_TABLE, 2),
     entries(IMPORT, IMPORTED_TABLE, 3), 3),
    ("size of a table", "table_elements", entries(TABLE, b"\x70\0\x28", 1),
     entries(TABLE, b"\x70\0\x29", 1), 41),
    ("size of two tables", "table_elements", entries(TABLE, b"\x70\0\x14", 2),
     entries(TABLE, b"\x70\0\x15", 2), 42),
    ("size of a huge table", "table_elements", entries(TABLE, b"\x70\1\0" + HUGE, 1),
     entries(TABLE, b"\x70\0" + HUGE, 1), 2**32 - 1),
    ("memories", "memories", entries(MEMORY, b"\0\1", 1), entries(MEMORY, b"\0\1", 2), 2),
    ("imported memories", "memories", entries(IMPORT, imported(b"\2\0\1"), 1),
     entries(IMPORT, imported(b"\2\0\1"), 2), 2),
    ("globals", "globals", entries(GLOBAL, NUMBER_GLOBAL, 11),
     entries(GLOBAL, NUMBER_GLOBAL, 12), 12),
    ("exports", "exports", entries(EXPORT, export(b"x", 2, 0), 12),
     entries(EXPORT, export(b"x", 2, 0), 13), 13),
    ("segments of elements", "elements", entries(ELEMENT, b"\0" + ZERO + END + b"\0", 13),
     entries(ELEMENT, b"\0" + ZERO + END + b"\0", 14), 14),
    ("items of elements", "elements", entries(ELEMENT, b"\1\0" + sized(bytes(12)), 1),
     entries(ELEMENT, b"\1\0" + sized(bytes(13)), 1), 14),
    ("items of declared elements", "elements", entries(ELEMENT, b"\3\0" + sized(bytes(5)), 2),
     entries(ELEMENT, b"\3\0" + sized(bytes(6)), 2), 14),
    ("items of expressions", "elements",
     entries(ELEMENT, b"\5\x70" + vec(*[b"\xd2\0\x0b"] * 12), 1),
     entries(ELEMENT, b"\5\x70" + vec(*[b"\xd2\0\x0b"] * 13), 1), 14),
    ("segments of data", "data_segments", entries(DATA, b"\1\0", 14),
     entries(DATA, b"\1\0", 15), 15),
    ("declared segments of data", "data_segments",
     join([(COUNT, b"\x0e"), (DATA, vec(*[b"\1\0"] * 14))]),
     join([(COUNT, b"\x0f"), (DATA, vec(*[b"\1\0"] * 15))]), 15),
    ("bytes of a body", "body_bytes", one_body(body(b"\1" * 48 + END)),
     one_body(body(b"\1" * 49 + END)), 51),
    ("locals", "locals_per_function", one_body(groups(15, 1)), one_body(groups(15, 2)), 17),
    ("huge number of locals", "locals_per_function", one_body(groups(16)),
     one_body(groups(2**32 - 1)), 2**32 - 1),
    ("groups without locals", "locals_per_function", one_body(groups(*[0] * 16)),
     one_body(groups(*[0] * 17)), 17),
    ("locals in all", "locals_total", functions(2, groups(10)), functions(3, groups(7)), 21),
]  # fmt: skip


@pytest.mark.covers("module.too-complex")
@pytest.mark.parametrize(
    ("cap", "good", "bad", "found"), [row[1:] for row in BOUNDS], ids=[row[0] for row in BOUNDS]
)
def test_each_cap_holds_at_its_bound(cap: str, good: bytes, bad: bytes, found: int) -> None:
    """What is at the bound passes; one above is refused with the cap, its value and the number."""
    check(good, SMALL)
    assert refused(bad, SMALL) == (
        "module.too-complex",
        f"`{cap}` is {getattr(SMALL, cap)}, found {found}",
    )


def test_each_cap_has_such_a_test() -> None:
    """No cap is added without its bound."""
    assert {row[1] for row in BOUNDS} == {field.name for field in fields(Caps)}


@pytest.mark.parametrize(
    ("cap", "first", "then"),
    [
        ("functions", (IMPORT, vec(*[IMPORTED_FUNCTION] * 5)), (FUNCTION, vec(*[b"\0"] * 5))),
        ("tables", (IMPORT, vec(IMPORTED_TABLE)), (TABLE, vec(*[b"\x70\0\1"] * 2))),
        ("table_elements", (IMPORT, vec(imported(b"\1\x70\0\x14"))), (TABLE, vec(b"\x70\0\x15"))),
        ("memories", (IMPORT, vec(imported(b"\2\0\1"))), (MEMORY, vec(b"\0\1"))),
        ("globals", (IMPORT, vec(*[IMPORTED_GLOBAL] * 6)), (GLOBAL, vec(*[NUMBER_GLOBAL] * 6))),
    ],
)
def test_what_is_imported_counts(
    cap: str, first: tuple[int, bytes], then: tuple[int, bytes]
) -> None:
    """A cap is on imported and defined things together."""
    check(join([first]), SMALL)
    code, detail = refused(join([first, then]), SMALL)
    assert (code, detail.split()[0]) == ("module.too-complex", f"`{cap}`")


def test_the_caps_for_large_guests_are_no_lower() -> None:
    """LARGE lets pass whatever STANDARD does, and what the toolchains of large guests make."""
    for field in fields(Caps):
        assert getattr(LARGE, field.name) >= getattr(STANDARD, field.name)
    module = functions(10_001, groups(1))
    assert refused(module) == ("module.too-complex", "`functions` is 10000, found 10001")
    check(module, LARGE)
    big = CORE + section(0, sized(b"n") + bytes(STANDARD.module_bytes))
    assert refused(big)[0] == "module.too-complex"
    check(big, LARGE)


@pytest.mark.parametrize("path", MODULES, ids=[path.stem for path in MODULES])
def test_real_modules_pass(path: Path) -> None:
    """What toolchains emit for the samples, even the hostile ones, is within the caps."""
    check(path.read_bytes(), STANDARD)


def test_there_are_real_modules() -> None:
    """The samples are found."""
    assert len(MODULES) >= 15


@pytest.mark.parametrize(
    "module",
    [
        CORE,
        build(),
        join(RICH),
        join([(number, b"\0") for number in (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL)]),
        join([(EXPORT, b"\0"), (ELEMENT, b"\0"), (COUNT, b"\0"), (CODE, b"\0"), (DATA, b"\0")]),
        join([(COUNT, b"\0")]),
        CORE + b"\x01\x85\x80\x80\x80\0\x81\0\x60\0\0",
        CORE + section(0, b"\0") + section(TYPE, vec(PLAIN)) + section(0, b"\0"),
        entries(TYPE, b"\x60\3\x7f" + FUNCREF_LONG + b"\x7e\1" + FUNCREF_LONG, 2),
        entries(TABLE, FUNCREF_LONG + b"\0\1", 2),
        one_body(body(END, b"\2\1" + FUNCREF_LONG + b"\2\x7b")),
        entries(ELEMENT, b"\7" + FUNCREF_LONG + b"\0", 2),
    ],
    ids=[
        "no section", "plain guest", "all kinds of sections", "empty sections",
        "more empty sections", "a data count of none", "padded numbers", "custom between others",
        "long funcref in types", "long funcref in tables", "long funcref in locals",
        "elements without items",
    ],
)  # fmt: skip
def test_unusual_modules_pass(module: bytes) -> None:
    """What the engine accepts is not refused for its spelling."""
    check(module, STANDARD)


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "a component": b"\0asm\x0d\0\x01\0",
    "section without a size": CORE + b"\x01",
    "section size that does not end": CORE + b"\x01\x80",
    "section size above 32 bits": CORE + b"\x01\xff\xff\xff\xff\x1f",
    "section past the end": CORE + b"\x01\x05\0",
    "section with an unknown id": CORE + b"\x0e\0",
    "sections out of order": join([(FUNCTION, b"\0"), (TYPE, b"\0")]),
    "tags behind globals": join([(GLOBAL, b"\0"), (TAG, b"\0")]),
    "data count behind code": join([(CODE, b"\0"), (COUNT, b"\0")]),
    "section twice": join([(TYPE, b"\0"), (TYPE, b"\0")]),
    "custom section without a name": CORE + section(0, b""),
    "custom name past its section": CORE + section(0, b"\2a"),
    "empty section": CORE + section(TYPE, b""),
    "number that runs into the next section": CORE + section(TYPE, b"\x81") + section(0, b"\0"),
    "number cut short by the next section": CORE + section(START, b"\x80") + b"\0\1\0",
    "type without results": entries(TYPE, b"\x60\0", 1),
    "type with more params than bytes": entries(TYPE, b"\x60\2\x7f", 1),
    "long funcref cut short": entries(TYPE, b"\x60\0\1\x63", 1),
    "params cut short by a long funcref": entries(TYPE, b"\x60\0\2\x63\x70", 1),
    "bytes behind types": CORE + section(TYPE, vec(PLAIN) + b"\0"),
    "import without a kind": entries(IMPORT, b"\0\0", 1),
    "import name past the end": entries(IMPORT, b"\0\x09n", 1),
    "imported global cut short": entries(IMPORT, b"\0\0\3\x7f", 1),
    "bytes behind imports": CORE + section(IMPORT, b"\0\0"),
    "bytes behind functions": join([(FUNCTION, b"\0\0")]),
    "table cut short": entries(TABLE, b"\x70\1\1", 1),
    "memory cut short": entries(MEMORY, b"\0", 1),
    "bytes behind globals": CORE + section(GLOBAL, b"\0\0"),
    "export cut short": entries(EXPORT, b"\1x\0", 1),
    "bytes behind the start": CORE + section(START, b"\0\0"),
    "bytes behind elements": CORE + section(ELEMENT, vec(b"\1\0\0") + b"\0"),
    "more items than bytes": entries(ELEMENT, b"\1\0\2\0", 1),
    "bytes behind the data count": join([(COUNT, b"\0\0")]),
    "bytes behind data": CORE + section(DATA, b"\0\0"),
    "data count too low": join([(COUNT, b"\1"), (DATA, vec(b"\1\0", b"\1\0"))]),
    "data count too high": join([(COUNT, b"\2"), (DATA, vec(b"\1\0"))]),
    "data count without data": join([(COUNT, b"\1")]),
    "functions without code": join([(FUNCTION, vec(b"\0"))]),
    "code without functions": join([(CODE, vec(EMPTY_BODY))]),
    "more functions than bodies": join([(FUNCTION, vec(b"\0", b"\0")), (CODE, vec(EMPTY_BODY))]),
    "more bodies than functions": join([(FUNCTION, vec(b"\0")), (CODE, vec(*[EMPTY_BODY] * 2))]),
    "imports are no bodies": join([
        (IMPORT, vec(IMPORTED_FUNCTION)), (FUNCTION, vec(b"\0")), (CODE, vec(*[EMPTY_BODY] * 2))
    ]),
    "body past the end": one_body(b"\x09\0\x0b"),
    "body without locals": one_body(b"\0"),
    "more groups than bytes": one_body(sized(b"\2\x01")),
    "locals cut short": one_body(sized(b"\1\1")),
    "bytes behind bodies": one_body(EMPTY_BODY + b"\0"),
}  # fmt: skip


@pytest.mark.covers("module.invalid")
@pytest.mark.parametrize("module", MALFORMED.values(), ids=MALFORMED)
def test_bad_framing_inside_a_section_is_refused(module: bytes) -> None:
    """Sections, vectors and bodies fill exactly what declares them."""
    assert refused(module)[0] == "module.invalid"


HUGE_COUNTS: dict[str, bytes] = {
    **{
        f"entries of section {number}": CORE + section(number, HUGE + bytes(8))
        for number in range(1, 12)
        if number != START
    },
    "params": entries(TYPE, b"\x60" + HUGE, 1),
    "results": entries(TYPE, b"\x60\0" + HUGE, 1),
    "bytes of a name": entries(IMPORT, HUGE, 1),
    "bytes of an export's name": entries(EXPORT, HUGE, 1),
    "items of indices": entries(ELEMENT, b"\1\0" + HUGE, 1),
    "items of expressions": entries(ELEMENT, b"\5\x70" + HUGE, 1),
    "segments of data": join([(COUNT, HUGE)]),
    "bytes of a body": one_body(HUGE),
    "groups of locals": one_body(sized(HUGE)),
    "locals": one_body(groups(2**32 - 1)),
    "locals twice": one_body(groups(1, 2**32 - 1)),
    "elements of a table": entries(TABLE, b"\x70\0" + HUGE, 1),
}


@pytest.mark.parametrize("module", HUGE_COUNTS.values(), ids=HUGE_COUNTS)
def test_a_huge_count_is_refused_before_it_is_looped_over(
    module: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 billion of anything are refused; even without caps nothing is read that is not there."""
    for caps in (STANDARD, LARGE):
        assert refused(module, caps)[0] in {"module.invalid", "module.too-complex"}
    steps = 0
    byte, number = complexity._Cursor.byte, complexity._Cursor.number

    def counted(step: Callable[[complexity._Cursor], int]) -> Callable[[complexity._Cursor], int]:
        def take(cursor: complexity._Cursor) -> int:
            nonlocal steps
            steps += 1
            return step(cursor)

        return take

    monkeypatch.setattr(complexity._Cursor, "byte", counted(byte))
    monkeypatch.setattr(complexity._Cursor, "number", counted(number))
    with suppress(ExecutorError):
        check(module, Caps(**{field.name: 2**40 for field in fields(Caps)}))
    assert 0 < steps <= len(module)


VECTORS: dict[str, Sections] = {
    "imported function that takes one": [(TYPE, vec(VECTOR)), (IMPORT, vec(IMPORTED_FUNCTION))],
    "imported function that returns one": [
        (TYPE, vec(func(b"\x7f", b"\x7f\x7b"))), (IMPORT, vec(IMPORTED_FUNCTION)),
    ],
    "imported function, between long references": [
        (TYPE, vec(b"\x60\2\x63\x70\x7b\0")), (IMPORT, vec(IMPORTED_FUNCTION)),
    ],
    "imported global": [(IMPORT, vec(imported(b"\3\x7b\0")))],
    "exported function": [
        (TYPE, vec(PLAIN, VECTOR)), (FUNCTION, vec(b"\0", b"\1")),
        (EXPORT, vec(export(b"f", 0, 1))), (CODE, vec(*[EMPTY_BODY] * 2)),
    ],
    "exported function behind an imported one": [
        (TYPE, vec(PLAIN, func(b"", b"\x7b"))), (IMPORT, vec(IMPORTED_FUNCTION)),
        (FUNCTION, vec(b"\1")), (EXPORT, vec(export(b"f", 0, 1))), (CODE, vec(EMPTY_BODY)),
    ],
    "exported global": [(GLOBAL, vec(VECTOR_GLOBAL)), (EXPORT, vec(export(b"g", 3, 0)))],
    "exported mutable global behind others": [
        (GLOBAL, vec(NUMBER_GLOBAL, b"\x7b\1" + VECTOR_GLOBAL[2:])),
        (EXPORT, vec(export(b"g", 3, 1))),
    ],
    "exported global with a padded opcode": [
        (GLOBAL, vec(b"\x7b\0\xfd\x8c\0" + bytes(16) + END)), (EXPORT, vec(export(b"g", 3, 0))),
    ],
    "another exported global beside one": [
        (GLOBAL, vec(NUMBER_GLOBAL, VECTOR_GLOBAL)), (EXPORT, vec(export(b"g", 3, 0))),
    ],
}  # fmt: skip


@pytest.mark.covers("module.abi-mismatch")
@pytest.mark.parametrize("parts", VECTORS.values(), ids=VECTORS)
def test_a_vector_at_the_edge_of_a_module_is_refused(parts: Sections) -> None:
    """No import or export has a v128 in its type, on which the engine's C interface aborts."""
    code, detail = refused(join(parts))
    assert code == "module.abi-mismatch"
    assert "v128" in detail


@pytest.mark.parametrize(
    "parts",
    [
        [(TYPE, vec(VECTOR)), (FUNCTION, vec(b"\0")), (CODE, vec(EMPTY_BODY))],
        [(GLOBAL, vec(VECTOR_GLOBAL))],
        [(IMPORT, vec(IMPORTED_GLOBAL)), (GLOBAL, vec(VECTOR_GLOBAL)),
         (EXPORT, vec(export(b"g", 3, 0)))],
        [(MEMORY, vec(b"\0\1")), (GLOBAL, vec(VECTOR_GLOBAL)), (EXPORT, vec(export(b"m", 2, 0)))],
        [(TYPE, vec(PLAIN, VECTOR)), (FUNCTION, vec(b"\0", b"\1")),
         (EXPORT, vec(export(b"f", 0, 0))), (CODE, vec(*[EMPTY_BODY] * 2))],
        [(GLOBAL, vec(NUMBER_GLOBAL)), (EXPORT, vec(export(b"g", 3, 0)))],
        [(TYPE, vec(PLAIN)), (FUNCTION, vec(b"\0")), (CODE, vec(body(END, b"\1\1\x7b")))],
    ],
    ids=["function", "global", "beside an imported global", "beside an exported memory",
         "beside an exported function", "no vector", "local"],
)  # fmt: skip
def test_vectors_inside_a_module_pass(parts: Sections) -> None:
    """A v128 that the host never sees is the guest's own business."""
    check(join(parts), STANDARD)


LEFT: dict[str, Sections] = {
    "type of another form": [(TYPE, vec(b"\x5f\1\x7f\0"))],
    "param of an unknown type": [(TYPE, vec(func(b"\x6e")))],
    "reference to a type": [(TYPE, vec(b"\x60\1\x63\0\0"))],
    "function of a type that was not read": [
        (TYPE, vec(b"\x5f\0")), (FUNCTION, vec(b"\0")), (EXPORT, vec(export(b"f", 0, 0))),
        (CODE, vec(EMPTY_BODY)),
    ],
    "import of an unknown kind": [(IMPORT, vec(imported(b"\5\0")))],
    "import of a function of an undefined type": [(IMPORT, vec(imported(b"\0\7")))],
    "exports behind an unknown import": [
        (TYPE, vec(VECTOR)), (IMPORT, vec(imported(b"\x7f"))), (FUNCTION, vec(b"\0")),
        (EXPORT, vec(export(b"f", 0, 0))), (CODE, vec(EMPTY_BODY)),
    ],
    "table with a first value": [(TABLE, vec(b"\x40\0\x70\0\1" + ZERO + END))],
    "memory of 64 bits": [(MEMORY, vec(b"\4\1"))],
    "tags": [(TAG, vec(b"\0\0"))],
    "export of an unknown kind": [(EXPORT, vec(export(b"x", 5, 0)))],
    "export of an undefined function": [(EXPORT, vec(export(b"x", 0, 9)))],
    "export of a tag": [(EXPORT, vec(export(b"x", 4, 0)))],
    "elements at an offset": [(ELEMENT, vec(b"\0" + ZERO + END + vec(b"\0")))],
    "elements of unknown flags": [(ELEMENT, vec(b"\x09\0"))],
    "elements of another type": [(ELEMENT, vec(b"\5\x6f\0"))],
    "local of an unknown type": [
        (FUNCTION, vec(b"\0")), (CODE, vec(body(END, b"\1\1\x6e"))),
    ],
}  # fmt: skip


@pytest.mark.parametrize("parts", LEFT.values(), ids=LEFT)
def test_what_cannot_be_read_is_left_to_the_engine(parts: Sections) -> None:
    """What is not known here is no error here, and what stands behind it is not misread."""
    check(join(parts), STANDARD)


def test_caps_hold_beside_what_cannot_be_read() -> None:
    """What is unknown stops the look at its section or body alone, and uncounts nothing."""
    unknown = func(b"\x6e")
    assert refused(entries(TYPE, unknown, 6), SMALL)[0] == "module.too-complex"
    params = vec(func(b"\x7f" * 7), unknown)
    assert refused(join([(TYPE, params)]), SMALL)[0] == "module.too-complex"
    opaque = body(END, b"\2\x0f\x7f\1\x6e")  # 16 locals counted, the last of them unknown
    check(one_body(opaque), SMALL)
    code, detail = refused(functions(2, opaque), SMALL)
    assert (code, detail) == ("module.too-complex", "`locals_total` is 20, found 32")
    after = join([(TYPE, vec(unknown)), (MEMORY, vec(b"\0\1", b"\0\1"))])
    assert refused(after, SMALL)[0] == "module.too-complex"


def test_caps_can_be_raised_one_by_one() -> None:
    """A cap is a value like any other: what is refused under one set passes under another."""
    module = functions(10)
    assert refused(module, SMALL)[0] == "module.too-complex"
    check(module, replace(SMALL, functions=10))
