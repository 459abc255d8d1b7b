"""wasmtime-py as its documentation shows it: the same guest, the same fuel and limits.

python -m benchmarks.peers.in_wasmtime SECONDS ECHO CALLS, two files of Wasm
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime import Engine, Func, FuncType, Linker, Module, Store, ValType

from benchmarks.peers import work
from benchmarks.peers.blocks import PAYLOAD, report

_FUEL = 1_000_000_000
_I32 = ValType.i32


def new_engine(*, fuel: bool = True) -> Engine:
    """The library's defaults, and fuel."""
    config = wasmtime.Config()
    config.consume_fuel = fuel
    return Engine(config)


def new_store(engine: Engine, *, fuel: bool = True) -> Store:
    """With the limits of a task."""
    store = Store(engine)
    store.set_limits(memory_size=2**20, table_elements=1_000, instances=1, tables=1, memories=1)
    if fuel:
        store.set_fuel(_FUEL)
    return store


def new_linker(engine: Engine, output: bytearray, payload: bytes = PAYLOAD) -> Linker:
    """Three host functions that read and write the caller's memory."""

    def input_len() -> int:
        return len(payload)

    def input_read(caller: wasmtime.Caller, dst: int, off: int, length: int) -> int:
        memory: Any = caller["memory"]
        data = payload[off : off + length]
        memory.write(caller, data, dst)
        return len(data)

    def output_write(caller: wasmtime.Caller, ptr: int, length: int) -> None:
        memory: Any = caller["memory"]
        output.extend(memory.read(caller, ptr, ptr + length))

    def unused(*_arguments: int) -> None:
        return

    linker = Linker(engine)
    three = [_I32(), _I32(), _I32()]
    task = "executor:task@1"
    linker.define_func(task, "input_len", FuncType([], [_I32()]), input_len)
    linker.define_func(task, "input_read", FuncType(three, [_I32()]), input_read,
                       access_caller=True)  # fmt: skip
    linker.define_func(task, "output_write", FuncType([_I32(), _I32()], []), output_write,
                       access_caller=True)  # fmt: skip
    linker.define_func(task, "fail", FuncType([*three, ValType.i64()], []), unused)
    linker.define_func("executor:log@1", "log_write", FuncType(three, []), unused)
    return linker


def run(store: Store, instance: Any, output: bytearray) -> None:
    """Call the guest once."""
    output.clear()
    function: Func = instance.exports(store)["run"]
    if function(store):
        raise RuntimeError("the guest failed")


def naive(code: bytes) -> Callable[[], bytearray]:
    """A Module once; a Store, a Linker and an Instance for each call."""
    engine = new_engine()
    module = Module(engine, code)

    def call() -> bytearray:
        output = bytearray()
        store = new_store(engine)
        instance = new_linker(engine, output).instantiate(store, module)
        run(store, instance, output)
        store.close()
        return output

    return call


def linked(code: bytes) -> Callable[[], bytearray]:
    """Module, Linker and InstancePre once; a Store and an Instance for each call."""
    engine, output = new_engine(), bytearray()
    pre = new_linker(engine, output).instantiate_pre(Module(engine, code))

    def call() -> bytearray:
        store = new_store(engine)
        run(store, pre.instantiate(store), output)
        store.close()
        return output

    return call


def inside(code: bytes, *, fuel: bool, payload: bytes = PAYLOAD) -> Callable[[float], list[float]]:
    """In fresh instances, the guest's run alone: µs of each, for so many seconds."""
    engine, output = new_engine(fuel=fuel), bytearray()
    pre = new_linker(engine, output, payload).instantiate_pre(Module(engine, code))

    def measure(seconds: float) -> list[float]:
        found: list[float] = []
        until = time.perf_counter() + seconds
        while not found or time.perf_counter() < until:
            store = new_store(engine, fuel=fuel)
            instance = pre.instantiate(store)
            begin = time.perf_counter()
            run(store, instance, output)
            found.append((time.perf_counter() - begin) * 1e6)
            store.close()
        return found

    return measure


def reused(code: bytes) -> Callable[[], bytearray]:
    """Everything once: what one call leaves behind, the next one finds."""
    engine, output = new_engine(), bytearray()
    store = new_store(engine)
    instance = new_linker(engine, output).instantiate(store, Module(engine, code))

    def call() -> bytearray:
        store.set_fuel(_FUEL)
        run(store, instance, output)
        return output

    return call


def from_nothing(code: bytes) -> Callable[[], bytearray]:
    """Engine and Module for each call too."""

    def call() -> bytearray:
        engine, output = new_engine(), bytearray()
        store = new_store(engine)
        instance = new_linker(engine, output).instantiate(store, Module(engine, code))
        run(store, instance, output)
        store.close()
        return output

    return call


def main(seconds: str, echo: str, calls: str) -> None:
    """Measure each way."""
    code, many = Path(echo).read_bytes(), Path(calls).read_bytes()
    ways = {
        "wasmtime-py, naive": naive(code), "wasmtime-py, InstancePre": linked(code),
        "wasmtime-py, reused instance": reused(code),
        "wasmtime-py, all from nothing": from_nothing(code),
    }  # fmt: skip
    for way in ways.values():
        if way() != PAYLOAD:
            raise RuntimeError("no echo")
    report({
        **{name: ("1 KB echo", way, 1) for name, way in ways.items()},
        "wasmtime-py, naive @calls": ("host call", naive(many), 1_000),
        "Python function": ("word count", lambda: work.count_json(work.WORDS), 1),
    }, float(seconds))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
