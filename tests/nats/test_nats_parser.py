"""The quick way in and out of nats-py: alike for every cut of the bytes, and never the only way."""

from __future__ import annotations

import asyncio
from typing import Any

import nats.errors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol import parser

from executor.transport import fast
from executor.transport.settings import Settings
from tests.servers import Events, NatsServer, connect, run, until

_TOKENS = st.text("abcXYZ019_-*$\x0b\x0c\xa0é", min_size=1, max_size=12).map(str.encode)
_SUBJECTS = st.lists(_TOKENS, min_size=1, max_size=4).map(b".".join)


@st.composite
def _said(draw: st.DrawFn) -> bytes:
    """One thing a server says."""
    kind = draw(st.sampled_from(["MSG", "MSG", "HMSG", "HMSG", "PING", "OK"]))
    if kind == "PING":
        return b"PING\r\n"
    if kind == "OK":
        return b"+OK\r\n"
    subject, sid = draw(_SUBJECTS), draw(st.integers(1, 3))
    reply = draw(st.one_of(st.just(b""), _SUBJECTS.map(lambda s: s + b" ")))
    body = draw(st.binary(max_size=40))
    if kind == "MSG":
        return b"MSG %b %d %b%d\r\n%b\r\n" % (subject, sid, reply, len(body), body)
    block = b"NATS/1.0\r\n" + draw(st.binary(max_size=20)) + b"\r\n\r\n"
    sizes = len(block), len(block) + len(body)
    return b"HMSG %b %d %b%d %d\r\n%b%b\r\n" % (subject, sid, reply, *sizes, block, body)


class _Ear:
    """A client that only listens."""

    def __init__(self, deliver: dict[int, fast.Deliver]) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self._deliver = deliver

    async def _process_msg(self, sid: int, *what: Any) -> None:
        if sid in self._deliver:  # as `link` does
            self._deliver[sid](fast.message(*what))
        else:
            self.heard.append((sid, *what))

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))


def _heard(pieces: list[bytes], deliver: dict[int, fast.Deliver] | None = None) -> list[Any]:
    """What a reader says that has no callback; without `deliver` it is nats-py's own."""
    ear = _Ear(deliver or {})

    async def read() -> None:
        made = parser.Parser(ear) if deliver is None else fast.Parser(ear, deliver)
        for piece in pieces:
            await made.parse(piece)

    asyncio.run(read())
    return ear.heard


@settings(max_examples=150, deadline=None)
@given(said=st.lists(_said(), max_size=8), step=st.integers(1, 60))
def test_every_cut_reads_alike(said: list[bytes], step: int) -> None:
    """However the bytes arrive, the same messages come out in the same order as from nats-py."""
    data = b"".join(said)
    pieces = [data[place : place + step] for place in range(0, len(data), step)]
    parser.MSG_RE, parser.HMSG_RE = fast_patterns()
    plain = _heard(pieces)
    assert _heard(pieces, {}) == plain
    direct: list[tuple[Any, ...]] = []

    def deliver(message: fast.Message) -> None:
        direct.append((message.subject, message.reply, message.data, message.headers))

    rest = _heard(pieces, dict.fromkeys((1, 2, 3), deliver))
    assert rest == [one for one in plain if one == ("ping",)]
    messages = [fast.message(*one[1:]) for one in plain if one != ("ping",)]
    assert direct == [(m.subject, m.reply, m.data, m.headers) for m in messages]


def fast_patterns() -> tuple[Any, Any]:
    """nats-py's parser as `link` mends it: any byte but blanks in a subject."""
    from executor.transport import link

    return link._MSG, link._HMSG


