"""Running a toolchain: a clean folder, a small environment, bounded time and bounded output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor.errors import ExecutorError

TIMEOUT_S: Final = 120  # a first Zig build takes 10 s on a slow host
DETAIL_MAX: Final = 8 * 1024  # bytes of compiler talk that are kept
ZIG: Final = "0.17.1"  # another version makes other bytes, and Zig's library other mistakes

# What a toolchain needs to start. Everything else is left out: CPATH, CFLAGS and their like would
# change the bytes.
_KEPT: Final = ("HOME", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "PYTHONUSERBASE", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a tool ended and the beginning of what it said, without our own paths."""

    code: int
    talk: str


@dataclass(frozen=True, slots=True)
class Workshop:
    """One build's own folder; `cache` may outlive it and never changes the bytes."""

    folder: Path
    cache: Path

    def run(self, module: str, *arguments: str) -> Finished:
        """Run a Python module of ours or of a toolchain package as a child, in the folder.

        Errors  `module.invalid` if it does not end in time: only a source does that.
        """
        # -P: a file of the task must not be taken for a Python module.
        command = [sys.executable, "-P", "-m", module, *arguments]
        log = self.folder / "talk"
        with log.open("wb") as talk:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=talk,
                stderr=talk,
                start_new_session=True,  # so that the tool's own children can be ended with it
            )
            try:
                code = process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise ExecutorError(
                    "module.invalid", f"`{module}` did not end within {TIMEOUT_S} s"
                ) from error
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return Finished(code, self._talk(log))

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        cache = {"ZIG_GLOBAL_CACHE_DIR": str(self.cache), "ZIG_LOCAL_CACHE_DIR": str(self.cache)}
        return kept | cache | {"SOURCE_DATE_EPOCH": "0", "LC_ALL": "C", "NO_COLOR": "1"}

    def _talk(self, log: Path) -> str:
        with log.open("rb") as file:
            text = file.read(DETAIL_MAX).decode(errors="replace")
        return text.replace(f"{self.folder}{os.sep}", "").strip()


def find_zig(shop: Workshop) -> str:
    """Find the C and Zig compiler: its name and version.

    Errors  `config.toolchain-missing` with the command that installs it.
    """
    found = shop.run("ziglang", "version")
    version = found.talk if found.code == 0 else ""
    if version != ZIG:
        state = f"is version {version[:64]}" if version else "is not there"
        raise missing(f"the Python package ziglang {state}", f"ziglang=={ZIG}")
    return f"ziglang {version}"


def missing(what: str, package: str) -> ExecutorError:
    """Name the tool and how to get it."""
    install = f"{Path(sys.executable).name} -m pip install '{package}'"
    return ExecutorError("config.toolchain-missing", f"{what}; install it with: {install}")


def refused(finished: Finished) -> ExecutorError:
    """Report a source that does not compile, with what the compiler said."""
    return ExecutorError("module.invalid", finished.talk or f"exit status {finished.code}")
