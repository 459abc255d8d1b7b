"""The executor's own sandbox code in this process: engine, linker, host functions, one attempt.

    python -m benchmarks.peers.in_product SECONDS PATH ECHO CALLS, two files of Wasm

PATH is raw or public, as `sandbox.engine_path`: one process cannot go both ways.

The guest runs as in a sandbox, with fuel, limits, a fresh Store and Instance and every check of the
host functions; the jail and the socket are not here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import wasmtime

from benchmarks.peers.blocks import PAYLOAD, report
from executor.core.frames import Answer, Call, Done, Run
from executor.sandbox.engine import build, installed_version
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import prepare

RUN = Run(
    seq=1, module=0, input=PAYLOAD, fuel=1_000_000_000, memory_bytes=2**20, table_elements=1_000,
    output_bytes=2**16, log_bytes=2**10, log_lines=8, calls=100_000, mediated_calls=0,
)  # fmt: skip


def _raw(path: str) -> tuple[Any, ...]:
    """The fast path, if that is asked for and this revision has it: `--compare` runs older ones."""
    try:
        found = importlib.import_module("executor.sandbox.raw")
    except ImportError:
        return ()
    return (found.Raw(installed_version()),) if path == "raw" else ()


def main(seconds: str, path: str, echo: str, calls: str) -> None:
    """Measure both guests."""
    engine = build(pooled=True)
    raw = _raw(path)
    who = "executor" if path == "raw" else "executor, public path"
    # One Host a guest: in a sandbox, all modules share one.
    attempts = {}
    for name, file in (("echo", echo), ("calls", calls)):
        host = Host(_nobody)
        module = wasmtime.Module(engine, Path(file).read_bytes())
        attempts[name] = (prepare(engine, module, (), host, *raw), host)

    def attempt(name: str) -> Done:
        program, host = attempts[name]
        done = execute(program, RUN, host)
        if done.code:
            raise RuntimeError(f"{done.code}: {done.message}")
        return done

    if attempt("echo").output != PAYLOAD:
        raise RuntimeError("no echo")
    report({
        who: ("1 KB echo", lambda: attempt("echo"), 1),
        f"{who} @calls": ("host call", lambda: attempt("calls"), 1_000),
    }, float(seconds))  # fmt: skip


def _nobody(call: Call) -> Answer:
    raise RuntimeError(f"no mediator for {call.function}")


if __name__ == "__main__":
    main(*sys.argv[1:])
