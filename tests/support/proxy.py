"""A TCP proxy before a real nats-server that can harm single messages, and remembers the wire.

It knows just enough of the protocol to find where a message ends: control lines, and the payloads
that follow PUB, HPUB, MSG and HMSG. Faults may be changed while it runs:

    latency["up"|"down"]   seconds that each frame of a direction is late, order kept
    on(match, "drop")      a rule for single messages: drop, duplicate, or a delay in seconds
    freeze() · thaw()      half-open: present connections stay and pass nothing; new ones pass
    cut() · refuse         end the connections with a reset · turn new ones away
    budget                 bytes that each new connection passes in each direction before a reset

What a peer sent is in `seen`, dropped or not. It runs in the test's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

from tests.servers import HasUrl, until

Direction = Literal["up", "down"]  # up: from the client to the server

_SEEN_MAX: Final = 200_000
_CHUNK: Final = 64 * 1024
_FLUSH_S: Final = 1.0  # for what was passed on to leave, when a connection ends by itself
_END: Final = b"\r\n"
# Tokens of the control line: where the reply may stand, and the sizes at its end.
_SUBJECTS: Final = {b"PUB": (2, 1), b"HPUB": (2, 2), b"MSG": (3, 1), b"HMSG": (3, 2)}
_CONNECT_URLS: Final = "connect_urls"


@dataclass(frozen=True, slots=True)
class Frame:
    """One message, or one control line with everything else empty."""

    direction: Direction
    verb: str
    raw: bytes
    subject: str = ""
    reply: str = ""
    headers: bytes = b""
    payload: bytes = b""


Match = Callable[[Frame], bool]
Act = Literal["drop", "duplicate"] | float


class Parser:
    """Cuts one direction's bytes into frames, however they are chunked."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes; gives each frame that is whole by now."""
        self._buffer += data
        while (end := self._buffer.find(_END)) >= 0:
            line = bytes(self._buffer[:end])
            words = line.split()
            verb = words[0].upper() if words else b""
            body = end + len(_END)
            if verb not in _SUBJECTS:
                yield Frame(self._direction, verb.decode(), self._take(body))
                continue
            fixed, sizes = _SUBJECTS[verb]
            size = int(words[-1])
            if len(self._buffer) < body + size + len(_END):
                return
            raw = self._take(body + size + len(_END))
            start = body + (int(words[-2]) if sizes > 1 else 0)
            reply = words[fixed] if len(words) > fixed + sizes else b""
            yield Frame(
                self._direction, verb.decode(), raw, words[1].decode("utf-8", "replace"),
                reply.decode("utf-8", "replace"), raw[body:start], raw[start : body + size],
            )  # fmt: skip

    def _take(self, size: int) -> bytes:
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        return raw


@dataclass(slots=True)
class Rule:
    """What happens to the messages that match, `times` of them; `hits` counts."""

    match: Match
    act: Act
    times: int
    _changed: asyncio.Event
    hits: int = 0

    def take(self, frame: Frame) -> bool:
        """Whether the rule applies to this frame; counts it."""
        if self.hits >= self.times or not self.match(frame):
            return False
        self.hits += 1
        return True

    async def hit(self, count: int = 1) -> None:
        """Wait until it applied so often."""
        await until(lambda: self.hits >= count, self._changed)


class _Half:
    """One direction of one connection."""

    def __init__(
        self, proxy: Proxy, direction: Direction, reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter, thawed: asyncio.Event,
    ) -> None:  # fmt: skip
        self._proxy = proxy
        self._direction = direction
        self._reader = reader
        self._writer = writer
        self._thawed = thawed
        self._left = proxy.budget() if proxy.budget else None
        self._queue: deque[tuple[float, bytes]] = deque()
        self._some = asyncio.Event()
        self._ended = False

    async def read(self) -> None:
        """Take frames until the peer ends; a frozen connection is not read any further."""
        parser = Parser(self._direction)
        with contextlib.suppress(OSError):
            while data := await self._reader.read(_CHUNK):
                await self._thawed.wait()
                for frame in parser.feed(data):
                    self._pass(frame)
        self._ended = True
        self._some.set()
        await asyncio.Event().wait()  # what is queued still leaves: the writing half ends us

    def _pass(self, frame: Frame) -> None:
        raw = _without_other_servers(frame.raw) if frame.verb == "INFO" else frame.raw
        rule = self._proxy.notice(frame)
        if rule is None:
            self._put(raw)
        elif rule.act == "duplicate":
            self._put(raw)
            self._put(raw)
        elif isinstance(rule.act, float):
            asyncio.get_running_loop().call_later(rule.act, self._put, raw)

    def _put(self, raw: bytes) -> None:
        due = asyncio.get_running_loop().time() + self._proxy.latency[self._direction]
        self._queue.append((due, raw))
        self._some.set()

    async def write(self) -> None:
        """Pass on what is due; ends with the connection or the budget."""
        loop = asyncio.get_running_loop()
        never = loop.create_future()
        with contextlib.suppress(OSError):
            while True:
                while not self._queue:
                    if self._ended:
                        return
                    self._some.clear()
                    await self._some.wait()
                due, raw = self._queue.popleft()
                if due > loop.time():
                    await asyncio.wait((never,), timeout=due - loop.time())
                await self._thawed.wait()
                if self._left is not None:
                    raw = raw[: self._left]
                    self._left -= len(raw)
                self._writer.write(raw)
                await self._writer.drain()
                if self._left == 0:
                    return


