"""What executors say in CONTROL of the use of grants: read together, or taken over by a new one."""

from __future__ import annotations

import contextlib

from executor.cli.heartbeat import GONE_MS
from executor.cli.output import now_ms
from executor.config import Config
from executor.core import control
from executor.core import usage as usages
from executor.core.usage import Usage
from executor.errors import ExecutorError
from executor.supervisor.usage import Usages
from executor.transport.connection import Connection
from executor.transport.control import Control


def _read(value: bytes, key: str, config: Config) -> Usage | None:
    """One entry; None of what is not valid, which counts for nobody."""
    try:
        fields = control.decode(value, "usage", key, config.text("host.environment"))
        report = fields["report"]
        return usages.decode(report) if isinstance(report, bytes) else None
    except ExecutorError:
        return None


async def read_usages(bucket: Control, config: Config) -> dict[str, Usage]:
    """What all executors saw, by tenant."""
    found: dict[str, Usage] = {}
    for key, (value, _) in (await bucket.entries("usage")).items():
        usage, tenant = _read(value, key, config), key.rpartition(".")[2]
        if usage is not None:
            found.setdefault(tenant, Usage()).add(usage)
    return found


def _beats(key: str, value: bytes, config: Config) -> bool:
    try:
        fields = control.decode(value, "status", key, config.text("host.environment"))
    except ExecutorError:
        return False
    return now_ms() - int(fields["at"]) < GONE_MS


async def adopt_usage(connection: Connection, life: str, config: Config, mine: Usages) -> None:
    """Go on from what earlier lives of this executor saw; a life that beats keeps its own.

    What cannot be read now stays where it is, and counts in every report all the same.
    """
    bucket, name = Control(connection), life.rpartition("_")[0]
    with contextlib.suppress(ExecutorError):
        beating = {
            key.partition(".")[2]
            for key, (value, _) in (await bucket.entries("status")).items()
            if _beats(key, value, config)
        }
        for key, (value, _) in (await bucket.entries("usage")).items():
            other, _, tenant = key.partition(".")[2].partition(".")
            if other.rpartition("_")[0] != name or (other in beating and other != life):
                continue
            usage = _read(value, key, config)
            if usage is not None:
                mine.adopt(tenant, usage)
            if other != life:
                await bucket.delete(key)
