"""What the server writes for whoever asks, where the asker may not write: dropped, and reported.

All in one account, where nothing else stops it: the server answers to any subject it is given, and
delivers a consumer's messages to any.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.core import control, seal, subjects
from executor.transport.connection import Connection
from tests.servers import NatsServer, connect, run
from tests.support import guests, speech
from tests.support.served import OTHER, TENANT, Serve, Site

NAME = "local"  # the executor's


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


@dataclass
class Attack:
    """A running executor for two tenants, and a connection of the one that has an outcome."""

    site: Site
    life: Serve
    wire: Connection

    def reflect(self, subject: str, target: str, body: bytes = b"x") -> None:
        """Have the server write its answer where we say."""
        self.wire.send(subject, body, target)

    async def reported(self, kind: str, count: int = 1) -> None:
        """One typed line for each, and none of another kind."""
        await self.life.line("security-event", count, kind=kind)
        seen = [e["kind"] for e in self.life.events("security-event")]
        assert seen.count(kind) == count

    async def harmless(self) -> None:
        """The other tenant's tasks run as ever."""
        async with await self.site.client(OTHER) as client:
            assert (await client.run("echo", b"y", timeout_s=30)).output == b"y"


@asynccontextmanager
async def attacked(site: Site) -> AsyncIterator[Attack]:
    """`acme` has an outcome `done`, and reaches for `zebra`."""
    site.write(tenants=(TENANT, OTHER))
    await site.prepare(echo=guests.ECHO)
    life = await site.serve()
    async with await site.client() as client:
        assert (await client.run("echo", b"x", id="done", timeout_s=30)).ok
    at = Attack(site, life, await connect(site.server))
    yield at
    await at.harmless()
    assert life.process.poll() is None


def test_an_acknowledgement_as_anothers_result(site: Site) -> None:
    """It is stored under the other's id; nobody shows it, and the true outcome goes on top."""

    async def test() -> None:
        async with attacked(site) as at:
            at.reflect(subjects.task(TENANT, "echo"), f"result.{OTHER}.echo.mine")
            await at.life.line("attempt", code="message.malformed")
            assert [m.subject for m in await site.stored(OTHER)] == [f"result.{OTHER}.echo.mine"]
            async with await site.client(OTHER) as client:
                assert await client.outcome("mine", task="echo") is None
                assert (await client.run("echo", b"z", id="mine", timeout_s=30)).output == b"z"
            await at.life.line("security-event", kind="record-not-authentic")

    run(test())


def test_an_acknowledgement_among_anothers_tasks(site: Site) -> None:
    """Written to `due.…` it comes into the other's queue: no task, and no id that it could take."""

    async def test() -> None:
        async with attacked(site) as at:
            at.reflect(subjects.task(TENANT, "echo"), f"due.{OTHER}.echo")
            await at.reported("task-not-authentic")
            ended = await site.all_ended(1, OTHER)
            assert [(o.id[0], o.code) for o in ended.values()] == [("_", "message.malformed")]

    run(test())


@pytest.mark.parametrize("key", ["pause", "release", "cancel"])
def test_an_acknowledgement_in_control(site: Site, key: str) -> None:
    """Under another's key it changes nothing: what was released stays, nothing is held up."""

    async def test() -> None:
        async with attacked(site) as at:
            name = f"{key}.{OTHER}.echo" + (".mine" if key == "cancel" else "")
            at.reflect(subjects.task(TENANT, "echo"), f"$KV.CONTROL.{name}")
            await at.reported(f"{key}-not-authentic")

    run(test())


def test_an_entry_copied_within_control(site: Site) -> None:
    """A stored entry that a direct get writes under another key is bound to its own."""

    async def test() -> None:
        async with attacked(site) as at:
            own = subjects.pause_key(TENANT, "idle")
            value = speech.value("pause", own, {"at": 1, "why": "mine"})
            await at.wire.store(f"$KV.CONTROL.{own}", value)
            await at.life.line("paused", task=f"{TENANT}/idle")
            at.reflect(f"$JS.API.DIRECT.GET.KV_CONTROL.$KV.CONTROL.{own}",
                       f"$KV.CONTROL.pause.{OTHER}.echo", b"")  # fmt: skip
            await at.reported("pause-not-authentic")

    run(test())


def test_a_stored_outcome_as_a_task(site: Site) -> None:
    """A reader's direct get that is answered on `task.…` is no task."""

    async def test() -> None:
        async with attacked(site) as at:
            stored = f"result.{TENANT}.echo.done"
            at.reflect(f"$JS.API.DIRECT.GET.OUTCOMES_{TENANT}.{stored}",
                       subjects.task(OTHER, "echo"), b"")  # fmt: skip
            await at.reported("task-not-authentic")
            ended = await site.all_ended(1, OTHER)
            assert [(o.id[0], o.code) for o in ended.values()] == [("_", "message.malformed")]

    run(test())


@pytest.mark.parametrize(
    "subject", [subjects.commands(NAME), subjects.commands_all(), subjects.commands_of(OTHER)]
)
def test_an_answer_as_a_command(site: Site, subject: str) -> None:
    """An acknowledgement, and what the API says, on a subject where executors listen."""

    async def test() -> None:
        async with attacked(site) as at:
            at.reflect(subjects.task(TENANT, "echo"), subject)
            at.reflect("$JS.API.STREAM.NAMES", subject, b"")
            await at.reported("command-not-authentic", 2)

    run(test())


def test_a_consumer_that_delivers_to_an_executor(site: Site) -> None:
    """A stored outcome that a push consumer delivers to `control.…` commands nothing."""

    async def test() -> None:
        async with attacked(site) as at:
            await at.wire.api(f"CONSUMER.CREATE.OUTCOMES_{TENANT}", {
                "stream_name": f"OUTCOMES_{TENANT}",
                "config": {"deliver_subject": subjects.commands(NAME), "ack_policy": "none",
                           "deliver_policy": "all"},
            })  # fmt: skip
            await at.reported("command-not-authentic")

    run(test())


def test_a_command_that_was_heard(site: Site) -> None:
    """Stored and delivered again, or sent to another subject, a command is not carried out."""

    async def test() -> None:
        async with attacked(site) as at:
            subject = subjects.commands(NAME)
            now = speech.now_ms()
            payload = control.encode(
                "command", subject, "test", verb="retry", tenant=TENANT, task="_", id="none",
                sequence=0, exp=now + 60_000,
            )  # fmt: skip
            body = seal.tell(guests.OPERATOR, "test", subject, payload, nonce="n", at=now)
            at.wire.send(subject, body)
            await at.life.line("command", code="transport.outcome-pending")
            at.wire.send(subject, body)
            at.wire.send(subjects.commands_all(), body)
            await at.reported("command-not-authentic", 2)
            assert len(at.life.events("command")) == 1

    run(test())
