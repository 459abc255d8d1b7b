"""Verbs that operate: publish, serve, submit, result."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from executor import config as configs
from executor.cli import output, signing
from executor.cli.base import (
    Verb,
    pick_tenant,
    read_file,
    read_input,
    run_async,
    split_task,
    state,
    with_input,
)
from executor.cli.commanding import Commander
from executor.cli.modules import examine, read_statement, wanted
from executor.cli.serving import Host, queue, settings, stream_options
from executor.cli.serving import serve as serve_host
from executor.cli.sessions import operator_key
from executor.client import Client, TaskOutcome
from executor.config import Config
from executor.core import policy, provenance, signature, subjects
from executor.core.seal import Signer
from executor.errors import ExecutorError
from executor.model import Release
from executor.supervisor import vouching
from executor.telemetry import Log, Telemetry
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.objects import Objects
from executor.transport.server import PrivateServer
from executor.transport.speaking import Speaker
from executor.trust import believed
from executor.trust.file import FileTrust

_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d)\Z", re.ASCII)
_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS: Final = 3_650 * _UNITS["d"]  # as long as outcomes can be kept
_LATEST_MS: Final = 9_200_000_000_000  # 2261, as an envelope can say
_INT_MAX: Final = 2**53 - 1  # what an envelope can say


def duration_ms(text: str) -> int:
    """`500ms`, `2s`, `5m`, `1h`, `3d` in ms, at most ten years. Raises `click.BadParameter`."""
    match = _DURATION.match(text)
    if match is None:
        raise click.BadParameter(f"`{text}` is no duration: write 500ms, 2s, 5m, 1h or 3d.")
    ms = int(float(match[1]) * _UNITS[match[2]])
    if ms > _LONGEST_MS:
        raise click.BadParameter(f"`{text}` is longer than ten years.")
    return ms


def moment_ms(text: str) -> int:
    """`2026-01-31T09:30Z` in ms since 1970; UTC unless it says. Raises `click.BadParameter`."""
    try:
        moment = datetime.fromisoformat(text)
        at = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"`{text}` is no time: write 2026-01-31T09:30Z.") from None
    if not 0 <= at <= _LATEST_MS:
        raise click.BadParameter(f"`{text}` is out of reach.")
    return at


@dataclass(frozen=True, slots=True)
class Published:
    """A release, the lines that would grant what it wants more, and whether it is in force."""

    release: Release
    missing_grants: list[str]
    in_force: bool  # else others still have to sign it


async def publish_module(
    config: Config, data: bytes, tenant: str, statement: bytes | None = None, *,
    key: Signer | None = None,
) -> Published:  # fmt: skip
    """Verify, compile, store by digest, release.

    `statement` is the builder's, stored beside the module; checked where policy asks for one.
    `key` is whose word the release is, if not the operator's whom the configuration names.

    Errors  `module.*`, `policy.task-unknown` for an unknown tenant, `policy.action-denied`,
            `config.missing` without a key, `transport.*`; where releases are signed, `trust.*`.
    """
    key = None if config.signed else key or operator_key(config)
    party = config.policy.tenant(tenant)
    if party is None:
        known = ", ".join(t.name for t in config.policy.tenants) or "none"
        raise ExecutorError("policy.task-unknown", f"no tenant `{tenant}`", hint=f"known: {known}")
    described, product = await examine(config, data)
    digest = signature.digest(data)
    live = Release(tenant, described.task, digest, described.version)
    trust = FileTrust(config)
    now = time.time_ns() // 1_000_000
    signers = vouching.verify(data, live, trust, now).signers
    vouching.judge(statement, data, live, trust, now)
    if trust.is_revoked(digest):
        raise ExecutorError("module.signer-revoked", f"`{digest}`")
    missing: list[str] = []
    try:
        policy.authorise(
            config.policy, tenant=tenant, task=described.task, manifest=described,
            imports=product.imports, signers=signers, at=output.now_ms(),
        )  # fmt: skip
    except ExecutorError as error:
        if error.code != "policy.capability-denied":
            raise
        # The refusal names functions: only their capabilities are not granted.
        missing = [
            policy.grant_line(capability, functions)
            for capability, functions in sorted(wanted(product).items())
            if any(f"`{function}`" in error.detail for function in functions)
        ]
    connection = await Connection.open(
        settings(config, "executor-publish", "publisher_"), lambda _name, _facts: None
    )
    try:
        if statement is not None:  # first: whoever sees the release finds it
            await Objects(connection).put(provenance.object_name(digest), statement)
        in_force = await store(connection, config, live, data, key)
    finally:
        await connection.close()
    return Published(live, missing, in_force)


async def store(
    connection: Connection, config: Config, live: Release, data: bytes, key: Signer | None
) -> bool:
    """Put the bytes under the release's digest and point the task's name at it.

    `key` says so in CONTROL, where releases are not signed with keys of their own. False if it
    waits for the signatures of others.
    """
    await Objects(connection).put(live.digest, data)
    if config.signed or key is None:
        return await signing.release(config, connection, live)
    speaker = Speaker(Control(connection), config.opener(), key)
    key_of = subjects.release_key(live.tenant, live.task)
    await speaker.say("release", key_of, {"digest": live.digest, "version": live.version})
    return True


@click.command("publish", cls=Verb)
@click.argument("module", type=click.Path(path_type=Path))
@click.option("--tenant", help="Whose task it is.")
@click.option(
    "--provenance", "statement", type=click.Path(path_type=Path), metavar="FILE",
    help="Who built it; default: MODULE.provenance.json, if there is one.",
)  # fmt: skip
def publish(module: Path, tenant: str | None, statement: Path | None) -> None:
    """Verify MODULE and make it the live release of its task.

    Its bytes are stored by digest, with the statement of who built it; tasks take it up
    at once.

    Example: executor publish hello.wasm --tenant acme
    """
    config, data = state().config(required=True), read_file(module)
    of_tenant = pick_tenant(config, tenant)
    said = read_statement(module, statement)
    work = publish_module(config, data, of_tenant, said)
    done = run_async(work, "the compiler and NATS")
    live, missing = done.release, done.missing_grants
    state_text = "live" if done.in_force else "staged; others sign it with executor trust sign"
    out = state().out
    out.data(
        {"schema": "executor.release/1", "tenant": live.tenant, "task": live.task,
         "version": live.version, "digest": live.digest, "missing_grants": missing,
         "provenance": said is not None, "in_force": done.in_force},
        f"{live.tenant}/{live.task} {live.version} is {state_text}\n{live.digest}",
    )  # fmt: skip
    if missing:
        out.warn(f"its tasks will be denied until [[grant]] has, a line each: {'; '.join(missing)}")


@click.command("serve", cls=Verb)
@click.option(
    "--embedded",
    is_flag=True,
    help="Start a nats-server beside, on the port of nats.url, data in ./nats-data.",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Made when it is ready.")
@click.option("--drain", metavar="NAME", help="Start none: have the executor NAME drain and end.")
def serve(embedded: bool, ready_file: Path | None, drain: str | None) -> None:  # noqa: FBT001
    """Take tasks from NATS, run them in sandboxes, say outcomes.

    The first SIGTERM or ctrl-C drains, the second stops now; SIGHUP reloads executor.toml.

    Example: executor serve --embedded
    """
    config = state().config(required=True, bootstrap=True)
    if drain is not None:
        if not subjects.is_token(drain):
            raise click.UsageError(f"`{drain}` is no executor's name.")
        config = believed(config)  # whose answer counts
        run_async(_drain(config, operator_key(config), drain), f"executor {drain}")
        state().out.data({"schema": "executor.draining/1", "executor": drain},
                         f"{drain} drains and ends")  # fmt: skip
        return
    log = Log(quiet=state().out.quiet)
    run_async(_serve(config, log, embedded=embedded, ready_file=ready_file))


async def _drain(config: Config, key: Signer, name: str) -> None:
    connection = await Connection.open(
        settings(config, "executor-drain", "operator_"), lambda _n, _f: None
    )
    try:
        async with Commander(connection, config.opener(), key) as commander:
            await commander.ask("drain", "", "", executor=name)
    finally:
        await connection.close()


async def _serve(config: Config, log: Log, *, embedded: bool, ready_file: Path | None) -> None:
    telemetry = Telemetry.from_environment(log, name="executor")
    path = config.folder / configs.FILE if state().config_path is None else state().config_path
    host = Host(config, telemetry)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(telemetry.close)
        if embedded:
            host = await _embed(stack, config, telemetry)

        def ready() -> None:
            if ready_file is not None:
                ready_file.write_text(f"{os.getpid()}\n", encoding="ascii")
                stack.callback(ready_file.unlink, missing_ok=True)

        await serve_host(host, lambda: configs.load(path, required=True), ready=ready)


async def _embed(stack: contextlib.AsyncExitStack, config: Config, telemetry: Telemetry) -> Host:
    port = config.text("nats.url").rpartition(":")[2]
    if not port.isdigit():
        raise ExecutorError("config.invalid", "`nats.url` names no port for --embedded")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError:
            # Before the store is opened: two servers must never share its files.
            raise ExecutorError(
                "config.invalid", f"something already listens on 127.0.0.1:{port}",
                hint="another `serve --embedded` runs there: stop it, or serve without --embedded",
            ) from None  # fmt: skip
    folder = config.folder / "nats-data"
    folder.mkdir(exist_ok=True)
    server = await stack.enter_async_context(PrivateServer(folder, port=int(port)))
    local = config.with_values(nats__url=server.url)
    repository = signing.repository_of(config) if config.signed else None
    if repository is not None and repository.in_force:
        signing.adopt(config, repository)
    tenants = believed(local).policy.tenants
    connection = await Connection.open(
        settings(local, "executor-apply", "deployer_"), lambda _n, _f: None
    )
    try:
        await streams.apply(connection, map(queue, tenants), stream_options(local))
        if repository is not None and repository.in_force:
            await signing.push(connection, repository)
    finally:
        await connection.close()
    return Host(local, telemetry)


def outcome_fields(outcome: TaskOutcome) -> dict[str, Any]:
    """A terminal record for `--json`."""
    record = outcome.record
    fields: dict[str, Any] = {
        "schema": "executor.outcome/1", "id": outcome.id, "tenant": outcome.tenant,
        "task": outcome.task, "sequence": outcome.sequence,
        "stored_at": output.timestamp(outcome.stored_at),
        "outcome": "result" if outcome.ok else "dead", "code": record.code or None,
        "attempt": record.attempt, "attempts_max": record.attempts_max,
        "version": record.version, "trace": record.trace or None,
        "submitted_at": output.timestamp(record.submitted_at),
        "finished_at": output.timestamp(record.finished_at),
        "history": [
            {"attempt": p.attempt, "code": p.code, "at": output.timestamp(p.at)}
            for p in record.history
        ],
        "receipt": {
            name: getattr(record.receipt, name) for name in record.receipt.__dataclass_fields__
        },
    }  # fmt: skip
    if outcome.ok:
        return (
            fields
            | output.content(record.output, record.content_type)
            | {"degraded": record.degraded, "cause": record.cause or None}
        )
    fields |= {"message": output.failure_text(record.code, record.message), "hint": record.hint,
               "facts": dict(record.facts), "logs": output.log_fields(record.logs),
               "discarded_at": record.discarded_at or None, "limits": dict(record.limits),
               "last_calls": [{"function": name, "status": status,
                               "ended": output.call_text(status) or "ok"}
                              for name, status in record.last_calls],
               "signers": list(record.signers)}  # fmt: skip
    if record.origin is not None:
        fields["original"] = {
            "subject": record.origin.subject, "size": record.origin.size,
            "whole": record.origin.whole, "sha256": record.origin.sha256 or None,
            "headers": dict(record.origin.headers),
        }  # fmt: skip
    return fields


def show_outcome(outcome: TaskOutcome) -> None:
    """Print a result's bytes, or fail as the dead letter says."""
    out = state().out
    record = outcome.record
    if out.as_json:
        out.data(outcome_fields(outcome), "")
        if not outcome.ok:
            raise SystemExit(ExecutorError(record.code).row.exit)
        return
    if not outcome.ok:
        facts: dict[str, Any] = {"task": f"{outcome.tenant}/{outcome.task} {outcome.id}"}
        facts |= {name: value for name, value in record.facts if name not in facts}
        raise ExecutorError(record.code, record.message, hint=record.hint, **facts)
    value = output.content(record.output, record.content_type)["output"]
    kind = record.content_type.partition(";")[0]
    if kind == "application/msgpack" and value is not None:
        import json  # only here

        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        out.raw(record.output)
    out.say(
        f"ok  {outcome.task}  attempt {record.attempt} of {record.attempts_max}  "
        f"{output.used(record.receipt)}"
    )
    if record.degraded:
        out.say(f"degraded: a fallback stood in for {record.cause or 'a failure'}")


