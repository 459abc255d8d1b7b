"""The streams, consumers and buckets that the executor needs: desired state, made or compared.

`desired` is the whole table. Only what stands there is compared: what an operator
adds (placement, descriptions, replicas raised by hand are compared, tags are not) stays. Raw API
calls, because nats-py's StreamConfig knows neither schedules nor transforms of sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from executor.core import control, subjects
from executor.errors import ExecutorError
from executor.transport.api import NOT_FOUND, ApiError
from executor.transport.connection import Connection

CONSUMER: Final = "executor"  # one durable name; every executor of a tenant shares it
_OLD_LATER: Final = "LATER"  # what every tenant put off was in one stream once
_OVERLAP: Final = 10065
STORED: Final = "stored."  # only the server publishes below it
CONTROL_STORED: Final = "stored.control."
TRUST_STORED: Final = "stored.trust."

_MS: Final = 1_000_000  # the API counts in nanoseconds
_KIB: Final = 1024
_MIB: Final = 1024 * 1024
# Sourcing adds a header (130 bytes, 330 with the longest names; measured); a message that no longer
# fits would stop all that follow it.
_SOURCE_MARGIN: Final = 1 * _KIB
MESSAGE_MAX_BYTES: Final = 1 * _MIB  # the server's default max_payload
# What an entry of CONTROL has for headers: how long it stands, and which revision goes for it. The
# server counts them with the value.
_ENTRY_HEADERS: Final = 256
# The server swaps headers when a schedule fires. One that was stored, but would be too large then,
# stays for ever without a word (seen within 40 bytes of the limit): hence another margin.
SCHEDULE_MARGIN: Final = _SOURCE_MARGIN + 1 * _KIB


@dataclass(frozen=True, slots=True)
class TenantQueue:
    """A tenant and the bounds of its queue."""

    name: str
    queue_max_messages: int = 1_000_000
    queue_max_bytes: int = 1024 * _MIB


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may choose for all tenants."""

    replicas: int = 1
    ack_wait_ms: int = 30_000  # the lease
    # At least window x executors; the server's own default of 1,000 would stall two executors.
    max_ack_pending: int = 8_192
    message_max_bytes: int = MESSAGE_MAX_BYTES
    outcome_age_ms: int = 7 * 24 * 3600 * 1000
    outcome_max_bytes: int = 1024 * _MIB  # of each tenant; the server reserves it
    duplicate_window_ms: int = 120_000
    control_max_bytes: int = 64 * _MIB
    trust_max_bytes: int = 64 * _MIB  # a change is some kilobytes, and old ones stay
    tenant_kv_max_bytes: int = 64 * _MIB


@dataclass(frozen=True, slots=True)
class Change:
    """What `apply` did to one stream, or consumer as `stream/consumer`."""

    stream: str
    action: Literal["created", "updated", "unchanged"]
    fields: tuple[str, ...] = ()


Config = dict[str, Any]


def _base(name: str, *filters: str, options: Options) -> Config:
    return {
        "name": name,
        "subjects": list(filters),
        "storage": "file",
        "num_replicas": options.replicas,
    }


def _later(tenant: str, options: Options) -> Config:
    # The server takes no schedule whose target is not of the same stream: what one tenant puts off
    # comes due in its own queue. It knows no `discard: new` beside schedules (10052), and `old`
    # would lose tasks: the bound is `room`.
    name = subjects.later_stream(tenant)
    return {
        **_base(name, f"later.{tenant}.*.*.*", f"due.{tenant}.>", options=options),
        "retention": "workqueue",
        "allow_direct": True,  # a cancelled task's schedule is read, to end the task before it
        "allow_msg_schedules": True,
        "max_msg_size": options.message_max_bytes - _SOURCE_MARGIN,
    }


def _tasks(tenant: TenantQueue, options: Options) -> Config:
    name = tenant.name
    source = {
        "name": subjects.later_stream(name),
        "subject_transforms": [{"src": f"due.{name}.>", "dest": f"task.{name}.>"}],
    }
    return {
        **_base(subjects.tasks_stream(name), f"task.{name}.*", options=options),
        "retention": "workqueue",
        "discard": "new",
        "duplicate_window": options.duplicate_window_ms * _MS,
        "max_msg_size": options.message_max_bytes,
        "max_msgs": tenant.queue_max_messages,
        "max_bytes": tenant.queue_max_bytes,
        "sources": [source],
        # A submitter must not get any of these. No direct gets: only the consumer reads a queue.
        "allow_direct": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "allow_msg_schedules": False,
        "allow_atomic": False,
        "allow_msg_counter": False,
    }


