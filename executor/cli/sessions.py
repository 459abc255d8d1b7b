"""Verbs of an operator's session, and the key that signs what a verb says: the session's, if any.

A folder keeps `session.key`, mode 0600, and `session.json`: certificate, idle time, last use. The
end that the certificate names executors keep, too; the idle time is kept here alone: a verb that
comes too late destroys the key. What is left says so to every verb until `start` or `end`: falling
back to the long-lived key unasked would make a session's end mean nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from executor.cli import output
from executor.cli.base import Family, read_file, state, unwritable
from executor.cli.modules import read_key, write_secret
from executor.config import Config
from executor.core import seal, session
from executor.core.seal import Signer
from executor.core.session import Session
from executor.core.signature import SecretKey
from executor.errors import ExecutorError

_HOUR_MS: Final = 3_600_000
_MINUTE_MS: Final = 60_000
_SCHEMA: Final = "executor.session-file/1"
_FILE_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a session; times in ms. `ended` is why it is over."""

    certificate: bytes
    idle_ms: int
    used_at: int
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """One session's folder. `now` in ms is passed in."""

    path: Path
    environment: str

    @property
    def _key(self) -> Path:
        return self.path / "session.key"

    @property
    def _file(self) -> Path:
        return self.path / "session.json"

    def kept(self) -> Kept | None:
        """What is there. Errors  `config.invalid` for what nobody wrote so."""
        if not self._file.exists():
            return None
        try:
            found = json.loads(read_file(self._file, most=_FILE_MAX))
            return Kept(bytes.fromhex(found["certificate"]), int(found["idle_ms"]),
                        int(found["used_at"]), str(found["ended"]))  # fmt: skip
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ExecutorError("config.invalid", f"`{self._file}` is damaged",
                                hint="executor session end") from None  # fmt: skip

    def _keep(self, kept: Kept) -> None:
        value = {"schema": _SCHEMA, "certificate": kept.certificate.hex(), "idle_ms": kept.idle_ms,
                 "used_at": kept.used_at, "ended": kept.ended}  # fmt: skip
        beside = self.path / f"session.json.{os.getpid()}"
        try:
            beside.write_text(json.dumps(value) + "\n", encoding="ascii")
            beside.replace(self._file)
        except OSError as error:
            raise unwritable(self._file, error) from None

    def start(self, key: SecretKey, *, now: int, hours: int, idle_ms: int) -> session.Certificate:
        """Begin one, in the place of another. Errors  `config.invalid`."""
        fresh = SecretKey.generate()
        exp = now + hours * _HOUR_MS
        certificate = seal.certify(key, self.environment, fresh.public, at=now, exp=exp)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from None
        self.end()
        write_secret(self._key, fresh.pem())
        self._keep(Kept(certificate, idle_ms, now))
        return session.read(certificate, self.environment)

    def use(self, *, now: int) -> Session | None:
        """The session that signs now, None where there is none. Errors  `policy.session-expired`.

        One that is over is destroyed.
        """
        kept = self.kept()
        if kept is None:
            return None
        why = self.over(kept, now)
        if why:
            self._key.unlink(missing_ok=True)
            self._keep(replace(kept, ended=why))
            raise ExecutorError("policy.session-expired", why, hint="begin another: executor "
                                "session start; or none: executor session end")  # fmt: skip
        self._keep(replace(kept, used_at=now))
        holder = session.read(kept.certificate, self.environment).sealed.by
        return Session(read_key(self._key), holder, kept.certificate)

    def over(self, kept: Kept, now: int) -> str:
        """Why a session is over; "" while it is open."""
        if kept.ended:
            return kept.ended
        try:
            found = session.read(kept.certificate, self.environment)
        except ExecutorError:
            return "it was begun for another environment"
        if not self._key.exists():
            return "its key is gone"
        if now > found.exp:
            return f"it ended at {output.timestamp(found.exp)}"
        # Either way: a clock that was set back must not make it last.
        if abs(now - kept.used_at) > kept.idle_ms:
            return f"it was idle for more than {kept.idle_ms // _MINUTE_MS} minutes"
        return ""

    def end(self) -> bool:
        """Destroy whatever is there; whether there was something."""
        there = self._file.exists() or self._key.exists()
        for path in (self._key, self._file):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return there