@click.command("submit", cls=Verb)
@click.argument("task")
@with_input
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
@click.option("--id", "task_id", help="Your own id: the same id is the same task.")
@click.option("--key", help="An idempotency key: the same key is the same task.")
@click.option("--wait", is_flag=True, help="Wait for the outcome and print it.")
@click.option(
    "--timeout",
    type=duration_ms,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="How long --wait waits.",
)
@click.option(
    "--expires", type=duration_ms, metavar="TIME", help="Must start within 500ms, 2s, 5m, 1h, 3d."
)
@click.option("--delay", type=duration_ms, metavar="TIME", help="Must not start before then.")
@click.option("--at", type=moment_ms, metavar="WHEN", help="The same as 2026-01-31T09:30Z.")
@click.option("--attempts", type=click.IntRange(1, 16), default=None, help="At most as many.")
@click.option("--deadline-ms", type=click.IntRange(1, _INT_MAX), help="Lower the deadline.")
@click.option("--fuel", type=click.IntRange(1, _INT_MAX), help="Lower the fuel.")
def submit(task: str, text: str | None, kind: str, tenant: str | None, task_id: str | None,
           key: str | None, wait: bool, timeout: int, expires: int | None,  # noqa: FBT001
           delay: int | None, at: int | None,
           attempts: int | None, deadline_ms: int | None, fuel: int | None) -> None:  # fmt: skip
    """Ask for TASK; print its id, or with --wait its outcome.

    Example: executor submit wordcount -i "one two" --wait
    """
    if task_id is not None and key is not None:
        raise click.UsageError("Use --id or --key, not both.")
    if delay is not None and at is not None:
        raise click.UsageError("Use --delay or --at, not both.")
    if task_id is not None and not subjects.is_id(task_id):
        raise click.UsageError("An id is of [A-Za-z0-9_-]{1,64} and does not begin with `_`.")
    config = state().config()
    of_tenant, name = split_task(task, config, tenant)
    data, content_type = read_input(text, kind)
    now = time.time_ns() // 1_000_000
    options: dict[str, Any] = {
        "id": task_id, "key": key, "content_type": content_type,
        "expires_at": 0 if expires is None else now + expires,
        "not_before": (at or 0) if delay is None else now + delay,
        "attempts_max": attempts or 0, "deadline_ms": deadline_ms or 0, "fuel": fuel or 0,
    }  # fmt: skip
    work = _submit(config, of_tenant, name, data, options, timeout if wait else None)
    outcome = run_async(work, f"{of_tenant}/{name}" if wait else "NATS")
    if outcome is not None:
        show_outcome(outcome)


