"""The family `dead`: list, show, retry, discard."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import sys
import time
from dataclasses import replace
from typing import Any

import click

from executor.cli import output
from executor.cli.base import Family, pick_tenant, run_async, state
from executor.cli.modules import read_key
from executor.cli.operate import outcome_fields
from executor.client import Client, TaskOutcome
from executor.config import Config
from executor.core import envelope, seal, subjects
from executor.core.envelope import Draft, Sealed
from executor.errors import TABLE, ExecutorError
from executor.model import Answer, Outgoing, Stored, TaskId, TaskRequest
from executor.transport.outbox import Outbox

_LIST_MAX = 1_000


@click.group("dead", cls=Family)
def dead() -> None:
    """Look at dead letters, ask for them again, close them."""


@dead.command("list")
@click.option("--tenant", help="Whose tasks.")
@click.option("--task", default="*", help="Only this task.")
@click.option("--code", help="Only this code, or a stage such as `limit`.")
def list_(tenant: str | None, task: str, code: str | None) -> None:
    """List dead letters that nobody discarded, oldest first.

    Example: executor dead list --code limit
    """
    config = state().config()
    stages = {row.stage for row in TABLE.values()}
    if code is not None and code not in TABLE and code not in stages:
        near = difflib.get_close_matches(code, [*TABLE, *stages], n=1)
        also = f" Did you mean `{near[0]}`?" if near else " `executor explain` lists all."
        raise click.UsageError(f"There is no code `{code}`.{also}")
    if task != "*" and not subjects.is_token(task):
        raise click.UsageError(f"`{task}` is no task's name.")
    of_tenant = pick_tenant(config, tenant)
    found = run_async(_list(config, of_tenant, task, code), "NATS")
    out = state().out
    if out.as_json:
        for letter in found:
            out.data(outcome_fields(letter), "")
        return
    if not found:
        only = code is not None or task != "*"
        out.say("no dead letters match" if only
                else "no dead letters · every task that ended has a result")  # fmt: skip
        return
    now = time.time_ns() // 1_000_000
    rows = [
        (output.short(d.id), f"{d.tenant}/{d.task}", d.code,
         f"{d.record.attempt} of {d.record.attempts_max}", output.age(d.stored_at, now))
        for d in found
    ]  # fmt: skip
    out.data({}, output.table(("ID", "TASK", "CODE", "ATTEMPTS", "AGE"), rows))
    last = found[-1].id
    out.say(f"{output.count(len(found), 'dead letter')} · look: executor dead show {last} · "
            f"again: executor dead retry {last}")  # fmt: skip


async def _list(config: Config, tenant: str, task: str, code: str | None) -> list[TaskOutcome]:
    found: list[TaskOutcome] = []
    async with await Client.from_config(config, tenant) as client:
        async for letter in client.dead_letters(task):
            if code is None or letter.code == code or letter.code.startswith(f"{code}."):
                found.append(letter)
            if len(found) >= _LIST_MAX:
                state().out.warn(f"only the first {_LIST_MAX} are shown")
                break
    return found


async def _letter(client: Client, task_id: str) -> TaskOutcome:
    found = await client.outcome(task_id)
    if found is None or found.ok:
        if found is None:
            raise ExecutorError("transport.outcome-pending", f"`{task_id}`",
                                hint="executor dead list shows the dead letters")  # fmt: skip
        raise click.UsageError(f"`{task_id}` is no dead letter: it has a result")
    return found


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
            return await _letter(client, task_id)

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
        rows.append(("module", f"{used.digest} {record.version}"))
        rows.append(("used", f"{output.used(used)} · {used.host_calls} host calls"))
    rows += [(name, str(value)) for name, value in record.facts]
    rows += [("before", f"{p.code} at {output.timestamp(p.at)}") for p in record.history[:-1]]
    if record.origin is not None:
        whole = "whole" if record.origin.whole else "only its beginning"
        rows.append(("original", f"{record.origin.size} bytes on {record.origin.subject}, kept "
                     f"{whole}"))  # fmt: skip
    if record.discarded_at:
        rows.append(("discarded", output.timestamp(record.discarded_at)))
    lines = output.pairs([*rows, ("hint", record.hint)])
    return "\n".join(lines + [output.log_line(*line) for line in record.logs])


def retried_id(letter: TaskOutcome) -> TaskId:
    """H(old id, record sequence): asking twice for the same record is asking once."""
    data = f"{letter.id}\0{letter.sequence}".encode()
    return TaskId("r" + hashlib.sha256(data).hexdigest()[:40])


@dead.command("retry")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--tenant", help="Whose tasks they are.")
def retry(task_ids: tuple[str, ...], tenant: str | None) -> None:
    """Ask for dead letters again, by a new id; twice is harmless.

    Example: executor dead retry 3f9c…
    """
    config = state().config()
    for sent in run_async(_retry(config, pick_tenant(config, tenant), task_ids), "NATS"):
        again = " (the queue had it already)" if sent["duplicate"] else ""
        state().out.data(sent, f"{sent['id']} asks again for {sent['of']}{again}")


async def _retry(config: Config, tenant: str, ids: tuple[str, ...]) -> list[dict[str, Any]]:
    sent = []
    environment = config.text("host.environment")
    async with await Client.from_config(config, tenant) as client:
        letters = [await _letter(client, task_id) for task_id in dict.fromkeys(ids)]
        for letter in letters:
            request = _request_of(letter, environment)
            new = await client.submit(
                letter.task, request.input, id=retried_id(letter),
                content_type=request.content_type, attempts_max=request.attempts_max,
                **dict(request.limits),
            )  # fmt: skip
            sent.append({"schema": "executor.submitted/1", "id": new.id, "of": letter.id,
                         "tenant": tenant, "task": letter.task, "sequence": new.sequence,
                         "duplicate": new.duplicate})  # fmt: skip
    return sent


def _request_of(letter: TaskOutcome, environment: str) -> TaskRequest:
    origin = letter.record.origin
    if origin is None or not origin.whole:
        raise ExecutorError("message.too-large", f"the bytes of `{letter.id}` were not kept whole",
                            hint="submit it again from where it came from")  # fmt: skip
    request = envelope.decode_task(
        origin.data, dict(origin.headers), letter.tenant, letter.task, environment=environment,
        raw_allowed=True, input_max=envelope.MESSAGE_MAX,
    )  # fmt: skip
    if isinstance(request, Sealed):
        raise ExecutorError("message.malformed", "it was no task")
    return request


@dead.command("discard")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--tenant", help="Whose tasks they are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(task_ids: tuple[str, ...], tenant: str | None, yes: bool) -> None:  # noqa: FBT001
    """Close dead letters: marked as discarded, none is deleted.

    Example: executor dead discard 3f9c… --yes
    """
    config = state().config()
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Off a terminal, confirm with --yes.")
        what = task_ids[0] if len(task_ids) == 1 else f"{len(task_ids)} dead letters"
        click.confirm(f"Discard {what}?", abort=True, err=True)
    of_tenant = pick_tenant(config, tenant)
    for task_id in run_async(_discard(config, of_tenant, task_ids), "NATS"):
        state().out.data({"schema": "executor.discarded/1", "id": task_id}, f"discarded {task_id}")


async def _discard(config: Config, tenant: str, ids: tuple[str, ...]) -> list[str]:
    path = config.path("host.key_file")
    if path is None:
        raise ExecutorError("config.missing", "`host.key_file` is not set: records are signed")
    key, environment = read_key(path), config.text("host.environment")
    now = time.time_ns() // 1_000_000
    async with await Client.from_config(config, tenant) as client:
        outbox = Outbox(client.connection)
        await outbox.start()
        try:
            letters = [await _letter(client, task_id) for task_id in dict.fromkeys(ids)]
            for letter in letters:
                subject = subjects.dead(letter.tenant, letter.task, letter.id)
                payload = envelope.encode_record(replace(letter.record, discarded_at=now))
                draft = Draft("dead", subjects.audience(environment, subject), letter.id, payload)
                (body,) = seal.seal(key, [draft], at=now)
                await _supersede(outbox, Outgoing(
                    subject, body, once=subjects.either(letter.tenant, letter.task, letter.id),
                    expected_sequence=letter.sequence,
                ))  # fmt: skip
        finally:
            await outbox.stop()
    return [letter.id for letter in letters]


async def _supersede(outbox: Outbox, outgoing: Outgoing) -> None:
    answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    outbox.publish(outgoing, answered.set_result, 10.0)
    answer = await answered
    if not isinstance(answer, Stored):
        raise ExecutorError("transport.publish-unconfirmed", type(answer).__name__.lower())


VERBS = (dead,)
