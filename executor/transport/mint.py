"""JWTs of minutes for whoever proves to hold a login's key: the talk, from both ends.

Lines of JSON, over a Unix socket or TLS 1.3 with certificates of both sides:

    → {"login": "client_acme"}
    ← {"challenge": hex}                 32 random bytes, for this connection alone
    → {"signature": hex}                 over `executor/mint/v1`, the login and the challenge
    ← {"jwt": text, "expires": seconds}  or {"error": code, "message": text} at any place

What may be issued, and with which key it is signed, is the server's `Issuer` to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from executor.errors import ExecutorError
from executor.transport import jwt
from executor.transport.jwt import Key
from executor.transport.settings import Settings

_DOMAIN: Final = b"executor/mint/v1\0"  # NATS's own nonces have no NUL: neither stands for another
_LINE_MAX: Final = 64 * 1024
_TALK_S: Final = 5.0
_AT_ONCE: Final = 64

Note = Callable[[str, dict[str, str | int]], None]


@dataclass(frozen=True, slots=True)
class Minted:
    """A user JWT and the second it ends in."""

    jwt: str
    expires: int


class Issuer(Protocol):
    """Who decides."""

    def nkey(self, login: str) -> str:
        """The login's public key. Errors  `transport.permission-denied`."""

    def issue(self, login: str) -> Minted:
        """A JWT, if policy allows it now. Errors  `transport.permission-denied`."""


def _challenged(login: str, challenge: bytes) -> bytes:
    return _DOMAIN + login.encode() + b"\0" + challenge


async def _say(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    writer.write(json.dumps(value).encode() + b"\n")
    await writer.drain()


async def _hear(reader: asyncio.StreamReader) -> dict[str, Any]:
    value = json.loads(await reader.readline())
    return {**value}  # TypeError for what is no object


async def fetch(settings: Settings, key: Key) -> Minted:
    """Ask the mint for a JWT of `settings.login`.

    Errors  `transport.disconnected`, `transport.permission-denied` if it refuses.
    """
    unreachable = ExecutorError(
        "transport.disconnected", "the mint does not answer", mint=settings.mint,
        hint="is `executor nats mint` running, and nats.mint its address?",
    )  # fmt: skip
    try:
        async with asyncio.timeout(_TALK_S):
            reader, writer = await _open(settings)
            try:
                await _say(writer, {"login": settings.login})
                challenge = bytes.fromhex(_checked(await _hear(reader))["challenge"])
                proof = key.sign(_challenged(settings.login, challenge)).hex()
                await _say(writer, {"signature": proof})
                answer = _checked(await _hear(reader))
                return Minted(str(answer["jwt"]), int(answer["expires"]))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, ValueError, KeyError, TypeError):  # ssl's and timeouts are OSErrors too
        raise unreachable from None


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise ExecutorError(
            "transport.permission-denied", str(answer.get("message", ""))[:500],
            hint="ask whoever runs the mint: policy, or a revocation, forbids this login",
        )  # fmt: skip
    return answer


async def _open(settings: Settings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    kind, _, rest = settings.mint.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(rest, limit=_LINE_MAX)
    parts, context = urlsplit(settings.mint), settings.tls()
    if context is None:  # the configuration was checked for it
        raise ValueError("a mint without TLS")
    return await asyncio.open_connection(parts.hostname, parts.port, ssl=context, limit=_LINE_MAX)


def _prove(public: str, challenged: bytes, proof: bytes) -> None:
    if not jwt.verify(public, challenged, proof):
        raise ExecutorError("transport.permission-denied", "that is not the login's key")


class Mint:
    """The service. `note` hears of each JWT and each refusal."""

    def __init__(self, issuer: Issuer, note: Note) -> None:
        self._issuer = issuer
        self._note = note
        self._talking: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._server: asyncio.Server | None = None
        self._path = ""

    async def start(self, address: str, context: ssl.SSLContext | None) -> str:
        """Listen; returns the address with the port that it got. Errors  `config.invalid`."""
        try:
            if address.startswith("unix:"):
                self._path = address[5:]
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)  # noqa: PTH108 - a socket that was left behind
                self._server = await asyncio.start_unix_server(
                    self._talk, self._path, limit=_LINE_MAX
                )
                # Its group may ask; what it may get is decided by key, not by user.
                os.chmod(self._path, 0o660)  # noqa: PTH101 # nosec B103
                return address
            parts = urlsplit(address)
            if parts.scheme != "tls" or context is None:
                raise ExecutorError(
                    "config.invalid", f"`{address}` is not unix:PATH or tls://HOST:PORT",
                    hint="over TCP the mint speaks TLS alone: set nats.ca_file and its certificate",
                )  # fmt: skip
            self._server = await asyncio.start_server(
                self._talk, parts.hostname, parts.port or 0, ssl=context, limit=_LINE_MAX
            )
        except OSError as error:
            raise ExecutorError(
                "config.invalid", f"`{address}`: {(error.strerror or 'cannot listen').lower()}",
                hint="name another address",
            ) from None  # fmt: skip
        port = self._server.sockets[0].getsockname()[1]
        return f"tls://{parts.hostname}:{port}"

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._talking) >= _AT_ONCE:
            # A talk takes milliseconds: of so many, the oldest only holds its place, and whoever
            # opens enough of those would keep every login from being renewed.
            oldest = next(iter(self._talking))
            del self._talking[oldest]
            oldest.transport.abort()
        self._talking[writer] = None
        try:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                async with asyncio.timeout(_TALK_S):
                    await self._answer(reader, writer)
        finally:
            self._talking.pop(writer, None)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        login = str((await _hear(reader))["login"])[:200]
        try:
            public = self._issuer.nkey(login)
            challenge = secrets.token_bytes(32)
            await _say(writer, {"challenge": challenge.hex()})
            proof = bytes.fromhex((await _hear(reader))["signature"])
            _prove(public, _challenged(login, challenge), proof)
            minted = self._issuer.issue(login)
        except ExecutorError as error:
            self._note("mint-refused", {"login": login, "code": error.code,
                                        "reason": error.message})  # fmt: skip
            await _say(writer, {"error": error.code, "message": error.message})
            return
        self._note("minted", {"login": login, "expires": minted.expires})
        await _say(writer, {"jwt": minted.jwt, "expires": minted.expires})
