"""Who may publish and subscribe to what on NATS: one row a role, and nothing beside the rows.

Subjects are templates: `{t}` is each tenant the login serves, `{n}` the login's own name. What
stands under `by_action` is given only within tenants where policy allows that action. Nobody's
rights have a subject that only the server publishes to (`stored.`, `due.`) among what they may
publish, and only a deployer makes or changes streams and consumers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

_API: Final = "$JS.API."
_GET: Final = "$JS.API.DIRECT.GET."
_FIXED: Final = ("KV_CONTROL", "KV_TRUST", "OBJ_MODULES")  # streams that all share
_OF_TENANT: Final = ("LATER_{t}", "TASKS_{t}", "OUTCOMES_{t}", "KV_T_{t}")
_AUDIT_KEPT: Final = tuple(
    f"{_API}STREAM.{verb}.AUDIT" for verb in ("DELETE", "UPDATE", "PURGE", "MSG.DELETE")
)


@dataclass(frozen=True, slots=True)
class Role:
    """A row; see the module. `whose` is what the login's name names."""

    whose: Literal["tenant", "executor", "publisher", "operator", "anyone", "server"]
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    by_action: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # every one of these actions, or there is no such login

    @property
    def account(self) -> Literal["tenant", "publisher", "executors", "system"]:
        """Where it lives: each tenant and publisher has an account, all others that of the streams.

        A publisher stores bytes of its choice and reads them back: in the account of the streams
        the server would write them wherever its request says.
        """
        if self.whose in {"tenant", "publisher"}:
            return self.whose
        return "system" if self.whose == "server" else "executors"


