"""The engine's one configuration, shared by compilers and sandboxes, and its fingerprint.

An artifact runs only under the settings it was compiled with, so both sides take them from here.
What is off is off because most advisories of the engine lie there and no guest needs it; each
has a probe module in the tests that must not compile.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Final

import wasmtime

from executor.errors import ExecutorError
from executor.sandbox import pooling
from executor.sizes import MIB

VERSION_MIN: Final = (50, 0, 1)
VERSION_BELOW: Final = (51,)
# Far below the 8 MiB of the main thread: the host's own frames of a host call lie on top of it.
WASM_STACK_BYTES: Final = 512 * 1024
# All that 32 bits address, and on either side what no bounds check looks at.
_MEMORY_BYTES: Final = 4 * 1024 * MIB
_GUARD_BYTES: Final = 32 * MIB
RESERVED_BYTES: Final = _MEMORY_BYTES + 2 * _GUARD_BYTES
_EMPTY_MODULE: Final = b"\0asm\1\0\0\0"

SETTINGS: Final[tuple[tuple[str, bool | int | str], ...]] = (
    ("strategy", "cranelift"),  # never Winch, which had an escape
    ("consume_fuel", True),
    ("epoch_interruption", False),  # fuel inside, SIGKILL outside; both together cost 1.8 times
    ("max_wasm_stack", WASM_STACK_BYTES),
    ("cranelift_nan_canonicalization", True),  # the same bits everywhere
    ("cranelift_opt_level", "speed"),
    ("cranelift_debug_verifier", False),
    ("parallel_compilation", False),  # a process that compiled in parallel must not fork
    ("memory_init_cow", True),
    ("memory_reservation", _MEMORY_BYTES),  # and guards: the limit of address space counts on them
    ("memory_guard_size", _GUARD_BYTES),
    ("memory_may_move", False),  # it never would, in a reservation of all it can become
    ("signals_based_traps", True),
    ("debug_info", False),
    ("profiler", "none"),
    # What toolchains emit.
    ("wasm_simd", True),
    ("wasm_bulk_memory", True),
    ("wasm_multi_value", True),
    ("wasm_reference_types", True),  # tables of functions; externref needs the collector, off below
    # What they do not need.
    ("gc_support", False),
    ("shared_memory", False),
    ("wasm_threads", False),
    ("wasm_tail_call", False),
    ("wasm_multi_memory", False),
    ("wasm_memory64", False),
    ("wasm_relaxed_simd", False),
    ("wasm_relaxed_simd_deterministic", True),
    ("wasm_exceptions", False),
    ("wasm_function_references", False),
    ("wasm_gc", False),
    ("wasm_wide_arithmetic", False),
    ("wasm_custom_page_sizes", False),
    ("wasm_stack_switching", False),
    ("wasm_component_model", False),
    ("wasm_component_model_map", False),
    ("wasm_component_model_implements", False),
)

# Settings of the library that stay as they are, so that a new one fails the test that lists them.
DEFAULTS: Final = frozenset({
    "cache",  # off; ours is authenticated
    "macos_use_mach_ports", "memory_reservation_for_growth", "native_unwind_info", "target",
})  # fmt: skip


def check_version(text: str) -> str:
    """The version, if it is one this code was tested with.

    Errors  `sandbox.start-failed`: below the floor lies a critical advisory.
    """
    parts = text.split(".")
    if not all(part.isdigit() for part in parts):
        raise ExecutorError("sandbox.start-failed", f"wasmtime {text} is not a release")
    if not VERSION_MIN <= tuple(map(int, parts)) < VERSION_BELOW:
        raise ExecutorError(
            "sandbox.start-failed", f"wasmtime {text} is installed, 50.0.1 or a later 50 is needed"
        )
    return text


def installed_version() -> str:
    """The installed version, from the name of the folder that every installer leaves beside it.

    `importlib.metadata` says the same and loads a quarter of all that this process would load.

    Errors  `sandbox.start-failed` when there is no such folder, or more than one.
    """
    found = list(Path(wasmtime.__file__).parents[1].glob("wasmtime-*.dist-info"))
    if len(found) != 1:
        raise ExecutorError("sandbox.start-failed", f"{len(found)} versions of wasmtime installed")
    return found[0].name.removeprefix("wasmtime-").removesuffix(".dist-info")


def build(*, pooled: bool = True) -> wasmtime.Engine:
    """An Engine with the settings above; `pooled` says where its instances' memory comes from.

    Errors  `sandbox.start-failed` on a version outside the range, or a setting it does not have.
    """
    check_version(installed_version())
    config = wasmtime.Config()
    for name, value in SETTINGS:
        # A plain setattr would accept a misspelt or removed name and leave the default.
        if not isinstance(getattr(wasmtime.Config, name, None), property):
            raise ExecutorError("sandbox.start-failed", f"the engine has no setting {name}")
        setattr(config, name, value)
    if pooled:
        pooling.enable(config)
    return wasmtime.Engine(config)


def fingerprint(engine: wasmtime.Engine) -> str:
    """Version, machine, and a digest of everything an artifact depends on.

    The digest is over the compiled empty module, whose header holds every compiler setting and
    every CPU feature in use: what the engine itself compares when it loads an artifact.
    """
    module = wasmtime.Module(engine, _EMPTY_MODULE)
    digest = hashlib.sha256(module.serialize()).hexdigest()[:16]
    module.close()
    return f"wasmtime {installed_version()} {platform.machine()} {digest}"
