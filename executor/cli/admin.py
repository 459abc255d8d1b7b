"""The families `nats` and `tenant`: streams, and who has a queue."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from executor import config as configs
from executor.cli import nats_roles, output
from executor.cli.base import Family, run_async, state, write_file
from executor.cli.serving import queue, settings, stream_options
from executor.cli.sessions import operator_key
from executor.config import Config
from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.speaking import Speaker


async def _connect(config: Config) -> Connection:
    return await Connection.open(
        settings(config, "executor-admin", "deployer_"), lambda _name, _facts: None
    )


async def apply_streams(config: Config) -> list[streams.Change]:
    """Make every stream as this configuration needs it. Errors  `transport.*`."""
    connection = await _connect(config)
    try:
        queues = [queue(tenant) for tenant in config.policy.tenants]
        return await streams.apply(connection, queues, stream_options(config))
    finally:
        await connection.close()


def _report(changes: list[streams.Change]) -> None:
    rows = [(c.stream, c.action, ", ".join(c.fields)) for c in changes]
    state().out.data(
        {"schema": "executor.streams/1", "streams": [
            {"stream": c.stream, "action": c.action, "fields": c.fields} for c in changes
        ]},
        output.table(("STREAM", "ACTION", "FIELDS"), rows),
    )  # fmt: skip


@click.group("nats", cls=Family)
def nats() -> None:
    """Make the streams on NATS, and say who may log in."""


@nats.command("apply")
def apply() -> None:
    """Make streams, consumers and buckets as executor.toml needs them.

    A second time changes nothing.

    Example: executor nats apply
    """
    _report(run_async(apply_streams(state().config(required=True)), "NATS"))


@nats.command("check")
def check() -> None:
    """Compare what is there with what executor.toml needs.

    Example: executor nats check
    """
    config = state().config(required=True)

    async def main() -> None:
        connection = await _connect(config)
        try:
            queues = [queue(tenant) for tenant in config.policy.tenants]
            await streams.check(connection, queues, stream_options(config))
        finally:
            await connection.close()

    run_async(main(), "NATS")
    count = output.count(len(config.policy.tenants), "tenant")
    state().out.data({"schema": "executor.streams/1", "ok": True},
                     f"ok  all streams of {count} are as needed")  # fmt: skip


for _verb in nats_roles.VERBS:
    nats.add_command(_verb)


@click.group("tenant", cls=Family)
def tenant() -> None:
    """Add, remove and list tenants."""


@tenant.command("list")
def list_() -> None:
    """List the tenants of executor.toml.

    Example: executor tenant list
    """
    config = state().config(required=True)
    found = config.policy.tenants
    fields = [_tenant_fields(t) for t in found]
    rows = [(f["name"], ", ".join(f["capabilities"]) or "none", f"{f['queue_max_mib']} MiB",
             "yes" if f["raw_bodies"] else "no") for f in fields]  # fmt: skip
    text = output.table(("TENANT", "CEILING", "QUEUE", "RAW BODIES"), rows)
    if not found:
        text = "no tenants · add one: executor tenant add NAME"
    state().out.data({"schema": "executor.tenants/1", "tenants": fields}, text)


def _tenant_fields(party: Any) -> dict[str, Any]:
    return {"name": party.name, "capabilities": sorted(party.ceiling.capabilities),
            "queue_max_mib": party.queue_max_mib, "raw_bodies": party.raw_bodies}  # fmt: skip


def _file() -> Path:
    """The file to edit. Errors  `config.invalid` where the tenants are signed."""
    if state().config(bootstrap=True).signed:
        raise ExecutorError(
            "config.invalid", "tenants stand in the signed policy",
            hint="edit [[tenant]] in policy.toml, then: executor trust sign policy.toml, and for a "
            "new one executor nats apply",
        )  # fmt: skip
    return state().config_path or Path(configs.FILE)


@tenant.command("add")
@click.argument("name")
def add(name: str) -> None:
    """Add the tenant NAME to executor.toml and make its streams.

    A running executor takes it up on SIGHUP.

    Example: executor tenant add acme
    """
    if not subjects.is_token(name):
        raise click.UsageError(f"`{name}` is not of [A-Za-z0-9_-]{{1,64}}.")
    path = _file()
    config = state().config(required=True)
    if config.policy.tenant(name) is not None:
        raise ExecutorError("config.invalid", f"tenant `{name}` exists",
                            hint="executor tenant list")  # fmt: skip
    before = path.read_text(encoding="utf-8")
    after = (
        f'{before.rstrip()}\n\n[[tenant]]\nname = "{name}"\n'
        'ceiling = { capabilities = ["log", "clock", "random", "kv"] }\n'
    )
    write_file(path, after.encode())
    try:
        changes = run_async(apply_streams(state().config(required=True)), "NATS")
    except BaseException:
        write_file(path, before.encode())
        raise
    made = [change.stream for change in changes if change.action == "created"]
    state().out.data(
        {"schema": "executor.tenant/1", "name": name, "created": made},
        f"added {name}: {', '.join(made)}\nrunning executors take it up on SIGHUP",
    )


@tenant.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:  # noqa: FBT001
    """Remove the tenant NAME: its queue, its outcomes and its data.

    Example: executor tenant remove acme --yes
    """
    path = _file()
    config = state().config(required=True)
    if config.policy.tenant(name) is None:
        raise ExecutorError("config.missing", f"no tenant `{name}`", hint="executor tenant list")
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Off a terminal, confirm with --yes.")
        click.confirm(f"Delete tasks, outcomes and data of `{name}`?", abort=True, err=True)
    key = operator_key(config)
    after = _without(path.read_text(encoding="utf-8"), name)
    _check_without(config, after, path, name)

    async def main() -> list[str]:
        connection = await _connect(config)
        try:
            # First what is said, so that no executor writes a schedule of it any more.
            speaker = Speaker(Control(connection), config.opener(), key)
            entries = await speaker.forget_tenant(name)
            gone = await streams.remove_tenant(connection, name)
            return [*gone, f"KV_{subjects.CONTROL_BUCKET}/{name}"] if entries else gone
        finally:
            await connection.close()

    gone = run_async(main(), "NATS")
    write_file(path, after.encode())
    state().out.data({"schema": "executor.tenant/1", "name": name, "removed": gone},
                     f"removed {name}: {', '.join(gone)}")  # fmt: skip


def _check_without(config: Config, after: str, path: Path, name: str) -> None:
    """Errors  `config.invalid` when something in the file still needs the tenant."""
    grants = [grant for grant in config.policy.grants if grant.tenant == name]
    if grants:
        raise ExecutorError(
            "config.invalid", f"{output.count(len(grants), 'grant')} of `{name}` would be left",
            hint=f'remove each [[grant]] with tenant = "{name}" from {path} first',
        )  # fmt: skip
    configs.parse(after, folder=config.folder, name=path.name, environ={})


def _without(text: str, name: str) -> str:
    """The file without the [[tenant]] of that name."""
    parts = re.split(r"(?m)^(?=\[)", text)
    named = re.compile(rf'(?m)^name\s*=\s*"{re.escape(name)}"')
    return "".join(
        part for part in parts if not (part.startswith("[[tenant]]") and named.search(part))
    )


VERBS = (tenant, nats)
