"""Verbs that break glass: one asks, two others approve, and for minutes one action is open to one.

The file that goes round has the request and the approvals, each signed; nothing in it is secret,
and an altered one opens nothing. What `open` says in CONTROL executors judge anew.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from executor.cli import output
from executor.cli.base import Family, read_file, run_async, state, write_file
from executor.cli.control import with_control
from executor.cli.sessions import operator_key
from executor.config import Config
from executor.core import approvals, control, glass, seal, strict, subjects
from executor.core.access import Party
from executor.core.glass import Opening
from executor.core.seal import NotAuthenticError, Opener, Said, Signer
from executor.errors import ExecutorError
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.speaking import Speaker, look_for_openings

_SCHEMA: Final = "executor.break-glass/1"
_FILE_MAX: Final = 64 * 1024
_MINUTE_MS: Final = 60_000
# Beyond its time the server keeps it no longer than clocks may differ.
_LATER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Paper:
    """The file that goes round."""

    id: str
    request: bytes
    approvals: tuple[bytes, ...] = ()

    def write(self, path: Path) -> None:
        """Whole. Errors  `config.invalid`."""
        text = [base64.b64encode(one).decode() for one in (self.request, *self.approvals)]
        value = {"schema": _SCHEMA, "id": self.id, "request": text[0], "approvals": text[1:]}
        write_file(path, (json.dumps(value, indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Paper:
        """The file, unproved. Errors  `config.missing`, `message.malformed`."""
        data = read_file(path, most=_FILE_MAX)
        try:
            found = strict.load(data, depth_max=2)
            schema, paper_id, texts = (
                (found["schema"], found["id"], [found["request"], *found["approvals"]])
                if isinstance(found, dict)
                else ("", "", [])
            )
            request, *given = (base64.b64decode(text, validate=True) for text in texts)
        except (ValueError, TypeError, KeyError):
            schema, paper_id, request, given = "", "", b"", []
        if schema != _SCHEMA or not subjects.is_token(str(paper_id)):
            raise ExecutorError("message.malformed", f"`{path}` is no request to break glass",
                                hint="make one: executor break-glass request")  # fmt: skip
        return cls(str(paper_id), request, tuple(given))

    def wanted(self, config: Config) -> Opening:
        """What it asks for. Errors  `message.*`, `policy.action-denied`."""
        return approvals.read(self.request, self.id, config.text("host.environment"))


def _where(wanted: Opening) -> str:
    return f"{wanted.tenant}/{wanted.task}"


def _name(opener: Opener, key_id: str) -> str:
    party = opener.operators.get(key_id)
    return party.name if party else key_id


def _facts(opener: Opener, wanted: Opening, approved: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": _SCHEMA, "id": wanted.id, "action": wanted.action, "task": _where(wanted),
        "who": _name(opener, wanted.who), "why": wanted.why, "approved": list(approved),
        "until": output.timestamp(wanted.exp),
    }  # fmt: skip


def _text(facts: dict[str, Any]) -> str:
    """On a terminal; what others wrote is escaped."""
    return "\n".join(
        f"{name:9} {output.safe_text((', '.join(v) if isinstance(v, list) else str(v)).encode())}"
        for name, v in facts.items()
        if name != "schema"
    )


def _approvers(opener: Opener, wanted: Opening, paper: Paper) -> tuple[Party, ...]:
    """Errors  `policy.approvals-missing` for one that does not hold, or a time that is over."""
    now = output.now_ms()
    if wanted.exp < now:
        raise ExecutorError("policy.approvals-missing", "its time is over",
                            hint="ask anew: executor break-glass request")  # fmt: skip
    try:
        return approvals.approvers(opener, wanted, paper.request, paper.approvals, at=now)
    except NotAuthenticError as error:
        raise ExecutorError("policy.approvals-missing", error.reason) from None


@click.group("break-glass", cls=Family)
def family() -> None:
    """Get one action for minutes, with the approval of two others."""


@family.command("request")
@click.option("--action", required=True, type=click.Choice(sorted(glass.BREAKABLE)),
              help="What to be let.")  # fmt: skip
@click.option("--task", required=True, metavar="TENANT/TASK",
              help="Which; TENANT/* is all of a tenant's; drain and quarantine: */*.")  # fmt: skip
@click.option("--minutes", required=True, help="From now on.",
              type=click.IntRange(1, glass.MOST_MS // _MINUTE_MS))  # fmt: skip
@click.option("--why", required=True, help="For who approves, and for the log.")
@click.option("-o", "--output", "path", required=True, type=click.Path(path_type=Path),
              metavar="FILE", help="Where to write it.")  # fmt: skip
def request(action: str, task: str, minutes: int, why: str, path: Path) -> None:
    """Ask for ACTION on a task, for yourself; write FILE.

    Two others whom policy gives `approve` sign it, then you open it. The minutes run from now.
    Never broken open: publish, release, change-policy, approve, submit, read.

    Example: executor break-glass request --action pause --task acme/resize
             --minutes 30 --why "it floods the store" -o glass.json
    """
    config = state().config(required=True)
    tenant, _, name = task.partition("/")
    wanted = Opening(
        secrets.token_hex(8), seal.speaks_for(operator_key(config)), action, tenant, name,
        why[:500], output.now_ms() + minutes * _MINUTE_MS,
    )  # fmt: skip
    data = approvals.request(config.text("host.environment"), wanted)
    Paper(wanted.id, data).write(path)
    state().out.data(_facts(config.opener(), wanted, []),
                     f"{path}: two others: executor break-glass approve {path}")  # fmt: skip


@family.command("approve")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
def approve(file: Path, *, yes: bool) -> None:
    """Show what FILE asks for, and sign that you approve it.

    Example: executor break-glass approve glass.json --yes
    """
    config, out = state().config(required=True), state().out
    paper, opener = Paper.read(file), config.opener()
    wanted = paper.wanted(config)
    names = [party.name for party in _approvers(opener, wanted, paper)]
    out.say(_text(_facts(opener, wanted, names)))
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("Off a terminal, confirm with --yes.")
    if not yes:
        click.confirm("approve this?", abort=True, err=True)
    key = operator_key(config)
    _may_approve(opener, key, wanted)
    signed = approvals.approve(
        key, opener.environment, wanted.id, paper.request, at=output.now_ms()
    )
    more = Paper(paper.id, paper.request, (*paper.approvals, signed))
    names = [party.name for party in _approvers(opener, wanted, more)]
    more.write(file)
    after = f"executor break-glass open {file}" if len(names) >= approvals.NEEDED else "one more"
    out.data(_facts(opener, wanted, names), f"approved by {', '.join(names)} · next: {after}")


def _may_approve(opener: Opener, key: Signer, wanted: Opening) -> None:
    """Errors  `policy.action-denied` for whom policy does not give it."""
    party = opener.operators.get(seal.speaks_for(key))
    if party is None:
        raise ExecutorError("policy.action-denied", "by nobody who is listed as an [[operator]]")
    try:
        opener.check(party, "approve", wanted.tenant, wanted.task, at=output.now_ms())
    except NotAuthenticError as error:
        raise ExecutorError("policy.action-denied", error.reason) from None


@family.command("open")
@click.argument("file", type=click.Path(path_type=Path))
def open_(file: Path) -> None:
    """Tell executors what FILE opens; it ends by itself.

    Whatever stands by it alone, such as a pause, ends with it. Each executor logs every opening,
    use and end as a security event.

    Example: executor break-glass open glass.json
    """
    config = state().config(required=True)
    paper, opener, key = Paper.read(file), config.opener(), operator_key(config)
    wanted = paper.wanted(config)
    names = [party.name for party in _approvers(opener, wanted, paper)]
    if len(names) < approvals.NEEDED:
        raise ExecutorError("policy.approvals-missing", f"{len(names)} of {approvals.NEEDED}")
    first, second = paper.approvals[: approvals.NEEDED]
    fields: dict[str, control.Value] = {"request": paper.request, "first": first, "second": second}
    place, now = subjects.glass_key(wanted.id), output.now_ms()
    try:
        approvals.opening(opener, place, Said(fields, seal.speaks_for(key), now), at=now)
    except NotAuthenticError as error:
        raise ExecutorError("policy.approvals-missing", error.reason) from None

    async def main(bucket: Control, _connection: Connection) -> None:
        ttl_s = (wanted.exp - now) // 1000 + _LATER_S
        await Speaker(bucket, opener, key).say("break-glass", place, fields, ttl_s=ttl_s)

    run_async(with_control(config, main), "NATS")
    state().out.data(
        _facts(opener, wanted, names[: approvals.NEEDED]),
        f"{wanted.action} of {_where(wanted)} is open to {_name(opener, wanted.who)} until "
        f"{output.timestamp(wanted.exp)} · executor break-glass close {wanted.id}",
    )


@family.command("list")
def list_() -> None:
    """List what is broken open now.

    Example: executor break-glass list
    """
    config, out = state().config(required=True), state().out
    opener = config.opener()

    async def main(bucket: Control, _connection: Connection) -> dict[str, str]:
        return await look_for_openings(bucket, opener)

    refused: dict[str, str] = run_async(with_control(config, main), "NATS")
    for opening_id, why in refused.items():
        out.warn(f"break-glass.{opening_id} in CONTROL counts for nobody: {why}")
    found = [_facts(opener, one, one.by) for one in opener.glass.openings.values()]
    rows = [(f["id"], f["action"], f["task"], f["who"], ",".join(f["approved"]), f["until"])
            for f in found]  # fmt: skip
    text = output.table(("ID", "ACTION", "TASK", "WHO", "APPROVED", "UNTIL"), rows)
    out.data({"schema": "executor.openings/1", "openings": found},
             text if rows else "nothing is broken open")  # fmt: skip


@family.command("close")
@click.argument("opening_id", metavar="ID")
def close(opening_id: str) -> None:
    """Close what was broken open, before its time. Any operator may.

    Example: executor break-glass close 3f9c01ab77d2e801
    """
    if not subjects.is_token(opening_id):
        raise click.BadParameter(f"`{opening_id}` is no id: executor break-glass list")
    config = state().config(required=True)
    opener, key = config.opener(), operator_key(config)

    async def main(bucket: Control, _connection: Connection) -> bool:
        return await Speaker(bucket, opener, key).take_back(subjects.glass_key(opening_id))

    known = run_async(with_control(config, main), "NATS")
    state().out.data(
        {"schema": "executor.closed/1", "id": opening_id, "closed": known},
        f"{opening_id} is closed" if known else f"{opening_id} was not open",
    )


VERBS = (family,)
