"""Streaming pull from one tenant's queue: overlapping requests, credit, watchdog.

Rules: credit = window - requested - held; more is asked for when half of the
window has *completed*, so that back-pressure reaches the server. Nothing waits per message. A lost
connection, a watchdog or a consumer in trouble ends the *flow*: a new one asks anew on a new inbox,
since what still waits at the server for the old inbox then counts for nobody. What was handed over
before stays held; it may be delivered again, and the lease decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.model import Delivery
from executor.transport.backoff import Backoff
from executor.transport.connection import Connection, Event, Message, Subscription
from executor.transport.link import guarded
from executor.transport.streams import CONSUMER

NAK: Final = b"-NAK"
_SHORT: Final = 9  # tokens of $JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<cseq>.<ns>.<pending>
_LONG: Final = 11  # with domain and account hash after ACK; a random token may follow
_MISSED_MAX: Final = 2  # heartbeats
_NS_PER_MS: Final = 1_000_000


class _Flow:
    """One inbox and what was asked for on it."""

    __slots__ = ("heard", "inbox", "missed", "outstanding", "subscription")

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self.subscription: Subscription | None = None
        self.outstanding = 0  # asked for, not yet delivered nor given back
        self.heard = True
        self.missed = 0


class Pull:
    """Hands each message of a tenant's queue to `on_delivery`, at most `window` uncompleted.

    `window`       0 pauses; what was already asked for may still arrive.
    `on_delivery`  runs in the loop; must not raise; the owner calls `completed` once for each.
    `on_event`     `consumer-missing`, `pull-reset` (facts: tenant, reason), `foreign-message`.
    """

    def __init__(
        self,
        connection: Connection,
        tenant: str,
        *,
        window: int,
        on_delivery: Callable[[Delivery], None],
        on_event: Event,
        expires_ms: int = 30_000,
        heartbeat_ms: int = 5_000,
    ) -> None:
        stream = subjects.tasks_stream(tenant)
        self._connection = connection
        self._tenant = tenant
        self._stream = stream
        self._window = window
        self._on_delivery = on_delivery
        self._on_event = guarded(on_event)
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{CONSUMER}"
        self._heartbeat_s = heartbeat_ms / 1000
        times = f'"expires":{expires_ms * _NS_PER_MS},"idle_heartbeat":{heartbeat_ms * _NS_PER_MS}'
        self._times = times
        self._flow: _Flow | None = None
        self._broken: asyncio.Future[str] | None = None
        self._held = 0
        self._delivered = 0
        self._resets = 0
        self._stopping = False
        self._backoff = Backoff()
        self._manager: asyncio.Task[None] | None = None
        self._unlisten: list[Callable[[], None]] = []
        self._online = asyncio.Event()

    def statistics(self) -> dict[str, int]:
        """Levels and counters."""
        return {
            "window": self._window,
            "held": self._held,
            "outstanding": self._flow.outstanding if self._flow else 0,
            "delivered": self._delivered,
            "resets": self._resets,
        }

    async def start(self) -> None:
        """Begin; `transport.permission-denied` if its inbox may not be subscribed to."""
        listen = self._connection.listen
        self._unlisten = [
            listen("disconnected", self._on_disconnected),
            listen("reconnected", self._online.set),
            listen("violation", self._on_violation),
        ]
        if self._connection.connected:
            self._online.set()
        try:
            await self._begin()
        except ExecutorError as error:
            if error.code != "transport.disconnected":
                await self.stop()
                raise
        self._manager = asyncio.get_running_loop().create_task(self._manage())

    async def stop(self) -> None:
        """Ask for nothing more; what still arrives is nak'ed; afterwards nothing is handed over."""
        self._stopping = True
        for unlisten in self._unlisten:
            unlisten()
        self._unlisten = []
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await manager
        await self._end()

    def resize(self, window: int) -> None:
        """Change the window; a smaller one takes effect as what was asked for arrives."""
        self._window = window
        self._ask(at_least=1)

    def completed(self, count: int = 1) -> None:
        """Give back the credit of `count` deliveries, whatever their settlement was."""
        self._held = held = self._held - count
        if held < 0:
            raise RuntimeError("more completed than delivered")
        flow, window = self._flow, self._window
        least = max(1, window // 2)
        if flow is not None and window - held - flow.outstanding >= least:
            self._ask(at_least=least)

    def _ask(self, *, at_least: int) -> None:
        flow = self._flow
        if flow is None or self._stopping:
            return
        free = self._window - self._held - flow.outstanding
        if free < at_least:
            return
        if flow.outstanding == 0:  # no heartbeat came while nothing was asked for
            flow.missed = 0
            flow.heard = True
        flow.outstanding += free
        request = b'{"batch":%d,%s}' % (free, self._times.encode())
        self._connection.send(self._next, request, flow.inbox)

    # Messages.

    def _receive(self, flow: _Flow, message: Message) -> None:
        flow.heard = True
        reply = message.reply
        if not reply:
            if flow is self._flow:
                self._on_status(flow, message)
            return
        delivery = self._parse(message)
        if delivery is None:
            return
        flow.outstanding -= 1
        if self._stopping:
            self._connection.send(reply, NAK)
            return
        self._held += 1
        self._delivered += 1
        self._on_delivery(delivery)

    def _parse(self, message: Message) -> Delivery | None:
        lease = message.reply
        parts = lease.split(".")
        first = 2 if len(parts) == _SHORT else 4
        # Whoever can publish to our inbox must not choose what we later publish to.
        if (
            (len(parts) != _SHORT and len(parts) < _LONG)
            or parts[0] != "$JS"
            or parts[1] != "ACK"
            or parts[first] != self._stream
            or parts[first + 1] != CONSUMER
        ):
            self._on_event("foreign-message", {"tenant": self._tenant, "subject": message.subject})
            return None
        return Delivery(
            message.data, message.subject, self._tenant, message.headers or {},
            int(parts[first + 3]), int(parts[first + 2]), int(parts[first + 5]) // _NS_PER_MS,
            lease,
        )  # fmt: skip

    def _on_status(self, flow: _Flow, message: Message) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":
            self._backoff.reset()
        elif status in {"408", "404"}:
            # What this request was not served; the others keep theirs.
            flow.outstanding -= int(headers.get("Nats-Pending-Messages", "0"))
            self._backoff.reset()
            self._ask(at_least=1)
        elif status == "503":
            self._break("consumer-missing")
        else:
            self._break(headers.get("Description", "") or f"status {status}")

    # The life of a flow.

    def _break(self, reason: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(reason)

    def _on_disconnected(self) -> None:
        self._online.clear()
        self._break("disconnected")

    def _on_violation(self, subject: str) -> None:
        if subject == self._next.lower():
            self._break("permission-denied")

    async def _begin(self) -> None:
        flow = _Flow(self._connection.inbox())
        self._broken = asyncio.get_running_loop().create_future()
        flow.subscription = await self._connection.subscribe(
            flow.inbox, functools.partial(self._receive, flow)
        )
        self._flow = flow
        self._ask(at_least=1)
        flow.heard = False  # the watch begins now, and so does the first heartbeat's time

    async def _end(self) -> None:
        flow, self._flow = self._flow, None
        if flow is not None and flow.subscription is not None:
            await self._connection.unsubscribe(flow.subscription)

    async def _manage(self) -> None:
        while True:
            if self._flow is None:
                await self._online.wait()
                try:
                    await self._begin()
                except ExecutorError as error:
                    self._on_event("pull-reset", {"tenant": self._tenant, "reason": error.code})
                    await asyncio.sleep(self._backoff.delay())
                    continue
            reason = await self._watch()
            self._resets += 1
            await self._end()
            name = "consumer-missing" if reason == "consumer-missing" else "pull-reset"
            self._on_event(name, {"tenant": self._tenant, "reason": reason})
            if reason != "disconnected":
                await asyncio.sleep(self._backoff.delay())

    async def _watch(self) -> str:
        """Wait until the flow breaks; two missed heartbeats break it too."""
        flow, broken = self._flow, self._broken
        if flow is None or broken is None:
            raise RuntimeError("no flow")
        while True:
            await asyncio.wait((broken,), timeout=self._heartbeat_s)
            if broken.done():
                return broken.result()
            if flow.heard or flow.outstanding <= 0:
                flow.missed = 0
            else:
                flow.missed += 1
            flow.heard = False
            if flow.missed >= _MISSED_MAX:
                return "heartbeats missed"