async def _submit(
    config: Config, tenant: str, task: str, data: bytes, options: dict[str, Any],
    wait_ms: int | None,
) -> TaskOutcome | None:  # fmt: skip
    telemetry = Telemetry.from_environment(Log(quiet=True), name="executor-submit")
    try:
        client = await Client.from_config(config, tenant, traced=telemetry.submitted)
        async with client:
            if wait_ms is None:
                sent = await client.submit(task, data, **options)
                again = " (the queue had it already)" if sent.duplicate else ""
                state().out.data(
                    {"schema": "executor.submitted/1", "id": sent.id, "tenant": tenant,
                     "task": task, "sequence": sent.sequence, "duplicate": sent.duplicate},
                    sent.id,
                )  # fmt: skip
                state().out.say(f"queued{again} · executor result {sent.id} --wait")
                return None
            return await client.run(task, data, timeout_s=wait_ms / 1000, **options)
    finally:
        await asyncio.to_thread(telemetry.close)


@click.command("result", cls=Verb)
@click.argument("task_id", metavar="ID")
@click.option("--tenant", help="Whose task it is.")
@click.option("--wait", is_flag=True, help="Wait for it.")
@click.option(
    "--timeout",
    type=duration_ms,
    metavar="TIME",
    default="30s",
    show_default=True,
    help="How long --wait waits.",
)
def result(task_id: str, tenant: str | None, wait: bool, timeout: int) -> None:  # noqa: FBT001
    """Print the outcome of the task ID.

    Example: executor result 3f9c… --wait
    """
    if not subjects.is_token(task_id):
        raise click.UsageError(f"`{task_id}` is no id.")
    config = state().config()
    work = _result(config, pick_tenant(config, tenant), task_id, timeout / 1000 if wait else 0.0)
    show_outcome(run_async(work, f"the outcome of {task_id}" if wait else "NATS"))


