"""A real nats-server for a test: private, on loopback, restartable in place, killed by its pid.

Its ports file is discovery and readiness. `log` is what a failing test shows. `Events` collects
what the code under test reports, so that a test waits for an event and never for a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from executor.transport.connection import Connection, Settings
from executor.transport.server import find_binary

START_S = 10.0
WAIT_S = 30.0


class HasUrl(Protocol):
    """Something to connect to: a server, a cluster, a proxy."""

    @property
    def url(self) -> str:
        """One url, or several separated by commas."""


class NatsServer:
    """`with NatsServer(directory) as server: … server.url`; `config` is text of a config file."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self.directory = directory
        self.config = config
        self.url = ""
        self._port = "-1"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """The end of the server's log, of all its lives."""
        with contextlib.suppress(OSError):
            return (self.directory / "server.log").read_text("utf-8", "replace")[-8_000:]
        return ""

    def start(self) -> None:
        """Start and wait for readiness; after the first time on the same port and directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [find_binary(), "-a", "127.0.0.1", "-p", self._port]
        command += ["--ports_file_dir", str(self.directory)]
        if "store_dir" not in self.config:
            command += ["-js", "-sd", str(self.directory)]
        if self.config:
            path = self.directory / "server.conf"
            path.write_text(self.config)
            command += ["-c", str(path)]
        with (self.directory / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # a signal from the terminal is the test's, not the server's
            )
        self._process = process
        ports = self.directory / f"nats-server_{process.pid}.ports"
        give_up = time.monotonic() + START_S
        while process.poll() is None and time.monotonic() < give_up:
            # It may be seen before it is written whole.
            with contextlib.suppress(OSError, ValueError):
                self.url = json.loads(ports.read_bytes())["nats"][0]
                self._port = self.url.rpartition(":")[2]
                return
            time.sleep(0.005)
        self.stop()
        raise AssertionError(f"nats-server did not start:\n{self.log()}")

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """End it; SIGKILL for a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(with_signal)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        (self.directory / f"nats-server_{process.pid}.ports").unlink(missing_ok=True)

    def restart(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop and start on the same port and directory."""
        self.stop(with_signal)
        self.start()


class Events:
    """An `on_event` that remembers, and wakes who waits."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str | int]]] = []
        self._changed = asyncio.Event()

    def __call__(self, name: str, facts: dict[str, str | int]) -> None:
        """Take one event."""
        self.seen.append((name, facts))
        self._changed.set()

    def count(self, name: str) -> int:
        """How many of a name were seen."""
        return sum(seen == name for seen, _ in self.seen)

    async def wait(self, name: str, count: int = 1) -> dict[str, str | int]:
        """Wait until `count` of a name were seen; returns the facts of the last."""
        await until(lambda: self.count(name) >= count, self._changed)
        return [facts for seen, facts in self.seen if seen == name][-1]


async def until(holds: Callable[[], bool], changed: asyncio.Event) -> None:
    """Wait until `holds()`, looking whenever `changed` is set."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            changed.clear()
            await changed.wait()


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the server says so: for its state there is no event to wait for."""
    async with asyncio.timeout(WAIT_S):
        while not await look():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


_OPEN: ContextVar[list[Connection]] = ContextVar("connections of the running test")


async def connect(
    server: HasUrl, events: Events | None = None, settings: Settings | None = None
) -> Connection:
    """Open a connection that `run` closes, however the test ends."""
    connection = await Connection.open(settings or Settings(server.url), events or Events())
    _OPEN.get().append(connection)
    return connection


def run(test: Coroutine[Any, Any, None], *, bound_s: float = 90) -> None:
    """Run the coroutine of a test, bounded."""

    async def bounded() -> None:
        _OPEN.set([])
        try:
            async with asyncio.timeout(bound_s):
                await test
        finally:
            for connection in _OPEN.get():
                await connection.close()

    asyncio.run(bounded())
