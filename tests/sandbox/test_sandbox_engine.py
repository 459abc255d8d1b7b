"""The engine's settings: known, on where guests need them, off where advisories lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import wasmtime

from executor.errors import ExecutorError
from executor.sandbox.engine import DEFAULTS, SETTINGS, build, check_version, fingerprint

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab

OFF = {
    "threads": "(module (memory 1 1 shared))",
    "atomics": "(module (memory 1) (func (drop (i32.atomic.load (i32.const 0)))))",
    "fence": "(module (func atomic.fence))",
    "memory64": "(module (memory i64 1))",
    "multi-memory": "(module (memory 1) (memory 1))",
    "gc": "(module (type (struct)))",
    "gc arrays": "(module (type (array i32)))",
    "i31": "(module (func (param i31ref)))",
    "externref": "(module (table 1 externref))",
    "function references": "(module (type $t (func)) (func (param (ref $t))))",
    "exceptions": "(module (tag))",
    "tail call": "(module (func $f (return_call $f)))",
    "relaxed SIMD": (
        "(module (func (param v128 v128) (result v128)"
        " (i8x16.relaxed_swizzle (local.get 0) (local.get 1))))"
    ),
    "custom page sizes": "(module (memory 1 (pagesize 1)))",
    "wide arithmetic": (
        "(module (func (param i64 i64) (result i64 i64)"
        " (i64.mul_wide_s (local.get 0) (local.get 1))))"
    ),
    "stack switching": "(module (type $f (func)) (type $c (cont $f)))",
    "components": "(component)",
}
ON = {
    "SIMD": "(module (func (result v128) (v128.const i32x4 0 0 0 0)))",
    "bulk memory": (
        "(module (memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1))))"
    ),
    "multi-value": "(module (func (result i32 i32) i32.const 1 i32.const 2))",
    "tables of functions": "(module (table 3 funcref) (func $f) (elem (i32.const 0) $f))",
    "sign extension": "(module (func (result i32) (i32.extend8_s (i32.const 1))))",
    "saturating conversion": "(module (func (result i32) (i32.trunc_sat_f32_s (f32.const nan))))",
    "mutable globals": '(module (global (export "g") (mut i32) (i32.const 0)))',
}


@pytest.mark.parametrize("proposal", OFF)
def test_an_unused_proposal_is_off(lab: Lab, proposal: str) -> None:
    """A probe module of each proposal that no guest needs does not compile."""
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(lab.engine, bytes(wasmtime.wat2wasm(OFF[proposal])))


@pytest.mark.parametrize("proposal", ON)
def test_what_toolchains_emit_compiles(lab: Lab, proposal: str) -> None:
    """The features that every toolchain emits are on."""
    wasmtime.Module(lab.engine, bytes(wasmtime.wat2wasm(ON[proposal]))).close()


def test_every_setting_of_the_library_is_known() -> None:
    """A setting that a new version brings has to be decided upon."""
    offered = {name for name, value in vars(wasmtime.Config).items() if isinstance(value, property)}
    assert offered == {name for name, _ in SETTINGS} | DEFAULTS


@pytest.mark.covers("sandbox.start-failed")
@pytest.mark.parametrize("version", ["39.0.0", "49.0.0", "50.0.0", "51.0.0", "50", "50.0.2rc1", ""])
def test_another_version_of_the_engine_refuses_to_start(version: str) -> None:
    """Below the floor, above the tested major, or no release: no sandbox."""
    with pytest.raises(ExecutorError) as caught:
        check_version(version)
    assert caught.value.code == "sandbox.start-failed"


@pytest.mark.parametrize("version", ["50.0.1", "50.0.2", "50.1.0"])
def test_a_tested_version_starts(version: str) -> None:
    """The floor itself and later releases of the same major are accepted."""
    assert check_version(version) == version


def test_a_setting_that_does_not_exist_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that the library dropped is noticed and not silently left at its default."""
    monkeypatch.setattr("executor.sandbox.engine.SETTINGS", (("wasm_no_such", False),))
    with pytest.raises(ExecutorError) as caught:
        build()
    assert caught.value.code == "sandbox.start-failed"


def test_the_fingerprint_covers_the_settings(lab: Lab) -> None:
    """Two engines with the same settings agree; another setting makes another fingerprint."""
    assert fingerprint(lab.engine) == fingerprint(build())
    config = wasmtime.Config()
    config.consume_fuel = True
    assert fingerprint(wasmtime.Engine(config)) != fingerprint(lab.engine)
    assert len(fingerprint(lab.engine)) <= 128
