"""For all tiers: `tests.…` can be imported, and a test may be a coroutine, run within a bound."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # however pytest is started

_TEST_S = 100.0
pytest_plugins = ["tests.tables"]  # what proves the tables of threats and practices


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in a loop of its own."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded() -> None:
        async with asyncio.timeout(_TEST_S):
            await test(**arguments)

    asyncio.run(bounded())
    return True
