"""Guests for tests of the whole host: text to signed modules, each with one behaviour.

`author` signs modules, `host` signs outcomes; both are fixed, so that the same text is the same
digest in every test and an artifact is made once a run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Iterable

import wasmtime

from executor.core import abi, manifest, signature, wasm
from executor.core.manifest import Manifest, Want
from executor.core.signature import SecretKey


def seed(name: str) -> bytes:
    """The secret half of a key of these tests: no bytes that stand in memory anyway."""
    return hashlib.sha256(name.encode()).digest()


AUTHOR = SecretKey(seed("author"))
STRANGER = SecretKey(seed("stranger"))
HOST = SecretKey(seed("host"))
FORGER = SecretKey(seed("forger"))
OPERATOR = SecretKey(seed("operator"))

MEMORY = '(memory (export "memory") 9)'
RUN = '(func $run (export "run") (result i32) '
_READ = "(drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))"
_WRITE = "(call $output_write (i32.const 0) (call $input_len))"
_OK = "(i32.const 0))"

ECHO = RUN + _READ + _WRITE + _OK
SPIN = RUN + "(loop $l (br $l)) " + _OK
TRAP = RUN + "unreachable)"
FAIL = RUN + ("(call $fail (i32.const 0) (i32.const 0) (i32.const 0) (i64.const -1))" + _OK)
RETRY = RUN + ("(call $fail (i32.const 1) (i32.const 0) (i32.const 0) (i64.const 7))" + _OK)
FLOOD = RUN + "(loop $l (call $output_write (i32.const 0) (i32.const 65536)) (br $l))" + _OK
# Asks for the key `gate` before it echoes: whoever serves the key holds the guest in mid-run.
HOLD = (
    '(data (i32.const 589000) "gate")' + RUN
    + "(drop (call $kv_get (i32.const 589000) (i32.const 4) (i32.const 0) (i32.const 0)))"
    + _READ + _WRITE + _OK
)  # fmt: skip
# Counts under its input's name how often it was run, in one byte, and says so; asks for a retry
# while its bucket cannot be reached.
_KEY = "(i32.const 0) (call $input_len) "
_AGAIN = "(call $fail (i32.const 1) (i32.const 0) (i32.const 0) (i64.const 7))"
COUNTER = (
    RUN.replace("(result i32) ", "(result i32) (local $r i64) ", 1) + _READ
    + f"(local.set $r (call $kv_get {_KEY} (i32.const 9000) (i32.const 1)))"
    "(if (i32.and (i64.lt_s (local.get $r) (i64.const 0))"
    f" (i64.ne (local.get $r) (i64.const {abi.NOT_FOUND})))"
    f" (then {_AGAIN} (return (i32.const 0))))"
    "(i32.store8 (i32.const 9000) (i32.add (i32.load8_u (i32.const 9000)) (i32.const 1)))"
    f"(if (i64.lt_s (call $kv_put {_KEY} (i32.const 9000) (i32.const 1)) (i64.const 0))"
    f" (then {_AGAIN} (return (i32.const 0))))"
    "(call $output_write (i32.const 9000) (i32.const 1))" + _OK
)  # fmt: skip
# Asks for a retry in 7 ms, unless its bucket says that it was here before.
ONCE_MORE = (
    RUN + _READ
    + f"(if (i64.lt_s (call $kv_get {_KEY} (i32.const 9000) (i32.const 1)) (i64.const 0)) (then"
    f" (drop (call $kv_put {_KEY} (i32.const 0) (i32.const 1)))"
    f" {_AGAIN}))" + _OK
)  # fmt: skip


def working(loops: int, rounds: int = 1) -> str:
    """A guest that says in its bucket that it began, under its input's name, then works a while."""
    work = (
        f"(local.set $n (i32.const {loops}))"
        "(loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    )
    return (
        RUN.replace("(result i32) ", "(result i32) (local $n i32) ", 1) + _READ
        + "(drop (call $kv_put (i32.const 0) (call $input_len) (i32.const 0) (i32.const 1)))"
        + work * rounds + _WRITE + _OK
    )  # fmt: skip


# The first byte of the input is g, p or d, the rest the key; the output is the answer's number.
KV = RUN + _READ + (
    "(local.set $n (i32.sub (call $input_len) (i32.const 1)))"
    "(if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 103)) (then (local.set $r"
    " (call $kv_get (i32.const 1) (local.get $n) (i32.const 9000) (i32.const 64)))))"
    "(if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 112)) (then (local.set $r"
    " (call $kv_put (i32.const 1) (local.get $n) (i32.const 0) (i32.const 1)))))"
    "(if (i32.eq (i32.load8_u (i32.const 0)) (i32.const 100)) (then (local.set $r"
    " (call $kv_delete (i32.const 1) (local.get $n)))))"
    "(i64.store (i32.const 8000) (local.get $r))"
    "(call $output_write (i32.const 8000) (i32.const 8))" + _OK
)  # fmt: skip
KV = KV.replace("(result i32) ", "(result i32) (local $n i32) (local $r i64) ", 1)


@functools.cache
def assemble(body: str, memory: str = MEMORY) -> bytes:
    """The module with this body, one memory, and imports for what it calls as `$name`."""
    imports = []
    for function in abi.FUNCTIONS.values():
        if f"${function.name} " in body or f"${function.name})" in body:
            params = f"(param {' '.join(function.params)})" if function.params else ""
            results = f"(result {' '.join(function.results)})" if function.results else ""
            imports.append(
                f'(import "{function.module}" "{function.name}"'
                f" (func ${function.name} {params} {results}))"
            )
    return bytes(wasmtime.wat2wasm(f"(module {' '.join(imports)} {memory} {body})"))


def described(
    code: bytes, task: str, *, version: str = "1.0.0", wants: Iterable[str] = ()
) -> bytes:
    """`code` with a manifest; `wants` are short names of capabilities."""
    return manifest.append(
        code,
        Manifest(
            task=task, version=version,
            wants=tuple(Want(abi.SHORT_NAMES[name], "", "for a test") for name in wants),
        ),
    )  # fmt: skip


@functools.cache
def signed(body: str, task: str, *, version: str = "1.0.0", key: SecretKey = AUTHOR) -> bytes:
    """The signed module of a task with this body; it wants what it imports."""
    wants = [name for name in ("kv", "log", "clock", "random") if f"${name}_" in body]
    code = described(assemble(body), task, version=version, wants=wants)
    return signature.sign_module(code, key)


def sample(source: str, *, task: str = "", key: SecretKey = AUTHOR) -> bytes:
    """A module of `tasks_wasm`, such as `hostile/spin`, signed; under another name with `task`."""
    name = source.rpartition("/")[2]
    folder = importlib.resources.files("tasks_wasm")
    code = folder.joinpath(source, f"{name}.wasm").read_bytes()
    if task:
        old = manifest.read(code)
        section = next(s for s in wasm.sections(code) if s.name == manifest.SECTION)
        code = manifest.append(
            code[: section.start] + code[section.end :],
            Manifest(task=task, version=old.version, wants=old.wants),
        )
    return signature.sign_module(code, key)
