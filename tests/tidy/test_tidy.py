"""Style is a test: linters, types, import contracts, sizes and the table of codes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.errors import TABLE

ROOT = Path(__file__).parents[2]
PENDING = ROOT / "tests" / "tidy" / "pending.toml"
LINES_MAX = 600
FUNCTION_MAX = 70


def _run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def _python() -> list[Path]:
    listed = subprocess.run(
        ["/usr/bin/env", "git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split() if (path := ROOT / name).is_file()]


def test_ruff_check() -> None:
    """Every rule of ruff holds but those that pyproject.toml ignores with a reason."""
    _run("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    """Every file has the one layout."""
    _run("ruff", "format", "--no-cache", "--check", ".")


def test_mypy() -> None:
    """Types hold, strictly, in the tests too."""
    _run("mypy")


def test_import_contracts() -> None:
    """Nobody imports what is not theirs to import."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


def test_file_sizes() -> None:
    """No file is longer than 600 lines."""
    sizes = {path.name: len(path.read_text().splitlines()) for path in _python()}
    assert {name: size for name, size in sizes.items() if size > LINES_MAX} == {}


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = 0
            if ast.get_docstring(node) is not None:
                docstring = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_function_sizes() -> None:
    """No function is longer than 70 lines, its docstring aside."""
    long = {
        f"{path.relative_to(ROOT)}:{name}": size
        for path in _python()
        for name, size in _functions(path)
        if size > FUNCTION_MAX
    }
    assert long == {}


def test_test_docstrings() -> None:
    """Every test states its promise."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in _python()
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_no_sleeps_in_tests() -> None:
    """Tests wait for events, not for time to pass."""
    sleeping = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _python()
        # `servers.eventually` polls a server's state, for which there is no event.
        if path.is_relative_to(ROOT / "tests") and path.name != "servers.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sleep"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in {"time", "asyncio"}
        and not (node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0)
    ]
    assert sleeping == []


def _covered() -> set[str]:
    pattern = re.compile(r'covers\(((?:\s*"[a-z.-]+",?)+)\s*\)')
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for match in pattern.finditer(path.read_text()):
            found |= set(re.findall(r'"([a-z.-]+)"', match[1]))
    return found


def test_codes_are_covered() -> None:
    """Each code has a test that explains it, or a reason to wait that is counted below."""
    pending = tomllib.loads(PENDING.read_text())
    covered = _covered()
    assert covered <= TABLE.keys(), covered - TABLE.keys()
    assert TABLE.keys() - covered - pending.keys() == set()
    assert pending.keys() & covered == set(), "no longer pending"
    sys.stdout.write(f"codes pending: {len(pending)} of {len(TABLE)}\n")


@pytest.mark.parametrize("code", list(TABLE))
def test_code_rows(code: str) -> None:
    """Each code has a sentence without full stop, a hint and somebody who can mend it."""
    row = TABLE[code]
    assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", code)
    assert row.message
    assert not row.message.endswith(".")
    assert row.hint
    assert row.who
    assert 0 < row.exit < 128


def test_no_unfinished_business() -> None:
    """No marker of something left for later stands in the code."""
    pattern = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    found = [path.name for path in _python() if pattern.search(path.read_text())]
    assert found == []


def test_only_the_sandbox_deserialises() -> None:
    """Native code is loaded in one file, in a process that is about to lock itself down."""
    loads = {"deserialize", "deserialize_file", "wasmtime_module_deserialize",
             "wasmtime_module_deserialize_file"}  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "executor").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in loads)
        or (isinstance(node, ast.Name) and node.id in loads)
        or (isinstance(node, ast.Constant) and node.value in loads)
    }
    assert found == {"executor/sandbox/main.py"}
