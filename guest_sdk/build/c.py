"""C: `zig cc`, freestanding. Without a libc there is none to build, and no WASI import."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from guest_sdk.build.toolchain import Workshop, refused

BUILT_WITH: Final = "executor_task.h"

_HEADER: Final = Path(__file__).parents[1] / "c" / "executor_task.h"
_FLAGS: Final = (
    "-target", "wasm32-freestanding",
    "-std=gnu17", "-Oz", "-Wall", "-Wextra",
    "-fno-builtin", "-nostdlib",  # no calls to a memcpy that nobody brings
    "-Wl,--no-entry", "-Wl,-s",
    "-Wl,-z,stack-size=65536",  # the default is 1 MiB, and initial memory with it
    "-ffile-prefix-map=src=.", "-fdebug-compilation-dir=.",  # no path of this build in the bytes
)  # fmt: skip


def compile_task(shop: Workshop, source: str) -> tuple[Path, str]:
    """Build `src/<source>`: the module's file, and the compiler's warnings.

    Errors  `module.invalid` with the compiler's words.
    """
    include = shop.folder / "sdk"
    include.mkdir()
    shutil.copyfile(_HEADER, include / _HEADER.name)
    target = "task.wasm"
    finished = shop.run("ziglang", "cc", *_FLAGS, "-Isdk", "-Isrc", "-o", target, f"src/{source}")
    if finished.code:
        raise refused(finished)
    return shop.folder / target, finished.talk
