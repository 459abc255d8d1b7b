"""One connection to NATS: requests, subscriptions, and a send queue that nobody waits for.

Rules: everything leaves in the order in which it was asked for; a request ends with an answer or a
`transport.*` error, at once if the server refuses the permission; nothing larger than the server's
`max_payload` is sent, since the server answers that by hanging up. It knows nothing of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import nats.errors

from executor.errors import ExecutorError
from executor.transport import api, fast
from executor.transport.link import BUFFER_MAX, Event, Link, Message, Subscription
from executor.transport.settings import Settings

__all__ = ["Connection", "Event", "Message", "Settings", "Subscription"]

_UNSAFE: Final = re.compile(r"[\s\x00]")
_NO_RESPONDERS: Final = "503"
_QUIET_S: Final = 1.0  # an answer takes a millisecond; a batch of direct gets some more


@dataclass(frozen=True, slots=True)
class _Waiting:
    subject: str  # lower case, as violations are reported
    on_message: Callable[[Message], None]
    on_error: Callable[[ExecutorError], None]


class Connection:
    """See the module; made by `open`."""

    def __init__(self, settings: Settings, on_event: Event) -> None:
        self.settings = settings
        self._link = Link(settings, on_event)
        self.event = self._link.event
        self._inbox = ""
        self._waiting: dict[str, _Waiting] = {}
        self._counter = itertools.count(1)
        self._refused: set[str] = set()
        self._queue: deque[tuple[str, bytes, str, dict[str, str] | None]] = deque()
        self._queued_bytes = 0
        self._sender: asyncio.Task[None] | None = None
        self._paused = False  # while the client is changed for one with a new login

    @classmethod
    async def open(cls, settings: Settings, on_event: Event) -> Connection:
        """Connect, once: `transport.disconnected` if that fails; afterwards it heals by itself."""
        self = cls(settings, on_event)
        await self._link.connect()
        self._link.quiet = self._quiet
        self._link.listen("violation", self._on_violation)
        self._link.listen("reconnected", self._resume)
        self._inbox = self.inbox()
        try:
            await self.subscribe(f"{self._inbox}.*", self._on_reply)
        except BaseException:
            await self.close()
            raise
        self.event("connected", {"url": settings.public_url(), "server": self.server_version})
        return self

    @property
    def connected(self) -> bool:
        """Whether a publish would reach the server now."""
        return self._link.client.is_connected and not self._paused

    @property
    def max_payload(self) -> int:
        """The server's bound on headers and body together."""
        return self._link.client.max_payload

    @property
    def server_version(self) -> str:
        """As the server says, such as `2.15.1`."""
        version = self._link.client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    @property
    def server_id(self) -> str:
        """The server's own public key."""
        return str(self._link.client._server_info["server_id"])  # noqa: SLF001 - not offered

    def statistics(self) -> dict[str, int]:
        """Counters and levels for telemetry."""
        return {
            **{name: int(value) for name, value in self._link.client.stats.items()},
            "queued": len(self._queue),
            "queued_bytes": self._queued_bytes,
            "requests": len(self._waiting),
        }

    def listen(self, event: str, listener: Callable[..., None]) -> Callable[[], None]:
        """Call `listener` on `disconnected`, `reconnected` (no argument) or `violation` (subject).

        The subject of a violation is in lower case: nats-py folds the server's text. Returns what
        removes the listener.
        """
        return self._link.listen(event, listener)

    # Requests.

    def inbox(self) -> str:
        """A new random inbox below this role's prefix."""
        return self._link.client.new_inbox()

    def expect(
        self,
        subject: str,
        on_message: Callable[[Message], None],
        on_error: Callable[[ExecutorError], None],
    ) -> str:
        """Make a reply subject whose messages go to `on_message` until `forget`."""
        token = str(next(self._counter))
        self._waiting[token] = _Waiting(subject.lower(), on_message, on_error)
        return f"{self._inbox}.{token}"

    def forget(self, reply: str) -> None:
        """Drop what else arrives on a reply subject of `expect`."""
        self._waiting.pop(reply[len(self._inbox) + 1 :], None)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> Message:
        """Publish and wait for one answer.

        Errors  `transport.disconnected` (no answer in time), `transport.stream-missing` (nobody
                listens there), `transport.permission-denied`, `message.too-large`.
        """
        check_subject(subject)
        self.check_size(payload, headers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def answer(message: Message) -> None:
            if not future.done():
                future.set_result(message)

        def fail(error: ExecutorError) -> None:
            if not future.done():
                future.set_exception(error)

        reply = self.expect(subject, answer, fail)
        try:
            self.send(subject, payload, reply, headers)
            async with asyncio.timeout(timeout_s):
                message = await future
        except TimeoutError:
            raise self.no_answer(subject, timeout_s) from None
        finally:
            self.forget(reply)
        if not message.data and (message.headers or {}).get("Status") == _NO_RESPONDERS:
            raise nobody_listens(subject)
        return message

    async def api(
        self, name: str, body: dict[str, Any] | None = None, timeout_s: float = 5.0
    ) -> dict[str, Any]:
        """Call `$JS.API.<name>`; raises `ApiError` for an error in the answer."""
        payload = json.dumps(body).encode() if body else b""
        message = await self.request(f"$JS.API.{name}", payload, timeout_s=timeout_s)
        return api.decode(message.data)

    async def store(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> int:
        """Publish to a stream and return the sequence it got; raises `ApiError` if refused."""
        message = await self.request(subject, payload, headers, timeout_s)
        return int(api.decode(message.data)["seq"])

    def no_answer(self, subject: str, waited_s: float) -> ExecutorError:
        """The error of a request that nobody answered in time."""
        return ExecutorError(
            "transport.disconnected",
            "no answer in time",
            subject=subject,
            waited_ms=int(waited_s * 1000),
            url=self.settings.public_url(),
        )

    def _on_reply(self, message: Message) -> None:
        waiting = self._waiting.get(message.subject[len(self._inbox) + 1 :])
        if waiting is not None:
            waiting.on_message(message)

    def _on_violation(self, subject: str) -> None:
        self._refused.add(subject)
        for waiting in tuple(self._waiting.values()):
            if waiting.subject == subject:
                waiting.on_error(ExecutorError("transport.permission-denied", subject=subject))

    # Publishing and subscribing.

    def check_size(self, payload: bytes, headers: dict[str, str] | None) -> None:
        """`message.too-large` for what the server would not take."""
        size = len(payload) + api.header_size(headers)
        if size > self.max_payload:
            raise ExecutorError("message.too-large", size=size, max_payload=self.max_payload)

    def send(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Publish, in order, without waiting: one task a loop turn hands over what was queued.

        While disconnected the queue keeps up to 64 MiB; what does not fit is dropped with an
        event. Whoever needs certainty asks for an answer and repeats.
        """
        link, client = self._link, self._link.client
        if (
            link.quick and not self._queue and not self._paused and not link.closing
            and fast.publish(client, subject, payload, reply, headers, BUFFER_MAX)
        ):  # fmt: skip
            return
        size = len(payload)
        if link.closing or self._queued_bytes + fast.pending(client) + size > BUFFER_MAX:
            self.event("error", {"what": "send queue full or closed", "subject": subject})
        elif size > client.max_payload:
            self.event("error", {"what": "too large", "subject": subject})
        else:
            self._queue.append((subject, payload, reply, headers))
            self._queued_bytes += size
            if self._sender is None:
                self._wake()

    def push(self) -> None:
        """What was sent in this turn of the loop is all: it need not wait for its end."""
        if self._link.quick and self.connected and not self._link.closing:
            fast.push(self._link.client)

    async def _quiet(self) -> None:
        """Send nothing more, and wait a moment for the answers to what was asked."""
        self._paused = True
        asked = set(self._waiting)
        give_up = time.monotonic() + _QUIET_S
        while asked & self._waiting.keys() and time.monotonic() < give_up:  # noqa: ASYNC110 - answers have no event
            await asyncio.sleep(0.005)

    def _resume(self) -> None:
        self._paused = False
        self._wake()

    def _wake(self) -> None:
        if self._sender is None and self._queue and self.connected:
            self._sender = asyncio.get_running_loop().create_task(self._send_queued())

    async def _send_queued(self) -> None:
        queue, client = self._queue, self._link.client
        try:
            while queue and client is self._link.client and self.connected:
                subject, payload, reply, headers = queue.popleft()
                self._queued_bytes -= len(payload)
                try:
                    await client.publish(subject, payload, reply, headers)
                except nats.errors.Error as error:
                    self.event("error", {"what": type(error).__name__, "subject": subject})
        finally:
            self._sender = None
            if not self._link.closing:
                self._wake()  # a new client may have taken over meanwhile

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], *, queue: str = ""
    ) -> Subscription:
        """Subscribe; waits a round trip, so that a refusal raises `transport.permission-denied`.

        `callback` runs in the loop for each message, in order, and must not raise. Of all that
        subscribe as one `queue`, each message reaches one.
        """
        self._refused.discard(subject.lower())
        subscription = Subscription(subject, callback, queue)
        try:
            await self._link.attach(subscription)
        except nats.errors.Error as error:
            raise ExecutorError(
                "transport.disconnected", str(error), url=self.settings.public_url()
            ) from None
        try:
            await self.flush()
        except ExecutorError:
            await self._link.detach(subscription)
            raise
        if subject.lower() in self._refused:
            await self._link.detach(subscription)
            raise ExecutorError(
                "transport.permission-denied", "subscribing is not allowed", subject=subject
            )
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription after all that the server already sent was delivered."""
        await self._link.detach(subscription)

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Wait until the server has seen all that was sent before."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._sender is not None:
                    await asyncio.shield(self._sender)
                await self._link.client.flush()
        except (TimeoutError, nats.errors.Error, OSError):
            raise self.no_answer("PING", timeout_s) from None

    async def close(self) -> None:
        """Hand over what is queued, if connected, and end; idempotent."""
        if self.connected and not self._link.closing:
            with contextlib.suppress(ExecutorError):
                await self.flush(timeout_s=2.0)
        self._link.closing = True
        if self._sender is not None:
            self._sender.cancel()
        await self._link.close()


def check_subject(subject: str) -> None:
    """Refuse what would end the control line: `transport.stream-missing`."""
    if not subject or _UNSAFE.search(subject):
        raise ExecutorError("transport.stream-missing", "not a subject", subject=subject)


def nobody_listens(subject: str) -> ExecutorError:
    """The error for status 503."""
    return ExecutorError(
        "transport.stream-missing",
        "nobody answers on its subject",
        hint="run nats-server with JetStream (-js), then: executor nats apply",
        subject=subject,
    )
