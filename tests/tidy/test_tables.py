"""The tables of threats and practices: complete, naming tests that exist, and held to by a run."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import tables
from tests.tables import BROKEN, COMPLETE, IN_PART, NOT_RUN, PENDING, Outcomes, Row

ROOT = Path(__file__).parents[2]
TEXTS = {tables.THREATS: {"asset", "attack", "control"}, tables.PRACTICES: {"practice"}}
NAMES = {
    tables.THREATS: [f"T{number}" for number in range(1, 23)],
    tables.PRACTICES: [str(number) for number in range(1, 69)],
}
ROWS = [(path, name) for path, names in NAMES.items() for name in names]
TEST = "tests/test_a.py::test_a"


@functools.cache
def _table(path: str) -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / path).read_text())


@functools.cache
def _functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("path", NAMES)
def test_the_rows_are_all_there(path: str) -> None:
    """Every threat and every practice has its row, in order, and no other has one."""
    assert list(_table(path)) == NAMES[path]


@pytest.mark.parametrize(("path", "name"), ROWS)
def test_a_row_is_complete(path: str, name: str) -> None:
    """A row says in words what it is about, and has tests, a reason to wait, or both."""
    row = _table(path)[name]
    assert TEXTS[path] <= row.keys() <= TEXTS[path] | {"tests", "pending"}
    assert row.keys() & {"tests", "pending"}
    for key in row.keys() - {"tests"}:
        text = row[key]
        assert isinstance(text, str)
        assert text.strip() == text != ""
        assert "\n" not in text


@pytest.mark.parametrize("path", NAMES)
def test_every_named_test_exists(path: str) -> None:
    """What a row names is a test function of ours, named once."""
    unknown = []
    for row in tables.load(ROOT / path):
        assert len(set(row.tests)) == len(row.tests), row.name
        for test in row.tests:
            file, _, function = test.partition("::")
            there = (ROOT / file).is_file() and file.startswith("tests/")
            if not (there and function.startswith("test_") and function in _functions(ROOT / file)):
                unknown.append(f"{row.name}: {test}")
    assert unknown == []


def outcomes_of(*reports: tuple[str, str, str], collected: tuple[str, ...] = (TEST,)) -> Outcomes:
    """What a run with these tests and reports leaves."""
    outcomes = Outcomes()
    for node_id in collected:
        outcomes.collect(node_id)
    for report in reports:
        outcomes.report(*report)
    return outcomes


PASSED = [(TEST, "setup", "passed"), (TEST, "call", "passed"), (TEST, "teardown", "passed")]


def test_a_row_whose_test_passed_is_complete() -> None:
    """A test that passed in all three phases proves its row."""
    outcomes = outcomes_of(*PASSED)
    assert tables.faults([Row("T1", (TEST,))], outcomes) == []
    assert tables.state(Row("T1", (TEST,)), outcomes) == COMPLETE
    assert tables.state(Row("T1", (TEST,), "the rest"), outcomes) == IN_PART


def test_a_pending_row_is_no_fault() -> None:
    """A row that waits is counted as waiting, whatever ran."""
    assert tables.faults([Row("T1", (), "why")], Outcomes()) == []
    assert tables.state(Row("T1", (), "why"), Outcomes()) == PENDING


def test_a_missing_test_is_a_fault() -> None:
    """A test that is not there any more proves nothing, even beside one that passed."""
    row = Row("T1", (TEST, "tests/test_a.py::test_gone"), "the rest")
    outcomes = outcomes_of(*PASSED)
    assert tables.faults([row], outcomes) == ["T1: tests/test_a.py::test_gone was not collected"]
    assert tables.state(row, outcomes) == NOT_RUN


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
@pytest.mark.parametrize(("outcome", "word"), [("failed", "failed"), ("skipped", "was skipped")])
def test_a_test_that_did_not_pass_is_a_fault(when: str, outcome: str, word: str) -> None:
    """A failure or a skip in any phase spoils the row."""
    reports = [(node, phase, outcome if phase == when else said) for node, phase, said in PASSED]
    outcomes = outcomes_of(*reports)
    assert tables.faults([Row("7", (TEST,))], outcomes) == [f"7: {TEST} {word}"]
    assert tables.state(Row("7", (TEST,)), outcomes) == BROKEN


def test_every_parameter_has_to_pass() -> None:
    """One parameter that failed, was skipped or never ran spoils the function."""
    nodes = (f"{TEST}[a]", f"{TEST}[b::c]")
    first, second = ((node, "call", "passed") for node in nodes)
    assert outcomes_of(first, second, collected=nodes).fault(TEST) == ""
    assert outcomes_of(first, collected=nodes).fault(TEST) == "did not run"
    failed = (nodes[1], "call", "failed")
    assert outcomes_of(first, failed, collected=nodes).fault(TEST) == "failed"
    skipped = (nodes[0], "setup", "skipped")
    assert outcomes_of(failed, skipped, collected=nodes).fault(TEST) == "failed"


def test_the_summary_counts_rows() -> None:
    """One line says how far the tables are; what there is none of is left out."""
    rows = [Row("1", (TEST,)), Row("2", (TEST,), "the rest"), Row("3", (), "why")]
    outcomes = outcomes_of(*PASSED)
    line = tables.summary({"threats": rows, "practices": rows[:1]}, outcomes, skipped=2)
    assert line == (
        "threats: 1 proven, 1 in part, 1 pending · practices: 1 done, 0 pending · skipped: 2"
    )
    line = tables.summary({"threats": rows}, Outcomes(), skipped=0)
    assert line == "threats: 0 proven, 2 not run, 1 pending · skipped: 0"


@pytest.mark.parametrize("text", ["[T1", "T1 = 1", "[T1]\ntests = 1"])
def test_what_is_no_table_stops_the_run(tmp_path: Path, text: str) -> None:
    """A broken table is said before any test runs, with its path."""
    path = tmp_path / "threats.toml"
    path.write_text(text)
    with pytest.raises(pytest.UsageError, match=r"threats\.toml"):
        tables.load(path)


CONFTEST = """
from pathlib import Path
from tests.tables import Keeper

