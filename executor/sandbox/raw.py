"""The engine's C interface without the library's Python: the fast side of `machine`.

Four fifths of an attempt through the public API are Python and ctypes. This file keeps the same
engine, settings, limits and checks, and leaves out the objects. Its rules:

* One slot: one machine at a time, since buffers and callbacks are made once, in the zygote (after
  the lock-down no callback can be made). A second machine is a `Bug`.
* A callback never raises, ctypes would drop it: what it caught waits in the slot, the guest traps.
* Raw calls and the library's own callbacks are never mixed. A linker here has callbacks of this
  file alone: the library keeps what one of its own raised in a global, and a later, unrelated trap
  would raise it.
* Errors and traps become the library's objects at once, which decode and free them.
* An instance's addresses live as long as its machine: `close` removes them, and a use after it is
  an AttributeError, not a read of freed memory. `memory.py` alone touches what is there.

Used on the versions below, and only where `warm.py` has seen that it ends attempts as the public
API does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Final

import wasmtime
from wasmtime import _bindings, _ffi

from executor.core import abi
from executor.errors import ExecutorError
from executor.sandbox import traps
from executor.sandbox.host import Act
from executor.sandbox.machine import TABLES_MAX, Bug

# Whose symbols, layouts and calling convention were read and are tested.
VERSIONS: Final = frozenset({"50.0.1"})

_At: Final = ctypes.c_void_p
_Size: Final = ctypes.c_size_t
# Values take 16 bytes each. Seen as halves of halves: an i32 is the first, behind it stands
# whatever was there; an i64 is the first two.
_Values: Final = ctypes.POINTER(ctypes.c_int32)
_Callback: Final = ctypes.CFUNCTYPE(_Size, _At, _At, _Values, _Size)
_Trap: Final = ctypes.POINTER(_bindings.wasm_trap_t)
_Error: Final = ctypes.POINTER(_bindings.wasmtime_error_t)
_OF: Final[int] = _bindings.wasmtime_extern_t.of.offset
_ONE: Final = ctypes.c_int64(1)
_TABLES: Final = ctypes.c_int64(TABLES_MAX)
_NO: Final = _At()
_NAMES: Final = {
    name: (ctypes.c_char_p(name.encode()), _Size(len(name)))
    for name in (abi.MEMORY, abi.ENTRY, abi.INITIALIZE)
}
_RESULTS: Final = {abi.ENTRY: _Size(1), abi.INITIALIZE: _Size(0)}
_TRAP_TEXT: Final = b"host"

# By the parameters of `core.abi`; a row that is missing fails at the start.
_ARGUMENTS: Final[dict[str, Callable[[Any], tuple[int, ...]]]] = {
    "": lambda _: (),
    "i32 i32": lambda v: (v[0], v[4]),
    "i32 i32 i32": lambda v: (v[0], v[4], v[8]),
    "i32 i32 i32 i32": lambda v: (v[0], v[4], v[8], v[12]),
    "i32 i32 i32 i64": lambda v: (v[0], v[4], v[8], v[13] << 32 | v[12] & 0xFFFF_FFFF),
}


class _Library:
    """The functions used here, with prototypes of our own: the library's stay as they are.

    Those of an attempt have no parameter types, whose conversions are most of what a call costs:
    they take values of ctypes alone. A plain number would be cut to 32 bits.

    All keep Python's lock: a sandbox has one thread, and who has more waits for the guest's fuel.
    """

    def __init__(self) -> None:
        dll = ctypes.PyDLL(str(_ffi.filename))
        self.store_new = _function(dll, "store_new", _Place)
        self.context = _function(dll, "store_context", _Place)
        self.limiter = _function(dll, "store_limiter", None)
        self.set_fuel = _function(dll, "context_set_fuel", _At)
        self.get_fuel = _function(dll, "context_get_fuel", _At)
        self.find = _function(dll, "instance_export_get", ctypes.c_bool)
        self.data = _function(dll, "memory_data", _At)
        self.size = _function(dll, "memory_data_size", _Size)
        self.instantiate = _function(dll, "instance_pre_instantiate", _At)
        self.call = _function(dll, "func_call_unchecked", _At)
        self.store_delete = _function(dll, "store_delete", None)
        self.trap = _function(dll, "trap_new", _Size)
        self.trap.argtypes = ctypes.c_char_p, _Size
        self.define = _function(dll, "linker_define_func_unchecked", _At)
        self.define.argtypes = (
            _At, ctypes.c_char_p, _Size, ctypes.c_char_p, _Size, _At, _Callback, _At, _At
        )  # fmt: skip


class _Place(ctypes.c_void_p):
    """An address that stays a value of ctypes: a plain `c_void_p` would come back as a number."""


def _function(dll: ctypes.CDLL, name: str, result: Any) -> Any:
    found = dll[f"wasmtime_{name}"]  # by index it is a new object, an attribute would be shared
    found.restype = result
    return found


def _out(kind: Any) -> tuple[Any, Any]:
    """Something the engine writes to, and where it is."""
    made = kind()
    return made, _At(ctypes.addressof(made))


class Raw:
    """The raw path of a process: functions, buffers, callbacks and the one slot.

    Errors  `sandbox.start-failed`: another version; AttributeError: a function is missing.
    """

    def __init__(self, version: str) -> None:
        if version not in VERSIONS:
            raise ExecutorError("sandbox.start-failed", f"no raw path for wasmtime {version}")
        self.library: Final = _Library()
        self.machine: RawMachine | None = None
        self.functions: Mapping[str, Act] = {}  # of the program that runs
        self.raised: BaseException | None = None
        self.trap, self.trap_at = _out(_At)
        self.values, self.values_at = _out(ctypes.c_int32 * 4)
        self.fuel, self.fuel_at = _out(ctypes.c_uint64)
        self.given = ctypes.c_uint64()  # of fuel
        self._instance, self.instance_at = _out(_bindings.wasmtime_instance_t)
        self._memory, self.memory_at = _out(_bindings.wasmtime_extern_t)
        self.memory_of = _At(self.memory_at.value + _OF)
        self._export, self.export_at = _out(_bindings.wasmtime_extern_t)
        self.export_of = _At(self.export_at.value + _OF)
        self._callbacks = {name: self._callback(row) for name, row in abi.FUNCTIONS.items()}

    def _callback(self, function: abi.Function) -> Any:
        """The engine's way to the host function of this name, whoever runs."""
        name, arguments = function.name, _ARGUMENTS[" ".join(function.params)]
        result_size = {(): 0, ("i32",): 1, ("i64",): 2}[function.results]
        trap = self.library.trap

        def enter(_env: Any, _caller: Any, values: Any, _count: Any) -> int:
            try:
                result = self.functions[name](arguments(values))
                if result_size:
                    values[0] = result
                    if result_size == 2:  # noqa: PLR2004
                        values[1] = result >> 32  # type: ignore[operator]
            except BaseException as error:  # noqa: BLE001 - raised again behind the guest
                self.raised = error
                return trap(_TRAP_TEXT, len(_TRAP_TEXT))  # type: ignore[no-any-return]
            return 0

        return _Callback(enter)

    def define(
        self, linker: wasmtime.Linker, function: abi.Function, kind: wasmtime.FuncType
    ) -> None:
        """Add a host function to a linker that has none of the library's callbacks."""
        module, name = function.module.encode(), function.name.encode()
        error = self.library.define(
            _address(linker), module, len(module), name, len(name), _address(kind),
            self._callbacks[function.name], None, None,
        )  # fmt: skip
        if error:
            raise _error(error)

    def settle(self, error: int | None) -> None:
        """Raise what a call of the guest ended with.

        Errors  `Ended`, or what a host call raised.
        """
        trap, ended = self.trap.value, self.raised
        self.trap.value = self.raised = None
        # Either is freed here. What a host call raised comes first: the trap is only its messenger.
        if trap is not None:
            with wasmtime.Trap._from_ptr(ctypes.cast(trap, _Trap)) as stopped:  # noqa: SLF001
                ended = ended or traps.ended(stopped)
        if error is not None:
            with _error(error) as refused:
                ended = ended or traps.refused(refused)
        assert ended is not None
        raise ended


