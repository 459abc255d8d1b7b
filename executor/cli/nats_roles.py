"""The verbs of `nats` about who may log in: config, mint, reload, revoke."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from executor.cli import output
from executor.cli.base import Verb, run_async, state, unwritable
from executor.cli.modules import write_secret
from executor.cli.nats_folder import Folder
from executor.config import Config
from executor.core.nats_roles import inbox
from executor.errors import ExecutorError
from executor.telemetry import Log
from executor.transport import accounts
from executor.transport.connection import Connection
from executor.transport.mint import Mint, Minted
from executor.transport.settings import SEED, Settings

_SYSTEM: Final = "system_main"
_SYSTEM_S: Final = 60  # of the JWT with which a change is pushed

_folder = click.option("--out", "path", type=click.Path(path_type=Path), default="nats",
                       show_default=True, metavar="DIR", help="The folder of it all.")  # fmt: skip


def _now() -> int:
    return int(time.time())


@click.command("config", cls=Verb)
@_folder
@click.option("--jwt", "with_jwt", is_flag=True, help="Operator mode: JWTs, minted by nats mint.")
@click.option("--make-tls", is_flag=True, help="Make a CA and all certificates here.")
@click.option("--plain", is_flag=True, help="No TLS: for loopback alone.")
def config(path: Path, with_jwt: bool, make_tls: bool, plain: bool) -> None:  # noqa: FBT001
    """Write nats-server's configuration: accounts and logins.

    An account a tenant, a login for each role that executor.toml needs. A key is made for each
    login that has none in DIR/users; whoever brings a key has its LOGIN.pub put there before.

    Example: executor nats config --make-tls
    """
    loaded, folder = state().config(required=True), Folder(path)
    if plain:
        _only_loopback(loaded)
    made = folder.make_logins(loaded.document)
    logins = folder.logins()
    if make_tls:
        folder.make_tls(loaded.text("nats.url"), logins)
    if not plain and not (path / "tls" / "server.pem").exists():
        raise ExecutorError(
            "config.missing", f"no `{path / 'tls' / 'server.pem'}`",
            hint="put ca.pem, server.pem and server.key there, or use --make-tls; "
            "on loopback alone --plain",
        )  # fmt: skip
    folder.write(loaded, with_jwt=with_jwt, now=_now())
    arranged = accounts.arrange(loaded.document, logins, at_ms=_now() * 1000)
    given = {login.stem for account in arranged for login, _ in account.users}
    left_out = sorted({login.stem for login in logins} - given)
    file, out = path / "server.conf", state().out
    out.data(
        {"schema": "executor.nats-config/1", "file": str(file), "logins": sorted(given),
         "form": "jwt" if folder.jwt else "static", "made": made, "left_out": left_out},
        output.table(("LOGIN", "ACCOUNT", "KEY"), [
            (login.stem, account.name, "here" if folder.seed(login.stem).exists() else "elsewhere")
            for account in arranged for login, _ in account.users
        ]),
    )  # fmt: skip
    out.say(f"start: nats-server -c {file} · reload a running one: executor nats reload")
    if left_out:
        out.warn(f"policy allows these logins nothing, they are left out: {', '.join(left_out)}")


def _only_loopback(loaded: Config) -> None:
    for url in Settings(loaded.text("nats.url")).servers():
        host = urlsplit(url).hostname or ""
        with contextlib.suppress(ValueError):  # a name, that is
            if ipaddress.ip_address(host).is_loopback:
                continue
        if host != "localhost":
            raise ExecutorError(
                "config.invalid", f"--plain, and `nats.url` is `{host}`: no TLS beyond loopback",
                hint="--make-tls, or certificates of your own in its folder tls",
            )  # fmt: skip


@dataclass(frozen=True)
class Issuer:
    """What the mint issues: as policy is at that moment."""

    folder: Folder
    load: Callable[[], Config]
    seconds: int

    def nkey(self, login: str) -> str:
        """The login's public key."""
        return self.folder.login(login).nkey

    def issue(self, login: str) -> Minted:
        """A JWT, if policy allows it."""
        return self.folder.issue(
            self.load().document, login, now=_now(), seconds=self.seconds
        )  # fmt: skip


@click.command("mint", cls=Verb)
@click.argument("login", required=False)
@_folder
@click.option("--minutes", type=click.IntRange(1, 60), default=5, show_default=True,
              help="How long a JWT lives.")  # fmt: skip
@click.option("--listen", metavar="ADDRESS", help="Serve: unix:PATH or tls://HOST:PORT.")
@click.option("--credentials", "file", type=click.Path(path_type=Path), metavar="FILE",
              help="Write LOGIN's credentials file, from its seed in DIR.")  # fmt: skip
def mint(login: str | None, path: Path, minutes: int, listen: str | None,
         file: Path | None) -> None:  # fmt: skip
    """Hand out JWTs of minutes to whoever holds a login's key.

    With LOGIN one, on stdout or as a credentials file. With --listen a service, which `nats.mint`
    of executor.toml names; it reads executor.toml anew for each.

    Example: executor nats mint reader_acme --minutes 5
    """
    if (login is None) == (listen is None):
        raise click.UsageError("Name a LOGIN, or serve with --listen.")
    shared = state()
    loaded, folder = shared.config(required=True), Folder(path)
    issuer = Issuer(folder, lambda: shared.config(required=True), minutes * 60)
    if listen is not None:
        run_async(_serve(loaded, issuer, listen))
    elif login is not None:
        minted = issuer.issue(login)
        text = minted.jwt
        if file is not None:
            _replace(file, folder.credentials(login, minted))
            text = f"{file}"
        until = output.timestamp(minted.expires * 1000)
        shared.out.data({"schema": "executor.minted/1", "login": login, "expires_at": until,
                         "jwt": minted.jwt, "file": str(file) if file else None}, text)  # fmt: skip
        shared.out.say(f"{login} until {until}")


