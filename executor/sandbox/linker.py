"""Modules, functions and instances through wasmtime's public API: one side of `machine`.

A Linker and an InstancePre are made once per module, with all of `executor:task@1` and beyond
that only the granted functions: what is not granted does not exist for the guest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import wasmtime

from executor.core import abi
from executor.errors import ExecutorError
from executor.sandbox import traps
from executor.sandbox.host import Act, Host
from executor.sandbox.machine import TABLES_MAX, Program
from executor.sandbox.memory import PAGE
from executor.sandbox.raw import Raw, RawProgram

T = TypeVar("T")


class PublicMachine:
    """One Store and Instance; see `machine.Machine`."""

    def __init__(
        self, engine: wasmtime.Engine, pre: wasmtime.InstancePre, *, fuel: int, memory_bytes: int,
        table_elements: int,
    ) -> None:  # fmt: skip
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=memory_bytes, table_elements=table_elements, instances=1,
            tables=TABLES_MAX, memories=1,
        )  # fmt: skip
        self._store.set_fuel(fuel)
        self._pre = pre
        self._exports: Mapping[str, object] | None = None
        self._memory: wasmtime.Memory | None = None

    def instantiate(self) -> None:
        """Run the start section and find the exports."""
        instance = self._enter(lambda: self._pre.instantiate(self._store))
        self._exports = instance.exports(self._store)
        memory = self._exports[abi.MEMORY]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory

    def call(self, name: str) -> int | None:
        """Call an export whose type `prepare` has checked."""
        assert self._exports is not None
        function = self._exports[name]
        assert isinstance(function, wasmtime.Func)
        result: int | None = self._enter(lambda: function(self._store))
        return result

    @staticmethod
    def _enter(guest: Callable[[], T]) -> T:
        """Run guest code; what a host call raised passes as it is."""
        try:
            return guest()
        except wasmtime.Trap as trap:
            ended = traps.ended(trap)
            # The library's frames refer to the trap and the trap to them: cut, so that ten
            # thousand traps are freed at once and not when the collector finds them.
            trap.__traceback__ = None
            trap.close()
        except wasmtime.WasmtimeError as error:
            ended = traps.refused(error)
            error.__traceback__ = None
            error.close()
        raise ended

    def locate(self) -> tuple[int, int]:
        """Address and size, from the engine each time."""
        assert self._memory is not None
        pointer = self._memory.data_ptr(self._store)
        return ctypes.addressof(pointer.contents), self._memory.data_len(self._store)

    def size(self) -> int:
        """Bytes of the exported memory, now."""
        assert self._memory is not None
        return self._memory.data_len(self._store)

    def fuel(self) -> int:
        """Fuel left."""
        return self._store.get_fuel()

    def set_fuel(self, fuel: int) -> None:
        """Replace the fuel left."""
        self._store.set_fuel(fuel)

    def close(self) -> None:
        """Free the Store and with it the Instance and its memory."""
        self._store.close()


class PublicProgram:
    """A module and its InstancePre; see `machine.Program`."""

    def __init__(
        self, engine: wasmtime.Engine, pre: wasmtime.InstancePre, *, memory_min: int,
        initializes: bool,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._pre = pre
        self.memory_min = memory_min
        self.initializes = initializes

    def machine(self, *, fuel: int, memory_bytes: int, table_elements: int) -> PublicMachine:
        """A fresh Store with these limits."""
        return PublicMachine(
            self._engine, self._pre, fuel=fuel, memory_bytes=memory_bytes,
            table_elements=table_elements,
        )  # fmt: skip


def prepare(
    engine: wasmtime.Engine, module: wasmtime.Module, functions: Iterable[str], host: Host,
    raw: Raw | None = None,
) -> Program:  # fmt: skip
    """Link `module` with `executor:task@1` and the granted functions, and nothing else.

    With `raw` its attempts take that path, else the public one.

    Errors  `policy.capability-denied` with all imports that are not granted;
            `module.import-unknown` for what no capability offers or with another type;
            `module.abi-mismatch` if the exports are not those of the ABI.
    """
    granted = {*abi.CAPABILITIES[abi.TASK], *functions}
    _check_imports(module, granted)
    memory_min, initializes = _check_exports(module)
    linker = wasmtime.Linker(engine)
    acts = {name: host.function(name) for name in sorted(granted)}
    for name, act in acts.items():
        function = abi.FUNCTIONS[name]
        kind = _function_type(function)
        if raw is None:
            linker.define_func(function.module, function.name, kind, _spread(act))
        else:
            raw.define(linker, function, kind)
    pre = linker.instantiate_pre(module)
    if raw is None:
        return PublicProgram(engine, pre, memory_min=memory_min, initializes=initializes)
    return RawProgram(raw, engine, pre, acts, memory_min=memory_min, initializes=initializes)


def _spread(act: Act) -> Callable[..., int | None]:
    return lambda *arguments: act(arguments)


def signature(kind: object) -> str:
    """A type as text: `i32 i32->i64` for a function, else the one word of its kind."""
    match kind:
        case wasmtime.FuncType():
            params = " ".join(map(str, kind.params))
            return f"{params}->{' '.join(map(str, kind.results))}"
        case wasmtime.MemoryType():
            return abi.MEMORY
        case wasmtime.TableType():
            return "table"
        case wasmtime.GlobalType():
            return "global"
        case _:
            return "other"


def spelled(function: abi.Function) -> str:
    """The signature of a function of the ABI, as `signature` spells it."""
    return f"{' '.join(function.params)}->{' '.join(function.results)}"


def _function_type(function: abi.Function) -> wasmtime.FuncType:
    kinds = {"i32": wasmtime.ValType.i32, "i64": wasmtime.ValType.i64}
    return wasmtime.FuncType(
        [kinds[name]() for name in function.params], [kinds[name]() for name in function.results]
    )


def _check_imports(module: wasmtime.Module, granted: set[str]) -> None:
    denied = set()
    for item in module.imports:
        function = abi.FUNCTIONS.get(item.name or "")
        if (
            function is None
            or function.module != item.module
            or signature(item.type) != spelled(function)
        ):
            raise ExecutorError("module.import-unknown", f"{item.module}.{item.name}")
        if function.name not in granted:
            denied.add(function.name)
    if denied:
        raise ExecutorError("policy.capability-denied", ", ".join(sorted(denied)))


def _check_exports(module: wasmtime.Module) -> tuple[int, bool]:
    exports = {item.name: item.type for item in module.exports}
    memory = exports.get(abi.MEMORY)
    if not isinstance(memory, wasmtime.MemoryType):
        raise ExecutorError("module.abi-mismatch", "it exports no memory")
    if signature(exports.get(abi.ENTRY)) != "->i32":
        raise ExecutorError("module.abi-mismatch", "it exports no `run: () -> i32`")
    initializes = abi.INITIALIZE in exports
    if initializes and signature(exports[abi.INITIALIZE]) != "->":
        raise ExecutorError("module.abi-mismatch", "its `_initialize` is not `() -> ()`")
    return memory.limits.min * PAGE, initializes
