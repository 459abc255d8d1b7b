"""Minutes of load on a cluster while everything dies; `pytest -m soak tests/fault`.

Longer: `python -m benchmarks soak --minutes 10 --tasks 100000`.
"""

from __future__ import annotations

import random
import sys

import pytest

from benchmarks.soak import soak

MINUTES = 2.0
TASKS = 20_000


@pytest.mark.soak
@pytest.mark.timeout(1_500)
def test_everything_dies_for_minutes() -> None:
    """Sandboxes, supervisors and nodes die at random: nothing lost, nothing twice, all as asked."""
    seed = random.SystemRandom().randrange(10_000)
    report = soak(TASKS, MINUTES, seed)
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in report.items()))
    assert report["tasks"] == TASKS
    assert (report["lost"], report["twice"], report["strange ids"]) == (0, 0, 0)
    assert (report["not authentic"], report["ended otherwise"]) == (0, {})
    assert set(report["left over"].values()) == {0}
    assert report["kills"].keys() == {"sandbox", "supervisor", "node"}