def pytest_configure(config):
    config.pluginmanager.register(Keeper(Path(__file__).parent))
"""
GOOD, BAD, GONE = "test_small.py::test_good", "test_small.py::test_bad", "test_gone.py::test_it"


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("named", "chosen", "status", "said"),
    [
        ([GOOD], [], 0, "threats: 1 proven, 0 pending"),
        ([GOOD, GONE], [], 1, f"T1: tests/{GONE} was not collected"),
        ([GOOD, BAD], [], 1, f"T1: tests/{BAD} was skipped"),
        ([GOOD, GONE], ["-k", "good"], 0, "threats: 0 proven, 1 not run, 0 pending"),
        ([GOOD, GONE], ["tests/test_small.py"], 0, "skipped: 1"),
        ([GOOD, GONE], ["tests/test_small.py::test_good", "tests/test_other.py"], 0, "1 not run"),
        ([GOOD, GONE], ["--collect-only"], 0, "threats: 0 proven, 1 not run, 0 pending"),
    ],
)
def test_a_whole_run_is_held_to_the_tables(
    tmp_path: Path, named: list[str], chosen: list[str], status: int, said: str, processes: int
) -> None:
    """A run of everything fails for a row that does not hold; a run of a part does not judge."""
    (tmp_path / "tests" / "security").mkdir(parents=True)
    files = {
        "pytest.ini": "[pytest]\ntestpaths = tests\n",
        "conftest.py": CONFTEST,
        tables.THREATS: f"[T1]\ntests = {[f'tests/{test}' for test in named]}\n",
        tables.PRACTICES: '[1]\npending = "why"\n',
        "tests/test_small.py": (
            "import pytest\ndef test_good(): pass\ndef test_bad(): pytest.skip('no')\n"
        ),
        "tests/test_other.py": "def test_other(): pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"-n{processes}", *chosen],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout
