"""What executors say in CONTROL of the use of grants: read together, or taken over by a new one."""

from __future__ import annotations

import contextlib

from executor.cli.heartbeat import GONE_MS
from executor.cli.output import now_ms
from executor.config import Config
from executor.core import usage as usages
from executor.core.control import Value
from executor.core.seal import NotAuthenticError
from executor.core.usage import Usage
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.supervisor.ports import Board
from executor.supervisor.usage import Usages
from executor.transport.connection import Connection
from executor.transport.control import Control


def _said(key: str, stored: StoredMessage, config: Config) -> dict[str, Value]:
    """The fields of an entry; none of what nobody may have said, or what was taken back."""
    try:
        said = config.opener().said(key, stored.body, stored_at=stored.stored_at_ms)
    except NotAuthenticError:
        return {}
    return said.fields or {}


def _read(key: str, stored: StoredMessage, config: Config) -> Usage | None:
    """One entry; None of what is not valid, which counts for nobody."""
    report = _said(key, stored, config).get("report")
    try:
        return usages.decode(report) if isinstance(report, bytes) else None
    except ExecutorError:
        return None


async def read_usages(bucket: Control, config: Config) -> dict[str, Usage]:
    """What all executors saw, by tenant."""
    found: dict[str, Usage] = {}
    for key, stored in (await bucket.entries("usage")).items():
        usage, tenant = _read(key, stored, config), key.rpartition(".")[2]
        if usage is not None:
            found.setdefault(tenant, Usage()).add(usage)
    return found


async def adopt_usage(
    connection: Connection, board: Board, life: str, config: Config, mine: Usages
) -> None:
    """Go on from what earlier lives of this executor saw; a life that beats keeps its own.

    What cannot be read now stays where it is, and counts in every report all the same.
    """
    bucket, name = Control(connection), life.rpartition("_")[0]
    with contextlib.suppress(ExecutorError):
        beating = {
            key.partition(".")[2]
            for key, stored in (await bucket.entries("status")).items()
            if now_ms() - int(_said(key, stored, config).get("at", 0)) < GONE_MS
        }
        for key, stored in (await bucket.entries("usage")).items():
            other, _, tenant = key.partition(".")[2].partition(".")
            if other.rpartition("_")[0] != name or (other in beating and other != life):
                continue
            usage = _read(key, stored, config)
            if usage is not None:
                mine.adopt(tenant, usage)
                if other != life:
                    board.delete(key)