@dataclass(frozen=True, slots=True)
class Rights:
    """What one login may do."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    denied: tuple[str, ...] = ()  # of `publish`


def _reads(stream: str) -> tuple[str, str]:
    """A direct get of the last message of a subject; scans, and reads by sequence."""
    return f"{_GET}{stream}.>", f"{_GET}{stream}"


# Verified by whoever reads it, and no secret: every host and person may fetch it.
_TRUST: Final = (f"{_GET}KV_TRUST.>",)


def _says(key: str) -> tuple[str, str]:
    """An entry of CONTROL: written, and read back before and after."""
    return f"$KV.CONTROL.{key}", f"{_GET}KV_CONTROL.$KV.CONTROL.{key}"


_SUBMIT: Final = ("task.{t}.*", *_TRUST)
_CANCEL: Final = {"cancel": _says("cancel.{t}.>")}
_READ: Final = _reads("OUTCOMES_{t}")
_LIVE: Final = ("stored.result.{t}.>", "stored.dead.{t}.>")

ROLES: Final[Mapping[str, Role]] = {
    "submitter": Role("tenant", _SUBMIT, by_action=_CANCEL, needs=("submit",)),
    "reader": Role("tenant", (*_READ, *_TRUST), _LIVE, needs=("read",)),
    "client": Role("tenant", (*_SUBMIT, *_READ), _LIVE, by_action=_CANCEL,
                   needs=("submit", "read")),
    "executor": Role(
        "executor",
        (
            "$JS.API.CONSUMER.MSG.NEXT.TASKS_{t}.executor", "$JS.ACK.TASKS_{t}.executor.>",
            "result.{t}.>", "dead.{t}.>", "later.{t}.>", "$KV.T_{t}.>",
            *_READ, *_reads("KV_T_{t}"), *_reads("LATER_{t}"),
            # What an executor says; releases, pauses and the like it only reads.
            "$KV.CONTROL.status.*", "$KV.CONTROL.breaker.*.{t}.*",
            # For all tenants an operator says it.
            "$KV.CONTROL.quarantine.*.{t}", "$KV.CONTROL.usage.*.{t}",
            *_reads("KV_CONTROL"), *_reads("KV_TRUST"), *_reads("OBJ_MODULES"),
            # What it compares before it starts.
            *(f"{_API}STREAM.INFO.{stream}" for stream in (*_FIXED, *_OF_TENANT)),
            f"{_API}CONSUMER.INFO.TASKS_{{t}}.executor",
            "control.status.{n}", "audit.exec.{n}",
        ),
        ("stored.control.>", "stored.trust.>", "$KV.TRUST.>", "control.all", "control.{n}",
         "control.tenant.{t}"),
    ),
    "publisher": Role(
        "publisher",
        # A release chooses among what was signed for its task: publishers write it themselves.
        ("$O.MODULES.C.>", "$O.MODULES.M.>", *_reads("OBJ_MODULES"),
         *_says("release.{t}.*"), *_TRUST),
        by_action={"release": ("$KV.TRUST.>",)},
    ),
    "trust": Role("operator", ("$KV.TRUST.>", *_reads("KV_TRUST")), ("stored.trust.>",),
                  needs=("change-policy",)),
    "operator": Role(
        "operator",
        (
            f"{_API}INFO", f"{_API}STREAM.INFO.*", f"{_API}STREAM.NAMES",
            f"{_API}CONSUMER.INFO.*.*", f"{_API}CONSUMER.NAMES.*",
            # Its verbs look before they write. Neither holds payloads but those of schedules.
            *_reads("KV_CONTROL"), f"{_GET}*.later.*.*.*.cron", *_reads("OBJ_MODULES"),
            *_TRUST, "audit.oper.{n}",
            # What counts there two others have signed.
            "$KV.CONTROL.break-glass.*",
        ),
        ("control.status.*",),
        by_action={
            "pause": ("$KV.CONTROL.pause.{t}.*", "$JS.API.CONSUMER.PAUSE.TASKS_{t}.executor"),
            "quarantine": ("$KV.CONTROL.quarantine.>",),
            "cancel": ("$KV.CONTROL.cancel.{t}.>",),
            "submit": ("$KV.CONTROL.schedule.{t}.>",),
            "release": ("$KV.CONTROL.release.{t}.*",),
            "retry": ("control.tenant.{t}",), "discard": ("control.tenant.{t}",),
            "drain": ("control.*",),
        },
    ),
    "auditor": Role(
        "operator",
        (f"{_API}STREAM.INFO.AUDIT", *_reads("AUDIT"),
         f"{_API}CONSUMER.MSG.NEXT.AUDIT.audit", "$JS.ACK.AUDIT.audit.>"),
    ),
    "notary": Role(
        "operator",
        (f"{_API}STREAM.INFO.AUDIT", *_reads("AUDIT"),
         f"{_API}CONSUMER.MSG.NEXT.AUDIT.notary", "$JS.ACK.AUDIT.notary.>", "audit.notary"),
    ),
    # Makes and removes; a tenant that goes leaves nothing in CONTROL.
    "deployer": Role("anyone", (f"{_API}>", "$KV.CONTROL.>"), denied=_AUDIT_KEPT),
    # Tells the server who may log in; sees no message of anybody.
    "system": Role("server", ("$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.*.RELOAD")),
}  # fmt: skip


def inbox(role: str, name: str) -> str:
    """The prefix of a login's replies: no role reads what was answered to another."""
    return f"_INBOX_{role}_{name}"


def rights(role: str, name: str, tenants: Iterable[str], may: Callable[[str, str], bool]) -> Rights:
    """What the login `role_name` may do within `tenants`; `may(action, tenant)` is policy."""
    row, served = ROLES[role], tuple(tenants)

    def expand(templates: Iterable[str], within: tuple[str, ...]) -> Iterable[str]:
        for template in templates:
            if "{t}" in template:
                yield from (template.format(t=tenant, n=name) for tenant in within)
            elif within or row.whose != "tenant":
                yield template.format(n=name)

    publish = [*expand(row.publish, served)]
    for action, templates in row.by_action.items():
        allowed = tuple(tenant for tenant in served if may(action, tenant))
        if allowed:
            publish += expand(templates, allowed)
    return Rights(
        tuple(dict.fromkeys(publish)),
        (f"{inbox(role, name)}.>", *expand(row.subscribe, served)),
        row.denied,
    )
