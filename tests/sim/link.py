"""A connection to the model, in place of the one to NATS: messages may be late, lost or doubled.

Within a connection nothing overtakes; between connections, and around a break, everything may. A
break loses what is on its way down, and up all but what had left early enough. Requests, replies
and errors are the real connection's code.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import cast

from executor.errors import ExecutorError
from executor.transport.connection import Connection, Message, Settings, Subscription
from tests.sim.jetstream import Server
from tests.sim.wire import Headers

Sent = Callable[[str, bytes, Headers], None]

_NEXT_S = 1e-6  # what left later arrives later
_FLIGHT_S = 0.05  # what a break may let through


@dataclass(slots=True)
class Weather:
    """What a link does to messages; a history changes it as it goes."""

    delay_s: float = 0.0
    loss: float = 0.0
    double: float = 0.0


@dataclass(slots=True)
class Letter:
    """A message as a subscriber gets it."""

    subject: str
    data: bytes
    headers: Headers | None
    reply: str


@dataclass(slots=True)
class _Line:
    """One life of a connection."""

    up_until: float = math.inf
    down: bool = True
    last_up: float = 0.0
    last_down: float = 0.0


@dataclass(slots=True)
class _Queued:
    subject: str
    body: bytes
    reply: str
    headers: Headers


class ModelConnection(Connection):
    """See the module. `on_send` hears everything that its owner sends."""

    def __init__(self, server: Server, name: str, weather: Weather, rng: Random) -> None:
        self.settings = Settings("nats://model")
        self.server = server
        self.name = name
        self.weather = weather
        self.rng = rng
        self.on_send: Sent = lambda _subject, _body, _headers: None
        self.event = lambda _name, _facts: None
        self.dead = False
        self._waiting = {}
        self._counter = itertools.count(1)
        self._inboxes = itertools.count(1)
        self._refused = set()
        self._loop = asyncio.get_running_loop()
        self._line: _Line | None = _Line() if server.up else None
        self._subscribed: dict[str, Subscription] = {}
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        self._unsent: list[_Queued] = []
        self._inbox = self.inbox()
        self._subscribed[self._inbox] = Subscription(f"{self._inbox}.*", self._on_reply)

    @property
    def connected(self) -> bool:
        """Whether it is."""
        return self._line is not None and not self.dead

    @property
    def max_payload(self) -> int:
        """The server's default."""
        return 1024 * 1024

    def inbox(self) -> str:
        """A new one."""
        return f"_INBOX.{self.name}.{next(self._inboxes)}"

    def listen(self, event: str, listener: Callable[..., None]) -> Callable[[], None]:
        """As the real one."""
        listeners = self._listeners.setdefault(event, [])
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    def _tell(self, event: str) -> None:
        for listener in list(self._listeners.get(event, [])):
            listener()

    async def subscribe(
        self, subject: str, callback: Callable[[Message], None], *, queue: str = ""
    ) -> Subscription:
        """Known to the server at once; the model has no queues."""
        assert not queue
        if not self.connected:
            raise ExecutorError("transport.disconnected", "no server")
        subscription = Subscription(subject, callback)
        self._subscribed[subject.removesuffix(".*")] = subscription
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """At once."""
        self._subscribed.pop(subscription.subject.removesuffix(".*"), None)

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Nothing is buffered here."""
        del timeout_s

    # Up.

    def send(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Headers | None = None
    ) -> None:
        """Put a message on its way; while disconnected it waits for the reconnect."""
        if self.dead:
            return
        self.on_send(subject, payload, headers or {})
        if self._line is None:
            self._unsent.append(_Queued(subject, payload, reply, headers or {}))
        else:
            self._up(self._line, _Queued(subject, payload, reply, headers or {}))

    def push(self) -> None:
        """Nothing waits for the end of a turn here."""

    def _copies(self) -> int:
        if not self.weather.loss and not self.weather.double:
            return 1
        drawn = self.rng.random()
        if drawn < self.weather.loss:
            return 0
        return 2 if drawn > 1 - self.weather.double else 1

    def _up(self, line: _Line, message: _Queued) -> None:
        for _ in range(self._copies()):
            at = max(line.last_up + _NEXT_S, self._loop.time() + self._delay())
            line.last_up = at
            self._loop.call_at(at, self._arrive, line, message)

    def _delay(self) -> float:
        return self.rng.random() * self.weather.delay_s if self.weather.delay_s else 0.0

    def _arrive(self, line: _Line, message: _Queued) -> None:
        if self._loop.time() < line.up_until:
            self.server.handle(self, message.subject, message.body, message.headers, message.reply)

    # Down.

    def listens(self, subject: str) -> bool:
        """Whether somebody here subscribed to an inbox."""
        return self.connected and subject in self._subscribed

    def receive(
        self, subject: str, body: bytes, headers: Headers, reply: str, *, sure: bool = False
    ) -> None:
        """The server says something: on an inbox, or a delivery for one."""
        line = self._line
        if line is None:
            return
        lease, _, inbox = reply.partition(" ")
        letter = Letter(subject, body, headers or None, lease)
        for _ in range(1 if sure else self._copies()):
            at = max(line.last_down + _NEXT_S, self._loop.time() + self._delay())
            line.last_down = at
            self._loop.call_at(at, self._hand_over, line, inbox or subject, letter)

    def _hand_over(self, line: _Line, inbox: str, letter: Letter) -> None:
        if not line.down or self.dead:
            return
        found = self._subscribed.get(inbox) or self._subscribed.get(inbox.rpartition(".")[0])
        if found is not None:
            found.callback(cast("Message", letter))

    # Its life.

    def _break(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.down = False
            line.up_until = self._loop.time() + self.rng.random() * _FLIGHT_S
            self.server.gone(self)

    def cut(self) -> None:
        """The connection breaks; its owner is told."""
        if self.connected:
            self._break()
            self._tell("disconnected")

    def mend(self) -> None:
        """Connect again, if there is a server; what waited leaves first, then repeats."""
        if self.dead or self._line is not None or not self.server.up:
            return
        line = self._line = _Line()
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            self._up(line, message)
        self._tell("reconnected")

    def kill(self) -> None:
        """The owner is gone without a word; what had left may still arrive."""
        self._break()
        self.dead = True

    async def close(self) -> None:
        """The owner leaves; what it sent last arrives."""
        line, self._line = self._line, None
        if line is not None:
            line.down = False
            self.server.gone(self)
        self.dead = True
