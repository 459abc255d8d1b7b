"""Modules that must not run: each has one fault, all else is a guest with `memory` and `run`.

The fault stands in the name. The modules are built byte by byte, since no tool writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from executor.core.wasm import uleb

Case = tuple[str, bytes]

CORE = b"\0asm\x01\0\0\0"
END = b"\x0b"
ZERO = b"\x41\0"  # i32.const 0
DROP = b"\x1a"
ORDER = (0, 1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11)
TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT = range(1, 8)
START, ELEMENT, CODE, DATA, COUNT, TAG = range(8, 14)
I32, I64, F32, F64, V128, FUNCREF = 0x7F, 0x7E, 0x7D, 0x7C, 0x7B, 0x70
CONST = {
    I32: ZERO,
    I64: b"\x42\0",
    F32: b"\x43" + bytes(4),
    F64: b"\x44" + bytes(8),
    V128: b"\xfd\x0c" + bytes(16),
    FUNCREF: b"\xd0\x70",  # ref.null func
}
NAMES = {I32: "i32", I64: "i64", F32: "f32", F64: "f64"}


def vec(*items: bytes) -> bytes:
    """Items behind their number."""
    return uleb(len(items)) + b"".join(items)


def sized(content: bytes) -> bytes:
    """Bytes behind their number: a name, a body, a section."""
    return uleb(len(content)) + content


def section(id: int, content: bytes) -> bytes:
    """One section."""
    return bytes([id]) + sized(content)


def func(params: bytes = b"", results: bytes = b"") -> bytes:
    """The type of a function."""
    return b"\x60" + sized(params) + sized(results)


def export(name: bytes, kind: int, index: int) -> bytes:
    """One export."""
    return sized(name) + bytes([kind]) + uleb(index)


def body(code: bytes, declared: bytes = b"\0") -> bytes:
    """A body with the locals `declared`."""
    return sized(declared + code)


MEMORY_EXPORT = export(b"memory", 2, 0)
RUN_EXPORT = export(b"run", 0, 0)
PLAIN = {
    TYPE: vec(func(b"", bytes([I32]))),
    FUNCTION: vec(b"\0"),
    MEMORY: vec(b"\0\1"),
    EXPORT: vec(MEMORY_EXPORT, RUN_EXPORT),
    CODE: vec(body(ZERO + END)),
}


def build(*changes: tuple[int, bytes]) -> bytes:
    """The plain guest with other contents for some sections, in their order."""
    contents = {**PLAIN, **dict(changes)}
    return CORE + b"".join(
        section(number, contents[number]) for number in ORDER if number in contents
    )


def without(*ids: int) -> list[tuple[int, bytes]]:
    """The plain guest's sections but those."""
    return [(number, content) for number, content in PLAIN.items() if number not in ids]


