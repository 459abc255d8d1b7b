"""What a delivery says about itself: leases of both forms, and messages that are none."""

from __future__ import annotations

import pytest

from executor.model import Delivery
from executor.transport import streams
from executor.transport.connection import Message
from executor.transport.pull import Pull
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, run

ACME = TenantQueue("acme")


def test_a_foreign_message_in_the_inbox_is_dropped(server: NatsServer) -> None:
    """Whoever publishes to the inbox cannot hand over a task nor choose where acks go."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        await streams.apply(connection, [ACME])
        late: list[Delivery] = []
        pull = Pull(connection, "acme", window=4, on_delivery=late.append, on_event=events)
        await pull.start()
        flow = pull._flow
        assert flow is not None
        for reply in ("task.acme.work", "$JS.NAK.TASKS_acme.executor.1.1.1.1.0"):
            connection.send(flow.inbox, b"forged", reply)
        await events.wait("foreign-message", 2)
        assert late == []
        assert pull.statistics()["outstanding"] == 4
        await pull.stop()

    run(body())


@pytest.mark.parametrize(
    "lease",
    [
        "$JS.ACK.TASKS_acme.executor.2.7.3.1795476636620259455.4",
        "$JS.ACK.hub.Ab12.TASKS_acme.executor.2.7.3.1795476636620259455.4",
        "$JS.ACK.hub.Ab12.TASKS_acme.executor.2.7.3.1795476636620259455.4.rnd",
    ],
)
def test_both_forms_of_a_lease_are_read(server: NatsServer, lease: str) -> None:
    """Sequence, count and time come from the reply subject, with and without a domain."""

    async def body() -> None:
        connection = await connect(server)
        pull = Pull(connection, "acme", window=1, on_delivery=lambda _: None, on_event=Events())
        message = Message("task.acme.work", lease, b"x", None)
        delivery = pull._parse(message)
        assert delivery is not None
        assert delivery.sequence == 7
        assert delivery.delivered == 2
        assert delivery.stored_at == 1795476636620
        assert delivery.lease == lease
        assert delivery.headers == {}

    run(body())
