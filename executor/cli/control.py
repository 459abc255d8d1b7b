"""CONTROL, opened for one call of a verb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from executor.cli.serving import settings
from executor.config import Config
from executor.core import release, subjects
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import Release
from executor.transport.connection import Connection
from executor.transport.control import Control


async def with_control(config: Config, use: Callable[[Control, Connection], Awaitable[Any]]) -> Any:
    """What `use` makes of the bucket and the connection, which is closed afterwards."""
    connection = await Connection.open(
        settings(config, "executor-control", "operator_"), lambda _n, _f: None
    )
    try:
        return await use(Control(connection), connection)
    finally:
        await connection.close()


async def live_release(config: Config, bucket: Control, tenant: str, task: str) -> Release | None:
    """What the task's name stands for, as executors believe it.

    Errors  `transport.*`; where releases are signed, `trust.*`.
    """
    if config.signed:
        from executor.trust.source import Source  # the library takes as long to load as click

        return Source.of(config).load().releases.get((tenant, task))
    key = subjects.release_key(tenant, task)
    found = await bucket.get(key)
    if found is None:
        return None
    try:
        said = config.opener().said(key, found.body, stored_at=found.stored_at_ms)
    except NotAuthenticError:
        return None
    return release.from_fields(said.fields, tenant, task) if said.fields else None


async def is_known(config: Config, bucket: Control, tenant: str, task: str) -> bool:
    """Whether a task has a release; yes where that cannot be told: it is for warnings."""
    try:
        return await live_release(config, bucket, tenant, task) is not None
    except ExecutorError:
        return True
