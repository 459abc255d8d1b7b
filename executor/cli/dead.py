"""The family `dead`: list, show, retry, discard, export."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from executor.cli import letters, output
from executor.cli.base import Family, pick_tenant, run_async, state, unwritable
from executor.cli.commanding import Commander
from executor.cli.letters import Chosen, Filters, Line
from executor.cli.operate import outcome_fields
from executor.cli.serving import settings
from executor.cli.sessions import operator_key
from executor.client import Client, TaskOutcome
from executor.config import Config
from executor.core import again, control
from executor.core.seal import Signer
from executor.transport.connection import Connection

# Of the twelve limits, those that people set.
_SHOWN_LIMITS: Final = ("fuel", "memory_bytes", "deadline_ms")


@click.group("dead", cls=Family)
def dead() -> None:
    """Look at dead letters, ask for them again, close them."""


def _batch(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of a verb that acts on letters by id, or on all that match."""
    verb = click.option("--yes", is_flag=True, help="Do not ask.")(letters.with_filters(verb))
    verb = click.option("--all", "every", is_flag=True, help="All that match the filters.")(verb)
    return click.argument("task_ids", metavar="[ID...]", nargs=-1)(verb)


@dead.command("list")
@letters.with_filters
def list_(tenant: str | None, filters: Filters) -> None:
    """List dead letters that nobody discarded, oldest first.

    Example: executor dead list --code limit --since 1d
    """
    config = state().config()
    of_tenant = pick_tenant(config, tenant)
    found = run_async(_list(config, of_tenant, filters), "NATS")
    out = state().out
    if out.as_json:
        return
    if not found:
        out.say("no dead letters match" if filters.given
                else "no open dead letters · discarded ones: executor dead show ID")  # fmt: skip
        return
    header = ("ID", "TASK", "CODE", "ATTEMPTS", "AGE", "SIGNER")
    out.data({}, output.table(header, found))
    last = found[-1][0]
    out.say(f"{output.count(len(found), 'dead letter')} · look: executor dead show {last} · "
            f"again: executor dead retry {last}")  # fmt: skip


async def _list(config: Config, tenant: str, filters: Filters) -> list[tuple[str, ...]]:
    """Print them one by one with --json; else their rows: no letter is kept meanwhile."""
    rows: list[tuple[str, ...]] = []
    out, now = state().out, output.now_ms()
    async with await Client.from_config(config, tenant) as client:
        async for d in letters.matching(client, filters):
            if out.as_json:
                out.data(outcome_fields(d), "")
                continue
            rows.append((
                output.short(d.id), f"{d.tenant}/{d.task}", d.code,
                f"{d.record.attempt} of {d.record.attempts_max}", output.age(d.stored_at, now),
                ", ".join(d.record.signers) or "-",
            ))  # fmt: skip
    return rows


@dead.command("show")
@click.argument("task_id", metavar="ID")
@click.option("--tenant", help="Whose task it is.")
def show(task_id: str, tenant: str | None) -> None:
    """Show one dead letter: why, what it used, where it trapped.

    Example: executor dead show 3f9c…
    """
    config = state().config()

    async def main() -> TaskOutcome:
        async with await Client.from_config(config, pick_tenant(config, tenant)) as client:
            return await letters.letter_of(client, task_id)

    letter = run_async(main(), "NATS")
    state().out.data(outcome_fields(letter), _page(letter))


