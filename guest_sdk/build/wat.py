"""WAT, the text form of Wasm: a child process of the sandbox room turns it into bytes."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Final

from guest_sdk.build.toolchain import Workshop, missing, refused

BUILT_WITH: Final = "hand"
# By name, not imported: the sandbox alone may import the engine, in a process of its own.
CONVERTER: Final = "executor.sandbox.wat"
EXIT_REFUSED: Final = 65  # EX_DATAERR: the text is wrong, the tool is well


def find_converter(_shop: Workshop) -> str:
    """Find the engine: its name and version.

    Errors  `config.toolchain-missing` with the command that installs it.
    """
    try:
        return f"wasmtime {metadata.version('wasmtime')}"
    except metadata.PackageNotFoundError as error:
        raise missing("the Python package wasmtime is not there", "wasm-task-executor") from error


def compile_task(shop: Workshop, source: str) -> tuple[Path, str]:
    """Convert `src/<source>`, names included: the module's file, and no warnings.

    Errors  `module.invalid` with the converter's words; `config.toolchain-missing` if it broke.
    """
    target = "task.wasm"
    finished = shop.run(CONVERTER, f"src/{source}", target)
    if finished.code == EXIT_REFUSED:
        raise refused(finished)
    if finished.code:
        raise missing(f"`{CONVERTER}` did not run: {finished.talk}", "wasm-task-executor")
    return shop.folder / target, finished.talk
