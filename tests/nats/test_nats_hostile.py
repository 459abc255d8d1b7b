"""What a submitter may put on the wire must not end the connection that reads it."""

from __future__ import annotations

import asyncio

import pytest

from executor.model import Delivery
from executor.transport import control, streams
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, run, until


def _pub(subject: bytes, body: bytes = b"x") -> bytes:
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body)


def _hpub(subject: bytes, headers: bytes, body: bytes = b"x") -> bytes:
    head = b"NATS/1.0" + headers + b"\r\n"
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(head), len(head) + len(body), head, body)


HOSTILE = {
    "subject that is no UTF-8": _pub(b"task.acme.\xff\xfe"),
    "subject with a vertical tab": _pub(b"task.acme.a\x0bb"),
    "subject with form feed and NUL": _pub(b"task.acme.a\x00\x0cb"),
    "header value that is no UTF-8": _hpub(b"task.acme.work", b"\r\nTask-Id: \xff\xfe\r\n"),
    "header name that is no UTF-8": _hpub(b"task.acme.work", b"\r\n\xff\xfe\x00: a\r\n"),
    "header line without a colon": _hpub(b"task.acme.work", b"\r\nno colon here\r\n"),
    "status line": _hpub(b"task.acme.work", b" 503 No Responders\r\n"),
    "status line that is no UTF-8": _hpub(b"task.acme.work", b" \xff\xff\xff\r\n"),
    "status of an idle heartbeat": _hpub(b"task.acme.work", b" 100 Idle Heartbeat\r\n"),
}


async def _send(server: NatsServer, data: bytes) -> None:
    """Speak the wire protocol: no client library would send this."""
    host, port = server.url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + data + b"PING\r\n")
    await writer.drain()
    assert await asyncio.wait_for(reader.readline(), 10) == b"PONG\r\n"
    writer.close()


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_bytes(server: NatsServer, attack: str) -> None:
    """Hostile subjects and headers are delivered like any message, and so is what follows."""

    async def main() -> None:
        events, taken = Events(), asyncio.Event()
        deliveries: list[Delivery] = []
        connection = await connect(server, events)
        await streams.apply(connection, [TenantQueue("acme")])
        outbox = Outbox(connection)
        await outbox.start()

        def take(delivery: Delivery) -> None:
            deliveries.append(delivery)
            outbox.ack(delivery.lease)
            pull.completed()
            taken.set()

        pull = Pull(connection, "acme", window=4, on_delivery=take, on_event=events)
        await pull.start()
        await _send(server, HOSTILE[attack] + _pub(b"task.acme.work", b"innocent"))
        await until(lambda: bool(deliveries) and deliveries[-1].data == b"innocent", taken)
        assert [delivery.delivered for delivery in deliveries] == [1] * len(deliveries)
        assert len(deliveries) == 2
        await pull.stop()
        await outbox.stop()
        await connection.close()

    run(main())


@pytest.mark.parametrize("status", [b"204", b"404", b"503", b"408"])
@pytest.mark.parametrize("where", [b" %s Forged\r\n", b"\r\nStatus: %s\r\n"])
def test_what_is_stored_does_not_end_a_scan(
    server: NatsServer, where: bytes, status: bytes
) -> None:
    """An entry of a tenant that reads like the server's own word hides nothing behind it."""

    async def main() -> None:
        connection = await connect(server)
        await streams.apply(connection, [TenantQueue("acme")])
        bucket, key = control.Control(connection), "cancel.acme.x.y"
        await _send(server, _hpub(b"$KV.CONTROL.cancel.acme.x.y", where % status, b""))
        await bucket.put("quarantine.aa", b"stands")
        assert set(await bucket.entries()) == {key, "quarantine.aa"}
        assert await bucket.get(key) is not None
        seen: list[str] = []
        watch = await control.watch(connection, lambda name, _value, _at: seen.append(name))
        await watch.stop()
        assert seen == [key, "quarantine.aa"]

    run(main())
