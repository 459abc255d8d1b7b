"""One attempt in a process: our sandbox code beside wasmtime-py as documented, and Extism.

No queue, no jail, no socket: what a fresh, limited instance costs with 1 KB in and out through host
functions. Contenders run in processes of their own, in turn: raw calls of the engine and the
library's callbacks must not meet in one. One row is a real locked sandbox, with its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import wasmtime

from benchmarks import containment
from benchmarks.environments import ROOT, UnavailableError, python, revision
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.section import Goal, Plot, Section
from tests.support import guests

# Interpreter or "", requirements, file of benchmarks.peers, its arguments.
Child = tuple[str, tuple[str, ...], str, tuple[str, ...]]
EXTISM: Final = ("extism==1.1.1", "extism-sys==1.41.0")
_LOCKED: Final = "executor, locked sandbox and its socket"
_READ_64: Final = (
    guests.RUN.replace("(result i32) ", "(result i32) (local $n i32) ", 1)
    + "(local.set $n (i32.const 998)) (loop $l"
    " (drop (call $input_read (i32.const 0) (i32.const 0) (i32.const 64)))"
    " (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    " (drop (call $input_len)) (call $output_write (i32.const 0) (i32.const 64)) (i32.const 0))"
)
# As its plug-in kits do: allocate, copy the input word by word, and name the copy as output.
_EXTISM_ECHO: Final = """(module
 (import "extism:host/env" "input_length" (func $len (result i64)))
 (import "extism:host/env" "input_load_u64" (func $load (param i64) (result i64)))
 (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
 (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
 (import "extism:host/env" "output_set" (func $out (param i64 i64)))
 (memory (export "memory") 1)
 (func (export "run") (result i32) (local $i i64) (local $n i64) (local $to i64)
  (local.set $n (call $len)) (local.set $to (call $alloc (local.get $n)))
  (loop $l
   (call $store (i64.add (local.get $to) (local.get $i)) (call $load (local.get $i)))
   (local.set $i (i64.add (local.get $i) (i64.const 8)))
   (br_if $l (i64.lt_u (local.get $i) (local.get $n))))
  (call $out (local.get $to) (local.get $n)) (i32.const 0)))"""
GOALS: Final = (
    Goal("T1 a fresh attempt with 1 KB, µs", "executor", "1 KB echo", "≤", 15),
    Goal("T1 of the naive public API, at most 1/8", "executor", "1 KB echo", "≤", 0.125,
         over="wasmtime-py, naive"),
    Goal("T7 a host call that touches memory, µs", "executor", "host call", "≤", 2),
)  # fmt: skip


def _child(interpreter: str, module: str, lib: Path, *arguments: str) -> list[dict[str, object]]:
    """Run one contender's file; the lines it prints. Errors  `UnavailableError`."""
    done = subprocess.run(
        [interpreter, "-m", f"benchmarks.peers.{module}", *arguments], cwd=lib, check=False,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(lib)}, timeout=300,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UnavailableError(said[-1] if said else f"exit {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _set_up(stack: contextlib.ExitStack, options: Options) -> tuple[Path, list[Child]]:
    """A folder where only the benchmarks are found, with the guests, and who runs them."""
    lib = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="executor-bench-")))
    (lib / "benchmarks").symlink_to(ROOT / "benchmarks")
    codes = {"echo": guests.assemble(guests.ECHO), "calls": guests.assemble(_READ_64),
             "extism": bytes(wasmtime.wat2wasm(_EXTISM_ECHO))}  # fmt: skip
    paths = {name: str(lib / f"{name}.wasm") for name in codes}
    for name, code in codes.items():
        Path(paths[name]).write_bytes(code)
    both = (paths["echo"], paths["calls"])
    children: list[Child] = [
        ("", (), "in_product", ("raw", *both)), ("", (), "in_product", ("public", *both)),
        ("", (), "in_wasmtime", both),
    ]  # fmt: skip
    if options.peers is None or "Extism" in options.peers:
        children.append(("", EXTISM, "in_extism", (paths["extism"],)))
    if options.compare:
        old = stack.enter_context(revision(options.compare))
        children.insert(1, (old, (), "in_product", ("raw", *both)))
    return lib, children


async def run(options: Options) -> list[Section]:
    """All contenders, round by round."""
    section = Section("inprocess", "One attempt in a process", "python -m benchmarks inprocess")
    section.base, section.goals = "wasmtime-py, naive", list(GOALS)
    section.plots = [Plot("bars", "A fresh attempt, 1 KB in and out", ("1 KB echo",), "µs")]
    section.remarks.append(
        "Every row but the reused ones has a fresh instance a call, with fuel and limits where the "
        "runtime has them. `host call` reads 64 bytes of input, 1,000 times in an attempt."
    )
    seconds = str(options.pick(options.seconds, 1.0, 0.2))
    with contextlib.ExitStack() as stack:
        lib, children = _set_up(stack, options)
        for round_ in range(options.count(options.rounds, 5, 1)):
            for interpreter, requirements, module, arguments in children:
                note(f"inprocess, round {round_ + 1}: {module}{' (old)' if interpreter else ''}")
                try:
                    lines = await asyncio.to_thread(
                        _child, interpreter or python(requirements), module, lib, seconds,
                        *arguments,
                    )  # fmt: skip
                except UnavailableError as error:
                    section.notes[module.removeprefix("in_")] = f"not measured: {error}"
                    continue
                _take(section, lines, round_, f" at {options.compare}" if interpreter else "")
            _locked(section, round_)
    return [section]


def _take(section: Section, lines: list[dict[str, object]], round_: int, suffix: str) -> None:
    for line in lines:
        values = line["values"]
        assert isinstance(values, list)
        for value in values:
            section.add(f"{line['who']}{suffix}", str(line["metric"]), "µs", value, round_=round_)


def _locked(section: Section, round_: int) -> None:
    """The echo in a real sandbox, 64 attempts in flight: whatever path it has chosen."""
    for value in containment.echo_us():
        section.add(_LOCKED, "1 KB echo", "µs", value, round_=round_)
