"""What must hold after a death, read from the streams: nothing lost, nothing twice, nobody left."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

from executor.client import TaskOutcome
from executor.core import envelope, subjects
from executor.errors import ExecutorError
from executor.model import PAYLOAD_MAX
from executor.transport import direct
from executor.transport.api import NOT_FOUND, ApiError
from executor.transport.connection import Connection
from tests.servers import connect, eventually
from tests.support.served import Site

ATTEMPTS_MAX = 3  # the default of `delivery.attempts_max`


def _id(tenant: str, task: str, body: bytes) -> str:
    """Of a task or a retry."""
    return envelope.decode_task(
        body, {}, tenant, task, environment="test", raw_allowed=False, input_max=PAYLOAD_MAX
    ).id


async def waiting(connection: Connection, tenant: str) -> set[str]:
    """The ids in LATER: scheduled, or due and not yet in the queue."""
    found = set()
    for filter_subject in (f"later.{tenant}.>", f"due.{tenant}.>"):
        async for message in direct.scan(connection, subjects.later_stream(tenant), filter_subject):
            found.add(_id(tenant, message.subject.split(".")[2], message.body))
    return found


async def queued(connection: Connection, tenant: str) -> set[str]:
    """The ids in the tenant's queue, delivered or not."""
    found: set[str] = set()
    sequence = 1
    stream = subjects.tasks_stream(tenant)
    while True:
        try:
            answer = await connection.api(
                f"STREAM.MSG.GET.{stream}",
                {"seq": sequence, "next_by_subj": f"task.{tenant}.>"},
            )
        except ApiError as error:
            if error.code == NOT_FOUND:  # no more
                return found
            raise
        message = answer["message"]
        sequence = int(message["seq"]) + 1
        body = base64.b64decode(message["data"])
        found.add(_id(tenant, message["subject"].split(".")[2], body))


async def nothing_lost(site: Site, tenant: str, ids: Iterable[str]) -> None:
    """While nobody serves, each id waits somewhere or has its record: no ack came too early."""
    connection = await connect(site.server)
    try:
        # In this order: what becomes due meanwhile moves from the first to the second.
        later = await waiting(connection, tenant)
        queue = await queued(connection, tenant)
    finally:
        await connection.close()
    ended = await site.ended(tenant)
    lost = set(ids) - later - queue - ended.keys()
    assert not lost, f"acked without a durable outcome: {lost}"


async def settled(site: Site, tenant: str, ids: Iterable[str]) -> dict[str, TaskOutcome]:
    """Wait for the end: one authentic record for each id, no more, and nothing left to do."""
    wanted = set(ids)
    await site.all_ended(len(wanted), tenant)
    await site.empty(tenant)
    connection = await connect(site.server)

    async def idle() -> bool:
        try:
            return not await waiting(connection, tenant)
        except ExecutorError:
            return False

    try:
        await eventually(idle)
        await site.empty(tenant)
    finally:
        await connection.close()
    ended = await site.ended(tenant)
    assert ended.keys() == wanted
    assert len(await site.stored(tenant)) == len(wanted)
    assert all(outcome.record.attempt <= ATTEMPTS_MAX for outcome in ended.values())
    return ended


def processes(text: str) -> list[int]:
    """Who runs with this text in the command line; a fork server's children share its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def sandboxes(supervisor: int) -> list[int]:
    """The locked processes below the fork server of a supervisor."""
    parents: dict[int, int] = {}
    locked = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text()
        except OSError:
            continue
        pid = int(path.name)
        parents[pid] = int(status.partition("PPid:")[2].split()[0])
        if "Seccomp:\t2\n" in status and "State:\tZ" not in status:
            locked.append(pid)
    return [pid for pid in locked if parents.get(parents[pid]) == supervisor]