def folder_of(config: Config) -> Folder:
    """Where the session of this configuration is."""
    path = config.path("keys.session_folder") or config.folder / "session"
    return Folder(path, config.text("host.environment"))


def operator_key(config: Config) -> Signer:
    """What signs for whoever calls: a session, else the operator's own key.

    Errors  `config.missing`, `config.invalid`, `policy.session-expired`.
    """
    now = output.now_ms()
    open_now = folder_of(config).use(now=now)
    if open_now is not None:
        return open_now
    key = _own_key(config, None)
    for party in config.document.operators:
        if party.key == key.public and party.needs_session(now):
            raise ExecutorError("policy.session-expired", f"policy asks `{party.name}` for one")
    return key


def _own_key(config: Config, path: Path | None) -> SecretKey:
    """The operator's long-lived key; its passphrase is asked for if it has one."""
    path = path or config.path("keys.operator_file")
    if path is None:
        raise ExecutorError(
            "config.missing", "`keys.operator_file` is not set: what executors are told is signed",
            hint='executor keygen keys/operator; then operator_file = "keys/operator.key" under '
            "[keys], its [[operator]] and a [[binding]] of its roles",
        )  # fmt: skip
    return read_key(path, ask=True)


@click.group("session", cls=Family)
def family() -> None:
    """Sign for hours by a fresh key, not the operator's own."""


@family.command("start")
@click.option("--hours", type=click.IntRange(1, session.MOST_MS // _HOUR_MS), default=8,
              show_default=True, help="Until executors believe it no more.")  # fmt: skip
@click.option("--idle-minutes", type=click.IntRange(1, 24 * 60), default=30, show_default=True,
              help="Unused for so long, its key is destroyed by the next verb.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path), metavar="FILE",
              help="The operator's key; default: keys.operator_file.")  # fmt: skip
def start(hours: int, idle_minutes: int, key: Path | None) -> None:
    """Make a session, with one use of the operator's key.

    Its key is in `keys.session_folder`. Executors refuse what it signs after its hours, or once its
    id is revoked; that an idle one ends is kept here alone, not by executors.

    Example: executor session start --hours 4
    """
    config = state().config(bootstrap=True)
    made = folder_of(config).start(
        _own_key(config, key), now=output.now_ms(), hours=hours, idle_ms=idle_minutes * _MINUTE_MS
    )
    state().out.data(
        _facts(made, open_=True, why="", idle_minutes=idle_minutes),
        f"session {made.id} signs for {made.sealed.by} until {output.timestamp(made.exp)}, "
        f"or {idle_minutes} minutes unused",
    )


def _facts(
    found: session.Certificate | None, *, open_: bool, why: str, idle_minutes: int
) -> dict[str, Any]:
    return {
        "schema": "executor.session/1", "open": open_, "why": why, "idle_minutes": idle_minutes,
        "id": found.id if found else None, "holder": found.sealed.by if found else None,
        "until": output.timestamp(found.exp) if found else None,
    }  # fmt: skip


@family.command("status")
def status() -> None:
    """Show the session that signs here, and until when. Exits with 11 if none is open.

    Example: executor session status
    """
    config = state().config(bootstrap=True)
    folder, now = folder_of(config), output.now_ms()
    kept = folder.kept()
    if kept is None:
        raise ExecutorError("policy.session-expired")
    if why := folder.over(kept, now):
        raise ExecutorError("policy.session-expired", why)
    found = session.read(kept.certificate, folder.environment)
    idle = (kept.used_at + kept.idle_ms - now) // _MINUTE_MS
    state().out.data(
        _facts(found, open_=True, why="", idle_minutes=kept.idle_ms // _MINUTE_MS),
        f"session {found.id} signs for {found.sealed.by} until {output.timestamp(found.exp)}, "
        f"or {idle} minutes unused",
    )


@family.command("end")
def end() -> None:
    """Destroy the session's key; the operator's own signs again.

    A key that was copied ends with its hours, or at once where `revoked` has its id.

    Example: executor session end
    """
    config = state().config(bootstrap=True)
    there = folder_of(config).end()
    state().out.data(
        _facts(None, open_=False, why="ended" if there else "none", idle_minutes=0),
        "the session is over" if there else "there was no session",
    )


VERBS = (family,)
