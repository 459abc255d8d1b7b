"""Pytest plugin: two tables name tests, and a run of all tests holds the tables to it.

`security/threats.toml` says which tests prove that an attack fails, `practices.toml` which tests
prove that a practice is kept. A row has `tests`, or says with `pending` what is not built; with
both, the tests prove one part and `pending` names the other. A row that names a function means that
every parameter of it passed: skipped is not passed.

Only a run of the whole tree can judge; a run of a part just counts. With several processes
(pytest-xdist) the first of them judges: what the others collected and left out, it is told.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]
THREATS: Final = "tests/security/threats.toml"
PRACTICES: Final = "tests/practices.toml"
# The words of the summary: what a whole row is called, and where its table is.
TABLES: Final = {"threats": ("proven", THREATS), "practices": ("done", PRACTICES)}

COMPLETE: Final = "complete"
IN_PART: Final = "in part"
PENDING: Final = "pending"
NOT_RUN: Final = "not run"
BROKEN: Final = "broken"
_LEFT_OUT: Final = "left out"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table; `tests` are node ids of functions, without parameters."""

    name: str
    tests: tuple[str, ...] = ()
    pending: str = ""


def load(path: Path) -> tuple[Row, ...]:
    """The rows of a table. Raises `pytest.UsageError` for what is no table."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Row(name, tuple(values.get("tests", ())), values.get("pending", ""))
            for name, values in found.items()
        )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise pytest.UsageError(f"{path}: {error}") from error


def function_of(node_id: str) -> str:
    """The node id without its parameters."""
    return node_id.partition("[")[0]


@dataclass(slots=True)
class Outcomes:
    """What became of each test function, over all of its parameters."""

    collected: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    spoiled: dict[str, str] = field(default_factory=dict)  # function → failed or skipped

    def collect(self, node_id: str) -> None:
        """Note that it is to run."""
        self.collected[function_of(node_id)] += 1

    def report(self, node_id: str, when: str, outcome: str) -> None:
        """Note one of its three phases; a failure is not hidden by a skip."""
        function = function_of(node_id)
        if outcome == "passed":
            self.passed[function] += when == "call"
        elif self.spoiled.get(function) != "failed":
            self.spoiled[function] = outcome

    def fault(self, function: str) -> str:
        """Why `function` proves nothing, or "" if all of it passed."""
        if not self.collected[function]:
            return "was not collected"
        if function in self.spoiled:
            return {"failed": "failed", "skipped": "was skipped"}[self.spoiled[function]]
        return "" if self.passed[function] == self.collected[function] else "did not run"


def state(row: Row, outcomes: Outcomes) -> str:
    """How far `row` is."""
    faults = {outcomes.fault(test) for test in row.tests} - {""}
    if faults & {"failed", "was skipped"}:
        return BROKEN
    if faults:
        return NOT_RUN
    if row.tests:
        return IN_PART if row.pending else COMPLETE
    return PENDING


def faults(rows: Iterable[Row], outcomes: Outcomes) -> list[str]:
    """A line for each named test that did not pass."""
    return [
        f"{row.name}: {test} {fault}"
        for row in rows
        for test in row.tests
        if (fault := outcomes.fault(test))
    ]


def summary(tables: dict[str, Sequence[Row]], outcomes: Outcomes, *, skipped: int) -> str:
    """One line for the end of a run; what nobody has is not said, `pending` always."""
    parts = []
    for name, rows in tables.items():
        counts = Counter(state(row, outcomes) for row in rows)
        words = [f"{counts[COMPLETE]} {TABLES[name][0]}"]
        words += [f"{counts[s]} {s}" for s in (IN_PART, NOT_RUN, BROKEN) if counts[s]]
        parts.append(f"{name}: {', '.join([*words, f'{counts[PENDING]} {PENDING}'])}")
    return " · ".join([*parts, f"skipped: {skipped}"])


def files_of(root: Path) -> set[str]:
    """The node ids of all test files there are."""
    return {path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py")}


class Keeper:
    """The plugin of one session, for the tests under `root`."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._tables = {name: load(root / path) for name, (_, path) in TABLES.items()}
        self._outcomes = Outcomes()
        self._files: set[str] = set()
        self._deselected = False
        self._faults: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note which files were looked into."""
        self._files.add(report.nodeid)

    def pytest_deselected(self) -> None:
        """Note that somebody chose."""
        self._deselected = True

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what will run."""
        for item in session.items:
            self._outcomes.collect(item.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        """Note what will run, once: every process collects all."""
        del node
        if not self._outcomes.collected:
            for node_id in ids:
                self._files.add(node_id.partition("::")[0])
                self._outcomes.collect(node_id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Note that another process was told to leave tests out."""
        self._deselected |= getattr(node, "workeroutput", {}).get(_LEFT_OUT, True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of it."""
        self._outcomes.report(report.nodeid, report.when or "", report.outcome)

    def is_whole(self, session: pytest.Session) -> bool:
        """Whether every test there is was to run, and nothing stopped the session."""
        return not (
            self._deselected
            or session.config.option.collectonly
            or session.shouldstop
            or session.shouldfail
            or any("::" in argument for argument in session.config.args)
            or files_of(self._root) - self._files
        )

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail a whole run in which a row's test did not pass."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_LEFT_OUT] = self._deselected
            return
        if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            return
        if self.is_whole(session):
            self._faults = faults([row for rows in self._tables.values() for row in rows],
                                  self._outcomes)  # fmt: skip
        if self._faults:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how far the tables are, and which rows do not hold."""
        if self._faults:
            terminalreporter.section("rows whose tests did not pass", red=True)
        for line in self._faults:
            terminalreporter.write_line(line)
        skipped = len(terminalreporter.stats.get("skipped", ()))
        terminalreporter.write_line(summary(dict(self._tables), self._outcomes, skipped=skipped))


def pytest_configure(config: pytest.Config) -> None:
    """Watch over this session."""
    config.pluginmanager.register(Keeper(), "executor-tables")
