"""The family `schedule`: add, list, remove what runs again and again."""

from __future__ import annotations

import hashlib
import time
import zoneinfo
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, tzinfo
from typing import Any, TypeVar

import click

from executor.cli import output
from executor.cli.base import (
    Family,
    pick_tenant,
    read_input,
    run_async,
    split_task,
    state,
    with_input,
)
from executor.cli.control import is_known
from executor.cli.operate import duration_ms
from executor.cli.serving import settings
from executor.cli.sessions import operator_key
from executor.config import Config
from executor.core import control, schedule, subjects
from executor.core.schedule import Schedule
from executor.core.seal import NotAuthenticError, Opener, Signer
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.records import read_recurring
from executor.transport.speaking import Speaker

T = TypeVar("T")
_Name = tuple[str, str, str]  # tenant, task, id
# A schedule, and what of it stands in LATER.
_Found = tuple[_Name, Schedule, StoredMessage | None]


@click.group("schedule", cls=Family)
def family() -> None:
    """Run tasks again and again, by cron rule or interval."""


def _on_nats(config: Config, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        connection = await Connection.open(
            settings(config, "executor-schedule", "operator_"), lambda _name, _facts: None
        )
        try:
            return await work(connection)
        finally:
            await connection.close()

    return run_async(main(), "NATS")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _zone(name: str) -> tzinfo | None:
    """The time zone of that name; None where this host knows none at all."""
    if not name:
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _rule(cron: str | None, every: int | None, zone: str) -> str:
    """The rule that was asked for. Raises `click.UsageError` for what the server would refuse."""
    if (cron is None) == (every is None):
        raise click.UsageError('Use --cron "0 */5 * * * *" or --every 90s.')
    if zone and _zone(zone) is None and zoneinfo.available_timezones():
        raise click.BadParameter(
            f"`{zone}` is no time zone: write one such as Europe/Berlin.",
            param_hint="'--time-zone'",
        )
    try:
        if cron is not None:
            schedule.cron(cron)
            return cron
        if zone:
            raise click.UsageError("An interval has no --time-zone; use it with --cron.")
        return schedule.every(every or 0)
    except ValueError as error:
        option, example = ("--every", "90s") if cron is None else ("--cron", '"0 */5 * * * *"')
        raise click.BadParameter(
            f"{error}. Example: {option} {example}.", param_hint=f"'{option}'"
        ) from None


@family.command("add")
@click.argument("task")
@with_input
@click.option("--cron", metavar="RULE", help="Second minute hour day month weekday, or @daily.")
@click.option("--every", type=duration_ms, metavar="TIME", help="An interval: 90s, 5m, 1h.")
@click.option("--time-zone", "zone", default="", metavar="NAME", help="Of --cron, else UTC.")
@click.option("--expires", type=duration_ms, metavar="TIME", help="A firing must start within.")
@click.option("--id", "schedule_id", help="Its name: the same name is the same schedule.")
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
def add(task: str, text: str | None, kind: str, cron: str | None, every: int | None, zone: str,
        expires: int | None, schedule_id: str | None, tenant: str | None) -> None:  # fmt: skip
    """Run TASK by cron rule or interval.

    A rule has six fields. Each firing is a task with an outcome of its own. Added again under its
    id it is replaced.

    Example: executor schedule add report --cron "0 30 9 * * MON-FRI"
    """
    rule = _rule(cron, every, zone)
    config = state().config(required=True)
    of_tenant, name = split_task(task, config, tenant)
    if config.policy.tenant(of_tenant) is None:
        raise ExecutorError("policy.task-unknown", f"no tenant `{of_tenant}`",
                            hint="executor tenant list")  # fmt: skip
    data, content_type = read_input(text, kind)
    if len(data) > control.BYTES_MAX:
        raise ExecutorError(
            "message.too-large", f"{len(data)} bytes of input, at most {control.BYTES_MAX}",
            hint="let the task read what is large: a schedule is kept in every executor's memory",
        )  # fmt: skip
    wanted = Schedule(rule, zone, data, content_type, expires or 0, _now_ms())
    own = _default_id(wanted) if schedule_id is None else schedule_id
    if not subjects.is_id(own):
        raise click.UsageError("An id is of [A-Za-z0-9_-]{1,64} and does not begin with `_`.")
    where = (of_tenant, name, own)
    key = operator_key(config)
    action, known = _on_nats(config, lambda nats: _add(nats, config, key, where, wanted))
    out = state().out
    out.data(_fields((where, wanted, None)) | {"action": action}, own)
    out.say(f"{action} · look: executor schedule list · end: executor schedule remove {own}")
    if not known:
        out.warn(f"no module is released for {of_tenant}/{name}: its firings will fail until one "
                 "is: executor publish FILE")  # fmt: skip


def _default_id(wanted: Schedule) -> str:
    """Of its content: the same call twice is one schedule."""
    said = repr(replace(wanted, at=0)).encode()
    return "s" + hashlib.sha256(said).hexdigest()[:11]


async def _add(
    connection: Connection, config: Config, signer: Signer, name: _Name, wanted: Schedule
) -> tuple[str, bool]:
    """What became of it, and whether its task is known."""
    bucket, opener = Control(connection), config.opener()
    known = await is_known(config, bucket, *name[:2])
    key = subjects.schedule_key(*name)
    before = await bucket.get(key)
    there = _read(opener, key, before) if before else None
    if there is not None and replace(there, at=wanted.at) == wanted:
        return "unchanged", known  # and untouched, so that an interval keeps its phase
    await Speaker(bucket, opener, signer).say("schedule", key, wanted.fields())
    return "added" if there is None else "replaced", known


def _read(opener: Opener, key: str, stored: StoredMessage) -> Schedule | None:
    """The schedule that stands there and that executors believe."""
    try:
        said = opener.said(key, stored.body, stored_at=stored.stored_at_ms)
        return schedule.from_fields(said.fields) if said.fields else None
    except (NotAuthenticError, ExecutorError):
        return None


async def _all(connection: Connection, config: Config, tenant: str | None) -> list[_Found]:
    """The schedules of one tenant, or of all that are configured."""
    tenants = [t.name for t in config.policy.tenants] if tenant is None else [tenant]
    bucket, opener = Control(connection), config.opener()
    found: list[_Found] = []
    for name in tenants:
        for key, stored in sorted((await bucket.entries(f"schedule.{name}")).items()):
            parts, said = key.split("."), _read(opener, key, stored)
            if said is not None and len(parts) == 4:  # noqa: PLR2004
                where = (parts[1], parts[2], parts[3])
                found.append((where, said, await read_recurring(connection, *where)))
    return found


def _next(found: _Found) -> int:
    """When it fires next (ms), 0 if that cannot be told here."""
    _, said, there = found
    zone = _zone(said.zone)
    if there is None or zone is None:
        return 0
    return schedule.next_firing(said.when, there.stored_at_ms, _now_ms(), zone)


def _fields(found: _Found) -> dict[str, Any]:
    (tenant, task, schedule_id), said, there = found
    at = _next(found)
    return {
        "schema": "executor.schedule/1", "id": schedule_id, "tenant": tenant, "task": task,
        "when": said.when, "time_zone": said.zone or None, "input_bytes": len(said.input),
        "expires_ms": said.expires_ms or None, "added_at": output.timestamp(said.at),
        "taken_up": there is not None, "next_at": output.timestamp(at) if at else None,
    }  # fmt: skip


@family.command("list")
@click.option("--tenant", help="Whose; all of executor.toml if not given.")
def list_(tenant: str | None) -> None:
    """List schedules and when each fires next.

    Example: executor schedule list
    """
    config = state().config(required=True)
    if tenant is not None and not subjects.is_token(tenant):
        raise click.UsageError(f"`{tenant}` is no tenant's name.")
    found = _on_nats(config, lambda nats: _all(nats, config, tenant))
    out = state().out
    if out.as_json:
        for each in found:
            out.data(_fields(each), "")
        return
    if not found:
        out.say('no schedules · add one: executor schedule add TASK --cron "0 30 9 * * *"')
        return
    rows = []
    for each in found:
        (of_tenant, task, schedule_id), said, there = each
        at = _next(each)
        fires = "when an executor takes it up" if there is None else "not known here"
        rows.append((schedule_id, f"{of_tenant}/{task}", said.when, said.zone or "UTC",
                     output.timestamp(at) if at else fires))  # fmt: skip
    out.data({}, output.table(("ID", "TASK", "WHEN", "TIME ZONE", "NEXT"), rows))


@family.command("remove")
@click.argument("schedule_id", metavar="ID")
@click.option("--tenant", help="Whose it is.")
@click.option("--task", help="The task's name, where several tasks use the same id.")
def remove(schedule_id: str, tenant: str | None, task: str | None) -> None:
    """Remove the schedule ID.

    It fires no more; what fired before and was not taken yet is dropped, what runs ends.

    Example: executor schedule remove nightly
    """
    config = state().config(required=True)
    of_tenant = pick_tenant(config, tenant)
    if not subjects.is_token(of_tenant):
        raise click.UsageError(f"`{of_tenant}` is no tenant's name.")
    key = operator_key(config)
    wanted = (of_tenant, task, schedule_id)
    where = _on_nats(config, lambda nats: _remove(nats, config, key, wanted))
    state().out.data(
        {"schema": "executor.schedule/1", "id": schedule_id, "tenant": of_tenant,
         "task": where[1], "action": "removed"},
        f"removed {schedule_id} of {of_tenant}/{where[1]}",
    )  # fmt: skip


async def _remove(
    connection: Connection, config: Config, signer: Signer, wanted: tuple[str, str | None, str]
) -> _Name:
    tenant, task, schedule_id = wanted
    tasks = [
        name[1] for name, _, _ in await _all(connection, config, tenant)
        if name[2] == schedule_id and task in {None, name[1]}
    ]  # fmt: skip
    if not tasks:
        raise ExecutorError("config.missing", f"no schedule `{schedule_id}` of `{tenant}`",
                            hint="executor schedule list")  # fmt: skip
    if len(tasks) > 1:
        raise click.UsageError(f"Which? Use --task NAME: {', '.join(tasks)}.")
    name = (tenant, tasks[0], schedule_id)
    speaker = Speaker(Control(connection), config.opener(), signer)
    await speaker.take_back(subjects.schedule_key(*name))
    return name


VERBS = (family,)