def _page(letter: TaskOutcome) -> str:
    record, used = letter.record, letter.record.receipt
    rows: list[tuple[str, str]] = [
        ("task", f"{letter.tenant}/{letter.task} {letter.id}"),
        ("code", f"{record.code} · {output.failure_text(record.code, record.message)}"),
        ("attempts", f"{record.attempt} of {record.attempts_max}"),
        ("submitted", output.timestamp(record.submitted_at)),
        ("ended", output.timestamp(record.finished_at)),
    ]
    if used.digest:
        by = f" signed by {', '.join(record.signers)}" if record.signers else ""
        rows.append(("module", f"{used.digest} {record.version}{by}"))
        rows.append(("used", f"{output.used(used)} · {used.host_calls} host calls"))
    limits = dict(record.limits)
    if limits:
        shown = [
            f"{name} {output.number(limits[name])}" for name in _SHOWN_LIMITS if name in limits
        ]
        rows.append(("limits", " · ".join(shown)))
    if record.last_calls:
        calls = [f"{name} ({text})" if (text := output.call_text(status)) else name
                 for name, status in record.last_calls]  # fmt: skip
        rows.append(("last calls", ", ".join(calls)))
    rows += [(name, str(value)) for name, value in record.facts]
    rows += [("before", f"{p.code} at {output.timestamp(p.at)}") for p in record.history[:-1]]
    if record.trace:
        rows.append(("trace", record.trace))
    if record.origin is not None:
        whole = "whole" if record.origin.whole else "only its beginning"
        rows.append(("original", f"{record.origin.size} bytes on {record.origin.subject}, kept "
                     f"{whole}"))  # fmt: skip
    if record.discarded_at:
        rows.append(("discarded", f"{output.timestamp(record.discarded_at)}, it is closed"))
    lines = output.pairs([*rows, ("hint", record.hint)])
    return "\n".join(lines + [output.log_line(*line) for line in record.logs])


@dead.command("retry")
@_batch
def retry(
    task_ids: tuple[str, ...], tenant: str | None, filters: Filters, *, every: bool, yes: bool
) -> None:
    """Ask for dead letters again, each by a new id; twice is harmless.

    --all says what it would do and asks; a discarded letter is closed.

    Example: executor dead retry 3f9c…
    """
    letters.ids_or_all(task_ids, filters, every=every)
    config = state().config()
    of_tenant = pick_tenant(config, tenant)
    key, environment = operator_key(config), config.text("host.environment")

    def check(letter: TaskOutcome) -> object:
        return again.request_of(letter.record, letter.tenant, letter.id, environment)

    async def choose() -> list[Chosen]:
        async with await Client.from_config(config, of_tenant) as client:
            return await letters.choose(client, task_ids, filters, check)

    chosen = run_async(choose(), "NATS")
    if not chosen:
        state().out.say("no dead letters match: nothing to ask for again")
        return
    if every:
        letters.confirm(chosen, "ask for again", yes=yes)
    letters.run_batch(_command(config, key, "retry", of_tenant, chosen), len(chosen))


async def _command(
    config: Config, key: Signer, verb: str, tenant: str, chosen: list[Chosen]
) -> None:
    """Have the tenant's executors do it: they have the records, and the key that signs them."""
    connection = await Connection.open(
        settings(config, "executor-dead", "operator_"), lambda _n, _f: None
    )
    try:
        async with Commander(connection, config.opener(), key) as commander:

            async def act(one: Chosen) -> Line:
                done = await commander.ask(
                    verb, tenant, one.id, task=one.task, sequence=one.sequence
                )
                return _asked_again(one, tenant, done) if verb == "retry" else _closed(one)

            what = "asking again" if verb == "retry" else "discarding"
            await letters.each(chosen, act, what=what)
    finally:
        await connection.close()


def _closed(one: Chosen) -> Line:
    return {"schema": "executor.discarded/1", "id": one.id}, f"discarded {one.id}"


def _asked_again(one: Chosen, tenant: str, done: dict[str, control.Value]) -> Line:
    new, duplicate = str(done["id"]), bool(done["duplicate"])
    fields = {
        "schema": "executor.submitted/1", "id": new, "of": one.id, "tenant": tenant,
        "task": done["task"], "sequence": done["sequence"], "duplicate": duplicate,
    }  # fmt: skip
    had = " (the queue had it already)" if duplicate else ""
    return fields, f"{new} asks again for {one.id}{had}"


