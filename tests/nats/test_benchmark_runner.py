"""The benchmarks run: real contenders for moments, real reports; no number is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environments import UnavailableError, revision

ROOT = Path(__file__).parents[2]


def bench(
    tmp_path: Path, *arguments: str, **environ: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One run with its report in a folder."""
    out = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--out", str(out)], cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=100, env={**os.environ, **environ},
    )  # fmt: skip
    return done, out


def test_end_to_end_and_in_process(tmp_path: Path) -> None:
    """Executor and bare loop deliver results that compare equal; every file of the report is there.

    A peer that cannot be installed is a row that says why.
    """
    done, out = bench(
        tmp_path, "inprocess", "throughput", "--quick", "--seconds", "0.1", "--peers", "FastStream",
        BENCHMARKS_CACHE=str(tmp_path / "cache"), PIP_NO_INDEX="1", PIP_FIND_LINKS="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert lines[0]["cores"]
    seen = {(line["scenario"], line["who"], line["metric"]) for line in lines[1:]}
    for who in ("executor", "executor, raw bodies", "bare nats-py loop"):
        assert {("throughput", who, m) for m in ("rate", "latency", "CPU server")} <= seen
    assert ("inprocess", "executor", "host call") in seen
    text = (out / "report.md").read_text()
    assert done.stdout.strip() == text.strip()
    assert "| FastStream |" in text
    assert "not measured: not installed" in text
    assert "<svg" in (out / "report.html").read_text()


def test_records_survive_what_is_killed(tmp_path: Path) -> None:
    """`kills` ends with one record for each task."""
    done, _out = bench(tmp_path, "kills", "--tasks", "200", "--json")
    assert done.returncode == 0, done.stderr
    counts = {line["metric"]: line["values"] for line in map(json.loads, done.stdout.splitlines())}
    assert counts["tasks"] == [200]
    assert counts["lost"] == counts["twice"] == [0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["nothing"], "no scenario is called nothing"),
     (["throughput", "--peers", "Nobody"], "no peer is called Nobody"),
     (["kills", "--compare", "HEAD"], "--compare is of")],
)  # fmt: skip
def test_mistakes_are_said_before_anything_runs(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    """A wrong name ends the run at once, and nothing is written."""
    done, out = bench(tmp_path, *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert not out.exists()


def test_another_revision_is_run_even_isolated() -> None:
    """The interpreter of a revision imports its code with `-I` too, as sandboxes are started."""
    with revision("HEAD") as python:
        done = subprocess.run(
            [python, "-I", "-c", "import executor, wasmtime; print(executor.__file__)"],
            capture_output=True, text=True, check=True, cwd="/",
        )  # fmt: skip
        tree = Path(done.stdout.strip()).parents[1]
        assert tree != ROOT
        assert tree.name == "tree"
    assert not tree.exists()
    with pytest.raises(UnavailableError), revision("no-such-revision"):
        pass
