"""Submitting tasks: a window of unconfirmed publishes on one inbox, each with a `Nats-Msg-Id`.

The id makes repeats harmless: an unconfirmed task is published again after a reconnect and every
few seconds until its deadline, and the stream keeps it once (its duplicate window is 2 minutes).
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from executor.errors import ExecutorError
from executor.model import Answer, Conflict, Outgoing, Refused, Stored
from executor.transport.connection import Connection
from executor.transport.outbox import Outbox

# The stream's own bounds; the account's and the server's (10002, 10023).
_FULL: Final = frozenset({10002, 10023, 10047, 10077, 10122})
_TOO_LARGE: Final = frozenset({413, 10054})
_UNAVAILABLE: Final = 503
_FORBIDDEN: Final = 403
_ID: Final = "Nats-Msg-Id"


@dataclass(frozen=True, slots=True)
class Submission:
    """One message for a tenant's queue; without `Nats-Msg-Id` among its headers it gets one."""

    subject: str
    body: bytes
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """Where the stream keeps it; `duplicate` if it already had this `Nats-Msg-Id`."""

    sequence: int
    duplicate: bool = False


class Submitter:
    """See the module; `start` before use. One per connection is enough."""

    def __init__(
        self, connection: Connection, window: int = 256, *, timeout_s: float = 10.0
    ) -> None:
        self._outbox = Outbox(connection, sweep_s=min(5.0, timeout_s / 2), patient=False)
        self._window = window
        self._timeout_s = timeout_s
        self._room = asyncio.Event()
        self._room.set()

    async def start(self) -> None:
        """Subscribe to its inbox."""
        await self._outbox.start()

    async def stop(self) -> None:
        """End; what is in flight gets `transport.publish-unconfirmed`."""
        await self._outbox.stop()

    async def submit(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Submitted:
        """Publish one task and wait until the stream has it.

        Errors  `transport.stream-missing` (unknown tenant), `transport.stream-full`,
                `message.too-large`, `transport.permission-denied`,
                `transport.publish-unconfirmed`.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answer(answer: Answer) -> None:
            self._leave()
            if not future.done():
                future.set_result(answer)

        await self._enter()
        self._publish(Submission(subject, body, headers), answer)
        if self._outbox.pending == 1:  # of many at once each would be a packet of its own
            self._outbox.push()
        outcome = _outcome(await future, subject)
        if isinstance(outcome, ExecutorError):
            raise outcome
        return outcome

    async def submit_many(
        self, submissions: Iterable[Submission]
    ) -> list[Submitted | ExecutorError]:
        """Publish with the window kept full; returns one outcome for each, in their order."""
        outcomes: list[Submitted | ExecutorError | None] = []
        left = 0
        done = asyncio.Event()

        def answered(index: int, subject: str, answer: Answer) -> None:
            nonlocal left
            self._leave()
            outcomes[index] = _outcome(answer, subject)
            left -= 1
            if left == 0:
                done.set()

        for index, submission in enumerate(submissions):
            await self._enter()
            outcomes.append(None)
            left += 1
            done.clear()
            self._publish(submission, functools.partial(answered, index, submission.subject))
        if left:
            self._outbox.push()
            await done.wait()
        return [outcome for outcome in outcomes if outcome is not None]

    async def _enter(self) -> None:
        while self._outbox.pending >= self._window:
            self._room.clear()
            await self._room.wait()

    def _leave(self) -> None:
        if not self._room.is_set():
            self._room.set()

    def _publish(self, submission: Submission, on_answer: Callable[[Answer], None]) -> None:
        headers = submission.headers or {}
        if _ID not in headers:
            headers = {**headers, _ID: secrets.token_hex(12)}
        outgoing = Outgoing(submission.subject, submission.body, headers)
        self._outbox.publish(outgoing, on_answer, self._timeout_s)


def _outcome(answer: Answer, subject: str) -> Submitted | ExecutorError:
    match answer:
        case Stored(sequence, duplicate):
            return Submitted(sequence, duplicate)
        case Refused(code, text):
            return _refused(code, text, subject)
        case Conflict():
            return ExecutorError("transport.publish-unconfirmed", "conflict", subject=subject)
        case _:
            return ExecutorError("transport.publish-unconfirmed", subject=subject)


def _refused(code: int, text: str, subject: str) -> ExecutorError:
    if code in _FULL:
        return ExecutorError("transport.stream-full", text, subject=subject)
    if code in _TOO_LARGE:
        return ExecutorError("message.too-large", text, subject=subject)
    if code == _FORBIDDEN:
        return ExecutorError("transport.permission-denied", text, subject=subject)
    if code == _UNAVAILABLE:
        return ExecutorError(
            "transport.stream-missing",
            "no tenant takes this subject",
            hint="check the tenant's name (executor tenant list), or make it: executor tenant add;"
            " a cluster that has just lost a node takes it some seconds later",
            subject=subject,
        )
    return ExecutorError("transport.publish-unconfirmed", text, subject=subject, err_code=code)
