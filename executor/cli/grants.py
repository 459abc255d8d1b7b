"""Verbs that answer for grants: why, what a change would do, what is of no use, the least."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from executor.cli import output
from executor.cli.base import (
    Family,
    Verb,
    read_file,
    run_async,
    split_task,
    state,
    write_file,
)
from executor.cli.control import live_release, with_control
from executor.cli.documents import statement_of, under
from executor.cli.modules import examine
from executor.cli.serving import settings
from executor.cli.usages import read_usages
from executor.config import Config
from executor.core import abi, policy, review, signature, usage
from executor.core.policy import Judged, Weighed
from executor.core.usage import TaskUse, Usage
from executor.errors import TABLE, ExecutorError
from executor.model import Release
from executor.supervisor.vouching import verify
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.objects import Objects
from executor.trust.file import FileTrust

_FINDINGS: Final = TABLE["policy.capability-denied"].exit
_DAY_MS: Final = 86_400_000
_MODULE_MAX: Final = 64 * 1024 * 1024


@click.group("grant", cls=Family)
def grant() -> None:
    """Explain, compare and review grants."""


@grant.command("explain", cls=Verb)
@click.argument("task")
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
@click.option("--module", type=click.Path(path_type=Path), help="Of this file; else the release.")
def explain(task: str, tenant: str | None, module: Path | None) -> None:
    """Say who gave or narrowed each capability and limit of TASK.

    Sides: module, grant, the tenant's or a signer's ceiling, requirement, host.

    Example: executor grant explain acme/hello --module hello.wasm
    """
    config = state().config(required=True)
    of, name = split_task(task, config, tenant)
    weighed = run_async(_weigh(config, of, name, module), "the compiler")
    functions = [_why(judged) for judged in weighed.functions]
    asked = {judged.capability for judged in weighed.functions}
    unasked = [
        {"grant": found.why, "capability": capability}
        for found in weighed.grants for capability in sorted(found.capabilities - asked)
    ]  # fmt: skip
    kv = weighed.kv
    value = {
        "schema": "executor.explained/1", "tenant": of, "task": name, "functions": functions,
        "not_asked_for": unasked,
        "kv": kv and {"prefix": kv.prefix, "read": kv.read, "write": kv.write},
        "limits": {limit: {"value": most, "by": side} for limit, most, side in weighed.limits},
    }  # fmt: skip
    rows = [(f["function"], "yes" if f["allowed"] else "no", f["why"]) for f in functions]
    rows += [(u["capability"], "-", f"granted ({u['grant']}), the module does not ask for it")
             for u in unasked]  # fmt: skip
    parts = [output.table(("FUNCTION", "ALLOWED", "BECAUSE"), rows)] if rows else []
    if kv is not None:
        parts.append(f"kv  below `{kv.prefix}`: reads {' '.join(kv.read)}"
                     f" · writes {' '.join(kv.write) or 'nothing'}")  # fmt: skip
    parts.append(output.table(("LIMIT", "VALUE", "SET BY"), [
        (limit, output.number(most), side) for limit, most, side in weighed.limits
    ]))  # fmt: skip
    state().out.data(value, "\n\n".join(parts))


def _why(judged: Judged) -> dict[str, Any]:
    if judged.above:
        why = " and ".join(f"above the {side}'s ceiling" for side in judged.above)
    elif judged.grants:
        why = "; ".join(found.why for found in judged.grants)
    else:
        line = policy.grant_line(abi.FUNCTIONS[judged.function].module, [judged.function])
        why = f"no grant gives it: {line}"
    return {"function": judged.function, "allowed": judged.allowed, "why": why,
            "narrowed_by": list(judged.above) or ([] if judged.grants else ["grant"])}  # fmt: skip


async def _weigh(config: Config, tenant: str, task: str, module: Path | None) -> Weighed:
    data = read_file(module) if module else await _released(config, tenant, task)
    described, product = await examine(config, data)
    live = Release(tenant, task, signature.digest(data), described.version)
    now = output.now_ms()
    vouched = verify(data, live, FileTrust(config), now)
    return policy.weigh(
        config.policy, tenant=tenant, task=task, manifest=described, imports=product.imports,
        signers=vouched.signers, at=now,
    )  # fmt: skip


async def _released(config: Config, tenant: str, task: str) -> bytes:
    connection = await Connection.open(
        settings(config, "executor-explain", "operator_", "publisher_"), lambda _n, _f: None
    )
    try:
        live = await live_release(config, Control(connection), tenant, task)
        if live is None:
            raise ExecutorError("policy.task-unknown", f"`{tenant}/{task}`")
        data = await Objects(connection).get(live.digest, _MODULE_MAX)
    finally:
        await connection.close()
    if data is None:
        raise ExecutorError("module.not-found", f"`{live.digest}`")
    return data


@grant.command("diff", cls=Verb)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def diff(old: Path, new: Path) -> None:
    """Say who gains and who loses what from OLD to NEW, by effect.

    Each is a policy or an executor.toml. Functions, their keys and limits by task and signer;
    actions by tenant and who.

    Example: executor grant diff executor.toml next.toml
    """
    host = state().config(bootstrap=True)
    changes = review.diff(statement_of(under(old, host)), statement_of(under(new, host)))
    rows = [
        ("gains" if change.after > change.before else "loses", change.where, change.who,
         change.what, f"{output.number(change.before)} → {output.number(change.after)}"
         if " with " in change.what else "")
        for change in changes
    ]  # fmt: skip
    state().out.data(
        {"schema": "executor.difference/1", "changes": [
            {"where": c.where, "who": c.who, "what": c.what, "before": c.before, "after": c.after}
            for c in changes
        ]},
        output.table(("", "WHERE", "WHO", "WHAT", ""), rows) if rows else "nothing changes",
    )  # fmt: skip


def _usages(config: Config) -> dict[str, Usage]:
    found: dict[str, Usage] = run_async(
        with_control(config, lambda bucket, _: read_usages(bucket, config)), "NATS"
    )
    return found


def _uses(usages: dict[str, Usage]) -> list[tuple[str, str, TaskUse]]:
    return [(tenant, task, use) for tenant, found in sorted(usages.items())
            for task, use in sorted(found.tasks.items())]  # fmt: skip


def _write_smallest(config: Config, usages: dict[str, Usage], path: Path | None) -> None:
    """The least grants with which what was seen still passes, their reasons kept."""
    if path is None:
        return
    parts = []
    for tenant, task, use in _uses(usages):
        grants = [g for g in config.policy.grants if g.covers(tenant, task, use.signers)]
        why = "; ".join(dict.fromkeys(g.why for g in grants)) or "as it was used"
        parts.append(usage.smallest(tenant, task, use, why))
    write_file(path, "\n".join(parts).encode())
    state().out.say(f"wrote {output.count(len(parts), 'task')} to {path}; put it in the place of "
                    "the [[grant]] tables, fallbacks and limits beside")  # fmt: skip


_write = click.option("--write", type=click.Path(path_type=Path), metavar="FILE",
                      help="Write the least grants that pass what was seen.")  # fmt: skip


@grant.command("shadow", cls=Verb)
@_write
def shadow(write: Path | None) -> None:
    """Show what the policy in `policy.shadow_file` would have denied.

    Executors count it beside their work and hold nobody to it. Set the file, then SIGHUP.

    Example: executor grant shadow --write least.toml
    """
    config = state().config(required=True)
    usages = _usages(config)
    rows = [(tenant, task, what, runs, use.runs) for tenant, task, use in _uses(usages)
            for what, runs in sorted(use.denied.items())]  # fmt: skip
    names = sorted({found.shadow for found in usages.values() if found.shadow})
    cells = [(a, b, c, output.number(d), output.number(e)) for a, b, c, d, e in rows]
    text = output.table(("TENANT", "TASK", "WOULD DENY", "TIMES", "OF RUNS"), cells)
    seen = sum(use.runs for _, _, use in _uses(usages))
    empty = (f"of {output.count(seen, 'run')} none would be denied" if names else
             "no executor has a shadow: set policy.shadow_file, then SIGHUP")  # fmt: skip
    state().out.data(
        {"schema": "executor.shadow/1", "shadows": names, "denied": [
            {"tenant": a, "task": b, "what": c, "times": d, "runs": e} for a, b, c, d, e in rows
        ]},
        text if rows else empty,
    )  # fmt: skip
    _write_smallest(config, usages, write)


@grant.command("report", cls=Verb)
@_write
@click.option("--fail-unused-days", type=click.IntRange(0), metavar="N",
              help="Fail if something was of no use for so long.")  # fmt: skip
def report(write: Path | None, fail_unused_days: int | None) -> None:
    """Show how each capability that is granted was used, and when.

    Executors tell every 5 s. What a module imports and never calls its author can drop; what none
    imports the operator can.

    Example: executor grant report --fail-unused-days 90
    """
    config, now = state().config(required=True), output.now_ms()
    usages = _usages(config)
    found = usage.review(config.policy.grants, usages)
    rows, values = [], []
    for row in found:
        given, unused = row.grant, row.unused_ms(now)
        said = "used" if row.last else "never called" if row.imported else "not imported"
        rows.append((
            f"{given.tenant}/{given.task}", given.signer, row.capability, said,
            output.age(row.last, now) if row.last else "-",
            output.age(row.since, now) if row.since else "-", output.number(row.runs), given.why,
        ))  # fmt: skip
        values.append({
            "tenant": given.tenant, "task": given.task, "signer": given.signer, "why": given.why,
            "capability": row.capability, "state": said, "runs": row.runs,
            "last_used": output.timestamp(row.last) if row.last else None,
            "seen_since": output.timestamp(row.since) if row.since else None,
            "unused_days": unused // _DAY_MS,
        })  # fmt: skip
    header = ("TASK", "SIGNER", "CAPABILITY", "STATE", "LAST USE", "AGE", "RUNS", "WHY")
    state().out.data({"schema": "executor.grants/1", "capabilities": values},
                     output.table(header, rows) if rows else "nothing is granted")  # fmt: skip
    _write_smallest(config, usages, write)
    if fail_unused_days is not None and any(
        row.since and row.unused_ms(now) >= fail_unused_days * _DAY_MS for row in found
    ):
        raise SystemExit(_FINDINGS)


VERBS = (grant,)
