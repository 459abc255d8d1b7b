"""What every process needs and none may look for after its lock-down: engine, traps, their words.

The first trap of a process installs signal handlers and imports what formats it; the first
instance maps memory. All of it happens once, in the zygote, on a module of our own whose input says
how it is to end. Its children inherit the result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

import wasmtime

from executor.core.frames import Answer, Call, Done, Run
from executor.errors import ExecutorError
from executor.sandbox.engine import RESERVED_BYTES, build, fingerprint, installed_version
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import prepare
from executor.sandbox.raw import Raw
from executor.sizes import MIB

_ENDS: Final = {
    "": "", "unreachable": "unreachable",
    "division": "(drop (i32.div_s (i32.const 1) (local.get 0)))",
    "overflow": "(drop (i32.div_s (i32.const -2147483648) (i32.sub (local.get 0) (i32.const 1))))",
    "conversion": "(drop (i32.trunc_f32_s (f32.const nan)))",
    "memory": "(drop (i32.load (i32.const -4)))", "table": "(drop (table.get 0 (i32.const 99)))",
    "null": "(call_indirect (type $v) (i32.const 1))",
    "signature": "(drop (call_indirect (type $i) (i32.const 0)))",
    "fuel": "(loop $l (br $l))", "stack": "(call $deep)",
    "pointer": "(call $output_write (i32.const -1) (i32.const 2))",
    "output": "(call $output_write (i32.const 0) (i32.const 9))",
    "fail": "(call $fail (i32.const 1) (i32.const 0) (i32.const 2) (i64.const 1))",
    "call": "(drop (call $kv_get (i32.const 2) (i32.const 3) (i32.const 0) (i32.const 8)))",
    "log": "(call $log_write (i32.const 9) (i32.const 0) (i32.const 2))",
    "grow": "(drop (memory.grow (i32.const 1))) (i32.store (i32.const 131068) (i32.const 7))"
            "(call $output_write (i32.const 131068) (i32.const 4))",
    "echo": "(drop (call $input_read (i32.const 9) (i32.const 0) (i32.const 4)))"
            "(call $output_write (i32.const 9) (i32.const 4))",
}  # fmt: skip
# Without a data section: the engine would keep an open descriptor for its image. The bytes stored
# at 0 are ff c3 "key": no UTF-8, then a key.
_TEXT: Final = """(module
 (type $v (func)) (type $i (func (result i32)))
 (import "executor:task@1" "input_len" (func $input_len (result i32)))
 (import "executor:task@1" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
 (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
 (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
 (import "executor:log@1" "log_write" (func $log_write (param i32 i32 i32)))
 (import "executor:kv@1" "kv_get" (func $kv_get (param i32 i32 i32 i32) (result i64)))
 (memory (export "memory") 1)
 (table 2 funcref) (elem (i32.const 0) $deep)
 (func $deep (call $deep))
 (func (export "run") (result i32) (local i32 i32)
  (local.set 1 (call $input_len))
  (i64.store (i32.const 0) (i64.const 0x79656bc3ff))
  {cases}
  (i32.const 0)))"""
_RUN: Final = Run(
    seq=1, module=0, input=b"", fuel=1_000_000, memory_bytes=MIB, table_elements=100,
    output_bytes=8, log_bytes=64, log_lines=1, calls=8, mediated_calls=1,
)  # fmt: skip


_USUAL: Final = frozenset({"", "log", "echo"})


@dataclass(frozen=True, slots=True)
class Warm:
    """An engine that has met everything once, and its fingerprint."""

    engine: wasmtime.Engine
    mark: str
    module: wasmtime.Module
    reserved: int = 0  # bytes of address space that each instance takes for its memory
    raw: Raw | None = None  # the path that attempts take; None is the public one

    def rehearse(self, names: Collection[str] = _USUAL) -> list[Done]:
        """Link the built-in module and let it end in these ways.

        What a fresh process copies at its first attempt is then behind it.
        """
        host = Host(_answer)
        program = prepare(self.engine, self.module, ("log_write", "kv_get"), host, self.raw)
        return [
            # So many bytes, and the same: which way to end, and what to echo.
            execute(program, replace(_RUN, input=bytes([place]) * place), host)
            for place, name in enumerate(_ENDS) if name in names
        ]  # fmt: skip


def warm_up(*, pooled: bool, path: str = "auto") -> Warm:
    """Build the engine, provoke each way an attempt ends, and choose the path of attempts.

    "raw" insists on the fast one, "public" on the other; "auto" takes the raw one where each of
    those attempts ends alike on both.

    Errors  `sandbox.start-failed`, also when one of them ends otherwise than it must.
    """
    engine = build(pooled=pooled)
    cases = " ".join(
        f"(if (i32.eq (local.get 1) (i32.const {place})) (then {code}))"
        for place, code in enumerate(_ENDS.values())
    )
    module = wasmtime.Module(engine, _TEXT.format(cases=cases))
    warm = Warm(engine, fingerprint(engine), module, 0 if pooled else RESERVED_BYTES)
    ended = warm.rehearse(_ENDS)
    codes = {done.code for done in ended}
    if codes != _CODES:
        found = ", ".join(sorted(codes ^ _CODES))
        raise ExecutorError("sandbox.start-failed", f"the engine's endings differ: {found}")
    if path == "public":
        return warm
    try:
        fast = replace(warm, raw=Raw(installed_version()))
        doubt = _difference(ended, fast.rehearse(_ENDS))
    except Exception as error:  # noqa: BLE001 - whatever it is, this path is not the one we know
        doubt = f"{type(error).__name__}: {error}"
    if not doubt:
        return fast
    if path == "raw":
        raise ExecutorError("sandbox.start-failed", f"no raw path: {doubt}")
    return warm


def _difference(public: Iterable[Done], raw: Iterable[Done]) -> str:
    """The first ending that the two paths do not share, times apart; empty if there is none."""
    for name, *both in zip(_ENDS, public, raw, strict=True):
        if len({replace(done, guest_us=0, host_us=0) for done in both}) > 1:
            return f"`{name}` ends otherwise"
    return ""


_CODES: Final = frozenset({
    "", "guest.trap", "limit.fuel-exhausted", "limit.stack-exhausted", "guest.bad-pointer",
    "limit.output-too-large", "guest.failed",
})  # fmt: skip


def _answer(call: Call) -> Answer:
    return Answer(call.seq, call.ordinal, 0, b"")
