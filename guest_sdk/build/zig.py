"""Zig: a root file of ours imports the task's file and installs the panic handler."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from guest_sdk.build.toolchain import Workshop, refused

BUILT_WITH: Final = "executor_task.zig"

_SDK: Final = Path(__file__).parents[1] / "zig"
_FILES: Final = ("executor_task.zig", "root.zig")
_FLAGS: Final = (
    "-target", "wasm32-freestanding",
    "-OReleaseSmall", "-fno-entry", "--export=run", "-fstrip",
    "--stack", "65536",  # the default is 16 MiB, and initial memory with it
)  # fmt: skip


def compile_task(shop: Workshop, source: str) -> tuple[Path, str]:
    """Build `src/<source>`: the module's file, and the compiler's warnings.

    Errors  `module.invalid` with the compiler's words.
    """
    include = shop.folder / "sdk"
    include.mkdir()
    for name in _FILES:
        shutil.copyfile(_SDK / name, include / name)
    target = "task.wasm"
    modules = (
        "--dep", "executor_task", "--dep", "task_source", "-Mroot=sdk/root.zig",
        "-Mexecutor_task=sdk/executor_task.zig",
        "--dep", "executor_task", f"-Mtask_source=src/{source}",
    )  # fmt: skip
    finished = shop.run("ziglang", "build-exe", *_FLAGS, *modules, f"-femit-bin={target}")
    if finished.code:
        raise refused(finished)
    return shop.folder / target, finished.talk
