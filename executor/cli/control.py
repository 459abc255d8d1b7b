"""CONTROL, opened for one call of a verb."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from executor.cli.serving import settings
from executor.config import Config
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
