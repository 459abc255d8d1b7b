"""What a fresh attempt and a host call cost inside the sandbox, on each path to the engine.

One process, no jail, no frames: 1 KB in and out through three host calls, fuel and memory limited,
a fresh Store and Instance each time. The naive contender is what the library's documentation
shows: Store, Linker and Instance for each task, functions that are given their caller.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Final

import wasmtime

from executor.core import abi
from executor.core.frames import Answer, Call, Run
from executor.model import KIB, MIB
from executor.sandbox.engine import build, installed_version
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import prepare
from executor.sandbox.raw import Raw

TEXT: Final = """(module
 (import "executor:task@1" "input_len" (func $len (result i32)))
 (import "executor:task@1" "input_read" (func $read (param i32 i32 i32) (result i32)))
 (import "executor:task@1" "output_write" (func $write (param i32 i32)))
 (memory (export "memory") 2)
 (func (export "run") (result i32) (local i32)
  (local.set 0 (call $len))
  (drop (call $read (i32.const 1024) (i32.const 0) (local.get 0)))
  (call $write (i32.const 1024) (local.get 0)) (i32.const 0)))"""
CALLS: Final = 1_000
_CALLING: Final = f"""(module
 (import "executor:task@1" "input_read" (func $read (param i32 i32 i32) (result i32)))
 (memory (export "memory") 2)
 (func (export "run") (result i32) (local i32)
  (loop $l
   (drop (call $read (i32.const 1024) (i32.const 0) (i32.const 64)))
   (br_if $l (i32.ne (i32.const {CALLS})
                     (local.tee 0 (i32.add (local.get 0) (i32.const 1))))))
  (i32.const 0)))"""
_RUN: Final = Run(
    seq=1, module=0, input=b"x" * KIB, fuel=10_000_000, memory_bytes=64 * MIB,
    table_elements=20_000, output_bytes=512 * KIB, log_bytes=64 * KIB, log_lines=256,
    calls=10_000, mediated_calls=64,
)  # fmt: skip
_BLOCK: Final = 2_000


def _unasked(call: Call) -> Answer:
    raise AssertionError(call)


def _ours(raw: Raw | None, text: str, *, pooled: bool) -> Callable[[], None]:
    engine = build(pooled=pooled)
    host = Host(_unasked)
    program = prepare(engine, wasmtime.Module(engine, text), (), host, raw)

    def attempt() -> None:
        done = execute(program, _RUN, host)
        assert not done.code, done

    return attempt


def _naive(*, types_kept: bool) -> Callable[[], None]:
    engine = build(pooled=False)
    module = wasmtime.Module(engine, TEXT)
    i32 = wasmtime.ValType.i32()

    def make_types() -> list[wasmtime.FuncType]:
        return [wasmtime.FuncType([], [i32]), wasmtime.FuncType([i32, i32, i32], [i32]),
                wasmtime.FuncType([i32, i32], [])]  # fmt: skip

    kept = make_types()

    def attempt() -> None:
        output = bytearray()

        def read(caller: wasmtime.Caller, place: int, offset: int, length: int) -> int:
            memory = caller["memory"]
            assert isinstance(memory, wasmtime.Memory)
            return memory.write(caller, _RUN.input[offset : offset + length], place)

        def write(caller: wasmtime.Caller, place: int, length: int) -> None:
            memory = caller["memory"]
            assert isinstance(memory, wasmtime.Memory)
            output.extend(memory.read(caller, place, place + length))

        store = wasmtime.Store(engine)
        store.set_limits(memory_size=_RUN.memory_bytes)
        store.set_fuel(_RUN.fuel)
        linker = wasmtime.Linker(engine)
        kinds = kept if types_kept else make_types()
        linker.define_func(abi.TASK, "input_len", kinds[0], lambda: len(_RUN.input))
        linker.define_func(abi.TASK, "input_read", kinds[1], read, access_caller=True)
        linker.define_func(abi.TASK, "output_write", kinds[2], write, access_caller=True)
        run = linker.instantiate(store, module).exports(store)["run"]
        assert isinstance(run, wasmtime.Func)
        assert run(store) == 0
        assert output == _RUN.input
        store.close()

    return attempt


def _cost(attempt: Callable[[], None], count: int) -> float:
    """CPU microseconds each."""
    begin = time.process_time_ns()
    for _ in range(count):
        attempt()
    return (time.process_time_ns() - begin) / count / 1_000


def main(rounds: int, *, as_json: bool) -> None:
    """Take turns, print medians."""
    raw = Raw(installed_version())
    attempts = {
        "raw": _ours(raw, TEXT, pooled=True),
        "raw, on-demand": _ours(raw, TEXT, pooled=False),
        "public": _ours(None, TEXT, pooled=True),
        "naive": _naive(types_kept=False),
        "naive, types made once": _naive(types_kept=True),
    }
    calls = {name: _ours(path, _CALLING, pooled=True)
             for name, path in (("raw", raw), ("public", None))}  # fmt: skip
    seen: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first warms up
        for name, attempt in attempts.items():
            took = _cost(attempt, _BLOCK)
            if number:
                seen.setdefault(f"attempt, {name}", []).append(took)
        for name, attempt in calls.items():
            took = _cost(attempt, _BLOCK // 100) / CALLS
            if number:
                seen.setdefault(f"host call of 64 bytes, {name}", []).append(took)
    rows = {
        name: {"us": round(median(each), 2), "least": round(min(each), 2),
               "most": round(max(each), 2)}
        for name, each in seen.items()
    }  # fmt: skip
    ratio = median(
        naive / ours
        for naive, ours in zip(seen["attempt, naive"], seen["attempt, raw"], strict=True)
    )
    if as_json:
        print(json.dumps({"rows": rows, "naive/raw": round(ratio, 2), "rounds": rounds}))
        return
    for name, row in rows.items():
        print(f"{name:34} {row['us']:8.2f} µs  ({row['least']:.2f}-{row['most']:.2f})")
    print(f"naive / raw, median of the rounds  {ratio:8.2f}")
