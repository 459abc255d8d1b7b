"""What an executor says of itself every few seconds: in CONTROL for people, in a file for probes.

The entry that it stores comes back with the server's time on it: so the same round trip tells how
far the host's clock is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from executor.core import control, subjects
from executor.errors import ExecutorError
from executor.supervisor.clock import ServerClock
from executor.telemetry import Telemetry
from executor.transport import direct
from executor.transport.connection import Connection
from executor.transport.control import PREFIX, STREAM, Control

BEAT_S: Final = 5.0
# An entry that is older was left behind by an executor that was killed.
GONE_MS: Final = 60_000
# What an executor that is gone said of itself goes by itself.
_STANDS_S: Final = 600
_REPORT_MAX: Final = 8_000


def _local_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Heartbeat:
    """See the module. `report` is what it says, `unready` why it takes no tasks, "" if it does."""

    connection: Connection
    executor: str
    environment: str
    sign: Callable[[str, bytes], bytes]
    clock: ServerClock
    telemetry: Telemetry
    report: Callable[[], dict[str, Any]]
    unready: Callable[[], str]
    health_file: Path | None = None
    also: Callable[[], None] = lambda: None  # what is said with each beat, by others
    _beating: asyncio.Task[None] | None = None
    life: str = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Several processes of one name have an entry each."""
        self.life = subjects.life(self.executor, os.getpid())
        self.key = subjects.status_key(self.life)

    async def start(self) -> None:
        """Beat once, so that the clock is right before the first task, and go on."""
        await self.beat()
        self._beating = asyncio.get_running_loop().create_task(self._go_on())

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                await self.beat()
            except Exception as error:  # noqa: BLE001 - a heart that stops has the host killed
                self.telemetry.log.event("bug", what="heartbeat", error=repr(error))

    async def beat(self) -> None:
        """Say it once. What fails is said in the log and tried again with the next."""
        self.write_health()
        self.also()
        try:
            await self._say()
        except ExecutorError as error:
            self.telemetry.log.event("heartbeat-failed", code=error.code)
        self.write_health()

    async def _say(self) -> None:
        text = json.dumps(self.report(), separators=(",", ":"))
        if len(text) > _REPORT_MAX:
            text = "{}"  # that many tenants are counted by metrics, not here
        value = self.sign(self.key, control.encode(
            "status", self.key, self.environment, at=self.clock.now_ms(), report=text
        ))  # fmt: skip
        sent = _local_ms()
        sequence = await Control(self.connection).put(self.key, value, ttl_s=_STANDS_S)
        received = _local_ms()
        stored = await direct.last(self.connection, STREAM, PREFIX + self.key)
        if stored is None or stored.sequence != sequence or not stored.stored_at_ms:
            return
        if self.clock.measured(sent_ms=sent, server_ms=stored.stored_at_ms, received_ms=received):
            self.telemetry.log.event("clock-skew", offset_ms=self.clock.offset_ms)

    def write_health(self) -> None:
        """Write the health file, whole or not at all."""
        if self.health_file is None:
            return
        why = self.unready()
        value = {"schema": "executor.health/1", "at": _local_ms(), "ready": not why, "why": why}
        beside = self.health_file.with_name(f"{self.health_file.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(value) + "\n", encoding="ascii")
            beside.replace(self.health_file)
        except OSError as error:
            self.telemetry.log.event("health-unwritten", errno=error.errno or 0)

    async def stop(self) -> None:
        """Take back what was said."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        with contextlib.suppress(ExecutorError):
            await Control(self.connection).put(self.key, self.sign(self.key, b""), ttl_s=_STANDS_S)
        if self.health_file is not None:
            self.health_file.unlink(missing_ok=True)
