"""Verbs that steer and watch running executors: pause, resume, quarantine, top, health."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from executor.cli import output
from executor.cli.base import Family, Verb, run_async, split_task, state
from executor.cli.control import is_known, with_control
from executor.cli.heartbeat import BEAT_S, GONE_MS
from executor.cli.operate import duration_ms
from executor.cli.sessions import operator_key
from executor.config import Config
from executor.core import control, subjects
from executor.core.access import ANY
from executor.core.breaker import Breaker
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.api import ApiError
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.speaking import Speaker
from executor.transport.streams import CONSUMER

T = TypeVar("T")
_HEX: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")
_CLEAR: Final = "\x1b[2J\x1b[H"
_NOT_READY: Final = 1


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_Speak = Callable[[Speaker], Awaitable[T]]


def _speak(config: Config, what: _Speak[T]) -> T:
    """Say something in CONTROL under the operator's key."""
    key = operator_key(config)

    async def main(bucket: Control, _connection: Connection) -> T:
        return await what(Speaker(bucket, config.opener(), key))

    found: T = run_async(with_control(config, main), "NATS")
    return found


def _entries(
    config: Config, found: dict[str, StoredMessage]
) -> dict[str, dict[str, control.Value]]:
    """What stands in CONTROL; what is not authentic is left out, as executors do."""
    opener, valid = config.opener(), {}
    for key, stored in found.items():
        try:
            said = opener.said(key, stored.body, stored_at=stored.stored_at_ms)
        except NotAuthenticError as error:
            state().out.warn(f"{key} in CONTROL counts for nobody: {error.reason}")
            continue
        if said.fields is not None:
            valid[key] = said.fields
    return valid


@click.command("pause", cls=Verb)
@click.argument("task")
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
@click.option("--why", default="", help="For whoever finds it paused.")
def pause(task: str, tenant: str | None, why: str) -> None:
    """Hold TASK up in every executor.

    Its tasks wait and lose no attempt. What runs goes on to its end. What waits comes back by
    itself, within five minutes of `executor resume`; what is submitted then runs at once.

    Example: executor pause resize --why "the store moves"
    """
    config = state().config(required=True)
    of_tenant, name = split_task(task, config, tenant)
    key = subjects.pause_key(of_tenant, name)

    async def say(speaker: Speaker) -> bool:
        """And whether there is such a task; said first, for it may be an emergency."""
        await speaker.say("pause", key, {"at": _now_ms(), "why": why[:500]})
        return await is_known(config, speaker.bucket, of_tenant, name)

    known = _speak(config, say)
    if not known:
        state().out.warn(f"no release of {of_tenant}/{name} is known here: if that is a mistake, "
                         f"executor resume {of_tenant}/{name}")  # fmt: skip
    state().out.data(
        {"schema": "executor.paused/1", "tenant": of_tenant, "task": name, "paused": True},
        f"{of_tenant}/{name} is paused · executor resume {name}",
    )


@click.command("resume", cls=Verb)
@click.argument("task")
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
def resume(task: str, tenant: str | None) -> None:
    """Let the tasks of a paused TASK run again.

    Example: executor resume resize
    """
    config = state().config(required=True)
    of_tenant, name = split_task(task, config, tenant)
    key = subjects.pause_key(of_tenant, name)
    known = _speak(config, lambda speaker: speaker.take_back(key))
    state().out.data(
        {"schema": "executor.paused/1", "tenant": of_tenant, "task": name, "paused": False},
        f"{of_tenant}/{name} runs again" if known else f"{of_tenant}/{name} was not paused",
    )


@click.group("quarantine", cls=Family)
def quarantine() -> None:
    """Look at modules kept from running, lift or impose it."""


def _digest(text: str) -> str:
    match = _HEX.match(text)
    if match is None:
        raise click.BadParameter(f"`{text}` is no digest: sha256: and 64 hex digits.")
    return f"sha256:{match[1]}"