def _outcomes(tenant: str, options: Options) -> Config:
    return {
        **_base(
            subjects.outcomes_stream(tenant),
            f"result.{tenant}.*.*",
            f"dead.{tenant}.*.*",
            options=options,
        ),
        "retention": "limits",
        "max_age": options.outcome_age_ms * _MS,
        # A full disk would end the work of all: the oldest outcomes go, and with them what is
        # known of their ids.
        "max_bytes": options.outcome_max_bytes,
        "discard": "old",
        "max_msg_size": options.message_max_bytes,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "republish": {"src": ">", "dest": f"{STORED}>"},
    }


def _bucket(name: str, max_bytes: int, options: Options) -> Config:
    return {
        **_base(f"KV_{name}", f"$KV.{name}.>", options=options),
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_bytes": max_bytes,
        "allow_direct": True,
        # Whoever may write one key could empty the whole bucket: one message a subject is enough.
        "allow_rollup_hdrs": False,
        "deny_delete": True,
    }


def _heard(name: str, max_bytes: int, stored: str, options: Options) -> Config:
    """A bucket whose watchers need no consumer, which executors may not make.

    They listen below `stored`, where only what was stored arrives, with its revision.
    """
    return {
        **_bucket(name, max_bytes, options),
        "republish": {"src": f"$KV.{name}.>", "dest": f"{stored}>"},
        # Cancellations, signs of life and removals go by themselves; executors may delete nothing.
        "allow_msg_ttl": True,
    }


def _modules(options: Options) -> Config:
    bucket = subjects.MODULES_BUCKET
    return {
        **_base(f"OBJ_{bucket}", f"$O.{bucket}.C.>", f"$O.{bucket}.M.>", options=options),
        "retention": "limits",
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": False,  # `all` in one would take every module of everybody away
    }


def _consumer(options: Options) -> Config:
    return {
        "name": CONSUMER,
        "durable_name": CONSUMER,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": options.ack_wait_ms * _MS,
        "max_deliver": -1,  # no native dead letters exist: our own bound decides
        "max_ack_pending": options.max_ack_pending,
    }


def desired(tenants: Iterable[TenantQueue], options: Options) -> Iterator[Config]:
    """Every stream; what is put off before the queue that sources it."""
    yield {
        **_heard(subjects.CONTROL_BUCKET, options.control_max_bytes, CONTROL_STORED, options),
        # Tenants say their cancellations here, unsigned for all that the server knows.
        "max_msg_size": control.ENTRY_MAX + _ENTRY_HEADERS,
    }
    yield _modules(options)
    yield _heard(subjects.TRUST_BUCKET, options.trust_max_bytes, TRUST_STORED, options)
    for tenant in tenants:
        yield _later(tenant.name, options)
        yield _tasks(tenant, options)
        yield _outcomes(tenant.name, options)
        yield _bucket(subjects.tenant_bucket(tenant.name), options.tenant_kv_max_bytes, options)


def _differences(wanted: Any, found: Any) -> Iterator[str]:
    """The top-level fields of `wanted` that `found` does not have; an absent false is equal."""
    for field, value in wanted.items():
        if not _agrees(value, found.get(field)):
            yield field


def _agrees(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, dict) and not any(_differences(wanted, found))
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(map(_agrees, wanted, found))
        )
    if wanted is False:
        return found in {None, False}
    return bool(wanted == found)


async def _found(connection: Connection, call: str) -> Config | None:
    try:
        config = (await connection.api(call))["config"]
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise error.mapped(call.rpartition(".")[2]) from None
    if not isinstance(config, dict):
        raise ExecutorError("transport.stream-mismatch", "the server's answer has no config")
    return config


def _consumer_call(verb: str, stream: str) -> str:
    return f"CONSUMER.{verb}.{stream}.{CONSUMER}"