@pytest.mark.parametrize(
    "data",
    [
        b"MSG a 1\r\n", b"MSG a b 3\r\nabc\r\n", b"MSG a 1 x\r\n", b"HMSG a 1 9 3\r\nabc\r\n",
        b"HMSG a 1 3\r\nabc\r\n", b"MOO a 1 3\r\nabc\r\n", b"MSG " + b"a" * 20_000,
        b"MSG a 1 -5\r\n",
    ],
)  # fmt: skip
def test_what_no_server_says_ends_the_connection(data: bytes) -> None:
    """A line that is no message is a protocol error, before anything of it is kept."""
    with pytest.raises(nats.errors.ProtocolError):
        _heard([data], {})


@pytest.mark.parametrize(
    ("block", "read"),
    [
        (b"NATS/1.0\r\nTask-Id: 7\r\nA:b\r\n\r\n", {"Task-Id": "7", "A": "b"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503"}),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n",
         {"Status": "100", "Description": "Idle Heartbeat", "Nats-Last-Consumer": "3"}),
        (b"NATS/1.0\r\nTask-Id: \xff\r\n\r\n", {"Task-Id": "\ufffd"}),
        (b"NATS/1.0\r\nno colon\r\ntwo words: x\r\n: y\r\n\r\n", None),
        (b"\xff\xfe", None), (b"NATS/1.0\r\n\r\n", None), (b"", None),
    ],
)  # fmt: skip
def test_headers(block: bytes, read: dict[str, str] | None) -> None:
    """Names and values of whatever bytes; what is no header is left out, and never an error."""
    assert fast.parse_headers(block) == read


def test_a_header_cannot_begin_another() -> None:
    """A line break in what a caller gives is a space on the wire."""
    block = fast.encode_headers({"A": "x\r\nTask-Id: 9", "B\n": "y"})
    assert fast.parse_headers(block) == {"A": "x  Task-Id: 9", "B": "y"}


@pytest.mark.parametrize("value", ["204", "\u00e9"])  # the quick way, and the other
def test_a_header_is_not_the_first_line(value: str) -> None:
    """`Status` and `Description` are the server's, whatever a stranger calls a header."""
    lines = f"Status: {value}\r\nDescription: {value}\r\nA: {value}\r\n\r\n".encode()
    assert fast.parse_headers(b"NATS/1.0\r\n" + lines) == {"A": value}
    assert fast.parse_headers(b"NATS/1.0 100 Idle\r\n" + lines) == {
        "Status": "100", "Description": "Idle", "A": value,
    }  # fmt: skip


@pytest.mark.parametrize("way", ["fast", "plain"])
def test_both_ways_carry_messages(server: NatsServer, way: str) -> None:
    """A subscription hears what is published, in order, with headers, on either way."""

    async def body() -> None:
        connection = await connect(server, settings=Settings(server.url, parser=way))
        assert connection._link.quick is (way == "fast")
        heard: list[fast.Message] = []
        changed = asyncio.Event()

        def on_message(message: fast.Message) -> None:
            heard.append(message)
            changed.set()

        await connection.subscribe("there.*", on_message)
        for number in range(200):
            connection.send(f"there.{number}", b"x" * number, "back", {"N": str(number)})
        await until(lambda: len(heard) == 200, changed)
        assert [m.subject for m in heard] == [f"there.{number}" for number in range(200)]
        assert [(m.data, m.headers) for m in heard] == [
            (b"x" * number, {"N": str(number)}) for number in range(200)
        ]

    run(body())


def test_a_callback_that_raises_ends_nothing(server: NatsServer) -> None:
    """The message after the one that a callback could not take is heard, and the event says why."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        heard: list[bytes] = []
        changed = asyncio.Event()

        def on_message(message: fast.Message) -> None:
            if message.data == b"bad":
                raise RuntimeError("cannot")
            heard.append(message.data)
            changed.set()

        await connection.subscribe("there", on_message)
        connection.send("there", b"bad")
        connection.send("there", b"good")
        await until(lambda: heard == [b"good"], changed)
        assert any(facts.get("text") == "cannot" for _, facts in events.seen)

    run(body())


def test_an_unlisted_version_goes_the_plain_way(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another nats-py, or one that reads otherwise, is used as it is."""

    async def body() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fast, "VERSIONS", frozenset())
            assert not (await connect(server))._link.quick

        async def disagrees() -> bool:
            return False

        with monkeypatch.context() as patch:
            patch.setattr(fast, "agrees", disagrees)
            assert not (await connect(server))._link.quick
        assert (await connect(server))._link.quick

    run(body())


