"""Where and as whom to connect, and what of it may be shown."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from executor.config import Config
from executor.core.nats_roles import inbox
from executor.errors import ExecutorError

PING_S: Final = 20.0  # a half-open connection ends within a minute
SEED: Final = ".nk"  # of a login's file: its seed, or with its JWT in a credentials file
CREDENTIALS: Final = ".creds"
_LOGIN: Final = re.compile(r"[a-z]+_[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64})?")


@dataclass(frozen=True, slots=True)
class Settings:
    """`url` may list several servers, separated by commas.

    `ping_s`  a connection whose other end is silent is given up after three of these.
    `parser`  "fast" is `transport.fast` where it fits nats-py's version, "plain" is nats-py's own.
    `login`   as the mint knows it; with `mint` a JWT of minutes is asked for and renewed.
    """

    url: str
    creds_file: str = ""
    name: str = "executor"
    inbox_prefix: str = "_INBOX"
    connect_timeout_ms: int = 2_000
    ping_s: float = PING_S
    parser: str = "fast"
    nkey_file: str = ""
    login: str = ""
    mint: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def servers(self) -> list[str]:
        """The servers of `url`."""
        return [server.strip() for server in self.url.split(",") if server.strip()]

    def public_url(self) -> str:
        """`url` without logins."""
        return ",".join(_without_login(server) for server in self.servers())

    def tls(self, *, server: bool = False) -> ssl.SSLContext | None:
        """TLS 1.3 and nothing older, where a CA is named; a server demands certificates too.

        Errors  `config.invalid`.
        """
        if not self.ca_file:
            if self.cert_file:
                raise ExecutorError(
                    "config.invalid", "`nats.cert_file` without `nats.ca_file`: no TLS is demanded",
                    hint="name who signs the server's certificate: nats.ca_file",
                )  # fmt: skip
            return None
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        try:
            context = ssl.create_default_context(purpose, cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if server:
                context.verify_mode = ssl.CERT_REQUIRED
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ExecutorError(
                "config.invalid", f"certificates of NATS: {error.strerror or error}",
                hint="check nats.ca_file, nats.cert_file and nats.key_file",
            ) from None  # fmt: skip
        return context


def _without_login(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        # The part after the last @, never re-assembled from what a parser understood.
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    except ValueError:
        return "(not a url)"


def from_config(
    config: Config, name: str, logins: Sequence[str], *, ping_s: float = PING_S
) -> Settings:
    """How `executor.toml` reaches NATS: with `nats.logins` as the first of `logins` found there.

    One that ends in `_` is the only login of that role. Errors  `config.*`.
    """

    def file(key: str) -> str:
        return str(config.path(key) or "")

    login, mint = config.text("nats.login"), config.text("nats.mint")
    if login and not _LOGIN.fullmatch(login):
        raise ExecutorError("config.invalid", f"`nats.login`: `{login}` is not ROLE_NAME")
    if mint and not mint.startswith(("unix:", "tls://")):
        raise ExecutorError("config.invalid", "`nats.mint` is not unix:PATH or tls://HOST:PORT")
    if mint.startswith("tls://") and not config.text("nats.ca_file"):
        raise ExecutorError("config.missing", "`nats.mint` over TLS needs `nats.ca_file`")
    given = Settings(
        config.text("nats.url"), file("nats.creds_file"), name, ping_s=ping_s,
        parser=config.text("nats.parser"),
        nkey_file=file("nats.nkey_file"), login=login,
        mint=f"unix:{config.folder / mint[5:]}" if mint.startswith("unix:") else mint,
        ca_file=file("nats.ca_file"), cert_file=file("nats.cert_file"),
        key_file=file("nats.key_file"), inbox_prefix=inbox_of(login),
    )  # fmt: skip
    folder = config.path("nats.logins")
    return given if folder is None else _found(folder, given, logins)


def inbox_of(login: str) -> str:
    """The prefix of a login's replies; without one, as every NATS client has it."""
    role, _, name = login.partition(".")[0].partition("_")
    return inbox(role, name) if login else "_INBOX"


def _found(folder: Path, given: Settings, logins: Sequence[str]) -> Settings:
    for wanted in logins:
        like = f"{wanted}*" if wanted.endswith("_") else wanted
        files: dict[str, Path] = {}
        # The later wins: with a mint the seed, else a JWT that was given beside it.
        for kind in (CREDENTIALS, SEED) if given.mint else (SEED, CREDENTIALS):
            for path in (*folder.glob(f"{like}{kind}"), *folder.glob(f"{like}.*{kind}")):
                files[path.name.removesuffix(kind)] = path
        if given.login in files:
            files = {given.login: files[given.login]}
        if len(files) > 1:
            raise ExecutorError(
                "config.invalid", f"which login? `nats.logins` has {', '.join(sorted(files))}",
                hint="say which under [nats]: login = …, or leave one of them there",
            )  # fmt: skip
        for login, path in files.items():
            return _as(given, login, path)
    raise ExecutorError(
        "config.missing", f"`nats.logins` has no login {' or '.join(f'`{w}…`' for w in logins)}",
        hint="executor nats config makes them: copy the ones that this host or person needs",
    )  # fmt: skip


def _as(given: Settings, login: str, path: Path) -> Settings:
    certificate, key = path.with_name(f"{login}.pem"), path.with_name(f"{login}.key")
    own = certificate.is_file() and not given.cert_file
    private(path)
    if own:
        private(key)
    seed = path.name.endswith(SEED)
    return replace(
        given, login=login, inbox_prefix=inbox_of(login),
        nkey_file=str(path) if seed else "", creds_file="" if seed else str(path),
        cert_file=str(certificate) if own else given.cert_file,
        key_file=str(key) if own else given.key_file,
    )  # fmt: skip


def private(path: Path) -> None:
    """Refuse a secret that others can use. Errors  `config.missing`, `config.invalid`."""
    try:
        mode = path.stat().st_mode
    except OSError:
        raise ExecutorError("config.missing", f"no file `{path}`", hint="check the path") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ExecutorError("config.invalid", f"others can use `{path}`", hint=f"chmod 600 {path}")
