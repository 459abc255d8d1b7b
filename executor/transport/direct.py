"""Reading streams by direct get: no consumer, no leader, no limit of readers.

A batch ends with status 204, a stream with no (more) match with 404. A batch is bounded in count
and bytes, and the next is asked for only when the last was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any, Final

from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.api import NOT_FOUND, ApiError
from executor.transport.connection import Connection, Message, nobody_listens

BATCH: Final = 256
_BATCH_BYTES: Final = 8 * 1024 * 1024
_END_OF_BATCH: Final = "204"


def from_message(message: Message, subject: str = "") -> StoredMessage:
    """Read the headers that the server puts on direct gets and republished messages."""
    headers = message.headers or {}
    try:
        return StoredMessage(
            subject=subject or headers["Nats-Subject"],
            sequence=int(headers["Nats-Sequence"]),
            body=message.data,
            headers=headers,
            stored_at_ms=_milliseconds(headers.get("Nats-Time-Stamp", "")),
        )
    except (KeyError, ValueError):
        raise ExecutorError(
            "transport.stream-mismatch", "the server's answer lacks sequence or subject"
        ) from None


def _milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else 0


def _status(message: Message) -> str:
    return "" if message.data else (message.headers or {}).get("Status", "")


def _failed(status: str, message: Message, stream: str) -> ExecutorError:
    if status == "503":
        return nobody_listens(f"$JS.API.DIRECT.GET.{stream}")
    text = (message.headers or {}).get("Description", "")
    return ApiError(int(status) if status.isdigit() else 0, 0, text).mapped(stream)


async def _one(
    connection: Connection, stream: str, suffix: str, body: dict[str, Any], timeout_s: float
) -> StoredMessage | None:
    message = await connection.request(
        f"$JS.API.DIRECT.GET.{stream}{suffix}",
        json.dumps(body).encode() if body else b"",
        timeout_s=timeout_s,
    )
    status = _status(message)
    if status == str(NOT_FOUND):
        return None
    if status:
        raise _failed(status, message, stream)
    return from_message(message, suffix[1:])


async def last(
    connection: Connection, stream: str, subject: str, timeout_s: float = 5.0
) -> StoredMessage | None:
    """Return the last message on a subject (no wildcards), or None."""
    return await _one(connection, stream, f".{subject}", {}, timeout_s)


async def at(
    connection: Connection, stream: str, sequence: int, timeout_s: float = 5.0
) -> StoredMessage | None:
    """Return the message with a sequence, or None."""
    return await _one(connection, stream, "", {"seq": sequence}, timeout_s)


async def scan(
    connection: Connection,
    stream: str,
    filter_subject: str,
    *,
    start_sequence: int = 1,
    batch: int = BATCH,
    timeout_s: float = 5.0,
) -> AsyncGenerator[StoredMessage]:
    """Yield what matches, in stream order, up to what is stored when the last batch is asked for.

    Needs the right to publish `$JS.API.DIRECT.GET.<stream>` itself, besides what is below it.
    """
    sequence = max(start_sequence, 1)
    more = True
    while more:
        body = {
            "seq": sequence,
            "next_by_subj": filter_subject,
            "batch": batch,
            "max_bytes": _BATCH_BYTES,
        }
        more = False
        async with contextlib.aclosing(_batch(connection, stream, body, timeout_s)) as messages:
            async for message in messages:
                stored = from_message(message)
                sequence = stored.sequence + 1
                more = True
                yield stored


async def _batch(
    connection: Connection, stream: str, body: dict[str, Any], timeout_s: float
) -> AsyncGenerator[Message]:
    subject = f"$JS.API.DIRECT.GET.{stream}"
    arrived: asyncio.Queue[Message | ExecutorError] = asyncio.Queue()
    reply = connection.expect(subject, arrived.put_nowait, arrived.put_nowait)
    try:
        connection.send(subject, json.dumps(body).encode(), reply)
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    message = await arrived.get()
            except TimeoutError:
                raise connection.no_answer(subject, timeout_s) from None
            if isinstance(message, ExecutorError):
                raise message
            status = _status(message)
            if status in {_END_OF_BATCH, str(NOT_FOUND)}:
                return
            if status:
                raise _failed(status, message, stream)
            yield message
    finally:
        connection.forget(reply)