def join(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Sections as they come."""
    return CORE + b"".join(section(number, content) for number, content in parts)


def run(code: bytes, *changes: tuple[int, bytes]) -> bytes:
    """The plain guest with that code in `run`; `changes` come on top."""
    return build((CODE, vec(body(code))), *changes)


def wasted(code: bytes) -> bytes:
    """The plain guest whose `run` drops what `code` leaves, then returns 0."""
    return run(code + DROP + ZERO + END)


# A guest with every kind of section, whose only oddity is that it has them all.
RICH: list[tuple[int, bytes]] = [
    (TYPE, vec(func(b"", bytes([I32])), func())),
    (IMPORT, vec(sized(b"m") + sized(b"f") + b"\0\1", sized(b"m") + sized(b"g") + b"\3\x7f\0")),
    (FUNCTION, vec(b"\0", b"\1")),
    (TABLE, vec(b"\x70\1\1\2")),
    (MEMORY, vec(b"\1\1\2")),
    (GLOBAL, vec(b"\x7f\1" + ZERO + END)),
    (EXPORT, vec(MEMORY_EXPORT, export(b"run", 0, 1))),
    (START, b"\2"),
    (ELEMENT, vec(b"\0" + ZERO + END + vec(b"\1"), b"\1\0" + vec(b"\2"))),
    (COUNT, b"\1"),
    (CODE, vec(body(ZERO + END, vec(b"\1\x7e")), body(END))),
    (DATA, vec(b"\0" + ZERO + END + sized(b"abc"))),
]


def _truncations() -> Iterator[Case]:
    whole = join(RICH)
    # A file that ends behind its types or its imports is whole.
    valid = {len(join(RICH[:count])) for count in range(3)}
    for size in range(len(whole)):
        if size not in valid:
            yield f"cut at byte {size}", whole[:size]


def _headers() -> Iterator[Case]:
    rest = build()[8:]
    for name, head in {
        "magic of another file": b"\x7fELF\x01\0\0\0",
        "magic in capitals": b"\0ASM\x01\0\0\0",
        "magic reversed": b"msa\0\x01\0\0\0",
        "version 0": b"\0asm\0\0\0\0",
        "version 2": b"\0asm\x02\0\0\0",
        "version 13": b"\0asm\x0d\0\0\0",
        "version big-endian": b"\0asm\0\0\0\x01",
        "version of a component": b"\0asm\x0d\0\x01\0",
    }.items():
        yield name, head + rest
    yield "text form", b"(module"
    yield "one byte in front", b"\0" + build()
    yield "one byte behind", build() + b"\0"


def _sections() -> Iterator[Case]:
    whole = join(RICH)
    for index, (number, content) in enumerate(RICH):
        yield f"section {number} twice", join([*RICH[: index + 1], *RICH[index:]])
        yield (
            f"section {number} with a byte left over",
            join([*RICH[:index], (number, content + b"\0"), *RICH[index + 1 :]]),
        )
        start = len(join(RICH[:index]))
        for size, change in ((len(content) + 1, "long"), (len(content) - 1, "short")):
            yield (
                f"section {number} with a size one too {change}",
                whole[:start] + bytes([number]) + uleb(size) + whole[start + 2 :],
            )
        if index:
            order = [*RICH[: index - 1], RICH[index], RICH[index - 1], *RICH[index + 1 :]]
            yield f"section {number} in front of the one before", join(order)
    for number in (14, 15, 42, 0x7F, 0x80, 0xFF):
        yield f"section with the unknown id {number}", build() + bytes([number, 0])
    for name, claimed in {
        "does not end": b"\x80",
        "of six bytes": b"\x80\x80\x80\x80\x80\0",
        "above 32 bits": b"\x80\x80\x80\x80\x10",
        "past the end": b"\x05",
        "of 4 GiB": b"\xff\xff\xff\xff\x0f",
    }.items():
        yield f"section size {name}", build() + b"\0" + claimed
    yield "custom section without a name", build() + b"\0\0"
    yield "custom section with a name past its end", build() + b"\0\x02\x02a"


def _counts() -> Iterator[Case]:
    huge = uleb(2**32 - 1)
    for number, content in RICH:
        if number not in {START, COUNT}:
            for name, count in (("4 billion", huge), ("one too many", uleb(content[0] + 1))):
                yield (
                    f"section {number} declares {name}",
                    join((i, count + c[1:] if i == number else c) for i, c in RICH),
                )
            yield (
                f"section {number} is empty",
                join((i, b"" if i == number else c) for i, c in RICH),
            )
    yield "type with 4 billion params", build((TYPE, b"\1\x60" + huge + b"\0"))
    yield "body of 4 GiB", build((CODE, b"\1" + huge + b"\0" + ZERO + END))
    yield "4 billion locals", build((CODE, vec(body(ZERO + END, b"\1" + huge + b"\x7f"))))
    yield (
        "locals above 32 bits in all",
        build((CODE, vec(body(ZERO + END, b"\2" + (huge + b"\x7f") * 2)))),
    )
    yield "50001 locals", build((CODE, vec(body(ZERO + END, b"\1" + uleb(50_001) + b"\x7f"))))
    yield "export name of 4 GiB", build((EXPORT, b"\1" + huge + b"run\0\0"))
    yield "more functions than bodies", build((FUNCTION, vec(b"\0", b"\0")))
    yield "more bodies than functions", build((CODE, vec(body(ZERO + END), body(ZERO + END))))
    yield "functions without bodies", join(without(CODE))
    yield "bodies without functions", join(without(FUNCTION))


_OPERANDS: tuple[tuple[int, int, int, int], ...] = (  # first and last opcode, number, type
    (0x45, 0x45, 1, I32), (0x46, 0x4F, 2, I32), (0x50, 0x50, 1, I64), (0x51, 0x5A, 2, I64),
    (0x5B, 0x60, 2, F32), (0x61, 0x66, 2, F64), (0x67, 0x69, 1, I32), (0x6A, 0x78, 2, I32),
    (0x79, 0x7B, 1, I64), (0x7C, 0x8A, 2, I64), (0x8B, 0x91, 1, F32), (0x92, 0x98, 2, F32),
    (0x99, 0x9F, 1, F64), (0xA0, 0xA6, 2, F64), (0xA7, 0xA7, 1, I64), (0xA8, 0xA9, 1, F32),
    (0xAA, 0xAB, 1, F64), (0xAC, 0xAD, 1, I32), (0xAE, 0xAF, 1, F32), (0xB0, 0xB1, 1, F64),
    (0xB2, 0xB3, 1, I32), (0xB4, 0xB5, 1, I64), (0xB6, 0xB6, 1, F64), (0xB7, 0xB8, 1, I32),
    (0xB9, 0xBA, 1, I64), (0xBB, 0xBC, 1, F32), (0xBD, 0xBD, 1, F64), (0xBE, 0xBE, 1, I32),
    (0xBF, 0xBF, 1, I64), (0xC0, 0xC1, 1, I32), (0xC2, 0xC4, 1, I64),
)  # fmt: skip


def _numeric() -> Iterator[Case]:
    for first, last, operands, kind in _OPERANDS:
        wrong = {I32: I64, I64: F64, F32: I32, F64: F32}[kind]
        for opcode in range(first, last + 1):
            code = CONST[kind] * (operands - 1) + CONST[wrong] + bytes([opcode])
            yield f"opcode {opcode:#04x} on an {NAMES[wrong]}", wasted(code)
    for opcode in range(8):  # saturating conversions from f32 and f64
        code = CONST[I64] + bytes([0xFC, opcode])
        yield f"opcode 0xfc {opcode} on an i64", wasted(code)
    for opcode in (0x23, 0x4D, 0x4E, 0x60, 0x6E, 0x71, 0xAE, 0xCE, 0xE4, 0xF0):
        code = ZERO * 2 + b"\xfd" + uleb(opcode)
        yield f"vector opcode {opcode:#04x} on i32", wasted(code)
    yield "vector lane 16", wasted(CONST[V128] + b"\xfd\x15\x10")
    yield "vector shuffle of lane 32", wasted(CONST[V128] * 2 + b"\xfd\x0d" + bytes(15) + b"\x20")


def _memory_access() -> Iterator[Case]:
    stored = {0x36: I32, 0x37: I64, 0x38: F32, 0x39: F64, 0x3A: I32, 0x3B: I32, 0x3C: I64,
              0x3D: I64, 0x3E: I64}  # fmt: skip
    natural = bytes([2, 3, 2, 3, 0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 2, 3, 2, 3, 0, 1, 0, 1, 2])
    for opcode, align in enumerate(natural, 0x28):
        value = CONST[stored[opcode]] if opcode in stored else b""
        after = ZERO + END if opcode in stored else DROP + ZERO + END
        good = bytes([opcode, align, 0])
        yield f"access {opcode:#04x} at an i64", run(CONST[I64] + value + good + after)
        bad = bytes([opcode, align + 1, 0])
        yield f"access {opcode:#04x} with too large an alignment", run(ZERO + value + bad + after)
    yield "alignment of 2^64", wasted(ZERO + b"\x28\x40\0")
    yield "access to memory 1", wasted(ZERO + b"\x28\x42\1\0")
    yield "memory.size of memory 1", wasted(b"\x3f\1")
    yield "memory.grow by an i64", wasted(CONST[I64] + b"\x40\0")
    yield "memory.fill of an i64", run(ZERO * 2 + CONST[I64] + b"\xfc\x0b\0" + ZERO + END)
    yield "memory.copy from memory 1", run(ZERO * 3 + b"\xfc\x0a\0\1" + ZERO + END)
    yield (
        "memory.init without a data count",
        run(ZERO * 3 + b"\xfc\x08\0\0" + ZERO + END, (DATA, vec(b"\1\0"))),
    )
    yield (
        "memory.init of undefined data",
        run(ZERO * 3 + b"\xfc\x08\1\0" + ZERO + END, (COUNT, b"\1"), (DATA, vec(b"\1\0"))),
    )
    yield "data.drop of undefined data", run(b"\xfc\x09\0" + ZERO + END, (COUNT, b"\0"))
    no_memory = [*without(MEMORY, EXPORT, CODE), (EXPORT, vec(RUN_EXPORT))]
    for name, code in {
        "load": ZERO + b"\x28\2\0" + END,
        "store": ZERO * 2 + b"\x36\2\0" + ZERO + END,
        "size": b"\x3f\0" + END,
        "fill": ZERO * 3 + b"\xfc\x0b\0" + ZERO + END,
    }.items():
        yield f"memory {name} without a memory", join([*no_memory, (CODE, vec(body(code)))])


_BODIES: dict[str, bytes] = {
    "no end": ZERO,
    "no end but that of a block": ZERO + b"\x02\x40" + END,
    "code behind the end": ZERO + END + b"\x01",
    "a second end": ZERO + END + END,
    "no code": b"",
    "no value to return": END,
    "an i64 to return": CONST[I64] + END,
    "two values to return": ZERO * 2 + END,
    "return of nothing": b"\x0f" + END,
    "return of an f32": CONST[F32] + b"\x0f" + END,
    "drop of nothing": DROP + ZERO + END,
    "an operand too few": ZERO + b"\x6a" + END,
    "a value left in a block": b"\x02\x40" + ZERO + END + ZERO + END,
    "no value from a block": b"\x02\x7f" + END + END,
    "an operand from outside a block": ZERO + b"\x02\x7f" + b"\x45" + END + b"\x6a" + END,
    "undefined block type": b"\x02\x01" + END + ZERO + END,
    "block type of no value": b"\x02\x41" + END + ZERO + END,
    "no value into a loop": b"\x03\x7f" + END + END,
    "if on an i64": CONST[I64] + b"\x04\x40" + END + ZERO + END,
    "if without else for a value": ZERO + b"\x04\x7f" + ZERO + END + END,
    "if with two types": ZERO + b"\x04\x7f" + ZERO + b"\x05" + CONST[I64] + END + END,
    "else twice": ZERO + b"\x04\x40\x05\x05" + END + ZERO + END,
    "else without if": b"\x05" + ZERO + END,
    "br to an undefined label": b"\x0c\x01" + END,
    "br without its value": b"\x0c\0" + END,
    "br_if to an undefined label": ZERO + b"\x0d\x05" + ZERO + END,
    "br_if on an f32": ZERO + CONST[F32] + b"\x0d\0" + END,
    "br_table to an undefined label": ZERO * 2 + b"\x0e\1\0\x01" + END,
    "br_table with undefined default": ZERO * 2 + b"\x0e\0\x09" + END,
    "br_table of two arities": b"\x02\x40" + ZERO * 2 + b"\x0e\1\0\1" + END + ZERO + END,
    "br_table of 4 billion labels": ZERO * 2 + b"\x0e\xff\xff\xff\xff\x0f\0" + END,
    "call of an undefined function": b"\x10\x01" + END,
    "call_indirect without a table": ZERO + b"\x11\0\0" + END,
    "local.get of an undefined local": b"\x20\0" + END,
    "local.set of an undefined local": ZERO + b"\x21\x07" + ZERO + END,
    "local.tee of an undefined local": ZERO + b"\x22\xff\xff\xff\xff\x0f" + END,
    "global.get of an undefined global": b"\x23\0" + END,
    "global.set of an undefined global": ZERO + b"\x24\0" + ZERO + END,
    "table.get of an undefined table": ZERO + b"\x25\0" + DROP + ZERO + END,
    "table.set of an undefined table": ZERO + CONST[FUNCREF] + b"\x26\0" + ZERO + END,
    "table.size of an undefined table": b"\xfc\x10\0" + END,
    "elem.drop of undefined elements": b"\xfc\x0d\0" + ZERO + END,
    "select of two types": ZERO + CONST[I64] + ZERO + b"\x1b" + DROP + ZERO + END,
    "select on an f64": ZERO * 2 + CONST[F64] + b"\x1b" + END,
    "select of references without a type": CONST[FUNCREF] * 2 + ZERO + b"\x1b" + DROP + ZERO + END,
    "select with two declared types": ZERO * 3 + b"\x1c\2\x7f\x7f" + END,
    "ref.func of an undefined function": b"\xd2\x01" + DROP + ZERO + END,
    "ref.is_null of an i32": ZERO + b"\xd1" + END,
    "ref.null of an unknown type": b"\xd0\x7f" + DROP + ZERO + END,
    "type error behind unreachable": b"\x00" + ZERO + CONST[I64] + b"\x6a" + END,
    "i32.const of six bytes": b"\x41\x80\x80\x80\x80\x80\0" + END,
    "i32.const above 32 bits": b"\x41\xff\xff\xff\xff\x1f" + END,
    "i64.const of eleven bytes": b"\x42" + b"\x80" * 10 + b"\0" + DROP + ZERO + END,
    "f64.const cut short": b"\x44\0\0" + END,
}


def _bodies() -> Iterator[Case]:
    for name, code in _BODIES.items():
        yield name, run(code)
    typed = (("i64", b"\1\x7e", b"\x20\0" + END), ("f32", b"\1\x7d", ZERO + b"\x21\0" + ZERO + END))
    for name, group, code in typed:
        yield f"a local {name} used as i32", build((CODE, vec(body(code, b"\1" + group))))
    for kind in (0x00, 0x40, 0x60, 0x7A, 0x78, 0x77):
        declared = bytes([1, 1, kind])
        yield f"local of type {kind:#04x}", build((CODE, vec(body(ZERO + END, declared))))
    immutable = (GLOBAL, vec(b"\x7f\0" + ZERO + END))
    yield "global.set of an immutable global", run(ZERO + b"\x24\0" + ZERO + END, immutable)
    mutable = (GLOBAL, vec(b"\x7e\1" + CONST[I64] + END))
    yield "global.set of another type", run(ZERO + b"\x24\0" + ZERO + END, mutable)
    yield "global.get of another type", run(b"\x23\0" + END, mutable)
    table = (TABLE, vec(b"\x70\0\1"))
    yield "call_indirect of an undefined type", run(ZERO + b"\x11\x07\0" + END, table)
    yield "call_indirect of table 1", run(ZERO + b"\x11\0\1" + END, table)
    yield "call_indirect at an i64", run(CONST[I64] + b"\x11\0\0" + END, table)
    yield "table.set of an i32", run(ZERO * 2 + b"\x26\0" + ZERO + END, table)
    yield "table.init of undefined elements", run(ZERO * 3 + b"\xfc\x0c\0\0" + ZERO + END, table)
    yield "table.copy to table 1", run(ZERO * 3 + b"\xfc\x0e\1\0" + ZERO + END, table)
    yield "ref.func of an undeclared function", run(
        b"\xd2\1" + DROP + ZERO + END, (FUNCTION, vec(b"\0", b"\0")),
        (CODE, vec(body(b"\xd2\1" + DROP + ZERO + END), body(ZERO + END))),
    )  # fmt: skip
    two = (TYPE, vec(func(b"", bytes([I32])), func(bytes([I64]))))
    yield "call with another type", build(
        two, (FUNCTION, vec(b"\0", b"\1")), (CODE, vec(body(ZERO + b"\x10\1" + ZERO + END),
        body(END))),
    )  # fmt: skip


def _opcodes() -> Iterator[Case]:
    opcodes = [*range(0x06, 0x0B), *range(0x12, 0x1A), 0x1D, 0x1E, 0x1F, 0x27,
               *range(0xC5, 0xD0), *range(0xD3, 0xFB), 0xFF]  # fmt: skip
    for opcode in opcodes:
        code = bytes([opcode]) + b"\0" + ZERO + END
        yield f"opcode {opcode:#04x}, off or unknown", run(code)
    for prefix, opcode in ((0xFC, 19), (0xFC, 24), (0xFC, 300), (0xFD, 0x9A), (0xFD, 0x200)):
        code = bytes([prefix]) + uleb(opcode) + ZERO + END
        yield f"opcode {prefix:#04x} {opcode}, off or unknown", run(code)
    yield "return_call", run(b"\x12\0" + END)
    yield "return_call_indirect", run(ZERO + b"\x13\0\0" + END, (TABLE, vec(b"\x70\0\1")))
    yield "call_ref", run(b"\xd0\0\x14\0" + END)
    yield "ref.as_non_null", wasted(CONST[FUNCREF] + b"\xd4")
    yield "ref.i31", wasted(ZERO + b"\xfb\x1c")
    yield "struct.new", wasted(b"\xfb\0\0")
    yield "array.len", wasted(b"\xd0\x6a\xfb\x0f")
    yield "throw", run(b"\x08\0" + END)
    yield "throw_ref", run(b"\xd0\x69\x0a" + END)
    yield "try_table", run(b"\x1f\x40\0" + END + ZERO + END)
    yield "legacy try", run(b"\x06\x40" + END + ZERO + END)
    yield "atomic.fence", run(b"\xfe\x03\0" + ZERO + END)
    yield "memory.atomic.notify", wasted(ZERO * 2 + b"\xfe\x00\2\0")
    yield "i32.atomic.load", wasted(ZERO + b"\xfe\x10\2\0")
    yield "i32.atomic.rmw.add", wasted(ZERO * 2 + b"\xfe\x1e\2\0")
    yield "i64.add128", run(CONST[I64] * 4 + b"\xfc\x13" + DROP * 2 + ZERO + END)
    yield "i64.mul_wide_u", run(CONST[I64] * 2 + b"\xfc\x16" + DROP * 2 + ZERO + END)
    ternary = {*range(0x105, 0x10D), 0x113}
    for opcode in range(0x100, 0x114):
        operands = 3 if opcode in ternary else 1 if 0x101 <= opcode <= 0x104 else 2
        code = CONST[V128] * operands + b"\xfd" + uleb(opcode)
        yield f"relaxed vector opcode {opcode:#05x}", wasted(code)


def _types() -> Iterator[Case]:
    for name, entry in {
        "form 0x00": b"\x00\0\0",
        "form 0x40": b"\x40\0\0",
        "form 0x61": b"\x61\0\0",
        "struct": b"\x5f\1\x7f\0",
        "array": b"\x5e\x7f\0",
        "recursive group": b"\x4e\1" + func(),
        "open subtype": b"\x50\0" + func(),
        "final subtype": b"\x4f\0" + func(),
        "shared": b"\x65" + func(),
        "continuation": b"\x5d\0",
        "void param": func(b"\x40"),
        "param of type 0x00": func(b"\0"),
        "packed param": func(b"\x78"),
        "externref": func(b"\x6f"),
        "anyref": func(b"\x6e"),
        "i31ref": func(b"\x6c"),
        "exnref": func(b"\x69"),
        "non-null funcref": b"\x60\1\x64\x70\0",
        "typed reference": b"\x60\1\x63\0\0",
        "undefined typed reference": b"\x60\1\x63\x09\0",
        "1001 params": func(bytes([I32]) * 1001),
        "1001 results": func(b"", bytes([I32]) * 1001),
    }.items():
        yield f"type: {name}", build((TYPE, vec(func(b"", bytes([I32])), entry)))
    yield (
        "function of an undefined type",
        build((FUNCTION, vec(b"\0", b"\1")), (CODE, vec(body(ZERO + END), body(ZERO + END)))),
    )
    yield "function without any type", join(without(TYPE))


def _limits() -> Iterator[Case]:
    for name, limits in {
        "minimum above maximum": b"\1\2\1",
        "above 4 GiB": b"\0" + uleb(65_537),
        "maximum above 4 GiB": b"\1\1" + uleb(65_537),
        "shared": b"\3\1\1",
        "shared without a maximum": b"\2\1",
        "64 bits": b"\4\1",
        "64 bits with a maximum": b"\5\1\1",
        "pages of a byte": b"\x08\1\0",
        "unknown flags": b"\x10\1",
        "padded flags": b"\x80\0\1",
    }.items():
        yield f"memory: {name}", build((MEMORY, vec(limits)))
    yield "two memories", build((MEMORY, vec(b"\0\1", b"\0\1")))
    imported = (IMPORT, vec(sized(b"m") + sized(b"m") + b"\2\0\1"))
    yield "a memory and an imported one", build(imported)
    for name, entry in {
        "minimum above maximum": b"\x70\1\2\1",
        "of i32": b"\x7f\0\1",
        "of externref": b"\x6f\0\1",
        "of non-null references": b"\x64\x70\0\1",
        "shared": b"\x70\3\1\1",
        "64 bits": b"\x70\4\1",
        "unknown flags": b"\x70\x08\1",
        "with an initial value": b"\x40\0\x70\0\1\xd0\x70" + END,
        "of 4 billion elements": b"\x70\0" + uleb(2**32 - 1),
    }.items():
        yield f"table: {name}", build((TABLE, vec(entry)))
    yield "101 tables", build((TABLE, vec(*[b"\x70\0\0"] * 101)))
    yield "a tag", build((TYPE, vec(func(b"", bytes([I32])), func())), (TAG, vec(b"\0\1")))


BAD_NAMES = {
    "a lone continuation": b"\x80",
    "a cut sequence": b"\xc3",
    "an overlong slash": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "the byte ff": b"\xff",
}


def _names() -> Iterator[Case]:
    for name, text in BAD_NAMES.items():
        bad, good, what = sized(text), sized(b"m"), b"\3\x7f\0"
        yield f"export named {name}", build((EXPORT, vec(MEMORY_EXPORT, RUN_EXPORT, bad + b"\0\0")))
        yield f"import from {name}", build((IMPORT, vec(bad + good + what)))
        yield f"import of {name}", build((IMPORT, vec(good + bad + what)))
        yield f"custom section named {name}", build() + section(0, bad)


def _imports_and_exports() -> Iterator[Case]:
    for name, what in {
        "function of an undefined type": b"\0\x09",
        "unknown kind 5": b"\5\0",
        "unknown kind 0x7f": b"\x7f\0",
        "tag": b"\4\0\0",
        "global with unknown mutability": b"\3\x7f\4",
        "global of an unknown type": b"\3\x40\0",
        "externref global": b"\3\x6f\0",
        "memory with minimum above maximum": b"\2\1\2\1",
        "table of i64": b"\1\x7e\0\1",
    }.items():
        entry = sized(b"m") + sized(b"n") + what
        changes = [(MEMORY, vec())] if what[0] == 2 else []
        yield f"import: {name}", build((IMPORT, vec(entry)), *changes)
    for name, entry in {
        "memory twice": MEMORY_EXPORT,
        "run twice": RUN_EXPORT,
        "one name for two things": export(b"run", 2, 0),
        "undefined function": export(b"f", 0, 1),
        "undefined table": export(b"t", 1, 0),
        "undefined memory": export(b"m", 2, 1),
        "undefined global": export(b"g", 3, 0),
        "tag": export(b"e", 4, 0),
        "unknown kind 5": export(b"x", 5, 0),
        "unknown kind 0xff": export(b"x", 0xFF, 0),
        "function 4294967295": export(b"f", 0, 2**32 - 1),
    }.items():
        yield f"export: {name}", build((EXPORT, vec(MEMORY_EXPORT, RUN_EXPORT, entry)))
    yield "start: undefined function", build((START, b"\1"))
    yield "start: returns a value", build((START, b"\0"))
    yield (
        "start: takes a value",
        build(
            (TYPE, vec(func(b"", bytes([I32])), func(bytes([I32])))),
            (FUNCTION, vec(b"\0", b"\1")),
            (START, b"\1"),
            (CODE, vec(body(ZERO + END), body(END))),
        ),
    )


def _globals() -> Iterator[Case]:
    for name, entry in {
        "an i64 for an i32": b"\x7f\0" + CONST[I64] + END,
        "an f64 for an f32": b"\x7d\0" + CONST[F64] + END,
        "an i32 for a funcref": b"\x70\0" + ZERO + END,
        "an i32 for a v128": b"\x7b\0" + ZERO + END,
        "no value": b"\x7f\0" + END,
        "two values": b"\x7f\0" + ZERO * 2 + END,
        "no end": b"\x7f\0" + ZERO,
        "an operator that is not constant": b"\x7f\0" + ZERO + b"\x67" + END,
        "a division": b"\x7f\0" + ZERO * 2 + b"\x6d" + END,
        "a call": b"\x7f\0\x10\0" + END,
        "a block": b"\x7f\0\x02\x7f" + ZERO + END + END,
        "a load": b"\x7f\0" + ZERO + b"\x28\2\0" + END,
        "a local": b"\x7f\0\x20\0" + END,
        "unreachable": b"\x7f\0\0" + END,
        "itself": b"\x7f\0\x23\0" + END,
        "an undefined global": b"\x7f\0\x23\x05" + END,
        "an undefined function": b"\x70\0\xd2\x05" + END,
        "an overlong number": b"\x7f\0\x41\x80\x80\x80\x80\x80\0" + END,
        "unknown mutability": b"\x7f\4" + ZERO + END,
        "an unknown type": b"\x40\0" + ZERO + END,
        "externref": b"\x6f\0\xd0\x6f" + END,
    }.items():
        yield f"global: {name}", build((GLOBAL, vec(entry)))
    imported = (IMPORT, vec(sized(b"m") + sized(b"g") + b"\3\x7f\1"))
    yield "global: a mutable global", build(imported, (GLOBAL, vec(b"\x7f\0\x23\0" + END)))


def _segments() -> Iterator[Case]:
    table = (TABLE, vec(b"\x70\0\1"))
    for name, entry in {
        "undefined function": b"\0" + ZERO + END + vec(b"\1"),
        "undefined table": b"\2\1" + ZERO + END + b"\0" + vec(b"\0"),
        "i64 offset": b"\0" + CONST[I64] + END + vec(b"\0"),
        "no offset": b"\0" + END + vec(b"\0"),
        "offset that is not constant": b"\0" + ZERO + b"\x45" + END + vec(b"\0"),
        "offset without end": b"\0" + ZERO + vec(b"\0"),
        "offset of an undefined global": b"\0\x23\0" + END + vec(b"\0"),
        "unknown flags": b"\x08" + ZERO + END + vec(b"\0"),
        "unknown kind of items": b"\1\1" + vec(b"\0"),
        "passive undefined function": b"\1\0" + vec(b"\2"),
        "declared undefined function": b"\3\0" + vec(b"\2"),
        "items of i32": b"\5\x7f" + vec(ZERO + END),
        "i32 item among references": b"\5\x70" + vec(ZERO + END),
        "item that is not constant": b"\5\x70" + vec(b"\x10\0" + END),
        "item without end": b"\5\x70" + vec(b"\xd0\x70"),
        "externref items": b"\5\x6f" + vec(b"\xd0\x6f" + END),
        "4 billion items": b"\1\0" + uleb(2**32 - 1),
    }.items():
        yield f"elements: {name}", build(table, (ELEMENT, vec(entry)))
    yield "elements without a table", build((ELEMENT, vec(b"\0" + ZERO + END + vec(b"\0"))))
    for name, entry in {
        "memory 1": b"\2\1" + ZERO + END + sized(b"a"),
        "i64 offset": b"\0" + CONST[I64] + END + sized(b"a"),
        "no offset": b"\0" + END + sized(b"a"),
        "offset that is not constant": b"\0" + ZERO + b"\x45" + END + sized(b"a"),
        "offset without end": b"\0" + ZERO + sized(b"a"),
        "offset of an undefined global": b"\0\x23\0" + END + sized(b"a"),
        "unknown flags": b"\3" + sized(b"a"),
        "bytes past the end": b"\1\x05a",
        "4 GiB": b"\1" + uleb(2**32 - 1),
    }.items():
        yield f"data: {name}", build((DATA, vec(entry)))
    no_memory = [*without(MEMORY, EXPORT, CODE), (EXPORT, vec(RUN_EXPORT)), (CODE, PLAIN[CODE])]
    active = vec(b"\0" + ZERO + END + sized(b"a"))
    yield "data without a memory", join([*no_memory, (DATA, active)])
    for name, count, data in (("low", b"\0", active), ("high", b"\2", active)):
        yield f"data count too {name}", build((COUNT, count), (DATA, data))
    yield "data count without data", build((COUNT, b"\1"))


def corpus() -> list[Case]:
    """Every module and the name of its fault, always in the same order."""
    families = (
        _truncations, _headers, _sections, _counts, _numeric, _memory_access, _bodies, _opcodes,
        _types, _limits, _names, _imports_and_exports, _globals, _segments,
    )  # fmt: skip
    return [case for family in families for case in family()]
