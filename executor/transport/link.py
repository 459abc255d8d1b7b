"""nats-py's client, made to last: it reconnects with jitter for as long as it takes.

nats-py reconnects by itself, but gives up and closes where the server says why it hung up (an
expired login, an oversized message): then a new client takes over with the same subscriptions. What
was unsent in the old one is lost, as it is when a socket breaks; whoever needs certainty repeats on
`reconnected`. A refused permission arrives as text in an error callback: it goes out as an event
and to the listeners of `violation`.

A login of minutes is renewed by a new client before the server ends the old one, at a moment when
nothing is on its way: `quiet`, which the owner may give, waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import ParseResult

import nats.errors
from nats.aio.client import Client, Server, Srv
from nats.aio.subscription import Subscription as Inner
from nats.aio.transport import TcpTransport
from nats.protocol import parser

from executor.errors import ExecutorError
from executor.transport import fast
from executor.transport.backoff import Backoff
from executor.transport.fast import Message as Message  # noqa: PLC0414 - told on
from executor.transport.login import Login
from executor.transport.settings import Settings

Event = Callable[[str, dict[str, str | int]], None]

BUFFER_MAX: Final = 64 * 1024 * 1024  # bytes of nats-py's send buffer
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription)[a-z ]* "([^"]+)"')
# Wrong, expired or revoked: the server then hangs up.
_LOGIN: Final = re.compile(r"auth(entication|orization)", re.IGNORECASE)
_QUIET: Final = (nats.errors.Error, OSError)


def guarded(on_event: Event) -> Event:
    """Keep an event sink that raises (a closed stderr) from ending a reconnect or a pull."""

    def event(name: str, facts: dict[str, str | int]) -> None:
        try:
            on_event(name, facts)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the transport's
            context = {"message": f"the sink of event {name} raised", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    return event


# The server takes any byte but these in a subject; nats-py's own patterns also stop at vertical
# tabs and form feeds, so that one task on such a subject would end every connection that it is
# delivered to, for ever.
_TOKEN: Final = rb"([^ \t\r\n]+)[ \t]+"
_MSG: Final = re.compile(rb"\AMSG[ \t]+" + _TOKEN + _TOKEN + rb"(" + _TOKEN + rb")?(\d+)\r\n")
_HMSG: Final = re.compile(
    rb"\AHMSG[ \t]+" + _TOKEN + _TOKEN + rb"(" + _TOKEN + rb")?(\d+)[ \t]+(\d+)\r\n"
)


class _Tls(TcpTransport):
    """nats-py's, whose protocol is told that TLS lies beneath: asyncio warns at each end if not."""

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        writer: Any = self._io_writer
        protocol = writer.transport.get_protocol()
        if protocol is not None:  # else the server has hung up
            protocol._over_ssl = True  # noqa: SLF001


