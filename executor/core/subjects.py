"""Subjects, stream names and audiences: built and taken apart here and nowhere else.

A subject proves nothing; it is the address that an envelope's audience must equal. Tokens match
`[A-Za-z0-9_-]{1,64}` when built and when parsed, since the server stores a literal `*`.
"""

from __future__ import annotations

import functools
import re
from typing import Final

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

CONTROL_BUCKET: Final = "CONTROL"
MODULES_BUCKET: Final = "MODULES"
TRUST_BUCKET: Final = "TRUST"
# In a cancellation: whichever task has the id.
ANY_TASK: Final = "_"
# Last token of a recurring schedule; that of a retry is a number.
_RECURRING: Final = "cron"


def is_token(text: str) -> bool:
    """Whether `text` may stand as tenant, task, id or executor in a subject."""
    return _TOKEN.match(text) is not None


@functools.lru_cache(maxsize=1024)
def _prefix(kind: str, tenant: str, name: str) -> str:
    """`kind.tenant.name.`, of which there are few: each message needs several of them."""
    return _join(kind, tenant, name) + "."


def _of_id(kind: str, tenant: str, name: str, task_id: str) -> str:
    if not is_token(task_id):
        raise ValueError(f"not a subject token: {task_id!r}")
    return _prefix(kind, tenant, name) + task_id


def is_id(text: str) -> bool:
    """Whether `text` may be a task id: a token that does not begin with `_`, which is ours."""
    return is_token(text) and not text.startswith("_")


def _join(*tokens: str) -> str:
    for token in tokens:
        if not is_token(token):
            raise ValueError(f"not a subject token: {token!r}")
    return ".".join(tokens)


def task(tenant: str, name: str) -> str:
    """Where a task is asked for."""
    return _prefix("task", tenant, name)[:-1]


@functools.lru_cache(maxsize=256)
def parse_task(subject: str) -> tuple[str, str] | None:
    """(tenant, task) of a `task.…` subject, or None."""
    parts = subject.split(".")
    if len(parts) == 3 and parts[0] == "task" and all(map(is_token, parts)):  # noqa: PLR2004
        return parts[1], parts[2]
    return None


def result(tenant: str, name: str, task_id: str) -> str:
    """Where a result is stored."""
    return _of_id("result", tenant, name, task_id)


def dead(tenant: str, name: str, task_id: str) -> str:
    """Where a dead letter is stored."""
    return _of_id("dead", tenant, name, task_id)


def terminal(kind: str, tenant: str, name: str, task_id: str) -> tuple[str, str]:
    """Where a `result` or a `dead` letter is stored, and the filter that covers both."""
    subject = _of_id(kind, tenant, name, task_id)
    return subject, "*" + subject[len(kind) :]


def either(tenant: str, name: str, task_id: str) -> str:
    """The filter that covers both terminal subjects of a task id."""
    return terminal("result", tenant, name, task_id)[1]


def parse_terminal(subject: str) -> tuple[str, str, str, str] | None:
    """(kind, tenant, task, id) of `result.…` or `dead.…`, also below `stored.`; else None."""
    parts = subject.removeprefix("stored.").split(".")
    if len(parts) == 4 and parts[0] in {"result", "dead"} and all(map(is_token, parts)):  # noqa: PLR2004
        return parts[0], parts[1], parts[2], parts[3]
    return None


def later(tenant: str, name: str, task_id: str, number: int) -> str:
    """Where a schedule waits; one subject per schedule, the last write wins."""
    return _join("later", tenant, name, task_id, str(number))


def due(tenant: str, name: str) -> str:
    """Where the server puts a schedule that came due; sourced into the tenant's tasks."""
    return _join("due", tenant, name)


def tasks_stream(tenant: str) -> str:
    """The tenant's work queue."""
    return f"TASKS_{_join(tenant)}"


