"""The Python client against a running executor: what a program may rely on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import nats
import pytest

from executor import Client, ExecutorError, SyncClient, TaskError
from tests.e2e import api_usage
from tests.e2e.command import House


def _key(house: House, name: str = "executor") -> str:
    return (house.folder / "keys" / f"{name}.pub").read_text().strip()


async def _open(house: House) -> Client:
    return await Client.open(house.url, tenant="acme", executors=[_key(house)])


def _now() -> int:
    return time.time_ns() // 1_000_000


async def test_run(house: House) -> None:
    """A result has its bytes, its value by content type, and the receipt of its attempt."""
    async with await _open(house) as client:
        outcome = await client.run("wordcount", "one two two", timeout_s=30)
    assert outcome.ok
    assert outcome.value() == {"words": 3, "distinct": 2}
    assert outcome.text() == '{"words":3,"distinct":2}'
    assert (outcome.tenant, outcome.task, outcome.code) == ("acme", "wordcount", "")
    assert outcome.receipt.fuel_used > 0
    assert outcome.receipt.containment == "full"


async def test_submit_then_wait(house: House) -> None:
    """The id of a submitted task leads to its outcome, before and after it is there."""
    async with await _open(house) as client:
        sent = await client.submit("wordcount", "a b")
        outcome = await client.wait(sent.id, timeout_s=30)
        again = await client.outcome(sent.id)
        by_sequence = await client.at(outcome.sequence)
        assert await client.outcome("never-asked") is None
    assert not sent.duplicate
    assert outcome == again == by_sequence


@pytest.mark.covers("transport.outcome-pending")
async def test_wait_gives_up(house: House) -> None:
    """Waiting for what does not come ends with a code, at the time that was asked for."""
    async with await _open(house) as client:
        with pytest.raises(ExecutorError) as raised:
            await client.wait("never-asked", timeout_s=0.1)
    assert raised.value.code == "transport.outcome-pending"
    assert "never-asked" in raised.value.hint


async def test_same_id_or_key_is_the_same_task(house: House) -> None:
    """Asking twice gives the first outcome, whatever the second input says."""
    async with await _open(house) as client:
        for option in ({"id": "api-1"}, {"key": "order 1"}):
            first = await client.run("wordcount", "one", timeout_s=30, **option)
            second = await client.run("wordcount", "one two", timeout_s=30, **option)
            assert first == second
        other = await client.run("wordcount", "one two", key="order 2", timeout_s=30)
        assert other.value()["words"] == 2
        with pytest.raises(ValueError, match="not both"):
            client.request("wordcount", id="a", key="b")
        with pytest.raises(ValueError, match="an id is of"):
            client.request("wordcount", id="_a")


async def test_expires_and_not_before(house: House) -> None:
    """A task does not start after `expires_at` nor before `not_before`."""
    async with await _open(house) as client:
        late = await client.run("wordcount", "a", expires_at=_now() - 1, timeout_s=30)
        at = _now() + 700
        early = await client.run("wordcount", "a", not_before=at, timeout_s=30)
    assert late.code == "message.expired"
    assert early.ok
    assert early.record.finished_at >= at


async def test_failure_is_an_outcome(house: House) -> None:
    """A failed task is no exception until its output is asked for; then it has the outcome."""
    async with await _open(house) as client:
        outcome = await client.run("trap", timeout_s=30)
        letters = [letter.id async for letter in client.dead_letters("trap")]
    assert (outcome.ok, outcome.code) == (False, "guest.trap")
    with pytest.raises(TaskError, match=r"guest\.trap") as raised:
        outcome.value()
    assert raised.value.outcome is outcome
    assert outcome.id in letters


async def test_outcomes_are_in_order(house: House) -> None:
    """All stored outcomes come oldest first, by kind and by task."""
    async with await _open(house) as client:
        ids = [(await client.run("wordcount", "a", timeout_s=30)).id for _ in range(3)]
        found = [o async for o in client.outcomes("wordcount", kind="result")]
        last = [o async for o in client.outcomes(start_sequence=found[-1].sequence)]
    assert [o.id for o in found][-3:] == ids
    assert [o.sequence for o in found] == sorted(o.sequence for o in found)
    assert {o.ok for o in found} == {True}
    assert last[0] == found[-1]


async def test_submit_many(house: House) -> None:
    """A batch is taken by the queue in one call, and each of it ends."""
    async with await _open(house) as client:
        requests = [client.request("wordcount", f"{n}") for n in range(100)]
        assert await client.submit_many(requests) == 100
        waits = [client.wait(request.id, timeout_s=60) for request in requests]
        outcomes = await asyncio.gather(*waits)
    assert all(outcome.ok for outcome in outcomes)


async def test_lowered_limits(house: House) -> None:
    """A submitter lowers a task's limits and never raises them."""
    async with await _open(house) as client:
        poor = await client.run("wordcount", "a b c", fuel=10, timeout_s=30)
        rich = await client.run("wordcount", "a b c", fuel=10**15, timeout_s=30)
    assert poor.code == "limit.fuel-exhausted"
    assert rich.ok


