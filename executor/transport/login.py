"""How one connection proves who it is: a key, a credentials file, or JWTs of minutes.

A JWT from the mint is asked for before it is needed: `fresh` before the first connect, then again
when two thirds of its life are over, so that a reconnect never waits for the mint.
"""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import Any, Final

from executor.errors import ExecutorError
from executor.transport import mint
from executor.transport.jwt import Key
from executor.transport.mint import Minted
from executor.transport.settings import Settings, private

# What a nats-server sends to be signed; anything else could be a statement of something else.
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LEAST_S: Final = 1.0


class Login:
    """See the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._minted: Minted | None = None
        self.public: str | None = None  # of a key that logs in by itself, without a JWT
        self._renew_at = 0.0

    @property
    def expires(self) -> bool:
        """Whether it has to be renewed at all."""
        return bool(self._settings.mint and self._settings.nkey_file)

    async def fresh(self) -> None:
        """Have a JWT that has only begun to live. Errors  those of `mint.fetch`, `config.*`."""
        if not self.expires:
            return
        begin = time.time()
        self._minted = await mint.fetch(self._settings, self._key())
        self._renew_at = begin + max((self._minted.expires - begin) * 2 / 3, _LEAST_S)

    def renew_in(self) -> float:
        """Seconds until it should be renewed; 0: now."""
        return max(self._renew_at - time.time(), 0.0)

    def options(self) -> dict[str, Any]:
        """What nats-py is told. Errors  `config.*`."""
        settings = self._settings
        options: dict[str, Any] = {}
        context = settings.tls()
        if context is not None:
            options["tls"] = context
        if settings.nkey_file:
            self.public = self._key().public
            options["signature_cb"] = self._sign
            if self.expires:
                options["user_jwt_cb"] = self._jwt
        elif settings.creds_file:
            options["user_credentials"] = settings.creds_file
        return options

    def _key(self) -> Key:
        path = Path(self._settings.nkey_file)
        private(path)
        return Key.parse(path.read_bytes(), path.name)

    def _jwt(self) -> bytes:
        return self._minted.jwt.encode() if self._minted else b""

    def _sign(self, nonce: str) -> bytes:
        if not _NONCE.match(nonce):
            raise ExecutorError("transport.permission-denied", "the server's nonce is none")
        return base64.b64encode(self._key().sign(nonce.encode()))
