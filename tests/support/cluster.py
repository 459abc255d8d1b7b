"""Three real nats-servers with JetStream on loopback, as one cluster whose nodes can be hurt.

A node is a `NatsServer`: stopped, killed, restarted in place. A paused node (SIGSTOP) is a
partition as the others see it: its connections stand and nothing comes; when it goes on, it still
believes what it believed. `url` lists all nodes.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from executor.errors import ExecutorError
from executor.transport.api import ApiError
from executor.transport.connection import Connection, Settings
from tests.servers import NatsServer, connect, eventually

NODES: Final = 3
# Below the range from which the kernel takes ports of outgoing connections: what is free now is
# taken only by somebody who asks for this very port.
_PORTS: Final = (20_000, 32_000)
_CONFIG: Final = """
server_name: {name}
cluster {{
  name: test
  listen: 127.0.0.1:{port}
  routes: [{routes}]
  pool_size: -1
}}
"""
_PROBE: Final = "PROBE"


class Cluster:
    """`with Cluster(folder) as cluster: await cluster.ready()`."""

    def __init__(self, folder: Path) -> None:
        ports = _free_ports(NODES)
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in ports)
        self.nodes = {
            name: NatsServer(
                folder / name, _CONFIG.format(name=name, port=port, routes=routes)
            )
            for name, port in zip(("n1", "n2", "n3"), ports, strict=True)
        }  # fmt: skip

    @property
    def url(self) -> str:
        """All nodes, separated by commas."""
        return ",".join(node.url for node in self.nodes.values())

    def without(self, name: str) -> Cluster:
        """The same cluster as those see it who do not reach one of its nodes."""
        rest = copy.copy(self)
        rest.nodes = {key: node for key, node in self.nodes.items() if key != name}
        return rest

    def __enter__(self) -> Self:
        for node in self.nodes.values():
            node.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for node in self.nodes.values():
            node.stop(signal.SIGKILL)

    def log(self) -> str:
        """The ends of the nodes' logs."""
        return "\n".join(f"--- {name}\n{node.log()[-3_000:]}" for name, node in self.nodes.items())

    async def ready(self) -> None:
        """Wait until there is a meta leader and each node takes its part of a stream."""

        async def made() -> bool:
            with contextlib.suppress(ExecutorError, ApiError):
                connection = await connect(self)
                config: dict[str, Any] = {
                    "name": _PROBE, "subjects": ["probe"], "num_replicas": NODES,
                    "storage": "file",
                }  # fmt: skip
                # Before there is a leader nobody answers.
                await connection.api(f"STREAM.CREATE.{_PROBE}", config, timeout_s=0.5)
                await connection.store("probe", b"")
                await connection.api(f"STREAM.DELETE.{_PROBE}")
                return True
            return False

        await eventually(made)

    async def leader(self, stream: str, *, besides: str = "") -> str:
        """The name of the node that leads a stream, once all replicas `besides` one are current."""
        found: list[str] = []

        async def led() -> bool:
            cluster = (await self._info(stream)).get("cluster", {})
            leader, replicas = cluster.get("leader", ""), cluster.get("replicas", [])
            waited = [peer for peer in replicas if peer["name"] != besides]
            healthy = all(peer["current"] and not peer.get("offline") for peer in waited)
            found[:] = [leader]
            return bool(leader) and leader != besides and healthy and len(replicas) == NODES - 1

        await eventually(led)
        return found[0]

    async def _info(self, stream: str) -> dict[str, Any]:
        """STREAM.INFO, or nothing while nobody answers."""
        try:
            connection = await Connection.open(Settings(self.url), lambda _name, _facts: None)
        except ExecutorError:
            return {}
        try:
            return await connection.api(f"STREAM.INFO.{stream}", timeout_s=2.0)
        except (ExecutorError, ApiError):
            return {}
        finally:
            await connection.close()

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """A node that does nothing for a while, and then goes on."""
        pid = self.nodes[name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    chosen = random.SystemRandom()
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            listening = socket.socket()
            try:
                listening.bind(("127.0.0.1", chosen.randrange(*_PORTS)))
            except OSError:
                listening.close()
            else:
                held.append(listening)
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