class RawMachine:
    """One Store and its Instance; see `machine.Machine`."""

    __slots__ = ("_context", "_inside", "_library", "_memory", "_pre", "_raw", "_store")

    def __init__(self, program: RawProgram, fuel: int) -> None:
        self._raw = raw = program.raw
        if raw.machine is not None:
            raise Bug("two machines at once")
        self._library = library = raw.library
        self._inside = False
        self._pre = program.pre
        self._store = store = library.store_new(program.engine, _NO, _NO)
        self._context = library.context(store)
        library.limiter(store, *program.limits, _ONE, _TABLES, _ONE)
        self.set_fuel(fuel)
        raw.machine, raw.functions = self, program.functions

    def instantiate(self) -> None:
        """Run the start section and find the memory."""
        raw = self._raw
        self._inside = True
        error = self._library.instantiate(self._pre, self._context, raw.instance_at, raw.trap_at)
        self._inside = False
        if error or raw.trap.value or raw.raised is not None:
            raw.settle(error)
        self._find(abi.MEMORY, raw.memory_at)
        self._memory = raw.memory_of  # not before: there stood another Store's

    def call(self, name: str) -> int | None:
        """Call an export whose type `prepare` has checked."""
        raw = self._raw
        self._find(name, raw.export_at)
        self._inside = True
        error = self._library.call(
            self._context, raw.export_of, raw.values_at, _RESULTS[name], raw.trap_at
        )
        self._inside = False
        if error or raw.trap.value or raw.raised is not None:
            raw.settle(error)
        return raw.values[0] if name == abi.ENTRY else None

    def _find(self, name: str, place: Any) -> None:
        text, length = _NAMES[name]
        if not self._library.find(self._context, self._raw.instance_at, text, length, place):
            raise Bug(f"no export {name}")

    def locate(self) -> tuple[int, int]:
        """Address and size, from the engine each time."""
        context, memory, library = self._context, self._memory, self._library
        return library.data(context, memory) or 0, library.size(context, memory)

    def size(self) -> int:
        """Bytes of the exported memory, now."""
        size: int = self._library.size(self._context, self._memory)
        return size

    def fuel(self) -> int:
        """Fuel left."""
        raw = self._raw
        error = self._library.get_fuel(self._context, raw.fuel_at)
        if error:
            raise _error(error)
        fuel: int = raw.fuel.value
        return fuel

    def set_fuel(self, fuel: int) -> None:
        """Replace the fuel left."""
        given = self._raw.given
        given.value = fuel
        error = self._library.set_fuel(self._context, given)
        if error:
            raise _error(error)

    def close(self) -> None:
        """Free the Store and with it the Instance and its memory."""
        if self._inside:
            raise Bug("closed from inside a host call")
        store = self._store
        del self._store, self._context
        self._raw.machine, self._raw.functions = None, {}
        self._library.store_delete(store)


class RawProgram:
    """A module and its InstancePre; see `machine.Program`."""

    def __init__(
        self, raw: Raw, engine: wasmtime.Engine, pre: wasmtime.InstancePre,
        functions: Mapping[str, Act], *, memory_min: int, initializes: bool,
    ) -> None:  # fmt: skip
        self.raw, self.functions = raw, functions
        # Addresses keep nothing alive.
        self._owners = (engine, pre)
        self.engine, self.pre = _address(engine), _address(pre)
        self.memory_min, self.initializes = memory_min, initializes
        # Of each Store, filled anew for each: bytes of memory, elements of a table.
        self.limits = ctypes.c_int64(), ctypes.c_int64()

    def machine(self, *, fuel: int, memory_bytes: int, table_elements: int) -> RawMachine:
        """A fresh Store with these limits."""
        memory, table = self.limits
        memory.value, table.value = memory_bytes, table_elements
        return RawMachine(self, fuel)


def _error(address: int) -> wasmtime.WasmtimeError:
    return wasmtime.WasmtimeError._from_ptr(ctypes.cast(address, _Error))  # noqa: SLF001


def _address(owner: Any) -> Any:
    return ctypes.cast(owner.ptr(), _At)
