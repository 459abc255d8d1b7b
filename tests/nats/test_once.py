"""Once is once, on a real server with real executors: ids, keys, raw bodies, copies, forgeries.

The guest counts its runs: each puts its input's name into the tenant's bucket, whose last sequence
is their number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from executor.cli.serving import queue, stream_options
from executor.client import Client, TaskOutcome
from executor.core import content, envelope, subjects
from executor.core.envelope import Draft, Record
from executor.core.seal import seal
from executor.model import Delivery, Receipt
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from tests.e2e.command import Shell
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import guests
from tests.support.served import TENANT, Site

WORK = guests.working(5_000_000)
TRAPPED = WORK.removesuffix("(i32.const 0))") + "unreachable)"


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


async def runs(site: Site) -> int:
    """How often any guest began."""
    return (await site.state(f"KV_{subjects.tenant_bucket(TENANT)}"))["last_seq"]


def test_an_id_asked_for_many_times_at_once_runs_once(site: Site) -> None:
    """The same id from several clients, with other inputs and as a raw body: one run, one answer.

    The queue drops equal messages by itself; these all differ, so that it takes every one.
    """

    async def test() -> None:
        await site.prepare(work=WORK)
        await site.serve()
        first, second = await site.client(), await site.client()
        async with first, second:
            asked = [
                client.run("work", f"{at}-{n}".encode(), id="mine", timeout_s=60)
                for at, client in enumerate((first, second)) for n in range(2)
            ]  # fmt: skip
            raw = [first.submit_bytes("work", b"raw", id="mine") for _ in range(3)]
            answers = await asyncio.gather(*asked, *raw)
            found = [answer for answer in answers if isinstance(answer, TaskOutcome)]
            await site.empty()
            assert (await site.state(subjects.tasks_stream(TENANT)))["last_seq"] == 7
            assert len({(outcome.sequence, outcome.output) for outcome in found}) == 1
            assert await runs(site) == 1
            # After the result, in whatever form: the first outcome, and no run.
            again = await second.run("work", b"later", id="mine", timeout_s=60)
            assert again == found[0]
            await second.submit_bytes("work", b"later", id="mine")
            await site.empty()
            assert await runs(site) == 1
        assert len(await site.stored()) == 1

    run(test())


def test_a_dead_letter_is_an_outcome_too(site: Site) -> None:
    """An id that failed does not run again when it is asked for again: its letter is the answer."""

    async def test() -> None:
        await site.prepare(work=TRAPPED)
        await site.serve()
        async with await site.client() as client:
            first = await client.run("work", b"a", id="mine", timeout_s=60)
            assert first.code == "guest.trap"
            assert await client.run("work", b"b", id="mine", timeout_s=60) == first
        await site.empty()
        assert await runs(site) == 1

    run(test())


def test_a_key_is_one_task(site: Site) -> None:
    """The same key from a program and from the command line gives one run and one outcome."""

    async def test() -> None:
        await site.prepare(work=WORK)
        await site.serve()
        shell = Shell(site.folder)
        async with await site.client() as client:
            first = await client.run("work", b"a", key="order 7", timeout_s=60)
            assert await client.run("work", b"b", key="order 7", timeout_s=60) == first
            done = await asyncio.to_thread(
                shell.call, "submit", "work", "-i", "c", "--key", "order 7", "--wait", "--json"
            )
            assert (done.object()["id"], done.object()["output"]) == (first.id, "a")
            await site.empty()
            assert await runs(site) == 1
            # The harmless twin: another key, and the same key of another task, are other tasks.
            assert (await client.run("work", b"d", key="order 8", timeout_s=60)).output == b"d"
            await site.release(guests.signed(WORK, "other"), "other")
            other = await client.run("other", b"e", key="order 7", timeout_s=60)
            assert (other.output, other.id != first.id) == (b"e", True)
            assert await runs(site) == 3

    run(test())


def test_after_the_duplicate_window(site: Site) -> None:
    """What the queue has forgotten the outcomes still know: the same bytes run no second time."""

    async def test() -> None:
        await site.prepare(work=WORK)
        await site.serve()
        # After `serve` has compared the streams: it would refuse a shorter window.
        config = site.config()
        short = replace(stream_options(config), duplicate_window_ms=200)
        connection = await connect(site.server)
        await streams.apply(connection, [queue(t) for t in config.policy.tenants], short)
        async with await site.client() as client:
            first = await client.run("work", b"a", id="mine", timeout_s=60)

            async def forgotten() -> bool:
                return not (await client.submit("work", b"a", id="mine")).duplicate

            await eventually(forgotten)
            await site.empty()
            assert await client.wait("mine", task="work") == first
        assert await runs(site) == 1
        assert len(await site.stored()) == 1

    run(test())


def test_a_retried_letter_runs_once_more(site: Site) -> None:
    """Asked again twice at once, and again when the queue has forgotten it: one more run."""

    async def test() -> None:
        await site.prepare(work=TRAPPED)
        await site.serve()
        connection = await connect(site.server)
        later = (await connection.api("STREAM.INFO.LATER_acme"))["config"]
        await connection.api("STREAM.UPDATE.LATER_acme", later | {"duplicate_window": 200_000_000})
        shell = Shell(site.folder)

        async def retry() -> dict[str, Any]:
            return await asyncio.to_thread(shell.json, "dead", "retry", "mine")

        async with await site.client() as client:
            assert (await client.run("work", b"a", id="mine", timeout_s=60)).code == "guest.trap"
            first, second = await asyncio.gather(retry(), retry())
            assert first["id"] == second["id"] != "mine"
            found = await client.wait(first["id"], task="work", timeout_s=60)
            assert found.code == "guest.trap"

            async def forgotten() -> bool:
                again = await retry()
                assert again["id"] == first["id"]
                return not again["duplicate"]

            await eventually(forgotten)
            await site.empty()
            assert await client.wait(first["id"], task="work") == found
        assert await runs(site) == 2
        assert len(await site.stored()) == 2

    run(test())


async def take(connection: Connection) -> Delivery:
    """Take one delivery as an executor would, and keep it."""
    taken: asyncio.Queue[Delivery] = asyncio.Queue()
    pull = Pull(connection, TENANT, window=1, on_delivery=taken.put_nowait, on_event=Events())
    await pull.start()
    delivery = await taken.get()
    await pull.stop()
    return delivery


async def leave(connection: Connection, task_id: str, body: bytes, kind: str = "result") -> None:
    """Put something where an outcome belongs."""
    await connection.store(f"{kind}.{TENANT}.work.{task_id}", body)


def outcome(task_id: str, output: bytes, *, forged: bool = False) -> bytes:
    """A result under the host's key, or under nobody's."""
    subject = subjects.result(TENANT, "work", task_id)
    record = Record("work", 1, 3, 1, 2, Receipt(), output=output)
    draft = Draft("result", f"test/{subject}", task_id, envelope.encode_record(record))
    return seal(guests.FORGER if forged else guests.HOST, [draft], at=1)[0]


@pytest.mark.parametrize("done", [True, False], ids=["with a result", "without one"])
def test_a_fresh_id_that_is_redelivered(site: Site, done: bool) -> None:  # noqa: FBT001
    """`fresh` spares the look-up of the first hand-over alone: a result that stands is the end."""

    async def test() -> None:
        await site.prepare(work=WORK)
        async with await site.client() as client:
            sent = await client.submit("work", b"a")
            connection = await connect(site.server)
            delivery = await take(connection)
            assert delivery.delivered == 1
            if done:
                await leave(connection, sent.id, outcome(sent.id, b"of another"))
            Outbox(connection).nak(delivery.lease)
            life = await site.serve()
            found = await client.wait(sent.id, timeout_s=60)
            await site.empty()
            assert found.output == (b"of another" if done else b"a")
            assert await runs(site) == (0 if done else 1)
            assert len(life.events("duplicate")) == int(done)
        assert len(await site.stored()) == 1

    run(test())


@pytest.mark.parametrize("kind", ["result", "dead"])
@pytest.mark.parametrize("what", ["garbage", "forged", "of another id", "of the future"])
def test_what_stands_in_an_outcomes_place(site: Site, kind: str, what: str) -> None:
    """An incumbent that proves nothing is reported and superseded; the real outcome is kept."""

    async def test() -> None:
        await site.prepare(work=WORK)
        life = await site.serve()
        body = {
            "garbage": b"\0garbage", "forged": outcome("mine", b"forged", forged=True),
            "of another id": outcome("other", b"moved"),
            "of the future": content.to_msgpack({"v": 3, "typ": kind, "unheard": 1}),
        }[what]  # fmt: skip
        connection = await connect(site.server)
        await leave(connection, "mine", body, kind)
        async with await site.client() as client:
            assert await client.outcome("mine") is None
            found = await client.run("work", b"a", id="mine", timeout_s=60)
            assert found.output == b"a"
            event = await life.line("security-event", kind="record-not-authentic")
            assert event["subject"] == f"{kind}.{TENANT}.work.mine"
            # It is believed from now on: asked for again, nothing runs.
            assert await client.run("work", b"b", id="mine", timeout_s=60) == found
        await site.empty()
        assert await runs(site) == 1

    run(test())


def test_copies_in_two_executors_make_one_record(site: Site, tmp_path: Path) -> None:
    """Copies of an id that run in two executors at once end in one record, the same for all."""

    async def test() -> None:
        await site.prepare(work=WORK)
        with Site(tmp_path / "other", site.server) as other:
            await site.serve()
            await other.serve()
            clients: list[Client] = [await site.client() for _ in range(2)]
            for _ in range(10):
                await clients[0].submit_bytes("work", b"a", id="mine")
            found = [await client.wait("mine", timeout_s=60) for client in clients]
            await site.empty()
            assert found[0] == found[1]
            assert len(await site.stored()) == 1
            # While none has a result each executor may run it, but never again afterwards.
            assert await runs(site) <= 2
            for client in clients:
                await client.close()

    run(test())
