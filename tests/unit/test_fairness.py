"""Sharing between tenants: who is owed most, how credit is divided, whose clock counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.core.fairness import AGE_FUEL, IDLE_WINDOW, Load, Shares, windows
from executor.supervisor.clock import ServerClock

NAMES = ["a", "b", "c"]


def serve(shares: Shares, waiting: list[str], rounds: int, fuel: float = 1e6) -> dict[str, int]:
    """How often each tenant is next when all of them always have work."""
    turns = dict.fromkeys(waiting, 0)
    for _ in range(rounds):
        chosen = min(waiting, key=shares.owed)
        turns[chosen] += 1
        shares.charge(chosen, fuel)
    return turns


def test_turns_follow_weights() -> None:
    """With work always there, tenants get turns by weight, to within one."""
    turns = serve(Shares({"a": 1, "b": 3, "c": 4}), NAMES, 800)
    assert abs(turns["a"] - 100) <= 1
    assert abs(turns["b"] - 300) <= 1
    assert abs(turns["c"] - 400) <= 1


def test_dear_tasks_pay_more() -> None:
    """A tenant whose tasks burn ten times the fuel gets a tenth of the turns."""
    shares, turns = Shares(), {"a": 0, "b": 0}
    for _ in range(1_100):
        chosen = min(turns, key=shares.owed)
        turns[chosen] += 1
        shares.charge(chosen, 1e7 if chosen == "a" else 1e6)
    assert 95 <= turns["a"] <= 105


def test_nobody_saves_up() -> None:
    """A tenant that had no work for long starts level with those that had, not far ahead."""
    shares = Shares()
    serve(shares, ["a", "b"], 1_000)
    shares.joins("c", ["a", "b"])
    turns = serve(shares, NAMES, 300)
    assert max(turns.values()) - min(turns.values()) <= 2


def test_waiting_counts() -> None:
    """However much a tenant has used, after waiting long enough it is next."""
    shares = Shares()
    shares.charge("a", 50 * AGE_FUEL)
    assert shares.owed("a", 49) > shares.owed("b")
    assert shares.owed("a", 51) < shares.owed("b")


def test_a_correction_gives_back() -> None:
    """What was charged too much before an attempt ended is given back after it."""
    shares = Shares({"a": 2})
    shares.charge("a", 10)
    shares.charge("a", -6)
    assert shares.owed("a") == pytest.approx(2)
    shares.leaves("a")
    assert shares.owed("a") == 0


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ({"a": Load()}, {"a": 256}),
        ({"a": Load(), "b": Load()}, {"a": 32, "b": 32}),
        ({"a": Load(weight=3), "b": Load()}, {"a": 48, "b": 16}),
        ({"a": Load(), "b": Load(busy=False)}, {"a": 254, "b": IDLE_WINDOW}),
        # Long attempts: no more than a quarter of a second's work, and two a slot.
        ({"a": Load(mean_s=1.0, slots=2)}, {"a": 4}),
        ({"a": Load(mean_s=0.01, slots=2)}, {"a": 50}),
        ({"a": Load(mean_s=0.00002, slots=2)}, {"a": 256}),
        # A rate of its own.
        ({"a": Load(most=7)}, {"a": 7}),
        ({}, {}),
    ],
)  # fmt: skip
def test_credit(loads: dict[str, Load], expected: dict[str, int]) -> None:
    """Credit goes by weight to who has work, less where attempts are long or a rate bounds it."""
    assert windows(256, 64, loads) == expected


loads = st.builds(
    Load, weight=st.integers(1, 100), busy=st.booleans(), mean_s=st.floats(0, 100),
    slots=st.integers(1, 8), most=st.integers(1, 10_000),
)  # fmt: skip


@given(
    st.integers(1, 4096),
    st.integers(1, 4096),
    st.dictionaries(st.text(max_size=3), loads, max_size=40),
)
def test_credit_is_bounded(alone: int, shared: int, found: dict[str, Load]) -> None:
    """All windows together stay within the total, but for the least that each tenant needs.

    With more tenants at work than sandboxes that is what is worth a turn, within the total of one.
    """
    given_out = windows(alone, shared, found)
    busy = sum(load.busy for load in found.values())
    turns = busy > max((load.slots for load in found.values()), default=1)
    total = min(alone, shared) if busy > 1 and not turns else alone
    assert given_out.keys() == found.keys()
    assert all(window >= 1 for window in given_out.values())
    assert sum(given_out.values()) <= max(total, len(found)) + IDLE_WINDOW * len(found)


@pytest.mark.parametrize(
    ("server", "offset"), [(1_000, 0), (1_100, 0), (1_050, 0), (4_601_100, 4_600_000), (400, -600)]
)
def test_the_servers_clock(server: int, offset: int) -> None:
    """What lies between the readings is no difference; beyond them only what is certain counts."""
    clock = ServerClock()
    changed = clock.measured(sent_ms=1_000, server_ms=server, received_ms=1_100)
    assert clock.offset_ms == offset
    assert changed is (abs(offset) > 1_000)