def _replace(path: Path, data: bytes) -> None:
    """Write a secret over an older one, whole or not at all. Errors  `config.invalid`."""
    # Its name is nobody's guess and the file is new: whose folder this is does not matter.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_secret(beside, data)
    try:
        beside.replace(path)
    except OSError as error:
        beside.unlink()
        raise unwritable(path, error) from None


async def _serve(loaded: Config, issuer: Issuer, listen: str) -> None:
    log = Log(quiet=state().out.quiet)
    service = Mint(issuer, lambda name, facts: log.event(name, **facts))
    own = Settings(
        "", ca_file=str(loaded.path("nats.ca_file") or ""),
        cert_file=str(loaded.path("nats.cert_file") or ""),
        key_file=str(loaded.path("nats.key_file") or ""),
    )  # fmt: skip
    address = await service.start(listen, own.tls(server=True))
    log.event("minting", address=address, seconds=issuer.seconds)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await service.stop()


@click.command("reload", cls=Verb)
@_folder
def reload(path: Path) -> None:
    """Put DIR in force in the running nats-server.

    Its server.conf is read again; in operator mode the accounts' JWTs are pushed to it. Whoever may
    not log in any more is out at once.

    Example: executor nats reload
    """
    loaded, folder = state().config(required=True), Folder(path)
    changed = run_async(in_force(loaded, folder), "NATS")
    state().out.data({"schema": "executor.nats-reloaded/1", "accounts": changed},
                     f"in force: {', '.join(changed)}")  # fmt: skip


@click.command("revoke", cls=Verb)
@click.argument("login")
@_folder
@click.option("--yes", is_flag=True, help="Do not ask.")
def revoke(login: str, path: Path, yes: bool) -> None:  # noqa: FBT001
    """Keep the key of LOGIN out for good, from now on.

    Its connections end, and the mint gives it nothing. Its holder makes a new key.

    Example: executor nats revoke client_acme --yes
    """
    loaded, folder = state().config(required=True), Folder(path)
    found = folder.login(login)
    if found.role == "system":
        raise click.UsageError("Whoever revokes cannot revoke itself: replace users/system_main.*")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Off a terminal, confirm with --yes.")
        click.confirm(f"End {login}'s connections and refuse its key?", abort=True, err=True)
    folder.revoke(found)
    folder.write(loaded, with_jwt=False, now=_now())
    changed = run_async(in_force(loaded, folder), "NATS")
    state().out.data(
        {"schema": "executor.nats-revoked/1", "login": login, "nkey": found.nkey,
         "accounts": changed},
        f"{login} is out · a new key: remove {folder.users / login}.*, "
        "then executor nats config",
    )  # fmt: skip


async def in_force(loaded: Config, folder: Folder) -> list[str]:
    """Tell the server; returns what was changed. Errors  `transport.*`, `config.*`."""
    with tempfile.TemporaryDirectory(prefix="executor-") as empty:
        settings = _system(loaded, folder, Path(empty))
        connection = await Connection.open(settings, lambda _name, _facts: None)
        try:
            if not folder.jwt:
                await _ask(connection, f"SERVER.{connection.server_id}.RELOAD", b"")
                return ["server.conf"]
            changed = []
            for name, token in folder.signed(loaded.document, _now()).accounts.values():
                await _ask(connection, "CLAIMS.UPDATE", token.encode())
                changed.append(name)
            return changed
        finally:
            await connection.close()


def _system(loaded: Config, folder: Folder, empty: Path) -> Settings:
    """The login that may tell the server; its JWT of operator mode is made here."""
    role, _, name = _SYSTEM.partition("_")
    seed, base = folder.users / f"{_SYSTEM}{SEED}", folder.users / _SYSTEM
    own = base.with_suffix(".pem").is_file()
    settings = Settings(
        loaded.text("nats.url"), name="executor-nats", inbox_prefix=inbox(role, name),
        nkey_file=str(seed), ca_file=str(folder.path / "tls" / "ca.pem") if own else "",
        cert_file=f"{base}.pem" if own else "", key_file=f"{base}.key" if own else "",
    )  # fmt: skip
    if not folder.jwt:
        return settings
    minted = folder.issue(loaded.document, _SYSTEM, now=_now(), seconds=_SYSTEM_S)
    file = empty / "system.creds"
    _replace(file, folder.credentials(_SYSTEM, minted))
    return replace(settings, nkey_file="", creds_file=str(file))


async def _ask(connection: Connection, what: str, body: bytes) -> None:
    """Errors  `transport.stream-mismatch` with the server's words."""
    answer: dict[str, Any] = json.loads((await connection.request(f"$SYS.REQ.{what}", body)).data)
    error = answer.get("error")
    if error:
        raise ExecutorError(
            "transport.permission-denied", f"the server refuses: {error.get('description', error)}",
            hint="its log says more; nothing of it is in force",
        )  # fmt: skip


VERBS = (config, mint, reload, revoke)
