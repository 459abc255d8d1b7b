"""The folder of `executor nats config`: who may log in, with which keys, and the server's file.

    server.conf         what nats-server is started with
    local.conf          what an operator adds, such as a cluster; included if it is there
    users/LOGIN.pub     a login's public key; its seed, LOGIN.nk, only if it was made here
    keys/NAME.nk        operator mode: the operator's and accounts' keys, and the signing keys;
                        a mint needs scope_*.nk and account_*.pub of them
    tls/                ca.pem, server.pem, server.key
    revoked.json        logins that are out, for good

A login is known by its key: whoever brings a key of their own has its `.pub` put there.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from executor.cli.base import read_file, write_file
from executor.cli.modules import write_secret
from executor.cli.nats_tls import Authority
from executor.config import Config
from executor.config_document import Document
from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport import accounts, jwt
from executor.transport.accounts import Login, Place, Signed
from executor.transport.jwt import Key
from executor.transport.mint import Minted
from executor.transport.settings import SEED, private

_PORT: Final = 4222
_FILES_MAX: Final = 10_000
# A revoked user stays out, however late its JWT was issued: year 9999, in seconds.
_FOR_GOOD: Final = 253_402_300_799


@dataclass(frozen=True)
class Folder:
    """See the module."""

    path: Path

    @property
    def users(self) -> Path:
        """Where logins are."""
        return self.path / "users"

    @property
    def jwt(self) -> bool:
        """Whether the server is one in operator mode."""
        return (self.path / "keys" / f"operator{SEED}").exists()

    def seed(self, stem: str) -> Path:
        """Where a login's seed is, if it was made here."""
        return self.users / f"{stem}{SEED}"

    # Keys.

    def key(self, name: str, kind: int) -> Key:
        """A key of operator mode; made the first time it is asked for. Errors  `config.*`."""
        path = self.path / "keys" / f"{name}{SEED}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = Key.generate(kind)
            write_secret(path, key.seed + b"\n")
            write_file(path.with_suffix(".pub"), f"{key.public}\n".encode())
            return key
        return self.held(path)

    @staticmethod
    def held(path: Path) -> Key:
        """The key whose seed is in a file. Errors  `config.*`."""
        private(path)
        return Key.parse(read_file(path, most=4096), path.name)

    def logins(self) -> list[Login]:
        """Everybody whose public key is here and not revoked. Errors  `config.invalid`."""
        found: list[Login] = []
        out = self.revoked()
        for path in sorted(self.users.glob("*.pub"))[:_FILES_MAX]:
            role, name, label = accounts.split(path.stem)
            for token in (name, label or "x"):
                if not subjects.is_token(token):
                    raise ExecutorError("config.invalid", f"`{path}`: `{token}` is no name")
            public = read_file(path, most=4096).decode("ascii", "replace").strip()
            if not jwt.is_user(public):
                raise ExecutorError(
                    "config.invalid", f"`{path}` holds no public key of a NATS user",
                    hint="it has 56 letters and begins with U",
                )  # fmt: skip
            if public in {login.nkey for login in found}:
                raise ExecutorError("config.invalid", f"`{path}` has another login's key",
                                    hint="a key for each login: executor nats config")  # fmt: skip
            if public not in out:
                found.append(Login(role, name, public, label))
        return found

    def login(self, stem: str) -> Login:
        """One of them. Errors  `transport.permission-denied`."""
        for login in self.logins():
            if login.stem == stem:
                return login
        raise ExecutorError(
            "transport.permission-denied", f"`{stem}` is no login here, or is revoked",
            hint=f"who may log in: ls {self.users}",
        )  # fmt: skip

    def make_logins(self, document: Document) -> list[str]:
        """A key for each login that the configuration needs and nobody brought."""
        self.users.mkdir(parents=True, exist_ok=True)
        made = []
        for stem in accounts.expected(document):
            if not list(self.users.glob(f"{stem}.pub")) + list(self.users.glob(f"{stem}.*.pub")):
                key = Key.generate(jwt.USER)
                write_secret(self.seed(stem), key.seed + b"\n")
                write_file(self.users / f"{stem}.pub", f"{key.public}\n".encode())
                made.append(stem)
        return made

    # Revocation.

    def revoked(self) -> dict[str, str]:
        """Public key → login, of those that are out. Errors  `config.invalid`."""
        path = self.path / "revoked.json"
        if not path.exists():
            return {}
        try:
            return {str(key): str(login) for key, login in json.loads(read_file(path)).items()}
        except (ValueError, AttributeError):
            raise ExecutorError("config.invalid", f"`{path}` is not one of ours") from None

    def revoke(self, login: Login) -> None:
        """Keep a key out for good; its holder makes another."""
        out = {**self.revoked(), login.nkey: login.stem}
        write_file(self.path / "revoked.json", f"{json.dumps(out, indent=1)}\n".encode())

    # The server's file.

    def make_tls(self, url: str, logins: list[Login]) -> None:
        """A CA, the server's certificate, and one for each login whose seed is here."""
        authority = Authority(self.path / "tls", dt.datetime.now(dt.UTC))
        host = urlsplit(url.split(",", maxsplit=1)[0]).hostname
        authority.server(*([host] if host else []))
        for login in logins:
            if self.seed(login.stem).exists():
                authority.client(self.users / login.stem)

    def signed(self, document: Document, now: int) -> Signed:
        """All JWTs of operator mode."""
        arranged = accounts.arrange(document, self.logins(), at_ms=now * 1000)
        known = {path.stem.removeprefix("account_")
                 for path in (self.path / "keys").glob(f"account_*{SEED}")}  # fmt: skip
        gone = sorted(known - {account.name for account in arranged})
        out = dict.fromkeys(self.revoked(), _FOR_GOOD)
        return accounts.signed(arranged, self.key, gone=gone, revoked=out, now=now)

    def write(self, config: Config, *, with_jwt: bool, now: int) -> None:
        """Write server.conf anew. Errors  `config.*`."""
        parts = urlsplit(config.text("nats.url").split(",")[0])
        here = self.path.resolve()
        tls = here / "tls" if (self.path / "tls" / "server.pem").exists() else None
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        place = Place(f"{host}:{parts.port or _PORT}", here / "data", tls)
        if with_jwt or self.jwt:
            text = self.signed(config.document, now).text(place, here / "resolver")
        else:
            arranged = accounts.arrange(config.document, self.logins(), at_ms=now * 1000)
            text = accounts.static(arranged, place)
        if (self.path / "local.conf").exists():
            text += 'include "local.conf"\n'
        write_file(self.path / "server.conf", text.encode())

    # Minting.

    def issue(self, document: Document, stem: str, *, now: int, seconds: int) -> Minted:
        """A JWT for a login, if policy allows it now. Errors  `transport.permission-denied`."""
        login = self.login(stem)
        accounts.rights_of(document, stem, at_ms=now * 1000)
        # The two files that a mint needs; whoever holds them can mint these rights and no others.
        keys, scope = self.path / "keys", accounts.scope_name(login.role, login.name)
        signing = keys / f"{scope}{SEED}"
        account = keys / f"account_{accounts.account_of(login.role, login.name)}.pub"
        for path in (signing, account):
            if not path.exists():
                raise ExecutorError("config.missing", f"no file `{path}`",
                                    hint="executor nats config --jwt")  # fmt: skip
        token = jwt.user(
            self.held(signing), read_file(account, most=4096).decode("ascii", "replace").strip(),
            login.nkey, login.stem, now=now, expires=now + seconds,
        )  # fmt: skip
        return Minted(token, now + seconds)

    def credentials(self, stem: str, minted: Minted) -> bytes:
        """A credentials file of a login whose seed is here. Errors  `config.*`."""
        return jwt.credentials(minted.jwt, self.held(self.seed(stem)).seed)
