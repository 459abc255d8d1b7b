"""The two hot ends of nats-py's client, shorter: messages in without coroutines, publishes out.

nats-py takes each message through two patterns, a coroutine, a queue and a task's wake-up, and
each publish through three coroutines: more than all the rest of what a task costs in this room.
Here whole messages are cut out of the buffer and handed over at once, and a publish is bytes added
to what nats-py sends next. Everything else (PING, INFO, errors) goes to nats-py's own parser, which
shares the buffer.

It reaches into nats-py's client, so it is used only with a version that is listed, and after
`agrees` has seen both parsers read the same bytes alike; else nats-py's own ways are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.protocol import parser

VERSIONS: Final = frozenset({"2.16.0"})
# A control line is two subjects and three numbers; what the server itself reads may have 4096.
_LINE_MAX: Final = 16 * 1024
_WORDS: Final = (4, 5)  # of MSG, without and with a reply
_MESSAGES: Final = frozenset(b"MH")  # how their lines begin
_CRLF: Final = b"\r\n"
_STATUS_LINE: Final = b"NATS/1.0"
# How the first line is told on: a header of that name would pass for the server's own word, such as
# that a batch is at its end, and what is stored behind it would be seen by nobody.
_FIRST_LINE: Final = frozenset({"Status", "Description"})
# In a header that a caller gave: what would end it, and begin another.
_BREAKS: Final = str.maketrans("\r\n", "  ")
_SAMPLE: Final = (
    b"MSG a.b 1 3\r\nabc\r\nPING\r\nMSG a.b 2 _INBOX.x.1 0\r\n\r\n"
    b"HMSG a.b 1 12 15\r\nNATS/1.0\r\n\r\nabc\r\n"
    b"HMSG a.b 7 _INBOX.x.2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)


class Message:
    """What arrived; `headers` has the status of a message that is one."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(
        self, subject: str, reply: str, data: bytes, headers: dict[str, str] | None
    ) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.headers = headers


Deliver = Callable[[Message], None]


def message(subject: bytes, reply: bytes, data: bytes, block: bytes | None) -> Message:
    """What was read; subject and headers are bytes of a stranger's choice, which may be no text."""
    return Message(
        subject.decode("utf-8", "backslashreplace"), reply.decode("utf-8", "backslashreplace"),
        data, parse_headers(block) if block else None,
    )  # fmt: skip


def parse_headers(block: bytes) -> dict[str, str] | None:
    """The headers of a message, with `Status` and `Description` of its first line."""
    first, _, rest = block.partition(_CRLF)
    found: dict[str, str] = {}
    if first == _STATUS_LINE and rest.isascii():  # as almost all are
        for entry in rest.decode().split("\r\n"):
            if not entry:
                continue
            key, mark, said = entry.partition(":")
            key = key.strip()
            if mark and key not in _FIRST_LINE and len(key.split()) == 1:
                found[key] = said.strip()
        return found or None
    status, _, description = first.removeprefix(_STATUS_LINE).strip().partition(b" ")
    if status.isdigit():
        found["Status"] = status.decode()
        if description:
            found["Description"] = description.decode("utf-8", "replace")
    for line in rest.split(_CRLF):
        name, colon, value = line.partition(b":")
        name = name.strip()
        if colon and name.isascii() and len(name.split()) == 1:
            key = name.decode()
            if key not in _FIRST_LINE:
                found[key] = value.strip().decode("utf-8", "replace")
    return found or None