def later_stream(tenant: str) -> str:
    """What the tenant puts off: schedules, and what came due and is not in its queue yet."""
    return f"LATER_{_join(tenant)}"


def outcomes_stream(tenant: str) -> str:
    """The tenant's terminal records."""
    return f"OUTCOMES_{_join(tenant)}"


def tenant_bucket(tenant: str) -> str:
    """The tenant's KV bucket."""
    return f"T_{_join(tenant)}"


def release_key(tenant: str, name: str) -> str:
    """The key of a release in CONTROL."""
    return _join("release", tenant, name)


def cancel_key(tenant: str, name: str, task_id: str) -> str:
    """The key of a cancellation in CONTROL; `name` may be `ANY_TASK`."""
    return _join("cancel", tenant, name, task_id)


def glass_key(opening_id: str) -> str:
    """What is broken open, in CONTROL."""
    return _join("break-glass", opening_id)


def pause_key(tenant: str, name: str) -> str:
    """The key in CONTROL that holds a task up."""
    return _join("pause", tenant, name)


def quarantine_key(digest: str, tenant: str = "") -> str:
    """The key in CONTROL that keeps a module from running, for one tenant or for all.

    `digest` is `sha256:` and hex.
    """
    whose = (tenant,) if tenant else ()
    return _join("quarantine", digest.removeprefix("sha256:"), *whose)


def breaker_key(kind: str, tenant: str, name: str) -> str:
    """The key in CONTROL of an open breaker."""
    return _join("breaker", kind, tenant, name)


def life(executor: str, number: str | int) -> str:
    """One process of an executor, among others of its name."""
    return f"{executor[:48]}_{number}"


def status_key(executor: str) -> str:
    """The key in CONTROL where an executor says how it is."""
    return _join("status", executor)


def usage_key(executor: str, tenant: str) -> str:
    """The key in CONTROL where an executor says what a tenant's tasks used."""
    return _join("usage", executor, tenant)


def waiting(tenant: str, name: str, task_id: str) -> str:
    """The filter of an id's schedules; `name` may be `ANY_TASK`."""
    middle = "*" if name == ANY_TASK else _join(name)
    return f"later.{_join(tenant)}.{middle}.{_join(task_id)}.*"


def parse_later(subject: str) -> tuple[str, str, str] | None:
    """(tenant, task, id) of a task that waits on a `later.…` subject, or None."""
    parts = subject.split(".")
    if len(parts) != 5 or parts[0] != "later" or parts[4] == _RECURRING:  # noqa: PLR2004
        return None
    return (parts[1], parts[2], parts[3]) if all(map(is_token, parts)) else None


def recurring(tenant: str, name: str, schedule_id: str) -> str:
    """Where a recurring schedule stands, beside what waits there once."""
    return _join("later", tenant, name, schedule_id, _RECURRING)


def all_recurring(tenant: str) -> str:
    """The filter of a tenant's recurring schedules."""
    return f"later.{_join(tenant)}.*.*.{_RECURRING}"


def is_recurring(subject: str) -> bool:
    """Whether a recurring schedule stands there, as far as the subject tells."""
    return subject.startswith("later.") and subject.endswith(f".{_RECURRING}")


def schedule_key(tenant: str, name: str, schedule_id: str) -> str:
    """The key in CONTROL of a recurring schedule."""
    return _join("schedule", tenant, name, schedule_id)


def commands_all() -> str:
    """Where every executor listens."""
    return "control.all"


def commands(executor: str) -> str:
    """Where one executor listens."""
    return _join("control", executor)


def commands_of(tenant: str) -> str:
    """Where the executors of a tenant listen, each command for one of them."""
    return _join("control", "tenant", tenant)


def answers(executor: str) -> str:
    """Where an executor answers commands."""
    return _join("control", "status", executor)


def audience(environment: str, subject: str) -> str:
    """What an envelope is bound to: the environment and the full subject it is read from."""
    return f"{environment}/{subject}"
