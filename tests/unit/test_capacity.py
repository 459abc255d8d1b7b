"""The arithmetic of capacity: each step by hand, on round figures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.core.capacity import Figures, Load, advice, costs, plan, reach
from executor.errors import ExecutorError

SEEN: Final = Figures(
    machine="here", input_bytes=1_000, submitter_us=20, server_us=30, supervisor_us=60,
    sandbox_us=40, server_kib_us=1, supervisor_kib_us=2, sandbox_kib_us=3, task_bytes=200,
    outcome_bytes=800, stream_per_s=20_000, supervisor_mib=50, sandbox_mib=10,
)  # fmt: skip
LOAD: Final = Load(10_000, 1_000, replicas=1, days=1, backlog_s=10, cores=2, memory_gib=64)


def steps(load: Load = LOAD, seen: Figures = SEEN) -> dict[str, float]:
    """Name → value."""
    return {step.name: step.value for step in plan(seen, load)}


def test_every_step_can_be_redone_by_hand() -> None:
    """10,000 tasks/s at 60 % of cores, one copy, a day of outcomes."""
    found = steps()
    assert found["one supervisor does"] == pytest.approx(0.6 * 1e6 / 60)
    assert found["executors"] == 1
    assert found["sandboxes"] == 1
    assert found["cores for executors"] == pytest.approx(10_000 * 100 / 1e6 / 0.6)
    assert found["machines for executors"] == 1
    assert found["cores for NATS"] == pytest.approx(0.5)
    assert found["one cell does"] == pytest.approx(40_000)
    assert (found["cells"], found["machines for NATS"]) == (1, 1)
    assert found["streams of each kind"] == 1
    assert found["bytes of a task"] == 1_200
    assert found["network of the servers, each way"] == pytest.approx(10_000 * 2_480 * 8 / 1e6)
    assert found["written to disks"] == pytest.approx(20)
    assert found["disk for the queue, a copy"] == pytest.approx(10_000 * 10 * 1_200 / 1e9)
    assert found["disk for outcomes, a copy"] == pytest.approx(10_000 * 86_400 * 800 / 1e9)
    assert found["memory of executors"] == 60


def test_a_larger_input_and_a_heavier_guest_cost_more() -> None:
    """A KiB beyond what was measured costs its figure; a guest's own time is the sandbox's."""
    cost = costs(SEEN, replace(LOAD, size=1_000 + 10 * 1_024, guest_us=500))
    assert (cost.server, cost.supervisor, cost.sandbox) == (40, 80, 570)
    assert costs(SEEN, replace(LOAD, size=0)) == costs(SEEN, LOAD)


def test_copies_are_paid_by_the_servers() -> None:
    """Three copies are three times the server's work, disk and machines."""
    one, three = steps(), steps(replace(LOAD, replicas=3))
    for name in ("cores for NATS", "written to disks", "machines for NATS"):
        assert three[name] == pytest.approx(3 * one[name])


@given(machines=st.integers(1, 10_000), size=st.integers(0, 500_000), guest=st.floats(0, 1e5))
def test_what_machines_can_do_needs_as_many(machines: int, size: int, guest: float) -> None:
    """The rate that machines reach uses their cores, no more and no fewer."""
    load = reach(SEEN, replace(LOAD, size=size, guest_us=guest), machines)
    found = steps(load)
    cores = found["cores for executors"] + found["cores for NATS"]
    assert cores == pytest.approx(machines * load.cores)


@given(rate=st.floats(0.1, 1e7), more=st.floats(1, 100))
def test_a_higher_rate_never_needs_less(rate: float, more: float) -> None:
    """Every step that depends on the rate grows with it."""
    low, high = steps(replace(LOAD, rate=rate)), steps(replace(LOAD, rate=rate * more))
    averages = {"streams of each kind, a cell", "sandboxes an executor",
                "how long servers can keep outcomes"}  # fmt: skip
    assert all(high[name] >= low[name] for name in low.keys() - averages)


def test_advice_names_the_limit_that_is_met() -> None:
    """One stream, one cluster, the memory of outcomes, or none of them."""
    assert advice(SEEN, replace(LOAD, days=0.1)) == [
        "one cluster and one pair of streams are enough"
    ]
    [stream] = advice(SEEN, replace(LOAD, rate=15_000, days=0))
    assert "one stream ends at 12 000/s" in stream
    far = advice(SEEN, replace(LOAD, rate=1e6, days=100))
    assert len(far) == 3
    days = steps(replace(LOAD, rate=1e6))["how long servers can keep outcomes"]
    assert days == pytest.approx(64 * 2**30 * 0.6 / 250 / (1e6 / 25) / 86_400)
    assert "leaf nodes" in far[1]
    assert "delivery.outcomes_max_mib" in far[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("server_us", None), ("server_us", "30"), ("server_us", True), ("server_us", -1),
     ("server_us", float("inf")), ("server_us", 0), ("machine", 1)],
)  # fmt: skip
def test_figures_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    """A missing, wrong, negative, endless or zero figure is `config.invalid`."""
    with pytest.raises(ExecutorError) as refused:
        Figures.parse({**asdict(SEEN), name: value})
    assert refused.value.code == "config.invalid"


def test_the_figures_that_ship_are_read() -> None:
    """The file beside the command line parses, and plans a rate."""
    path = Path(__file__).parents[2] / "executor" / "cli" / "figures.json"
    seen = Figures.parse(json.loads(path.read_text()))
    assert steps(LOAD, seen)["executors"] >= 1