class Parser(parser.Parser):
    """nats-py's parser, for what is no message."""

    def __init__(self, client: Any, deliver: dict[int, Deliver]) -> None:
        super().__init__(client)
        self._deliver = deliver  # by the number of the subscription
        self._needed = 0  # bytes of the message whose beginning lies in the buffer
        self._reader: asyncio.StreamReader | None = None  # of the connection that is listened to
        self._strange: list[tuple[int, bytes, bytes, bytes, bytes | None]] = []

    def reset(self) -> None:
        """A new connection begins."""
        super().reset()
        self._needed = 0
        self._reader = None

    def listen(self, reader: asyncio.StreamReader) -> None:
        """Take messages as they arrive: to wake nats-py's task for them takes a turn of the loop.

        What is no message goes to that task, and all that follows until it has read it.
        """
        feed = reader.feed_data
        self._reader = reader

        def take(data: bytes) -> None:
            waiting = reader._waiter is not None and not reader._buffer  # type: ignore[attr-defined] # noqa: SLF001
            if waiting and self._reader is reader and self.state == parser.AWAITING_CONTROL_LINE:
                data = self._take(data)
            if data:
                feed(data)

        setattr(reader, "feed_data", take)  # noqa: B010

    def _take(self, data: bytes) -> bytes:
        """Hand over the messages in front, and return what has to be read by nats-py."""
        buffer = self.buf
        buffer.extend(data)
        whole = True
        with contextlib.suppress(nats.errors.ProtocolError):  # it meets that, too
            while whole and len(buffer) > self._needed and buffer[0] in _MESSAGES:
                whole = self._messages()
        self._strange.clear()  # nobody listens to these any more
        if not whole or len(buffer) <= self._needed:
            return b""
        rest = bytes(buffer)
        buffer.clear()
        self._needed = 0
        return rest

    async def parse(self, data: bytes = b"") -> None:
        """Take what the socket had. Raises `ProtocolError`."""
        self.buf.extend(data)
        while len(self.buf) > self._needed:
            if self.state != parser.AWAITING_CONTROL_LINE or self.buf[0] not in _MESSAGES:
                await super().parse()
                return
            whole = self._messages()
            strange, self._strange = self._strange, []
            for one in strange:
                await self.nc._process_msg(*one)  # noqa: SLF001
            if not whole:
                return

    def _messages(self) -> bool:
        """Hand over the whole messages in front; False: the rest of one is to come."""
        data, place = bytes(self.buf), 0
        received = len(data)
        self._needed = 0
        try:
            while place < received and data[place] in _MESSAGES:
                line = data.find(_CRLF, place, place + _LINE_MAX)
                if line < 0:
                    if received - place >= _LINE_MAX:
                        raise nats.errors.ProtocolError
                    return False
                words = data[place:line].split(b" ")
                head = 0
                if words[0] == b"HMSG":
                    head = int(words.pop(-2))
                elif words[0] != b"MSG":
                    raise nats.errors.ProtocolError
                if len(words) not in _WORDS:
                    raise nats.errors.ProtocolError
                size = int(words[-1])
                begin = line + 2 + head
                end = line + 2 + size
                if end + 2 > received:
                    self._needed = end + 1 - place
                    return False
                if not 0 <= head <= size:
                    raise nats.errors.ProtocolError
                sid, reply = int(words[2]), words[3] if len(words) == _WORDS[1] else b""
                block, body = data[line + 2 : begin] if head else None, data[begin:end]
                place = end + 2
                deliver = self._deliver.get(sid)
                if deliver is not None:
                    deliver(message(words[1], reply, body, block))
                else:
                    self._strange.append((sid, words[1], reply, body, block))
        except (ValueError, IndexError):
            raise nats.errors.ProtocolError from None
        finally:
            del self.buf[:place]
        return True


def encode_headers(headers: dict[str, str]) -> bytes:
    """Headers as they travel; a line break in a value is a space."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        clean = {n.translate(_BREAKS): v.translate(_BREAKS) for n, v in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in clean.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def publish(
    client: Client, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None,
    most: int,
) -> bool:  # fmt: skip
    """Add a publish to what `client` sends next, unless it cannot go out as it is.

    It goes while the client is connected, if at most `most` bytes wait.
    """
    size = len(payload)
    if (
        client._status != Client.CONNECTED  # noqa: SLF001
        or size > client._max_payload  # noqa: SLF001
        or client._pending_data_size + size > most  # noqa: SLF001
    ):
        return False
    if headers:
        block = encode_headers(headers)
        whole = len(block) + size
        line = f"HPUB {subject} {reply} {len(block)} {whole}\r\n".encode()
        client._pending += (line, block, payload, _CRLF)  # noqa: SLF001
    else:
        whole = size
        line = f"PUB {subject} {reply} {size}\r\n".encode()
        client._pending += (line, payload, _CRLF) if size else (line, _CRLF)  # noqa: SLF001
    client._pending_data_size += len(line) + whole + 2  # noqa: SLF001
    stats = client.stats
    stats["out_msgs"] += 1
    stats["out_bytes"] += size
    queue = client._flush_queue  # noqa: SLF001 - its reader sends all that is pending, once a turn
    if queue is not None and queue.empty():
        queue.put_nowait(asyncio.get_running_loop().create_future())
    return True


def push(client: Client) -> None:
    """Send what is pending at once, if the socket has taken all that went before.

    Else, and for whoever asks for nothing, nats-py's own task sends it in a later turn of the loop.
    """
    transport = client._transport  # noqa: SLF001
    writer = getattr(transport, "_io_writer", None)
    if transport is None or writer is None or writer.transport.get_write_buffer_size():
        return
    if client._pending_data_size and not writer.transport.is_closing():  # noqa: SLF001
        transport.writelines(client._pending)  # noqa: SLF001
        client._pending = []  # noqa: SLF001
        client._pending_data_size = 0  # noqa: SLF001


def pending(client: Client) -> int:
    """The bytes that wait to be sent."""
    return client._pending_data_size  # noqa: SLF001


class _Ear:
    """A client that only listens, for `agrees`."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    async def _process_msg(self, *what: Any) -> None:
        self.heard.append(what)

    async def _process_ping(self) -> None:
        self.heard.append(("ping",))


async def agrees() -> bool:
    """Whether both parsers read the same bytes alike, whole and in pieces."""
    for step in (len(_SAMPLE), 7, 1):
        plain, quick = _Ear(), _Ear()
        for ear, reader in ((plain, parser.Parser(plain)), (quick, Parser(quick, {}))):
            del ear
            for place in range(0, len(_SAMPLE), step):
                await reader.parse(_SAMPLE[place : place + step])
        if plain.heard != quick.heard or len(plain.heard) != 5:  # noqa: PLR2004 - of the sample
            return False
    return True
