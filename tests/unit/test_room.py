"""What a tenant may still put off: counted once, in whatever order the answers come."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from executor.transport.connection import Connection
from executor.transport.room import Room
from executor.transport.streams import TenantQueue

TENANT = "acme"
SIZE = 10


class Server:
    """Says what its stream holds when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def api(self, name: str) -> dict[str, Any]:
        """The answer to STREAM.INFO."""
        assert name == f"STREAM.INFO.LATER_{TENANT}"
        self.asked.set()
        return await self._answer

    async def tell(self, messages: int, last: int) -> None:
        """Answer, and let whoever asked read it."""
        state = {"messages": messages, "bytes": messages * SIZE, "last_seq": last}
        self._answer.set_result({"state": state})
        for _ in range(3):
            await asyncio.sleep(0)


def _room(server: Server, messages: int) -> Room:
    room = Room(cast(Connection, server))
    room.replace([TenantQueue(TENANT, queue_max_messages=messages)])
    return room


@pytest.mark.parametrize("confirmed_first", [True, False])
async def test_what_the_server_told_is_not_counted_again(*, confirmed_first: bool) -> None:
    """Stored while the server was asked: told and confirmed, in either order, it is one."""
    server = Server()
    room = _room(server, 3)
    assert room.take(TENANT, SIZE)
    await server.asked.wait()
    if confirmed_first:
        room.landed(TENANT, SIZE, sequence=1)
    await server.tell(1, last=1)
    if not confirmed_first:
        room.landed(TENANT, SIZE, sequence=1)
    assert room.take(TENANT, SIZE)
    assert room.take(TENANT, SIZE)
    assert not room.take(TENANT, SIZE)
    room.stop()


async def test_what_was_stored_after_it_was_told_counts() -> None:
    """Beside what the server told, what is confirmed later counts; what failed does not."""
    server = Server()
    room = _room(server, 4)
    assert room.take(TENANT, SIZE)
    await server.asked.wait()
    await server.tell(2, last=7)
    room.landed(TENANT, SIZE, sequence=8)
    assert room.take(TENANT, SIZE)
    assert not room.take(TENANT, SIZE)
    room.landed(TENANT, SIZE, sequence=0)
    assert room.take(TENANT, SIZE)
    assert not room.take(TENANT, SIZE)
    room.stop()
