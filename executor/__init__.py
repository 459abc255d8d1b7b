"""A WebAssembly-sandboxed task executor on NATS.

`Client`, `SyncClient`, `TaskOutcome` and `TaskError` are what programs use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.client import Client, SyncClient, TaskError, TaskOutcome
    from executor.errors import ExecutorError

__version__ = "0.1.0"
__all__ = ["Client", "ExecutorError", "SyncClient", "TaskError", "TaskOutcome", "__version__"]


def __getattr__(name: str) -> object:
    """Import the client when it is asked for: a sandbox imports this package and must not."""
    if name == "ExecutorError":
        from executor.errors import ExecutorError

        return ExecutorError
    if name in __all__:
        from executor import client

        return getattr(client, name)
    raise AttributeError(f"module `executor` has no `{name}`")
