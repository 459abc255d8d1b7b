"""Black-box fixtures: an empty folder, and one running executor."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import House, Shell

_OPEN: list[House] = []


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """An empty folder without configuration or server."""
    return Shell(tmp_path)


@pytest.fixture(scope="session")  # it takes three seconds to start
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A running executor with `wordcount`, `flaky`, `trap` and `curious` released.

    The task `good` has a result, the task `bad` a dead letter; `acme` is the only tenant, and a
    test that adds another one removes it.
    """
    made = House(tmp_path_factory.mktemp("house") / "mine")
    made.open()
    _OPEN.append(made)
    try:
        config = made.folder / "executor.toml"
        config.write_text(config.read_text() + _GRANT)
        made.signal(signal.SIGHUP)  # read it again
        for name in ("wordcount", "flaky", "curious", "hostile/trap"):
            made.publish(name)
        made.run("submit", "wordcount", "-i", "one two two", "--id", "good", "--wait")
        dead = made.call("submit", "trap", "--id", "bad", "--wait")
        assert dead.code == 1, dead.err
        yield made
    finally:
        _OPEN.remove(made)
        status = made.close()
    assert status == 0, made.log


_GRANT = """
[[grant]]
tenant = "acme"
task = "flaky"
why = "remembers what it has seen"
kv = { prefix = "seen-", mode = "write" }
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the executor's log beside a failed test."""
    report = yield
    if report.failed:
        for made in _OPEN:
            report.sections.append(("executor serve", made.log[-8_000:]))
    return report
