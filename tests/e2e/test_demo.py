"""`executor demo`: everything it shows, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.command import Done, Shell, finish
from tests.servers import eventually

CODES = {
    "limit.fuel-exhausted", "limit.memory-exceeded", "limit.deadline-exceeded", "guest.trap",
    "policy.capability-denied", "module.unsigned", "module.signature-invalid", "message.malformed",
}  # fmt: skip


def _processes_of(folder: Path) -> list[str]:
    """Processes that name the folder in their command line, environment or working folder."""
    needle = os.fsencode(folder)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if needle in said or needle in os.fsencode((entry / "cwd").readlink()):
                found.append(f"{entry.name} {said[:200]!r}")
        except OSError:
            continue  # it ended, or is not ours
    return found


@pytest.fixture
def clean(tmp_path: Path) -> Shell:
    """A folder to work in and a TMPDIR beside it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work", {"TMPDIR": str(tmp_path / "tmp")})


def _is_clean(shell: Shell) -> None:
    assert list((shell.folder.parent / "tmp").iterdir()) == []
    assert _processes_of(shell.folder.parent) == []


def test_demo(clean: Shell) -> None:
    """All thirteen tasks end, in at least eight different ways, and nothing stays behind."""
    done = clean.run("demo", "--json", "--report", "report.json")
    found = done.object()
    assert found["schema"] == "executor.demo/1"
    assert found["submitted"] == 13
    assert found["lost"] == 0
    assert found["results"] >= 5
    assert set(found["dead"]) >= CODES
    assert found["results"] + sum(found["dead"].values()) == found["submitted"]
    assert {task["schema"] for task in found["tasks"]} == {"executor.outcome/1"}
    assert json.loads((clean.folder / "report.json").read_bytes()) == found
    assert done.err == ""
    assert [path.name for path in clean.folder.iterdir()] == ["report.json"]
    _is_clean(clean)


def test_demo_for_people(clean: Shell) -> None:
    """The table has a line a task and ends with what to do next."""
    done = clean.run("demo")
    lines = done.text.splitlines()
    assert lines[0].split()[:3] == ["TASK", "ATTEMPT", "OUTCOME"]
    assert lines[-1] == "13 tasks: 5 results, 8 dead letters, 0 lost · next: executor init mine"
    assert "starting nats-server" in done.err


def _interrupted(clean: Shell, number: signal.Signals) -> Done:
    process = clean.start("demo", "-v")
    folder = Path(clean.env["TMPDIR"])

    async def begun() -> bool:
        return process.poll() is not None or bool(await asyncio.to_thread(os.listdir, folder))

    # Its server's folder is there, and a second of work is still to come on the fastest machine.
    asyncio.run(eventually(begun))
    process.send_signal(number)
    return finish(process)


def test_interrupted_demo_cleans_up(clean: Shell) -> None:
    """A demo that is stopped half-way takes its server and its folder with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        done = _interrupted(clean, number)
        assert done.code == 130, done.err
        assert "Traceback" not in done.err
        _is_clean(clean)
