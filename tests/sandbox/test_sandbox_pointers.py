"""Pointer games on every host function: nothing acts before every range was checked."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.core.frames import Done
from executor.sandbox.memory import U32_MASK, BadPointer, GuestMemory

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab

SIZE = 65_536
# (pointer, length): behind the end, across it, negative, huge, and sums that wrap at 2 to the 32.
OUTSIDE = [
    (SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (0, SIZE + 1), (-1, 1), (-8, 4), (-8, 8), (-1, 0),
    (4, -1), (8, -8), (0, -(2**31)), (-(2**31), 1), (2**31 - 1, 2**31 - 1), (1, U32_MASK),
]  # fmt: skip
# Every range of every host function as (result, arguments): (p, n) is the range under test, (0, 1)
# a legal key or value.
PLACES = {
    "input_read": ("i32", "{p} 0 {n}"),
    "input_read past its end": ("i32", "{p} 9 {n}"),
    "output_write": ("", "{p} {n}"),
    "fail": ("", "2 {p} {n} i64"),
    "take": ("i32", "{p} {n}"),
    "log_write": ("", "1 {p} {n}"),
    "random_fill": ("", "{p} {n}"),
    "kv_get key": ("i64", "{p} {n} 0 1"),
    "kv_get buffer": ("i64", "0 1 {p} {n}"),
    "kv_put key": ("i64", "{p} {n} 0 1"),
    "kv_put value": ("i64", "0 1 {p} {n}"),
    "kv_delete key": ("i64", "{p} {n}"),
}


def call(lab: Lab, name: str, pointer: int, length: int, **fields: Any) -> Done:
    """One attempt that makes this call; the first byte of memory is a legal key."""
    result, arguments = PLACES[name]
    numbers = arguments.format(p=pointer, n=length).split()
    values = " ".join("(i64.const 0)" if n == "i64" else f"(i32.const {n})" for n in numbers)
    code = f"(call ${name.partition(' ')[0]} {values})"
    code = f"(drop {code})" if result else code
    body = f'(data (i32.const 0) "k") (func (export "run") (result i32) {code} (i32.const 0))'
    return lab.run(body, **fields)


@pytest.mark.parametrize(("pointer", "length"), OUTSIDE)
@pytest.mark.parametrize("name", PLACES)
def test_a_range_outside_memory(lab: Lab, name: str, pointer: int, length: int) -> None:
    """A range outside memory ends the attempt, and nothing happened before."""
    done = call(lab, name, pointer, length, input=b"abc")
    assert (done.code, done.output, done.logs) == ("guest.bad-pointer", b"", ())
    assert dict(done.facts)["last_call"] == name.partition(" ")[0]
    assert lab.kv.calls == []


@pytest.mark.parametrize("name", PLACES)
def test_an_empty_range_at_the_very_end(lab: Lab, name: str) -> None:
    """An empty range may start where memory ends."""
    assert call(lab, name, SIZE, 0).code in {"", "guest.failed"}


@pytest.mark.parametrize("name", PLACES)
def test_a_range_that_ends_where_memory_ends(lab: Lab, name: str) -> None:
    """The last byte of memory is inside."""
    assert call(lab, name, SIZE - 1, 1, input=b"a").code in {"", "guest.failed"}


@pytest.mark.parametrize("name", PLACES)
def test_all_of_memory(lab: Lab, name: str) -> None:
    """A range as large as memory is inside; what is too long for its purpose is not an error."""
    assert call(lab, name, 0, SIZE, input=b"a").code in {"", "guest.failed"}


def test_memory_that_grew_is_seen_at_once(lab: Lab) -> None:
    """Grown memory is looked for: a range in the new pages is legal, and in its place."""
    done = lab.run(
        '(func (export "run") (result i32)'
        "(call $output_write (i32.const 0) (i32.const 1)) (drop (memory.grow (i32.const 9)))"
        "(i32.store8 (i32.const 655359) (i32.const 65))"
        "(call $output_write (i32.const 655359) (i32.const 1)) (i32.const 0))"
    )
    assert (done.code, done.output, done.memory_bytes) == ("", b"\0A", 655_360)


def test_memory_without_a_page(lab: Lab) -> None:
    """In an empty memory only the empty range at 0 is inside."""
    body = (
        '(func (export "run") (result i32)'
        " (call $output_write (i32.const 0) (i32.const {})) (i32.const 0))"
    )
    memory = '(memory (export "memory") 0)'
    assert lab.run(body.format(0), memory=memory).code == ""
    assert lab.run(body.format(1), memory=memory).code == "guest.bad-pointer"


def test_a_pointer_above_2_gib_is_legal() -> None:
    """A pointer above 2 GiB arrives negative and is masked, not refused."""
    memory = GuestMemory(lambda: (0, 2**32))
    assert len(memory.range(-8, 8)) == 8
    with pytest.raises(BadPointer):
        memory.range(-8, 9)


@given(st.integers(-(2**31), 2**32), st.integers(-(2**31), 2**32))
def test_any_range_is_bytes_or_bad_pointer(pointer: int, length: int) -> None:
    """Whatever the two numbers are: the bytes of exactly that range, or `BadPointer`."""
    data = bytes(range(256))
    buffer = ctypes.create_string_buffer(data, len(data))
    memory = GuestMemory(lambda: (ctypes.addressof(buffer), len(data)))
    start, size = pointer & U32_MASK, length & U32_MASK
    if start + size <= len(data):
        assert memory.range(pointer, length) == data[start : start + size]
    else:
        with pytest.raises(BadPointer):
            memory.range(pointer, length)


def test_a_write_is_whole_or_not_at_all() -> None:
    """A range that does not fit cannot be had, and nothing longer than a range goes into it."""
    buffer = ctypes.create_string_buffer(b"....", 4)
    memory = GuestMemory(lambda: (ctypes.addressof(buffer), 4))
    with pytest.raises(BadPointer):
        memory.range(2, 3)
    room = memory.range(1, 2)
    with pytest.raises(ValueError, match="different structures"):
        room[:3] = b"abc"
    assert buffer.raw == b"...."
    memory.range(1, 3)[:] = b"abc"
    assert buffer.raw == b".abc"


def test_no_range_is_where_another_memory_was() -> None:
    """Each instance is looked for when it begins: one in another place, or smaller, is itself."""
    first, second = (ctypes.create_string_buffer(text, 4) for text in (b"old.", b"new."))
    memory = GuestMemory(lambda: (ctypes.addressof(first), 4))
    assert bytes(memory.range(0, 4)) == b"old."
    memory.begin(lambda: (ctypes.addressof(second), 4))
    assert bytes(memory.range(0, 4)) == b"new."
    memory.begin(lambda: (ctypes.addressof(second), 2))
    with pytest.raises(BadPointer):
        memory.range(0, 4)
    assert bytes(memory.range(0, 2)) == b"ne"


def test_memory_grows_in_its_place(lab: Lab) -> None:
    """What `memory.py` builds on: the address of an instance's memory stays, whatever its size."""
    program, _ = lab.program(
        '(module (memory (export "memory") 1) (func (export "run") (result i32)'
        " (memory.grow (i32.const 500))))"
    )
    machine = program.machine(fuel=10_000, memory_bytes=501 * SIZE, table_elements=0)
    machine.instantiate()
    before = machine.locate()
    assert machine.call("run") == 1
    assert (before[1], machine.locate()) == (SIZE, (before[0], 501 * SIZE))
    machine.close()
