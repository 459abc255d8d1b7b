"""The framing of a Wasm file: what is read of a module before trust is known."""

from __future__ import annotations

import pytest

from executor.core import wasm
from executor.errors import ExecutorError

CORE = b"\0asm\x01\0\0\0"
COMPONENT = b"\0asm\x0d\0\x01\0"


def refused(module: bytes) -> str:
    """Return the code with which `module` is refused."""
    with pytest.raises(ExecutorError) as caught:
        wasm.sections(module)
    return caught.value.code


def test_sections_tile_the_file() -> None:
    """Every byte behind the magic belongs to exactly one section, with offsets that say which."""
    module = CORE + b"\x01\x03abc" + wasm.custom("name", b"xy") + b"\x0b\0"
    first, second, third = wasm.sections(module)
    assert first == wasm.Section(id=1, name="", start=8, payload=10, end=13)
    assert (second.id, second.name, module[second.payload : second.end]) == (0, "name", b"xy")
    assert (second.start, second.end, third.start, third.end) == (13, 22, 22, len(module))


def test_an_empty_module_has_no_sections() -> None:
    """A magic alone is a module of either kind."""
    assert wasm.sections(CORE) == wasm.sections(COMPONENT) == ()
    assert (wasm.kind(CORE), wasm.kind(COMPONENT)) == ("core", "component")


@pytest.mark.covers("module.invalid")
@pytest.mark.parametrize(
    "module",
    [
        b"",
        CORE[:7],
        b"\x7fELF\x01\0\0\0",
        b"\0asm\x02\0\0\0",
        b"\0asm\x0d\0\x02\0",
        CORE + b"\x01",
        CORE + b"\x01\x80",
        CORE + b"\x01\x02a",
        CORE + b"\x01\x80\x80\x80\x80\x80\x00",
        CORE + b"\x01\xff\xff\xff\xff\x1f",
        CORE + b"\0\0",
        CORE + b"\0\x02\x02a",
        CORE + b"\0\x01\x80" + b"\x01\x00",
        CORE + b"\0\x03\x02\xff\xfe",
        CORE + b"\0\x83\x02\x81\x02" + b"n" * 257,
    ],
    ids=[
        "empty", "cut magic", "no Wasm", "core version", "component version",
        "no size", "endless size", "past the end", "overlong size", "size above u32",
        "no name", "name past its section", "endless name size", "name not UTF-8", "long name",
    ],
)  # fmt: skip
def test_bad_framing_is_refused(module: bytes) -> None:
    """A file whose sections cannot be told apart without doubt is no module."""
    assert refused(module) == "module.invalid"


def test_the_number_of_sections_is_bounded() -> None:
    """4096 sections pass and one more does not."""
    assert len(wasm.sections(CORE + b"\x01\0" * 4096)) == 4096
    assert refused(CORE + b"\x01\0" * 4097) == "module.invalid"


@pytest.mark.covers("module.too-complex")
def test_the_size_of_the_file_is_bounded() -> None:
    """A module of 1 MiB passes and a byte more does not, whatever it contains."""
    head = CORE + b"\x0b" + wasm.uleb(wasm.MODULE_MAX - 13)
    assert wasm.sections(head + bytes(wasm.MODULE_MAX - len(head)))[0].end == wasm.MODULE_MAX
    assert refused(bytes(wasm.MODULE_MAX + 1)) == "module.too-complex"


def test_padded_sizes_are_framing_as_good_as_any() -> None:
    """Linkers pad sizes to five bytes; that is legal Wasm and only signing shortens it."""
    (section,) = wasm.sections(CORE + b"\x01\x83\x80\x80\x80\x00abc")
    assert (section.payload, section.end) == (14, 17)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\0"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (624_485, b"\xe5\x8e\x26"),
        (2**32 - 1, b"\xff\xff\xff\xff\x0f"),
    ],
)
def test_numbers_have_one_shortest_form(value: int, encoded: bytes) -> None:
    """`uleb` writes what `read_uleb` reads, at any offset."""
    assert wasm.uleb(value) == encoded
    assert wasm.read_uleb(b"\xff" + encoded + b"\xff", 1, minimal=True) == (value, 1 + len(encoded))


@pytest.mark.parametrize("value", [-1, 2**32])
def test_only_u32_are_written(value: int) -> None:
    """A number that no reader would take is not written."""
    with pytest.raises(ValueError, match="not a u32"):
        wasm.uleb(value)


@pytest.mark.parametrize("padded", [b"\x80\x00", b"\x81\x80\x00", b"\x80\x80\x80\x80\x00"])
def test_padding_is_refused_where_one_spelling_is_needed(padded: bytes) -> None:
    """`minimal` refuses a last byte that adds nothing."""
    assert wasm.read_uleb(padded, 0, minimal=False)[1] == len(padded)
    with pytest.raises(ExecutorError) as caught:
        wasm.read_uleb(padded, 0, minimal=True)
    assert caught.value.code == "module.invalid"


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 5 + b"\0", b"\xff\xff\xff\xff\x1f"])
def test_numbers_that_are_no_u32_are_not_read(data: bytes) -> None:
    """A number that is cut short, too long or too large is refused where it stands."""
    with pytest.raises(ExecutorError) as caught:
        wasm.read_uleb(data, 0, minimal=False)
    assert caught.value.code == "module.invalid"


def test_a_custom_section_reads_back() -> None:
    """`custom` builds what `sections` finds, up to the longest name."""
    name = "ü" * 128
    module = CORE + wasm.custom(name, b"payload")
    (section,) = wasm.sections(module)
    assert (section.name, module[section.payload :]) == (name, b"payload")
    with pytest.raises(ValueError, match="longer than 256"):
        wasm.custom(name + "u", b"")
