"""The real pipeline through random mishaps: exactly one outcome, whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import loop as virtual
from tests.sim import planted
from tests.sim.__main__ import describe
from tests.sim.executors import pause
from tests.sim.history import live, retold

_ROOT = Path(__file__).parents[2]
# What a run of this size must have met, or the simulation has gone blind.
_MET = (
    "redeliver", "conflict", "duplicate", "fires", "fires twice", "lease-lost", "KILLED", "nak",
    "drains", "SERVER DOWN", "cancel", "record-not-authentic", "retry-not-authentic",
    "publish-unconfirmed", "disconnected", "message.deliveries-exhausted",
    "message.expired", "task.cancelled", "sandbox.crashed", "capability.unavailable",
)  # fmt: skip


def test_every_history_ends_in_one_outcome_each(request: pytest.FixtureRequest) -> None:
    """1,000 histories of faults: each accepted id has one authentic record; see `checks.py`."""
    runs = int(request.config.getoption("--sim-runs", 1_000))
    seed = int(request.config.getoption("--sim-seed", 1))
    met: dict[str, int] = {}
    for count in range(runs):
        report = live(seed + count)
        for name, value in report.facts.items():
            met[name] = met.get(name, 0) + value
        if report.violations:
            pytest.fail(describe(report), pytrace=False)
    if runs >= 1_000:
        assert [name for name in _MET if not met.get(name)] == []


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same events, in another process and under another hash seed too."""
    code = "from tests.sim.test_sim import fingerprint; print(fingerprint())"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=_ROOT, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert done.stdout.strip() == fingerprint()


def fingerprint() -> str:
    """A digest of every event of some histories."""
    digest = hashlib.sha256()
    for seed in range(40):
        digest.update("\n".join(retold(seed).trace).encode())
    return digest.hexdigest()


def test_virtual_time_costs_nothing_and_never_hangs() -> None:
    """A year passes at once, in the order of the timers; what can never end is an error."""
    order: list[str] = []

    async def year() -> float:
        loop = asyncio.get_running_loop()
        await pause(1.0)
        loop.call_later(60, order.append, "late")
        loop.call_later(30, order.append, "early")
        await pause(365 * 86_400.0)
        return loop.time()

    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    async def spins() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await loop.create_future()

    assert virtual.run(year()) == pytest.approx(365 * 86_400 + 1)
    assert order == ["early", "late"]
    for stuck in (waits, spins):
        with pytest.raises(virtual.StuckError):
            virtual.run(stuck())


@pytest.mark.parametrize("name", planted.PLANTS)
def test_a_planted_bug_is_found(name: str) -> None:
    """Each bug that is planted into the product is found within 1,000 histories."""
    count, report = planted.hunt(name, 1_000)
    assert report is not None, f"{name}: not found"
    sys.stdout.write(f"{name}: found after {count}: {report.violations[0]}\n")
