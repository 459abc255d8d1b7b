"""The model against the real nats-server: the same scripts, the same observations."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.streams import Options, TenantQueue
from tests import servers
from tests.servers import Events, NatsServer, connect
from tests.sim import loop as virtual
from tests.sim import scripts
from tests.sim.jetstream import Server, ServerRules
from tests.sim.link import ModelConnection, Weather
from tests.sim.scripts import ACK_WAIT_MS, SCRIPTS, Script, perform
from tests.sim.wire import START_MS, TENANT

_PENDING: dict[Script, int] = {scripts.so_many_at_once: 2}


@dataclass
class _Real:
    server: NatsServer
    options: Options
    events: Events

    async def connect(self) -> Connection:
        connection = await connect(self.server, self.events)
        await streams.apply(connection, [TenantQueue(TENANT)], self.options)
        return connection

    async def restart(self) -> None:
        await asyncio.to_thread(self.server.restart, signal.SIGKILL)
        await self.events.wait("reconnected")

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass
class _Model:
    server: Server
    link: ModelConnection | None = None

    async def connect(self) -> Connection:
        self.link = ModelConnection(self.server, "only", Weather(delay_s=0.001), Random(1))
        return self.link

    async def restart(self) -> None:
        assert self.link is not None
        self.server.stop()
        self.link.cut()
        self.server.start()
        self.link.mend()

    def now_ms(self) -> int:
        return START_MS + int(asyncio.get_running_loop().time() * 1000)


async def _modelled(script: Script) -> list[object]:
    rules = ServerRules(ack_wait_s=ACK_WAIT_MS / 1000, max_ack_pending=_PENDING.get(script, 1_000))
    return await perform(script, _Model(Server(rules)))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_the_model_does_as_the_server(script: Script, tmp_path: Path) -> None:
    """Deliveries, counts, answers, records and their order are those of the real server."""
    options = Options(ack_wait_ms=ACK_WAIT_MS, max_ack_pending=_PENDING.get(script, 1_000))
    observed: list[object] = []

    async def real() -> None:
        observed.extend(await perform(script, _Real(server, options, Events())))

    with NatsServer(tmp_path / "nats") as server:
        servers.run(real())
    assert virtual.run(_modelled(script)) == observed
    assert observed
