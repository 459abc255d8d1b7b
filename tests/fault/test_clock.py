"""`serve` on a host whose wall clock is an hour ahead or behind: times are judged as the server's.

The submitter's clock and the server's are right. Deadlines and back-offs are not an hour off.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from executor.client import Client
from executor.errors import ExecutorError
from tests.servers import NatsServer, run
from tests.support import guests, load
from tests.support.served import Site

HOUR_S = 3_600
AHEAD = pytest.param(HOUR_S, id="ahead")
BEHIND = pytest.param(-HOUR_S, id="behind")
LATER_MS = 2_000
# A guest that asks for its second attempt in two seconds, and has no third.
RETRY = guests.RETRY.replace("(i64.const 7)", f"(i64.const {LATER_MS})")


def now_ms() -> int:
    """The right time."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def skewed(
    tmp_path: Path, server: NatsServer, seconds: int
) -> AsyncIterator[tuple[Site, Client]]:
    """A site served by a host whose clock is wrong by so much, and a client."""
    with Site(tmp_path / "site", server) as site:
        await site.prepare(echo=guests.ECHO, retry=RETRY)
        await site.serve("-m", "tests.support.skewed", str(seconds))
        async with await load.direct(site) as client:
            yield site, client
        await load.stopped(site)


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
def test_records_verify(tmp_path: Path, server: NatsServer, seconds: int) -> None:
    """Attacks *the key was valid when the record was stored*: stored by the server's clock."""

    async def test() -> None:
        async with skewed(tmp_path, server, seconds) as (site, client):
            outcome = await client.run("echo", b"x", timeout_s=20)
            assert outcome.output == b"x"
            assert list(await site.ended()) == [outcome.id]

    run(test())


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
def test_retries_come_on_time(tmp_path: Path, server: NatsServer, seconds: int) -> None:
    """Attacks *a retry comes after its back-off*: neither an hour late nor at once."""

    async def test() -> None:
        async with skewed(tmp_path, server, seconds) as (_, client):
            sent = await client.submit("retry", attempts_max=2)
            try:
                ended = await client.wait(sent.id, timeout_s=6)
            except ExecutorError as error:
                raise AssertionError("the retry is late") from error
            assert (ended.code, ended.record.attempt) == ("guest.failed", 2)
            assert ended.stored_at - ended.record.submitted_at >= LATER_MS

    run(test())


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
def test_expiry_is_judged_right(tmp_path: Path, server: NatsServer, seconds: int) -> None:
    """Attacks *a task does not start after its `expires_at`*: neither refused nor let through."""

    async def test() -> None:
        async with skewed(tmp_path, server, seconds) as (_, client):
            good = await client.run("echo", b"x", expires_at=now_ms() + 60_000, timeout_s=20)
            old = await client.run("echo", b"x", expires_at=now_ms() - 60_000, timeout_s=20)
            assert (good.code, old.code) == ("", "message.expired")

    run(test())


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
def test_nothing_starts_before_its_time(tmp_path: Path, server: NatsServer, seconds: int) -> None:
    """Attacks *a task does not start before its `not_before`*: nor an hour after it."""

    async def test() -> None:
        async with skewed(tmp_path, server, seconds) as (_, client):
            begin = now_ms() + LATER_MS
            ended = await client.run("echo", b"x", not_before=begin, timeout_s=20)
            assert ended.output == b"x"
            assert ended.stored_at >= begin

    run(test())


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND])
def test_a_cancelled_id_stays_cancelled(tmp_path: Path, server: NatsServer, seconds: int) -> None:
    """Attacks *a cancelled task does not run*: its announcement is not outlived an hour early."""

    async def test() -> None:
        async with skewed(tmp_path, server, seconds) as (site, client):
            await load.cancel_for(site, "echo", "mine", until=now_ms() + 60_000)
            assert (await client.run("echo", b"x", id="mine", timeout_s=20)).code == (
                "task.cancelled"
            )

    run(test())