async def test_input_too_large(house: House) -> None:
    """More than 512 KiB of input is refused before it is sent."""
    async with await _open(house) as client:
        with pytest.raises(ExecutorError, match=r"message\.too-large"):
            await client.submit("wordcount", b"x" * (512 * 1024 + 1))


async def test_unknown_tenant_and_task(house: House) -> None:
    """An unknown tenant is refused by the queue, an unknown task ends as a dead letter."""
    key = _key(house)
    assert await api_usage.why_it_failed(house.url, key, "nosuch") == "policy.task-unknown"
    async with await Client.open(house.url, tenant="nobody", executors=[key]) as client:
        with pytest.raises(ExecutorError, match=r"transport\.stream-missing"):
            await client.submit("wordcount")


async def test_other_keys_outcomes_are_invisible(house: House) -> None:
    """To a client that trusts another key, what this executor signed is not there."""
    foreign = _key(house, "author")
    async with await Client.open(house.url, tenant="acme", executors=[foreign]) as client:
        assert await client.outcome("good") is None
        assert [o async for o in client.outcomes()] == []
        with pytest.raises(ExecutorError, match=r"transport\.outcome-pending"):
            await client.run("wordcount", "a", timeout_s=0.5)
    async with await _open(house) as client:
        found = await client.outcome("good")
        assert found is not None
        assert found.ok


async def test_forged_record_is_invisible(house: House) -> None:
    """A record that somebody else writes under a task's id is not shown; the true one is."""
    connection = await nats.connect(house.url)
    try:
        for body in (b"", b"junk", b"\x81\xa3typ\xa6result"):
            await connection.jetstream().publish("result.acme.wordcount.forged", body)
    finally:
        await connection.close()
    async with await _open(house) as client:
        assert await client.outcome("forged") is None
        assert "forged" not in [o.id async for o in client.outcomes()]
        outcome = await client.run("wordcount", "true", id="forged", timeout_s=30)
        assert outcome.value()["words"] == 1
        assert await client.outcome("forged") == outcome


@pytest.mark.covers("trust.missing")
async def test_without_keys_nothing_is_believed(house: House) -> None:
    """A client that trusts nobody is refused at once, with what to pass."""
    with pytest.raises(ExecutorError, match=r"trust\.missing") as raised:
        await Client.open(house.url, tenant="acme")
    assert "executors=" in raised.value.hint


async def test_closed_client_tells_who_waits(house: House) -> None:
    """Closing a client ends its waits with a code, not by cancelling the waiting program."""
    client = await _open(house)
    waiting = asyncio.create_task(client.wait("never-asked"))
    # Once this is answered, the wait before it has begun to listen.
    await client.run("wordcount", "a", timeout_s=30)
    await client.close()
    with pytest.raises(ExecutorError, match=r"transport\.disconnected"):
        await waiting


async def test_from_config(house: House) -> None:
    """executor.toml says where NATS is and whom to believe."""
    async with await Client.from_config(house.folder / "executor.toml") as client:
        assert client.tenant == "acme"
        assert (await client.run("wordcount", "a", timeout_s=30)).ok
    with pytest.raises(ExecutorError, match=r"config\.missing"):
        await Client.from_config(Path("/nonexistent/executor.toml"))


def test_plain_code(house: House) -> None:
    """The same without async: run, wait, read, and a close that may be repeated."""
    with SyncClient.open(house.url, tenant="acme", executors=[_key(house)]) as client:
        sent = client.submit("wordcount", {"a": 1})
        outcome = client.wait(sent.id, timeout_s=30)
        assert client.outcome(sent.id) == outcome
        assert next(iter(client.outcomes())).id
        assert "bad" in [letter.id for letter in client.dead_letters()]
        assert outcome.id in [o.id for o in client.outcomes("wordcount", kind="result")]
    client.close()
    with pytest.raises(ExecutorError, match=r"trust\.missing"):
        SyncClient.open(house.url, tenant="acme")


def test_plain_code_from_config(house: House) -> None:
    """`SyncClient.from_config` needs nothing but the file."""
    with SyncClient.from_config(house.folder / "executor.toml") as client:
        assert client.run("wordcount", "a b", timeout_s=30).value()["words"] == 2


def test_usage_examples(house: House) -> None:
    """The programs that mypy checks also run."""
    key = _key(house)
    assert api_usage.count_words(house.url, key, "one two three") == 3
    first = asyncio.run(api_usage.ask_and_look_later(house.url, key, "order 77"))
    second = asyncio.run(api_usage.ask_and_look_later(house.url, key, "order 77"))
    assert first == second
    assert first[1] == '{"words":2,"distinct":2}'
    assert asyncio.run(api_usage.why_it_failed(house.url, key, "trap")) == "guest.trap"
    assert asyncio.run(api_usage.failures(house.url, key))["bad"].startswith("guest.trap after")