class _Reader:
    """What nats-py's task reads from, as far as `listen` looks at it."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._waiter: object | None = object()

    def feed_data(self, data: bytes) -> None:
        """Kept for the task, which wakes up."""
        self._buffer += data
        self._waiter = None


@settings(max_examples=150, deadline=None)
@given(said=st.lists(_said(), max_size=8), step=st.integers(1, 60), lag=st.integers(0, 3))
def test_what_is_taken_as_it_arrives_reads_alike(said: list[bytes], step: int, lag: int) -> None:
    """Messages that never reach nats-py's task keep their order with all that does."""
    data = b"".join(said)
    taken: list[Any] = []
    deliver: dict[int, fast.Deliver] = {}
    ear = _Ear(deliver)
    deliver |= dict.fromkeys((1, 2, 3), lambda message: ear.heard.append((message.data,)))

    async def read() -> None:
        made, reader = fast.Parser(ear, deliver), _Reader()
        made.listen(reader)  # type: ignore[arg-type]
        for number, place in enumerate(range(0, len(data) + step * (lag + 1), step)):
            reader.feed_data(data[place : place + step])
            if reader._buffer and number % (lag + 1) == lag:  # its task is late
                waiting, reader._buffer = bytes(reader._buffer), bytearray()
                taken.append(waiting)
                await made.parse(waiting)
                reader._waiter = object()

    asyncio.run(read())
    assert ear.heard == [_body(one) for one in said if not one.startswith(b"+OK")]
    if not any(one.startswith((b"PING", b"+OK")) for one in said):
        assert taken == []  # its task was never woken


def _body(said: bytes) -> tuple[str | bytes]:
    """What is heard of it."""
    if said.startswith(b"PING"):
        return ("ping",)
    line, _, rest = said.partition(b"\r\n")
    words = line.split(b" ")
    head = int(words[-2]) if said.startswith(b"HMSG") else 0
    return (rest[head : int(words[-1])],)


@pytest.mark.parametrize("data", [b"MSG a 1 x\r\n", b"MOO a 1 3\r\nabc\r\n", b"MSG a 1\r\n"])
def test_what_no_server_says_is_left_to_the_task(data: bytes) -> None:
    """The task that ends the connection meets the same bytes, behind what was good."""
    heard: list[bytes] = []
    reader = _Reader()
    made = fast.Parser(_Ear({}), {1: lambda message: heard.append(message.data)})
    made.listen(reader)  # type: ignore[arg-type]
    reader.feed_data(b"MSG a 1 3\r\nabc\r\n" + data)
    assert heard == [b"abc"]
    assert bytes(reader._buffer) == data
    with pytest.raises(nats.errors.ProtocolError):
        asyncio.run(made.parse(data))


def test_what_is_pushed_leaves_in_this_turn(server: NatsServer) -> None:
    """All that was sent is with the socket at once, unless that still holds something."""

    async def body() -> None:
        connection = await connect(server)
        client = connection._link.client
        connection.send("nobody", b"x" * 100)
        assert fast.pending(client) > 100
        connection.push()
        assert fast.pending(client) == 0
        transport = client._transport._io_writer.transport  # type: ignore[union-attr]
        while not transport.get_write_buffer_size():  # more than the socket takes at once
            transport.write(b"PUB nobody 100000\r\n" + bytes(100_000) + b"\r\n")
        connection.send("nobody", b"y")
        connection.push()
        assert fast.pending(client) > 0
        await connection.flush()
        assert fast.pending(client) == 0

    run(body())