async def _apply_stream(connection: Connection, wanted: Config) -> Change:
    name = wanted["name"]
    found = await _found(connection, f"STREAM.INFO.{name}")
    fields = () if found is None else tuple(_differences(wanted, found))
    if found is not None and not fields:
        return Change(name, "unchanged")
    verb = "CREATE" if found is None else "UPDATE"
    body = {**(found or {}), **wanted}  # what is not ours stays as it is
    try:
        try:
            await connection.api(f"STREAM.{verb}.{name}", body)
        except ApiError as error:
            if error.err_code != _OVERLAP or not await _give_way(connection):
                raise
            await connection.api(f"STREAM.{verb}.{name}", body)
    except ApiError as error:
        mapped = error.mapped(name)
        raise ExecutorError(
            mapped.code, mapped.detail, stream=name, fields=", ".join(fields)
        ) from None
    return Change(name, "created" if found is None else "updated", fields)


async def _give_way(connection: Connection) -> bool:
    """Delete the `LATER` of all tenants that came before theirs, if no task waits there.

    Recurring schedules may go with it: executors write them again, from CONTROL.
    """
    try:
        answer = await connection.api(f"STREAM.INFO.{_OLD_LATER}", {"subjects_filter": ">"})
        held = (answer["state"].get("subjects") or {}).items()
        waiting = sum(count for subject, count in held if not subjects.is_recurring(subject))
        if waiting:
            raise ExecutorError(
                "transport.stream-mismatch",
                f"`{_OLD_LATER}` of the version before still holds {waiting} tasks",
                hint="let executors of that version run until it holds none, stop them, and apply "
                "again; or delete the stream and lose those tasks",
                stream=_OLD_LATER, waiting=str(waiting),
            )  # fmt: skip
        await connection.api(f"STREAM.DELETE.{_OLD_LATER}")
    except ApiError as error:
        if error.code == NOT_FOUND:
            return False
        raise
    return True


async def _apply_consumer(connection: Connection, stream: str, wanted: Config) -> Change:
    name = f"{stream}/{CONSUMER}"
    found = await _found(connection, _consumer_call("INFO", stream))
    fields = () if found is None else tuple(_differences(wanted, found))
    if found is not None and not fields:
        return Change(name, "unchanged")
    body = {"stream_name": stream, "config": {**(found or {}), **wanted}}
    try:
        await connection.api(_consumer_call("CREATE", stream), body)
    except ApiError as error:
        raise error.mapped(name) from None
    return Change(name, "created" if found is None else "updated", fields)


async def apply(
    connection: Connection, tenants: Iterable[TenantQueue], options: Options | None = None
) -> list[Change]:
    """Make every stream as it should be; running it twice changes nothing the second time.

    Errors  `transport.stream-mismatch` where the server refuses to change a field,
            `transport.stream-full` where it has no room for the reserved bytes.
    """
    options = options or Options()
    tenants = tuple(tenants)
    changes = [await _apply_stream(connection, wanted) for wanted in desired(tenants, options)]
    for tenant in tenants:
        stream = subjects.tasks_stream(tenant.name)
        changes.append(await _apply_consumer(connection, stream, _consumer(options)))
    return changes


async def check(
    connection: Connection, tenants: Iterable[TenantQueue], options: Options | None = None
) -> None:
    """Raise for the first stream or consumer that is missing or different.

    Errors  `transport.stream-missing`, `transport.stream-mismatch` with stream, field, both values.
    """
    options = options or Options()
    tenants = tuple(tenants)
    for wanted in desired(tenants, options):
        name = wanted["name"]
        _compare(name, wanted, await _found(connection, f"STREAM.INFO.{name}"))
    for tenant in tenants:
        stream = subjects.tasks_stream(tenant.name)
        found = await _found(connection, _consumer_call("INFO", stream))
        _compare(f"{stream}/{CONSUMER}", _consumer(options), found)


def _compare(name: str, wanted: Config, found: Config | None) -> None:
    if found is None:
        raise ExecutorError("transport.stream-missing", f"`{name}`", stream=name)
    for field in _differences(wanted, found):
        raise ExecutorError(
            "transport.stream-mismatch",
            f"`{field}` of `{name}`",
            stream=name,
            field=field,
            wanted=str(wanted[field]),
            found=str(found.get(field)),
        )


async def remove_tenant(connection: Connection, tenant: str) -> list[str]:
    """Delete a tenant's streams; returns those there were. The queue goes first, and takes none."""
    removed = []
    for stream in (
        subjects.tasks_stream(tenant),
        subjects.later_stream(tenant),
        subjects.outcomes_stream(tenant),
        f"KV_{subjects.tenant_bucket(tenant)}",
    ):
        try:
            await connection.api(f"STREAM.DELETE.{stream}")
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise error.mapped(stream) from None
        else:
            removed.append(stream)
    return removed
