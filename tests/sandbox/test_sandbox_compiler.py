"""The compiler process: accepts, describes, rejects, and dies within its budget."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import wasmtime

from executor.core.frames import Compiled, Rejected
from executor.model import MIB

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab, Rooms

RUN = '(func $run (export "run") (result i32) (i32.const 0))'


def test_a_module_becomes_an_artifact(rooms: Rooms, lab: Lab) -> None:
    """Imports and exports come with their types as the ABI spells them, memory in bytes."""
    body = (
        RUN + '(func (export "use") (drop (call $clock_now_ns)) (call $fail (i32.const 1)'
        ' (i32.const 0) (i32.const 0) (i64.const 0))) (table (export "t") 1 funcref)'
        '(global (export "g") i32 (i32.const 0)) (func (export "mv") (param f32 f64)'
        " (result f64 i64) unreachable)"
    )
    answer, artifact, status = rooms.compile(lab.binary(body))
    assert isinstance(answer, Compiled)
    assert answer.imports == (
        ("executor:task@1", "fail", "i32 i32 i32 i64->"),
        ("executor:clock@1", "clock_now_ns", "->i64"),
    )
    assert answer.exports == (
        ("memory", "memory"), ("run", "->i32"), ("use", "->"), ("t", "table"), ("g", "global"),
        ("mv", "f32 f64->f64 i64"),
    )  # fmt: skip
    assert answer.memory_min == 65_536
    assert (answer.artifact_bytes, status) == (os.fstat(artifact).st_size, 0)


def test_its_artifact_loads_and_runs(rooms: Rooms, lab: Lab) -> None:
    """A sandbox takes the artifact that a compiler wrote."""
    room = rooms.ready(lab.text(RUN))
    room.send(lab.again())
    assert room.done().code == ""


def test_a_module_without_memory_has_none(rooms: Rooms) -> None:
    """What the ABI asks for is the supervisor's to check; the compiler describes."""
    answer, _, _ = rooms.compile(bytes(wasmtime.wat2wasm("(module)")))
    assert isinstance(answer, Compiled)
    assert (answer.imports, answer.exports, answer.memory_min) == ((), (), 0)


@pytest.mark.covers("module.invalid")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0asm",
        b"(module)",  # the text form is for builds, never for tasks
        b"\0asm\x0d\0\x01\0",  # a component
        b"\0asm\x01\0\0\0\x01\xff",
        bytes(wasmtime.wat2wasm("(module (memory 1 1 shared))")),
    ],
)
def test_what_is_no_module_is_rejected(rooms: Rooms, data: bytes) -> None:
    """Bytes that are no module of the allowed kind are refused in one line."""
    answer, artifact, status = rooms.compile(data)
    assert isinstance(answer, Rejected)
    assert (answer.code, status, os.fstat(artifact).st_size) == ("module.invalid", 0, 0)
    assert "\n" not in answer.message


def test_a_minimum_above_the_cap_is_rejected(rooms: Rooms) -> None:
    """Memory at the start above the tenant's cap is refused before anything is stored."""
    module = bytes(wasmtime.wat2wasm('(module (memory (export "memory") 17))'))
    answer, artifact, _ = rooms.compile(module, memory_max=MIB)
    assert isinstance(answer, Rejected)
    assert answer.code == "limit.memory-exceeded"
    assert os.fstat(artifact).st_size == 0
    answer, _, _ = rooms.compile(module, memory_max=17 * 65_536)
    assert isinstance(answer, Compiled)


@pytest.mark.covers("module.too-complex")
@pytest.mark.parametrize(
    "line",
    [
        '(import "env" "f{}" (func))',
        '(func (export "f{}"))',
    ],
)
def test_too_many_imports_or_exports(rooms: Rooms, line: str) -> None:
    """What no frame may carry is refused, not cut."""
    body = "".join(map(line.format, range(1001)))
    answer, _, _ = rooms.compile(bytes(wasmtime.wat2wasm(f"(module {body})")))
    assert isinstance(answer, Rejected)
    assert answer.code == "module.too-complex"


@pytest.mark.parametrize(
    "line",
    [
        f'(func (export "{"n" * 129}"))',
        f'(import "{"n" * 129}" "f" (func))',
        f'(func (export "f") (param {"i32 " * 90}))',
    ],
)
def test_too_long_names_and_types(rooms: Rooms, line: str) -> None:
    """Names above 128 characters and endless types are refused."""
    answer, _, _ = rooms.compile(bytes(wasmtime.wat2wasm(f"(module {line})")))
    assert isinstance(answer, Rejected)
    assert answer.code == "module.too-complex"


def test_a_module_that_wants_too_much_memory_to_compile(rooms: Rooms) -> None:
    """A bomb of 70 KB, within all static caps, hits the budget: no answer, and an exit says so."""
    # Each of the locals becomes a value that each of the nested loops has to carry.
    names = [f"$l{index}" for index in range(900)]
    depth = 8_000
    use = "".join(f"(local.set {n} (i64.add (local.get {n}) (i64.const 1)))" for n in names)
    function = (
        f"(func (param i32) {''.join(f'(local {n} i64)' for n in names)}"
        f"{'(loop ' * depth} {use} {'(br_if 0 (local.get 0)))' * depth})"
    )
    bomb = bytes(wasmtime.wat2wasm(f"(module {function})"))
    assert len(bomb) < 80 * 1024
    answer, artifact, status = rooms.compile(bomb)
    assert answer is None
    # The engine aborts where an allocation fails; on a slow machine the time may be up first.
    assert status in {-signal.SIGABRT, -signal.SIGXCPU}
    assert os.fstat(artifact).st_size == 0


def test_a_vector_at_the_edge_of_a_module(rooms: Rooms) -> None:
    """The engine's C interface aborts on a v128 in an export's type: it never sees one."""
    answer, _, status = rooms.compile(
        bytes(wasmtime.wat2wasm('(module (func (export "f") (param v128)))'))
    )
    assert isinstance(answer, Rejected)
    assert (answer.code, status) == ("module.abi-mismatch", 0)


def test_a_compiler_serves_one_module(rooms: Rooms, lab: Lab) -> None:
    """After one module the process is gone: nothing of it reaches the next."""
    _, _, status = rooms.compile(lab.binary(RUN))
    assert status == 0
