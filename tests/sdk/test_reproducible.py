"""Two builds of the same sources: equal bytes, and every planted reason for others is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from executor.core import signature, wasm
from executor.errors import ExecutorError
from guest_sdk.build import c, core
from guest_sdk.build.toolchain import Workshop

TASKS: Final = Path(__file__).parents[2] / "tasks_wasm"
needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")

# What a compiler knows of where and when it runs.
CURIOUS: Final = """
#include "executor_task.h"
#pragma GCC diagnostic ignored "-Wdate-time"
TASK(in) { out(NAMES); return OK; }
"""
NAMES: Final = ("__FILE__", "__BASE_FILE__", "__DATE__", "__TIME__", "__TIMESTAMP__")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toolchain cache for the first of two builds."""
    return tmp_path_factory.mktemp("work")


def task(folder: Path, source: str) -> Path:
    """A task in C."""
    folder.mkdir()
    (folder / "task.toml").write_text('name = "t"\nversion = "1.0.0"\nsource = "t.c"\n')
    (folder / "t.c").write_text(source)
    return folder


@needs_zig
@pytest.mark.parametrize("name", ["wordcount", "wordcount-zig", "wat"])
def test_every_language_reproduces(name: str, tmp_path: Path, work: Path) -> None:
    """C, Zig and WAT: a copy elsewhere, of another time and without a cache, gives one digest."""
    source = Path(core.__file__).parents[1] / "wat" if name == "wat" else TASKS / name
    folder = shutil.copytree(source, tmp_path / name)
    built = core.build_twice(folder, work)
    names = [each for each, _ in built.sources]
    assert "src/task.toml" in names
    assert all(len(sha256) == 64 for _, sha256 in built.sources)
    assert signature.content_digest(built.module) == signature.digest(built.module)


@needs_zig
@pytest.mark.parametrize("name", NAMES)
def test_what_a_compiler_knows_is_harmless(name: str, tmp_path: Path, work: Path) -> None:
    """A source that uses the names of its file and of the time still reproduces."""
    folder = task(tmp_path / "t", CURIOUS.replace("NAMES", name))
    assert str(tmp_path).encode() not in core.build_twice(folder, work).module


@needs_zig
def test_a_source_cannot_ask_for_the_time(tmp_path: Path, work: Path) -> None:
    """Unless it insists, a source that uses the time is refused by the compiler."""
    source = CURIOUS.replace("NAMES", "__DATE__").replace("#pragma", "//")
    with pytest.raises(ExecutorError, match="not reproducible"):
        core.build_twice(task(tmp_path / "t", source), work)


def _chance(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = dict(core._DRIVERS)
    honest = drivers["c"].compile_task

    def compile_task(shop: Workshop, source: str) -> tuple[Path, str]:
        """As a toolchain that writes a random build id."""
        path, talk = honest(shop, source)
        path.write_bytes(path.read_bytes() + wasm.custom("build_id", os.urandom(16)))
        return path, talk

    drivers["c"] = replace(drivers["c"], compile_task=compile_task)
    monkeypatch.setattr(core, "_DRIVERS", drivers)


def _no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = tuple(flag for flag in c._FLAGS if "prefix-map" not in flag)
    monkeypatch.setattr(c, "_FLAGS", flags)

    def run(self: Workshop, module: str, *arguments: str) -> object:
        """As a driver would that names files in full."""
        named = [str(self.folder / a) if a.startswith("src/") else a for a in arguments]
        return original(self, module, *named)

    original = Workshop.run
    monkeypatch.setattr(Workshop, "run", run)


def _no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Workshop._environment

    def environment(self: Workshop) -> dict[str, str]:
        """Without what stands in for the time."""
        found = original(self)
        del found["SOURCE_DATE_EPOCH"]
        return found

    monkeypatch.setattr(Workshop, "_environment", environment)


@needs_zig
@pytest.mark.covers("module.not-reproducible")
@pytest.mark.parametrize(
    ("plant", "name", "where"),
    [
        (_chance, '""', "`build_id`"),
        (_no_mapping, "__FILE__", "section"),
        (_no_epoch, "__TIMESTAMP__", "section 11"),  # data
    ],
    ids=["chance", "a path", "a time"],
)
def test_a_toolchain_that_lets_something_in_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], name: str, where: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A build id, a path without the flag that hides it, a time without what stands in for it.

    The refusal names the section and both digests.
    """
    folder = task(tmp_path / "t", CURIOUS.replace("NAMES", name))
    os.utime(folder / "t.c", (1_000_000_000, 1_000_000_000))
    plant(monkeypatch)
    with pytest.raises(ExecutorError) as caught:
        core.build_twice(folder, tmp_path / "work")
    assert caught.value.code == "module.not-reproducible"
    assert where in caught.value.detail
    assert caught.value.detail.count("sha256:") == 2
