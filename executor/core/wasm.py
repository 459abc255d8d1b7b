"""The framing of a Wasm file: where its sections begin and end, and the names of custom ones.

This is all that the supervisor reads of a module before trust is known, and all it ever decodes;
what is inside a section is the business of the compiler process, in its jail. Every loop is
bounded, nothing is copied, and no section is larger than the file says it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from executor.errors import ExecutorError
from executor.sizes import MIB

# Of any file; what a signer's modules may have is policy (`core.complexity`).
MODULE_MAX: Final = 32 * MIB
SECTIONS_MAX: Final = 4096
NAME_MAX: Final = 256  # bytes of a custom section's name
HEADER: Final = 8  # bytes of magic in front of the first section
CUSTOM: Final = 0  # the id of a custom section

Kind = Literal["core", "component"]

_MAGIC: Final[dict[bytes, Kind]] = {
    b"\0asm\x01\0\0\0": "core",
    b"\0asm\x0d\0\x01\0": "component",
}
_U32_MAX: Final = 2**32 - 1
_U32_BYTES: Final = 5  # the longest LEB128 that the core specification allows for a u32


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a file, as offsets into it."""

    id: int
    name: str  # of a custom section, else ""
    start: int  # of the id
    payload: int  # behind id and size, for a custom section also behind its name
    end: int


def _invalid(detail: str) -> ExecutorError:
    return ExecutorError("module.invalid", detail)


def uleb(n: int) -> bytes:
    """`n` as unsigned LEB128 in its shortest form; a u32, else `ValueError`."""
    if not 0 <= n <= _U32_MAX:
        raise ValueError(f"not a u32: {n}")
    out = bytearray()
    while n > 0x7F:  # noqa: PLR2004
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def read_uleb(data: bytes, offset: int, *, minimal: bool) -> tuple[int, int]:
    """The u32 at `offset` and the offset behind it; `minimal` refuses padding.

    Errors  `module.invalid`: cut short, longer than 5 bytes, above a u32, padded.
    """
    value = 0
    for index, byte in enumerate(data[offset : offset + _U32_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004
            if value > _U32_MAX:
                raise _invalid(f"a number at byte {offset} does not fit 32 bits")
            if minimal and index and not byte:
                raise _invalid(f"a number at byte {offset} is not in its shortest form")
            return value, offset + index + 1
    raise _invalid(f"a number at byte {offset} does not end")


def kind(module: bytes) -> Kind:
    """What the file says it is.

    Errors  `module.invalid` if it says neither.
    """
    found = _MAGIC.get(bytes(module[:HEADER]))
    if found is None:
        raise _invalid("it does not begin as a core module or a component does")
    return found


def sections(module: bytes) -> tuple[Section, ...]:
    """All sections of `module`, which they fill without a gap.

    Errors  `module.too-complex` above MODULE_MAX; `module.invalid` for a magic that is neither core
            nor component, a size that is no u32 or reaches past the end, more than 4096 sections,
            a custom section without a name of at most 256 bytes of UTF-8.
    """
    if len(module) > MODULE_MAX:
        raise ExecutorError("module.too-complex", f"{len(module)} bytes, at most {MODULE_MAX}")
    kind(module)
    found: list[Section] = []
    start = HEADER
    while start < len(module):
        if len(found) == SECTIONS_MAX:
            raise _invalid(f"more than {SECTIONS_MAX} sections")
        size, payload = read_uleb(module, start + 1, minimal=False)
        end = payload + size
        if end > len(module):
            raise _invalid(f"the section at byte {start} reaches past the end")
        name = ""
        if module[start] == CUSTOM:
            name, payload = _name(module, payload, end)
        found.append(Section(id=module[start], name=name, start=start, payload=payload, end=end))
        start = end
    return tuple(found)


def _name(module: bytes, offset: int, end: int) -> tuple[str, int]:
    size, start = read_uleb(module, offset, minimal=False)
    if size > NAME_MAX or start + size > end:
        raise _invalid(f"the name at byte {offset} is too long")
    try:
        return module[start : start + size].decode(), start + size
    except UnicodeDecodeError as error:
        raise _invalid(f"the name at byte {offset} is not UTF-8") from error


def custom(name: str, payload: bytes) -> bytes:
    """A custom section in its shortest form; the name ≤ 256 bytes, else `ValueError`."""
    encoded = name.encode()
    if len(encoded) > NAME_MAX:
        raise ValueError(f"the name of a section is longer than {NAME_MAX} bytes")
    content = uleb(len(encoded)) + encoded + payload
    return bytes([CUSTOM]) + uleb(len(content)) + content