@quarantine.command("list")
def quarantine_list() -> None:
    """List the modules in quarantine, for whom, and what put them there.

    Example: executor quarantine list
    """
    config = state().config(required=True)
    found = run_async(with_control(config, lambda bucket, _: bucket.entries("quarantine")), "NATS")
    out, now = state().out, _now_ms()
    modules = [
        {"digest": f"sha256:{key.split('.')[1]}", "tenant": control.about(key)[1], **fields}
        for key, fields in _entries(config, found).items()
    ]
    rows = [
        (
            str(m["digest"]),
            "all" if m["tenant"] == ANY else str(m["tenant"]),
            str(m["task"]),
            str(m["code"]),
            output.age(int(m["at"]), now),
        )
        for m in modules
    ]
    text = output.table(("DIGEST", "FOR", "TASK", "CODE", "AGE"), rows)
    out.data({"schema": "executor.quarantined/1", "modules": modules},
             text if rows else "no module is in quarantine")  # fmt: skip
    if rows:
        out.say("lift: executor quarantine lift DIGEST")


@quarantine.command("add")
@click.argument("digest", callback=lambda _c, _p, value: _digest(value))
def quarantine_add(digest: str) -> None:
    """Keep the module DIGEST from running anywhere; its tasks wait.

    Example: executor quarantine add sha256:9f2c…
    """
    config = state().config(required=True, bootstrap=True)
    key = subjects.quarantine_key(digest)
    _speak(config, lambda speaker: speaker.say(
        "quarantine", key, {"at": _now_ms(), "code": "-", "task": "-", "by": "operator"}
    ))  # fmt: skip
    state().out.data(
        {"schema": "executor.quarantine/1", "digest": digest, "quarantined": True},
        f"{digest} is in quarantine",
    )


@quarantine.command("lift")
@click.argument("digest", callback=lambda _c, _p, value: _digest(value))
def quarantine_lift(digest: str) -> None:
    """Let the module DIGEST run again, for every tenant.

    Example: executor quarantine lift sha256:9f2c…
    """
    config = state().config(required=True)
    key = subjects.quarantine_key(digest)

    async def lift(speaker: Speaker) -> bool:
        """What stands for all tenants, then what executors said of one."""
        keys = [key, *await speaker.bucket.keys(key)]
        return any([await speaker.take_back(each) for each in keys])

    known = _speak(config, lift)
    state().out.data(
        {"schema": "executor.quarantine/1", "digest": digest, "quarantined": False},
        f"{digest} may run again" if known else f"{digest} was not in quarantine",
    )


async def look(config: Config, bucket: Control, connection: Connection) -> dict[str, Any]:
    """One look at everything: executors, queues, and what holds tasks up."""
    now = _now_ms()
    executors = []
    for key, fields in _entries(config, await bucket.entries("status")).items():
        if now - int(fields["at"]) < GONE_MS:
            name = key.partition(".")[2]
            executors.append({**said_of(str(fields["report"])), "name": name, "at": fields["at"]})
    queues = []
    for tenant in config.policy.tenants:
        stream = subjects.tasks_stream(tenant.name)
        try:
            found = await connection.api(f"CONSUMER.INFO.{stream}.{CONSUMER}")
            put_off = await _put_off(connection, tenant.name)
        except ApiError:
            continue
        queues.append({"tenant": tenant.name, "queued": found["num_pending"],
                       "in_hand": found["num_ack_pending"], "put_off": put_off})  # fmt: skip
    held_up: list[dict[str, Any]] = []
    for typ in ("pause", "quarantine", "breaker"):
        for key, fields in _entries(config, await bucket.entries(typ)).items():
            if typ == "breaker":
                opened = Breaker(trips=int(fields["trips"]), until=int(fields["until"]))
                fields["state"] = opened.state(now).value
            held_up.append({"kind": typ, "what": key.partition(".")[2].replace(".", "/"), **fields})
    return {"schema": "executor.top/1", "at": output.timestamp(now), "executors": executors,
            "queues": queues, "held_up": held_up}  # fmt: skip


