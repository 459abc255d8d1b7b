"""Fixtures of the nats tier: a private server, its log shown when a test fails."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # for `tests.servers`, however pytest is started

from tests.servers import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream and no login."""
    with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the server's log to a failure."""
    report = yield
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    running = funcargs.get("server")
    if report.failed and isinstance(running, NatsServer):
        report.sections.append(("nats-server", running.log()))
    return report