@dead.command("discard")
@_batch
def discard(
    task_ids: tuple[str, ...], tenant: str | None, filters: Filters, *, every: bool, yes: bool
) -> None:
    """Close dead letters: marked as discarded, none is deleted.

    A closed letter is in no list and cannot be asked for again.

    Example: executor dead discard 3f9c… --yes
    """
    letters.ids_or_all(task_ids, filters, every=every)
    if task_ids and not yes and not sys.stdin.isatty():
        raise click.UsageError("Off a terminal, confirm with --yes.")
    config = state().config()
    of_tenant = pick_tenant(config, tenant)
    key = operator_key(config)

    async def choose() -> list[Chosen]:
        async with await Client.from_config(config, of_tenant) as client:
            return await letters.choose(client, task_ids, filters, lambda _letter: None)

    chosen = run_async(choose(), "NATS")
    if not chosen:
        state().out.say("no dead letters match: nothing to discard")
        return
    letters.confirm(chosen, "discard", yes=yes)
    letters.run_batch(_command(config, key, "discard", of_tenant, chosen), len(chosen))


@dead.command("export")
@letters.with_filters
@click.argument("task_ids", metavar="[ID...]", nargs=-1)
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), metavar="FILE",
              help="A new file, in place of stdout.")  # fmt: skip
def export(
    task_ids: tuple[str, ...], tenant: str | None, filters: Filters, path: Path | None
) -> None:
    """Write dead letters as JSON lines, with the bytes they came from.

    Those in base64. By id, a discarded one too; else all that match the filters.

    Example: executor dead export --code guest -o letters.jsonl
    """
    if task_ids:
        letters.ids_or_all(task_ids, filters, every=False)
    config = state().config()
    of_tenant = pick_tenant(config, tenant)
    count = run_async(_export(config, of_tenant, task_ids, filters, path), "NATS")
    where = f" in {path}" if path else ""
    if count or not filters.given:
        state().out.say(f"{output.count(count, 'dead letter')}{where}")
    else:
        state().out.say(f"no dead letters match{where}")


async def _export(
    config: Config, tenant: str, ids: tuple[str, ...], filters: Filters, path: Path | None
) -> int:
    count = 0
    async with await Client.from_config(config, tenant) as client:
        # Before the file is made: an id that is none leaves no file.
        named = [await letters.letter_of(client, task_id) for task_id in dict.fromkeys(ids)]
        write, close = _sink(path)
        whole = False
        try:
            for letter in named:
                write(_exported(letter))
            count = len(named)
            if not ids:
                async for letter in letters.matching(client, filters):
                    write(_exported(letter))
                    count += 1
            whole = True
        finally:
            close(whole)
    return count


def _exported(letter: TaskOutcome) -> str:
    fields = outcome_fields(letter) | {"schema": "executor.dead/1"}
    origin = letter.record.origin
    if origin is not None:
        fields["original"]["base64"] = base64.b64encode(origin.data).decode("ascii")
    # ASCII alone: a terminal shows it, and every reader of JSON takes it.
    return json.dumps(fields, default=str)


def _sink(path: Path | None) -> tuple[Callable[[str], None], Callable[[bool], None]]:
    """Where lines go, and how it ends: a file that could not be written whole is removed."""
    if path is None:
        return click.echo, lambda _whole: None
    try:
        # Not for others: what was asked may be anybody's data. Never over an existing file.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise unwritable(path, error) from None
    file = os.fdopen(fd, "w", encoding="ascii")

    def write(line: str) -> None:
        try:
            file.write(f"{line}\n")
        except OSError as error:
            raise unwritable(path, error) from None

    def close(whole: bool) -> None:  # noqa: FBT001 - the only thing it takes
        try:
            file.close()
        except OSError as error:
            path.unlink()
            raise unwritable(path, error) from None
        if not whole:
            path.unlink()

    return write, close


VERBS = (dead,)
