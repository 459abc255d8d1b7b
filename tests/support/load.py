"""What fault scenarios share: tasks that flow, how often guests ran, and what must hold at the end.

The invariants are the same whatever broke: each id has exactly one authentic record, the queue is
empty, nothing was acked before its record was stored, no process is left behind.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

from executor.client import Client, TaskOutcome
from executor.core import subjects
from executor.errors import ExecutorError
from executor.model import TaskRequest
from executor.transport.api import ApiError
from executor.transport.control import Control
from executor.transport.kv import TenantKv
from tests.servers import connect, eventually
from tests.support import guests, speech
from tests.support.proxy import Proxy, is_ack
from tests.support.served import TENANT, Site

SHORT = guests.working(1_000_000)
MIDDLE = guests.working(20_000_000)  # some 20 ms
LONG = guests.working(1_000_000_000)  # half a second or so
LONGER = guests.working(4_000_000_000, 4)  # longer than the shortest lease
ENDLESS = guests.working(4_000_000_000, 50)  # as far as the deadline of a minute lets it


async def submit(
    site: Site, task: str, count: int, *, start: int = 0, tenant: str = TENANT
) -> list[str]:
    """Ask for so many tasks, straight at the server; the inputs are n0, n1, …; returns the ids."""
    async with await direct(site, tenant) as client:
        requests = [client.request(task, f"n{start + n}".encode()) for n in range(count)]
        await client.submit_many(requests)
    return [request.id for request in requests]


async def insist(site: Site, task: str, count: int, *, start: int = 0) -> list[str]:
    """`submit`, and the same again until the queue has taken all: its stream may have no leader.

    The same request is the same task, however often the queue is asked to take it.
    """
    requests: list[TaskRequest] = []

    async def taken() -> bool:
        with contextlib.suppress(ExecutorError):
            async with await direct(site) as client:
                if not requests:
                    texts = [f"n{start + n}".encode() for n in range(count)]
                    requests.extend(client.request(task, text) for text in texts)
                return await client.submit_many(requests) == count
        return False

    await eventually(taken)
    return [request.id for request in requests]


async def direct(site: Site, tenant: str = TENANT) -> Client:
    """A client that connects straight to the server, whatever stands before `serve`."""
    return await Client.from_config(site.config().with_values(nats__url=site.server.url), tenant)


async def began(site: Site, name: str) -> None:
    """Wait until the guest with this input has begun."""
    connection = await connect(site.server)
    bucket = TenantKv(connection, TENANT)

    async def there() -> bool:
        return await bucket.get(f"own/{name}") is not None

    await eventually(there)
    await connection.close()


async def runs(site: Site) -> int:
    """How often guests of `guests.working` have begun: each writes its key once."""
    return (await site.state(f"KV_{subjects.tenant_bucket(TENANT)}"))["last_seq"]


async def ran(site: Site, count: int) -> None:
    """Wait until guests have begun so often."""

    async def enough() -> bool:
        return await runs(site) >= count

    await eventually(enough)


async def stored(site: Site, count: int, tenant: str = TENANT) -> None:
    """Wait until at least so many outcomes are stored."""

    async def enough() -> bool:
        try:
            return (await site.state(subjects.outcomes_stream(tenant)))["messages"] >= count
        except (ExecutorError, ApiError):
            return False  # no leader, or no server just now

    await eventually(enough)


async def each_once(site: Site, ids: Sequence[str], tenant: str = TENANT) -> dict[str, TaskOutcome]:
    """Wait until all have ended; exactly one authentic record for each and an empty queue."""
    ended = await site.all_ended(len(ids), tenant)
    assert sorted(ended) == sorted(ids), "a task was lost, or one came from nowhere"
    await site.empty(tenant)
    assert len(await site.stored(tenant)) == len(ids), (
        "a record that is not authentic, or a second one"
    )
    return ended


async def stopped(site: Site) -> None:
    """Every `serve` that lives drains, exits 0 and leaves no sandbox behind."""
    for life in site.lives:
        if life.process.poll() is None:
            life.signal(signal.SIGTERM)
            assert await life.exit_status() == 0, life.log()[-4000:]
        await life.no_orphans()


def acked_after_stored(proxy: Proxy, acks: int) -> None:
    """On the wire, no ack stands before as many answers of the outcomes' stream.

    A PubAck and a refusal for an earlier record both allow one ack.
    """
    answers = seen = 0
    for frame in proxy.seen:
        if is_answer(frame.payload):
            answers += 1
        elif is_ack(frame):
            seen += 1
            assert seen <= answers, "acked before its record was confirmed"
    assert seen >= acks


def is_answer(payload: bytes) -> bool:
    """A PubAck of the outcomes, or the refusal of a second record."""
    stream = subjects.outcomes_stream(TENANT).encode()
    return payload.startswith(b'{"stream":"' + stream) or b'"err_code":10071' in payload


async def cancel_for(site: Site, task: str, task_id: str, *, until: int) -> None:
    """Announce that an id is cancelled until then (ms)."""
    connection = await connect(site.server)
    key = subjects.cancel_key(TENANT, task, task_id)
    await speech.put(Control(connection), "cancel", key, {"until": until})
    await connection.close()
