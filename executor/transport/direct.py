"""Reading streams by direct get: no consumer, no leader, no limit of readers.

A batch ends with status 204, a stream with no (more) match with 404. A batch is bounded in count
and bytes, and the next is asked for only when the last was taken.

The server hands each question to one of the replicas, whichever; of one that stands still, or is
cut off, it learns after minutes. So a question without an answer is put again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.api import NOT_FOUND, ApiError
from executor.transport.connection import Connection, Message, check_subject, nobody_listens

BATCH: Final = 256
_BATCH_BYTES: Final = 8 * 1024 * 1024
_END_OF_BATCH: Final = "204"
_AGAIN_S: Final = 0.25  # then doubled: a busy server is asked five times within 5 s, not twenty


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


class _Question:
    """`with _Question(…) as question`: the answer of the replica that is the first to say a word.

    Each time it is put it has a reply subject of its own, so that no two answers mix.
    """

    def __init__(self, connection: Connection, subject: str, body: dict[str, Any]) -> None:
        self._connection = connection
        self._subject = subject
        self._payload = json.dumps(body).encode() if body else b""
        self._replies: list[str] = []
        self._arrived: asyncio.Queue[Message | ExecutorError] = asyncio.Queue()
        self._again: asyncio.TimerHandle | None = None

    def _ask(self, wait_s: float) -> None:
        def answer(message: Message) -> None:
            if self._again is not None:  # the first word
                self._stop()
                self._forget(besides=reply)
            self._arrived.put_nowait(message)

        reply = self._connection.expect(self._subject, answer, self._arrived.put_nowait)
        self._replies.append(reply)
        self._connection.send(self._subject, self._payload, reply)
        loop = asyncio.get_running_loop()
        self._again = loop.call_later(wait_s, self._ask, 2 * wait_s)

    def _stop(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _forget(self, besides: str = "") -> None:
        for reply in self._replies:
            if reply != besides:
                self._connection.forget(reply)

    def __enter__(self) -> Self:
        check_subject(self._subject)
        self._ask(_AGAIN_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._stop()
        self._forget()

    async def answer(self, timeout_s: float) -> Message:
        """Return the next message. Errors  as those of `Connection.request`."""
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._arrived.get()
        except TimeoutError:
            raise self._connection.no_answer(self._subject, timeout_s) from None
        if isinstance(message, ExecutorError):
            raise message
        return message


async def _one(
    connection: Connection, stream: str, suffix: str, body: dict[str, Any], timeout_s: float
) -> StoredMessage | None:
    with _Question(connection, f"$JS.API.DIRECT.GET.{stream}{suffix}", body) as question:
        message = await question.answer(timeout_s)
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
    with _Question(connection, f"$JS.API.DIRECT.GET.{stream}", body) as question:
        while True:
            message = await question.answer(timeout_s)
            status = _status(message)
            if status in {_END_OF_BATCH, str(NOT_FOUND)}:
                return
            if status:
                raise _failed(status, message, stream)
            yield message