async def _put_off(connection: Connection, tenant: str) -> int:
    """How many tasks wait in LATER for their time; recurring schedules are none."""
    call = f"STREAM.INFO.{subjects.later_stream(tenant)}"
    only = {"subjects_filter": subjects.all_recurring(tenant)}
    held = (await connection.api(call, only))["state"]
    waiting: int = held["messages"] - sum((held.get("subjects") or {}).values())
    return waiting


def said_of(report: str) -> dict[str, Any]:
    """What an executor says of itself; nothing of what is no report, whoever wrote it."""
    try:
        found = json.loads(report)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    for name in ("levels", "settled"):
        counts = found.get(name, {})
        if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
            del found[name]
    return found


def page(seen: dict[str, Any]) -> str:
    """A look as text."""
    now, parts = _now_ms(), []
    rows = [
        (e["name"], str(e.get("version", "-")), str(e.get("ready", "-")),
         *(str(e.get("levels", {}).get(n, "-")) for n in ("sandboxes", "running", "held")),
         str(sum(e.get("settled", {}).values())), output.age(int(e["at"]), now))
        for e in seen["executors"]
    ]  # fmt: skip
    if rows:
        header = ("EXECUTOR", "VERSION", "STATE", "SANDBOXES", "RUNNING", "HELD", "ENDED", "SEEN")
        parts.append(output.table(header, rows))
    else:
        parts.append("no executor serves · start one: executor serve")
    queues = [
        (q["tenant"], *(output.number(q[n]) for n in ("queued", "in_hand", "put_off")))
        for q in seen["queues"]
    ]
    parts.append(output.table(("TENANT", "QUEUED", "IN HAND", "PUT OFF"), queues))
    held_up = [
        (h["kind"], h["what"], str(h.get("state") or h.get("why") or h.get("code") or "-"))
        for h in seen["held_up"]
    ]
    if held_up:
        parts.append(output.table(("HELD UP BY", "WHAT", "STATE"), held_up))
    return "\n\n".join(parts)


@click.command("top", cls=Verb)
@click.option("--once", is_flag=True, help="One look; the default off a terminal.")
def top(once: bool) -> None:  # noqa: FBT001
    """Watch the executors, the queues, and what holds tasks up.

    With --json one object a look.

    Example: executor top --once
    """
    config, out = state().config(required=True), state().out
    live = not once and sys.stdout.isatty()

    async def main(bucket: Control, connection: Connection) -> None:
        while True:
            seen = await look(config, bucket, connection)
            out.data(seen, (_CLEAR if live and not out.as_json else "") + page(seen))
            if not live:
                return
            await asyncio.sleep(2)

    run_async(with_control(config, main), "NATS")


@click.command("health", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--live", is_flag=True, help="Whether it lives, ready or not.")
@click.option("--max-age", type=duration_ms, metavar="TIME", default="15s", show_default=True,
              help="How old its last sign of life may be.")  # fmt: skip
def health(file: Path | None, live: bool, max_age: int) -> None:  # noqa: FBT001
    """Exit 0 if the executor here takes tasks, else 1.

    Reads the file that `host.health_file` names, or FILE: no network, for liveness and
    readiness probes.

    Example: executor health
    """
    path = file or state().config(required=True, bootstrap=True).path("host.health_file")
    if path is None:
        hint = 'set health_file = "health.json" under [host], and start serve again'
        raise ExecutorError("config.missing", "`host.health_file` is not set", hint=hint)
    why = _why_unhealthy(path, live=live, max_age_ms=max_age)
    state().out.data({"schema": "executor.health/1", "ok": not why, "why": why}, why or "ok")
    if why:
        raise SystemExit(_NOT_READY)


def _why_unhealthy(path: Path, *, live: bool, max_age_ms: int) -> str:
    try:
        said = json.loads(path.read_bytes()[:4096])
        age_ms = _now_ms() - int(said["at"])
        if age_ms > max_age_ms:
            return f"no sign of life for {age_ms / 1000:.0f} s, one is due every {BEAT_S:.0f} s"
        return "" if live or said["ready"] else str(said["why"])
    except OSError:
        return "no executor runs here: there is no health file"
    except (ValueError, KeyError, TypeError):
        return "the health file is not one"


VERBS = (pause, resume, quarantine, top, health)