async def _result(config: Config, tenant: str, task_id: str, timeout_s: float) -> TaskOutcome:
    async with await Client.from_config(config, tenant) as client:
        return await client.wait(task_id, timeout_s=timeout_s)


@click.command("cancel", cls=Verb)
@click.argument("task_id", metavar="ID")
@click.option("--tenant", help="Whose task it is.")
@click.option("--task", help="The task's name, where several tasks use the same id.")
@click.option(
    "--timeout",
    type=duration_ms,
    metavar="TIME",
    default="2s",
    show_default=True,
    help="How long to wait for its end.",
)
def cancel(task_id: str, tenant: str | None, task: str | None, timeout: int) -> None:
    """End the task ID as `task.cancelled`, wherever it is.

    Running or waiting for a retry it ends at once, queued when its turn comes. What it did before
    is not undone; a task that has an outcome keeps it.

    Example: executor cancel 3f9c…
    """
    if not subjects.is_id(task_id) or (task is not None and not subjects.is_token(task)):
        raise click.UsageError("An id and a task are of [A-Za-z0-9_-]{1,64}.")
    config = state().config()
    key = operator_key(config)
    work = _cancel(config, key, (pick_tenant(config, tenant), task, task_id), timeout / 1000)
    before, outcome = run_async(work, "NATS")
    ended = None if outcome is None else outcome.code or "result"
    if outcome is None:
        text = f"{task_id} is announced as cancelled: it ends when its turn comes"
    elif before:
        text = f"{task_id} had ended before: {ended}"
    else:
        text = f"{task_id} ended: {ended}"
    state().out.data(
        {"schema": "executor.cancelled/1", "id": task_id, "ended_before": before, "outcome": ended},
        text,
    )  # fmt: skip


async def _cancel(
    config: Config, key: Signer, which: tuple[str, str | None, str], timeout_s: float
) -> tuple[bool, TaskOutcome | None]:
    tenant, task, task_id = which
    async with await Client.from_config(config, tenant, operator=lambda: key) as client:
        before = await client.cancel(task_id, task=task)
        if before is not None:
            return True, before
        try:
            return False, await client.wait(task_id, task=task, timeout_s=timeout_s)
        except ExecutorError as error:
            if error.code != "transport.outcome-pending":
                raise
            return False, None


VERBS = (publish, serve, submit, result, cancel)