class _Client(Client):
    """nats-py's client with seven private methods mended (nats-py 2.16.0).

    A submitter chooses the bytes of subject and headers. Where they are no UTF-8, or no headers at
    all, nats-py raises inside its read loop, which then ends without a word: connected, and deaf.
    Messages go to their subscription at once: nats-py's queue for each and the task that reads it
    would cost more than what they carry.

    Its `flush` gives up by cancelling the future of its PING; when the PONG comes after all,
    setting that future's result raises and ends the read loop: connected, and deaf until the stale
    connection is noticed much later (seen with a stopped server).

    It writes a PING straight to the socket, past what is queued: the PONG then proves nothing of
    what was sent before (a refused subscription was not yet known, acks had not left).

    Before it reconnects it waits for the old socket to take what is unsent, which one whose other
    end stands still never does: neither connected, nor disconnected, for as long as that lasts.
    """

    def __init__(self, *, quick: bool, encrypted: bool = False) -> None:
        super().__init__()
        self._encrypted = encrypted
        self.given_up = False
        self.deliver: dict[int, fast.Deliver] = {}  # by the number of the subscription
        if quick:
            self._ps = fast.Parser(self, self.deliver)
        # Module globals of nats-py: there is no other way to its patterns. They match all that
        # the originals match in what a server sends.
        parser.MSG_RE, parser.HMSG_RE = _MSG, _HMSG

    async def _read_loop(self) -> None:
        reader = getattr(self._transport, "_io_reader", None)
        if isinstance(self._ps, fast.Parser) and reader is not None:
            self._ps.listen(reader)
        await super()._read_loop()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        deliver = self.deliver.get(sid)
        if deliver is not None:
            deliver(fast.message(subject, reply, data, headers))

    async def _connect_to_server(self, s: Srv) -> None:
        await super()._connect_to_server(s)
        if self._encrypted:
            bare, self._transport = self._transport, _Tls()  # type: ignore[no-untyped-call]
            vars(self._transport).update(vars(bare))

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    def abort(self) -> None:
        """End the socket, whatever it still holds."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002
        # nats-py speaks in the clear with a server that says it has no TLS: whoever stands between
        # could say so.
        if initial_connection and self._encrypted and not info.get("tls_required"):
            raise nats.errors.Error("the server offers no TLS, which nats.ca_file demands")
        await super()._process_info(info, initial_connection)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future if future is not None else asyncio.Future())
        await self._send_command(parser.PING_OP + b"\r\n")
        await self._flush_pending()

    async def _process_pong(self) -> None:
        if not self._pongs:
            return
        future = self._pongs.pop(0)
        if not future.done():
            future.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0


class Subscription:
    """A subscription that outlives the client object it was made on."""

    __slots__ = ("callback", "inner", "queue", "subject")

    def __init__(self, subject: str, callback: Callable[[Message], None], queue: str = "") -> None:
        self.subject = subject
        self.queue = queue
        self.callback = callback
        self.inner: Inner | None = None

    async def never(self, _message: object) -> None:
        """Nothing: nats-py must have a callback, messages come another way."""


class Link:
    """See the module. Listeners: `disconnected()`, `reconnected()`, `violation(subject)`."""

    def __init__(self, settings: Settings, on_event: Event) -> None:
        self.settings = settings
        self.login = Login(settings)
        self.quick = False  # whether `fast` is used; known once connected
        self.client = self._new_client()
        self.event = guarded(on_event)
        self.subscriptions: set[Subscription] = set()
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        self._backoff = Backoff(base=0.05, cap=2.0)
        self._first: asyncio.Future[Exception] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._mending = False  # a new client is on its way: a second one would deliver beside it
        self.quiet: Callable[[], Awaitable[None]] | None = None
        self.closing = False

    def _new_client(self) -> _Client:
        return _Client(quick=self.quick, encrypted=bool(self.settings.ca_file))

    def listen(self, event: str, listener: Callable[..., None]) -> Callable[[], None]:
        """Call `listener` on an event; returns what removes it."""
        listeners = self._listeners.setdefault(event, [])
        listeners.append(listener)
        return lambda: listeners.remove(listener) if listener in listeners else None

    def _tell(self, event: str, *arguments: str) -> None:
        for listener in tuple(self._listeners.get(event, ())):
            listener(*arguments)

    async def connect(self) -> None:
        """Connect, once; `transport.disconnected` names the url without its login.

        Errors  also those of `Login.fresh`.
        """
        await self.login.fresh()
        if not self.quick and version("nats-py") in fast.VERSIONS:
            self.quick = self.settings.parser == "fast" and await fast.agrees()
            self.client = self._new_client()
        await self._connect()
        if self.login.expires:
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _connect(self) -> None:
        client, first = self.client, asyncio.get_running_loop().create_future()
        options = self._options()
        client._public_nkey = self.login.public  # noqa: SLF001 - it takes one from a file alone
        self._first = first
        connecting = asyncio.ensure_future(client.connect(**options))
        try:
            # nats-py would retry the first connect for ever too: its first error ends it here.
            try:
                await asyncio.wait(
                    (connecting, first),
                    timeout=self.settings.connect_timeout_ms / 1000,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            except asyncio.CancelledError:
                await self._give_up(client, connecting)
                raise
            if connecting.done():
                await connecting
                return
            reason = str(first.result()) if first.done() else "no answer in time"
        except ImportError:
            raise ExecutorError(
                "config.missing",
                "a credentials file needs the package nkeys",
                hint='pip install "nats-py[nkeys]"',
            ) from None
        except (*_QUIET, ValueError) as error:
            reason = str(error) or type(error).__name__
        finally:
            self._first = None
        await self._give_up(client, connecting)
        refused = _LOGIN.search(reason)
        raise ExecutorError(
            "transport.permission-denied" if refused else "transport.disconnected",
            reason.removeprefix("nats: "),
            url=self.settings.public_url(),
        )

    async def _give_up(self, client: _Client, connecting: asyncio.Future[None]) -> None:
        # Its `wait_for` may lose the cancellation, and it would try for ever: the flag ends it at
        # its next error.
        client.given_up = True
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError, *_QUIET):
            await connecting
        await self._discard(client)

    async def _discard(self, client: _Client) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError, AssertionError, *_QUIET):
                async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                    await client.close()
        finally:
            client.abort()

    def _options(self) -> dict[str, Any]:
        settings = self.settings
        client = self.client
        servers = settings.servers()
        failures = 0

        async def on_error(error: Exception) -> None:
            nonlocal failures
            if client.given_up:
                raise asyncio.CancelledError
            failures += 1
            # One failure of each listed server ends the first connect.
            if self._first is not None:
                if failures >= len(servers) and not self._first.done():
                    self._first.set_result(error)
                return
            self._on_error(error)

        async def on_disconnected() -> None:
            if client is self.client and self._first is None and not self.closing:
                self.event("disconnected", {"url": settings.public_url()})
                self._tell("disconnected")

        async def on_reconnected() -> None:
            self._on_reconnected()

        async def on_closed() -> None:
            if (
                client is self.client
                and self._first is None
                and not self.closing
                and not self._mending
            ):
                self._mending = True
                self._reopening = asyncio.get_running_loop().create_task(self._reopen())

        return {
            "servers": servers,
            "name": settings.name,
            "error_cb": on_error,
            "disconnected_cb": on_disconnected,
            "reconnected_cb": on_reconnected,
            "closed_cb": on_closed,
            "max_reconnect_attempts": -1,
            "connect_timeout": settings.connect_timeout_ms / 1000,
            "reconnect_time_wait": 0.1,
            "reconnect_to_server_handler": self._choose,
            "inbox_prefix": settings.inbox_prefix,
            "pending_size": BUFFER_MAX,
            "ping_interval": settings.ping_s,  # two unanswered: the third ends the connection
            # Subjects are built by core.subjects; the others are checked where they come in.
            "skip_subject_validation": True,
            **self.login.options(),
        }

    async def _renew(self) -> None:
        """Keep a login that has not expired; what fails is tried again until it would have."""
        backoff = Backoff(base=0.5, cap=15.0)
        while True:
            await asyncio.sleep(self.login.renew_in())
            try:
                await self.login.fresh()
            except Exception as error:  # noqa: BLE001 - nobody hears of a task that ended
                code = error.code if isinstance(error, ExecutorError) else type(error).__name__
                self.event("error", {"what": "login", "code": code, "text": str(error)[:200]})
                await asyncio.sleep(backoff.delay())
                continue
            backoff.reset()
            if self.client.is_connected and not self._mending:  # else the reconnect takes it
                await self._change()

    async def _change(self) -> None:
        """Go on with a new client. Everything that was sent arrives, on either side."""
        self._mending = True  # whatever happens to the old one meanwhile
        try:
            if self.quiet is not None:
                await self.quiet()
            # No interest: the server hands over nothing more; what it has sent is delivered.
            await asyncio.gather(*map(self._silence, tuple(self.subscriptions)))
            old, self.client = self.client, self._new_client()
            self.event("disconnected", {"url": self.settings.public_url(), "why": "login renewed"})
            self._tell("disconnected")
            try:
                with contextlib.suppress(*_QUIET):
                    await old.flush()
            finally:
                await self._discard(old)
            await self._reopen()
        finally:
            self._mending = False

    def _choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server | None, float]:
        return min(servers, key=lambda server: server.reconnects), self._backoff.delay()

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        violation = _VIOLATION.search(text)
        if violation is None:
            name = "login-refused" if _LOGIN.search(text) else "error"
            self.event(name, {"what": type(error).__name__, "text": text[:200]})
            return
        action, subject = violation.groups()
        self.event("permission-violation", {"action": action, "subject": subject})
        self._tell("violation", subject)

    def _on_reconnected(self) -> None:
        self._backoff.reset()
        self.event("reconnected", {"url": self.settings.public_url()})
        self._tell("reconnected")

    async def _reopen(self) -> None:
        try:
            while not self.closing:
                await asyncio.sleep(self._backoff.delay() if self.client.is_closed else 0)
                self.client = self._new_client()
                try:
                    await self._connect()
                    for subscription in tuple(self.subscriptions):
                        await self.attach(subscription)
                    await self.client.flush()
                except (ExecutorError, *_QUIET) as error:
                    self._on_error(error)
                    # Connected perhaps, and half subscribed: it would deliver beside the next one.
                    await self._discard(self.client)
                    continue
                if self.client.is_closed:  # nobody else looks after one that has ended already
                    continue
                self._on_reconnected()
                return
        finally:
            self._mending = False

    async def attach(self, subscription: Subscription) -> None:
        """Subscribe on the present client."""
        self.subscriptions.add(subscription)
        subscription.inner = await self.client.subscribe(
            subscription.subject,
            subscription.queue,
            cb=subscription.never,
            pending_msgs_limit=0,
            pending_bytes_limit=0,
        )
        self.client.deliver[subscription.inner._id] = self._guarded(subscription.callback)  # noqa: SLF001

    def _guarded(self, callback: fast.Deliver) -> fast.Deliver:
        """Keep a callback that raises from ending the read loop."""

        def deliver(message: Message) -> None:
            try:
                callback(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, others still listen
                self.event("error", {"what": type(error).__name__, "text": str(error)[:200]})

        return deliver

    async def detach(self, subscription: Subscription) -> None:
        """End a subscription after all that the server already sent was delivered."""
        self.subscriptions.discard(subscription)
        await self._silence(subscription)

    async def _silence(self, subscription: Subscription) -> None:
        inner, subscription.inner = subscription.inner, None
        if inner is None:
            return
        client = self.client
        try:
            if client.is_connected:
                with contextlib.suppress(TimeoutError, *_QUIET):
                    # UNSUB, then a round trip.
                    async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                        await inner.drain()  # type: ignore[no-untyped-call]
                    return
            with contextlib.suppress(*_QUIET):
                await inner.unsubscribe()
        finally:
            client.deliver.pop(inner._id, None)  # noqa: SLF001

    async def close(self) -> None:
        """End; idempotent."""
        self.closing = True
        for task in (self._reopening, self._renewing):
            if task is not None:
                task.cancel()
        await self._discard(self.client)
