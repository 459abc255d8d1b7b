"""The public API as a program uses it; checked by mypy strict, run by test_client.py."""

from __future__ import annotations

import time
from typing import assert_type

from executor import Client, ExecutorError, SyncClient, TaskError, TaskOutcome


def count_words(url: str, key: str, text: str) -> int:
    """Ask for one task and wait, in plain code."""
    with SyncClient.open(url, tenant="acme", executors=[key]) as client:
        outcome = client.run("wordcount", text, timeout_s=30)
        assert_type(outcome, TaskOutcome)
        words: int = outcome.value()["words"]
        return words


async def ask_and_look_later(url: str, key: str, order: str) -> tuple[str, str]:
    """Ask under an idempotency key, and read the outcome by its id."""
    async with await Client.open(url, tenant="acme", executors=[key]) as client:
        sent = await client.submit(
            "wordcount", "one two", key=order, expires_at=time.time_ns() // 1_000_000 + 60_000
        )
        outcome = await client.wait(sent.id, timeout_s=30)
        try:
            return sent.id, outcome.text()
        except TaskError as error:
            return sent.id, error.outcome.code


async def why_it_failed(url: str, key: str, task: str) -> str:
    """The code of a task's failure, "" for a success, and the code of a refusal to ask."""
    try:
        async with await Client.open(url, tenant="acme", executors=[key]) as client:
            outcome = await client.run(task, b"\x00\x01", timeout_s=30)
    except ExecutorError as error:
        return error.code
    return "" if outcome.ok else outcome.code


async def failures(url: str, key: str) -> dict[str, str]:
    """Every dead letter by its id, and what its module had used."""
    found: dict[str, str] = {}
    async with await Client.open(url, tenant="acme", executors=[key]) as client:
        async for letter in client.dead_letters():
            found[letter.id] = f"{letter.code} after {letter.receipt.fuel_used} fuel"
    return found
