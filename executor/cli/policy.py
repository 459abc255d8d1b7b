"""Verbs that answer for the table of access: what is wrong with it, who may, and all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import click

from executor.cli import output
from executor.cli.base import Family, Verb, split_task, state
from executor.cli.documents import granters_of, statement_of, under
from executor.config import Config
from executor.core import review
from executor.core.access import ACTIONS, of_key, of_tenant
from executor.core.review import May
from executor.errors import TABLE

_FINDINGS: Final = TABLE["config.invalid"].exit
_NO: Final = TABLE["policy.submitter-denied"].exit


def _config(file: Path | None) -> Config:
    if file is None:
        return state().config(required=True)
    return under(file, state().config(bootstrap=True))


@click.group("policy", cls=Family)
def policy() -> None:
    """Check policy, ask who may do what."""


@policy.command("check", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--strict", is_flag=True, help="Fail on findings too.")
def check(file: Path | None, strict: bool) -> None:  # noqa: FBT001
    """Report every error in a policy, and what should not stand there.

    FILE is a policy or an executor.toml; without it, the one that is used. Findings: one key that
    publishes and grants, publishers for every tenant, what has ended, what nobody uses.

    Example: executor policy check --strict
    """
    used = state().config(bootstrap=True)
    statement = statement_of(_config(file), granters_of(used))
    found = review.findings(statement, output.now_ms())
    rows = [(finding.kind, finding.what) for finding in found]
    names = [output.count(len(statement.policy.tenants), "tenant"),
             output.count(len(statement.policy.grants), "grant"),
             output.count(len(statement.policy.access.bindings), "binding")
             + ", implied ones too"]  # fmt: skip
    state().out.data(
        {"schema": "executor.policy/1", "ok": not found,
         "findings": [{"kind": kind, "what": what} for kind, what in rows]},
        output.table(("FINDING", "WHAT"), rows) if rows else f"ok  {' · '.join(names)}",
    )  # fmt: skip
    if file is None and used.signed:
        state().out.say("this is what is signed and in force · a file: executor policy check FILE")
    if found and strict:
        raise SystemExit(_FINDINGS)


@policy.command("can-i", cls=Verb)
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("task")
@click.option("--as", "name", required=True, help="A party, a key id, or tenant:NAME.")
@click.option("--tenant", help="Whose task it is; or write TENANT/TASK.")
def can_i(action: str, task: str, name: str, tenant: str | None) -> None:
    """Say whether somebody may do ACTION to TASK, and why.

    Exits with 0 for yes, 11 for no.

    Example: executor policy can-i submit acme/hello --as tenant:acme
    """
    config = state().config(required=True)
    of, of_task = split_task(task, config, tenant)
    found = [_decide(config, who, action, of, of_task) for who in _principals(config, name)]
    # Of several keys of one name, one that may is enough.
    allowed, why = max(found, key=lambda it: it[0])
    state().out.data(
        {"schema": "executor.decision/1", "who": name, "action": action, "tenant": of,
         "task": of_task, "allowed": allowed, "why": why},
        f"{'yes' if allowed else 'no'}, {why}",
    )  # fmt: skip
    if not allowed:
        raise SystemExit(_NO)


def _principals(config: Config, name: str) -> list[str]:
    if name.startswith("tenant:"):
        return [name]
    keys = statement_of(config).keys
    found = [of_key(party.key) for party in keys if name in {party.name, party.key.key_id.hex()}]
    if not found:
        known = [
            *(party.name for party in keys),
            *(of_tenant(t.name) for t in config.policy.tenants),
        ]
        raise click.UsageError(f"Nobody is called `{name}`. Known: {', '.join(known) or 'nobody'}.")
    return list(dict.fromkeys(found))


def _decide(config: Config, who: str, action: str, tenant: str, task: str) -> tuple[bool, str]:
    now = output.now_ms()
    if who.removeprefix("key:") in config.revoked:
        return False, "its key is revoked"
    parties = [party for party in statement_of(config).keys if of_key(party.key) == who]
    if parties and not any(party.valid_at(now) for party in parties):
        return False, "its key is not valid now"
    if config.policy.tenant(tenant) is None:
        return False, f"no tenant `{tenant}` is configured"
    decision = config.policy.access.may(who, action, tenant, task)
    return decision.allowed, decision.why


@policy.command("matrix", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path), required=False)
def matrix(file: Path | None) -> None:
    """Print what each role has, and who may do what in each tenant.

    A cell is `*` for all tasks, `* but` some, or the tasks. Rows of tenant `*` hold for all at
    once. What is not printed is denied.

    Example: executor policy matrix
    """
    statement = statement_of(_config(file))
    access, rows = statement.policy.access, list(review.matrix(statement))
    state().out.data(
        {"schema": "executor.matrix/1",
         "roles": {name: sorted(actions) for name, actions in access.roles.items()},
         "may": [{"tenant": r.tenant, "who": r.who, "action": r.action, "tasks": r.tasks}
                 for r in rows]},
        matrix_text(access.roles, rows),
    )  # fmt: skip


def matrix_text(roles: Mapping[str, frozenset[str]], rows: Iterable[May]) -> str:
    """Both tables: role by action, and who by action in each tenant."""
    defined = [(name, *("x" if action in has else "" for action in ACTIONS))
               for name, has in roles.items()]  # fmt: skip
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row.tenant, row.who), {})[row.action] = row.tasks
    may = [(*key, *(by.get(action, "") for action in ACTIONS)) for key, by in cells.items()]
    heads = [action.upper() for action in ACTIONS]
    return "\n\n".join([
        output.table(("ROLE", *heads), defined), output.table(("TENANT", "WHO", *heads), may),
    ])  # fmt: skip


VERBS = (policy,)