def _without_other_servers(line: bytes) -> bytes:
    """INFO without the urls that would lead a client round the proxy."""
    info = json.loads(line[len(b"INFO ") :])
    if info.pop(_CONNECT_URLS, None) is None:
        return line
    return b"INFO " + json.dumps(info).encode() + _END


@dataclass
class Proxy:
    """See the module. `async with Proxy(server) as proxy: … proxy.url`."""

    server: HasUrl
    latency: dict[Direction, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    refuse: bool = False
    budget: Callable[[], int] | None = None
    url: str = ""
    connections: int = 0  # accepted so far
    seen: deque[Frame] = field(default_factory=lambda: deque(maxlen=_SEEN_MAX))
    _rules: list[Rule] = field(default_factory=list)
    _pairs: dict[asyncio.Task[None], asyncio.Event] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _listening: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        assert self._listening is not None
        self._listening.close()
        await self.cut()

    # Faults.

    def on(self, match: Match, act: Act, *, times: int = 1_000_000_000) -> Rule:
        """Add a rule; the first that applies decides a frame."""
        rule = Rule(match, act, times, self._changed)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def freeze(self) -> None:
        """Let present connections stand and pass nothing; what they carry is held."""
        for thawed in self._pairs.values():
            thawed.clear()

    def thaw(self) -> None:
        """Let what was held go on."""
        for thawed in self._pairs.values():
            thawed.set()

    async def cut(self) -> None:
        """End all present connections."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)

    # The wire.

    def notice(self, frame: Frame) -> Rule | None:
        """Remember a frame; the rule that applies to it, if any."""
        self.seen.append(frame)
        rule = next((rule for rule in self._rules if rule.take(frame)), None)
        self._changed.set()
        return rule

    def count(self, match: Match) -> int:
        """How many frames were seen that match."""
        return sum(match(frame) for frame in self.seen)

    async def wait(self, match: Match, count: int = 1) -> None:
        """Wait until so many frames were seen that match."""
        await until(lambda: self.count(match) >= count, self._changed)

    async def wait_connections(self, count: int) -> None:
        """Wait until so many connections were accepted, all in all."""
        await until(lambda: self.connections >= count, self._changed)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs[task] = thawed = asyncio.Event()
        thawed.set()
        writers = [writer]
        try:
            if not self.refuse:
                host, _, port = self.server.url.rpartition("//")[2].rpartition(":")
                upstream, to_server = await asyncio.open_connection(host, int(port))
                writers.append(to_server)
                self.connections += 1
                self._changed.set()
                up = _Half(self, "up", reader, to_server, thawed)
                down = _Half(self, "down", upstream, writer, thawed)
                await _first_of(up, down)
                for each in writers:
                    each.close()
                async with asyncio.timeout(_FLUSH_S):
                    for each in writers:
                        await each.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            return  # the server is away, or `cut`: both ends see a reset
        finally:
            del self._pairs[task]
            for each in writers:
                each.transport.abort()


async def _first_of(up: _Half, down: _Half) -> None:
    """Run a connection until one half of it ends."""
    writing = [asyncio.ensure_future(half.write()) for half in (up, down)]
    reading = [asyncio.ensure_future(half.read()) for half in (up, down)]
    try:
        done, _ = await asyncio.wait([*writing, *reading], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # what is no protocol is a bug of the proxy, or of a peer
    finally:
        for task in (*writing, *reading):
            task.cancel()
        await asyncio.gather(*writing, *reading, return_exceptions=True)


# What tests look for.

_ACK: Final = "$JS.ACK."


def puback(stream: str) -> Match:
    """The server's word that a stream took a message."""
    start = re.compile(rb'\{"stream":"%s", ?"seq"' % stream.encode())
    return lambda frame: frame.direction == "down" and bool(start.match(frame.payload))


def is_delivery(frame: Frame) -> bool:
    """A message from a tenant's queue, with its lease."""
    return frame.direction == "down" and frame.reply.startswith(_ACK)


def _said(*words: bytes) -> Match:
    return lambda frame: frame.subject.startswith(_ACK) and frame.payload.startswith(words)


is_nak = _said(b"-NAK")
is_progress = _said(b"+WPI")


def is_ack(frame: Frame) -> bool:
    """An executor settles a delivery."""
    return frame.subject.startswith(_ACK) and frame.payload in {b"", b"+ACK"}


def is_publish(prefix: str) -> Match:
    """A client publishes below a subject."""
    return lambda frame: frame.direction == "up" and frame.subject.startswith(prefix)
