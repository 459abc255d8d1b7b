"""The proxy itself, between the real client and the real server: each fault does what it says."""

from __future__ import annotations

import asyncio

import pytest

from executor.errors import ExecutorError
from executor.transport.connection import Message
from executor.transport.settings import Settings
from tests.servers import Events, NatsServer, connect, run
from tests.support.proxy import Parser, Proxy, is_publish


class Heard:
    """What arrived on a subscription."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    def __call__(self, message: Message) -> None:
        """Take one message."""
        self._queue.put_nowait(message.data)

    async def next(self) -> bytes:
        """The next payload."""
        return await self._queue.get()


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_messages_are_found_in_any_chunking(chunk: int) -> None:
    """However bytes arrive, frames are the same; a payload may hold what looks like a line."""
    wire = (
        b"PING\r\nPUB a 4\r\nb\r\nc\r\nHPUB a r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
        b"MSG s 9 x 0\r\n\r\nHMSG s 9 12 13\r\nNATS/1.0\r\n\r\n!\r\n-ERR 'no'\r\n"
    )
    parser = Parser("up")
    chunks = [wire[at : at + chunk] for at in range(0, len(wire), chunk)]
    found = [frame for part in chunks for frame in parser.feed(part)]
    assert b"".join(frame.raw for frame in found) == wire
    head = b"NATS/1.0\r\n\r\n"
    assert [(f.verb, f.subject, f.reply, f.headers, f.payload) for f in found] == [
        ("PING", "", "", b"", b""),
        ("PUB", "a", "", b"", b"b\r\nc"), ("HPUB", "a", "r", head, b"hi"),
        ("MSG", "s", "x", b"", b""), ("HMSG", "s", "", head, b"!"), ("-ERR", "", "", b"", b""),
    ]  # fmt: skip


def test_single_messages_are_harmed(server: NatsServer) -> None:
    """A rule drops, doubles or delays the messages it matches, as often as it says, no others."""

    async def test() -> None:
        async with Proxy(server) as proxy:
            connection = await connect(server, settings=Settings(proxy.url))
            heard = Heard()
            await connection.subscribe("a", heard)
            dropped = proxy.on(lambda f: f.payload == b"drop", "drop", times=1)
            proxy.on(lambda f: f.direction == "up" and f.payload == b"twice", "duplicate")
            late = proxy.on(lambda f: f.direction == "up" and f.payload == b"late", 0.2)
            for word in (b"late", b"drop", b"drop", b"twice", b"end"):
                connection.send("a", word)
            await dropped.hit()
            await late.hit()
            got = [await heard.next() for _ in range(5)]
            assert got == [b"drop", b"twice", b"twice", b"end", b"late"]
            assert proxy.count(lambda f: f.direction == "up" and f.payload == b"drop") == 2
            proxy.clear()
            connection.send("a", b"drop")
            assert await heard.next() == b"drop"
            await connection.close()

    run(test())


def test_latency_keeps_the_order(server: NatsServer) -> None:
    """Late in both directions, a round trip takes both delays, and order stays."""

    async def test() -> None:
        async with Proxy(server) as proxy:
            connection = await connect(server, settings=Settings(proxy.url))
            heard = Heard()
            await connection.subscribe("a", heard)
            proxy.latency = {"up": 0.1, "down": 0.2}
            loop = asyncio.get_running_loop()
            start = loop.time()
            for number in range(20):
                connection.send("a", b"%d" % number)
            assert [await heard.next() for _ in range(20)] == [b"%d" % n for n in range(20)]
            assert loop.time() - start >= 0.29
            await connection.close()

    run(test())


def test_frozen_connections_stand_still(server: NatsServer) -> None:
    """A frozen connection passes nothing and is not closed; a new one passes; thawed, all comes."""

    async def test() -> None:
        async with Proxy(server) as proxy:
            events = Events()
            old = await connect(server, events, Settings(proxy.url))
            heard = Heard()
            await old.subscribe("a", heard)
            proxy.freeze()
            new = await connect(server, settings=Settings(proxy.url))
            new.send("a", b"from the new one")
            await new.flush()
            with pytest.raises(ExecutorError):
                await old.flush(timeout_s=0.2)
            assert events.count("disconnected") == 0
            proxy.thaw()
            assert await heard.next() == b"from the new one"
            await old.close()
            await new.close()

    run(test())


def test_cut_and_refuse(server: NatsServer) -> None:
    """Cut connections are noticed at once; refused, nobody gets in; then the client returns."""

    async def test() -> None:
        async with Proxy(server) as proxy:
            events = Events()
            connection = await connect(server, events, Settings(proxy.url))
            heard = Heard()
            await connection.subscribe("a", heard)
            proxy.refuse = True
            await proxy.cut()
            await events.wait("disconnected")
            with pytest.raises(ExecutorError, match="no connection to NATS"):
                await connect(server, settings=Settings(proxy.url))
            assert proxy.connections == 1
            proxy.refuse = False
            await events.wait("reconnected")
            connection.send("a", b"back")
            assert await heard.next() == b"back"
            await connection.close()

    run(test())


def test_a_budget_ends_in_mid_frame(server: NatsServer) -> None:
    """After its budget of bytes a connection ends, and what was cut off never arrives."""

    async def test() -> None:
        async with Proxy(server, budget=lambda: 2_000) as proxy:
            events = Events()
            connection = await connect(server, events, Settings(proxy.url))
            heard = Heard()
            await (await connect(server)).subscribe("a", heard)
            connection.send("a", b"x" * 5_000)
            await events.wait("disconnected")
            proxy.budget = None
            await events.wait("reconnected")
            connection.send("a", b"whole")
            assert await heard.next() == b"whole"
            assert proxy.count(is_publish("a")) == 2
            await connection.close()

    run(test())
