"""From a folder with `task.toml` to the bytes of one module; the same bytes wherever it lies.

What could leak into the bytes is kept away from the toolchain: it sees a clean folder with
relative names, a small environment, and no file but the task's and the SDK's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor.core import manifest, wasm
from executor.errors import ExecutorError
from guest_sdk.build import c, imports, recipe, wat, zig
from guest_sdk.build.toolchain import ZIG, Workshop, find_zig

SCHEMA: Final = "executor.guest-build/1"

# Not the task: earlier builds, caches, what version control and editors keep, and this very build
# if `work` lies in the folder.
_PREFIX: Final = "executor-build-"
_CACHE: Final = "zig-cache"
_IGNORED: Final = shutil.ignore_patterns("*.wasm", ".*", "__pycache__", f"{_PREFIX}*", _CACHE)


@dataclass(frozen=True, slots=True)
class Driver:
    """One language: find the tool (its name and version), compile (a file, and warnings)."""

    find: Callable[[Workshop], str]
    compile_task: Callable[[Workshop, str], tuple[Path, str]]
    built_with: str  # goes into the manifest, so it may not vary between hosts


_DRIVERS: Final = {
    "c": Driver(find_zig, c.compile_task, f"{c.BUILT_WITH}, ziglang {ZIG}"),
    "wat": Driver(wat.find_converter, wat.compile_task, wat.BUILT_WITH),
    "zig": Driver(find_zig, zig.compile_task, f"{zig.BUILT_WITH}, ziglang {ZIG}"),
}


@dataclass(frozen=True, slots=True)
class Built:
    """A module with its manifest, unsigned, and what the author may want to hear."""

    module: bytes
    recipe: recipe.Recipe
    toolchain: str
    notes: tuple[str, ...]
    sources: tuple[tuple[str, str], ...] = ()  # all that the toolchain could read, SHA-256 in hex


def build(folder: Path, work: Path | None) -> Built:
    """Build the task in `folder`; `work` keeps toolchain caches for the next build.

    Errors  `config.invalid`, `config.toolchain-missing`, `module.invalid`.
    """
    task = recipe.load(folder)
    driver = _DRIVERS[task.language]
    if work:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=work) as name:
        clean = Path(name).resolve()
        cache = (work.resolve() if work else clean) / _CACHE
        shop = Workshop(clean, cache)
        toolchain = driver.find(shop)
        shutil.copytree(folder, clean / "src", ignore=_IGNORED)
        before = _sources(clean / "src")  # before anything ran
        path, talk = driver.compile_task(shop, task.source)
        bare = path.read_bytes()
        sources = (*before, *_sources(clean / "sdk"))
    unused = imports.check(bare, task.uses)
    notes = [f"`{capability}` is in `uses`, but the code does not use it" for capability in unused]
    module = _described(bare, task, driver)
    return Built(module, task, toolchain, (*filter(None, [talk]), *notes), sources)


def build_twice(folder: Path, work: Path | None) -> Built:
    """Build from two folders of other names, depths and times, the second without any cache.

    Errors  `module.not-reproducible` if the two differ; else as `build`.
    """
    built = build(folder, work)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        elsewhere = Path(name) / "another" / "place" / "for-the-same-sources"
        # By `copyfile`: what is copied has the time of now.
        shutil.copytree(folder, elsewhere, ignore=_IGNORED, copy_function=shutil.copyfile)
        again = build(elsewhere, Path(name) / "work")
    if again.module != built.module:
        raise _differing(built.module, again.module)
    return built


def _differing(one: bytes, two: bytes) -> ExecutorError:
    """Where two builds differ: by section, since that tells code from data."""
    whole = min(len(one), len(two))
    at = next((index for index in range(whole) if one[index] != two[index]), whole)
    inside = next((s for s in wasm.sections(one) if s.start <= at < s.end), None)
    where = f"section {inside.id}{f' `{inside.name}`' if inside.name else ''}" if inside else "end"
    digests = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in (one, two)]
    return ExecutorError(
        "module.not-reproducible", f"from byte {at}, {where}: {digests[0]} and {digests[1]}"
    )


def _sources(folder: Path) -> tuple[tuple[str, str], ...]:
    """Every file in a folder of the build, by name, with its digest; none if there is no folder."""
    return tuple(
        (str(path.relative_to(folder.parent)), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _described(bare: bytes, task: recipe.Recipe, driver: Driver) -> bytes:
    try:
        return manifest.append(bare, task.manifest(driver.built_with))
    except ExecutorError as error:
        if error.code != "module.manifest-invalid":
            raise
        # Every member comes from task.toml: that is the file to mend.
        raise ExecutorError("config.invalid", f"{recipe.FILE}: {error.detail}") from error
