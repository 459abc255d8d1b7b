"""Slots: who gets one, who makes way. The sandboxes are plain values: no process is started."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest

from executor.core.fairness import Shares
from executor.supervisor.job import ModuleKey
from executor.supervisor.process import SandboxProcess
from executor.supervisor.slots import TURN_S, Retire, Slots, Start, Wait

KEY = ModuleKey("sha256:1 log")
OTHER_KEY = ModuleKey("sha256:2 log")


@dataclass(eq=False)
class Box:
    """What a slot decision sees of a sandbox."""

    tenant: str
    outstanding: int = 0
    ready: bool = True
    retiring: bool = False
    leaving: bool = False
    successor: str = ""
    old: bool = True
    key: ModuleKey = KEY
    born: float = field(init=False)
    modules: dict[ModuleKey, int] = field(init=False)

    def __post_init__(self) -> None:
        """An old one's turn is over."""
        self.born = time.monotonic() - (1_000 * TURN_S if self.old else 0)
        self.modules = {self.key: 0}


def decide(
    slots: Slots, tenant: str, *boxes: Box, waiting: Mapping[str, object] | None = None
) -> Start | Retire | Wait:
    """The decision for a job of `tenant`."""
    given = [cast("SandboxProcess", box) for box in boxes]
    return slots.room(tenant, KEY, given, waiting if waiting is not None else {tenant: 1})


def test_what_makes_way_for_one_holds_up_no_other() -> None:
    """A slot that is about to be free is its successor's; another tenant's turn takes another."""
    going = Box("a", outstanding=9, retiring=True, leaving=True, successor="b")
    staying = Box("a", outstanding=9)
    both = {"b": 1, "c": 1}
    assert decide(Slots(2), "b", going, staying, waiting=both) == Wait()
    found = decide(Slots(2), "c", going, staying, waiting=both)
    assert found == Retire(cast("SandboxProcess", staying))
    assert decide(Slots(1), "c", going, waiting=both) == Wait()


def test_a_used_up_sandbox_makes_way_as_any() -> None:
    """One that takes nothing new and ends what it has is told to leave when another waits."""
    used_up = Box("a", outstanding=90, retiring=True)
    assert decide(Slots(1), "a", used_up) == Wait()
    assert decide(Slots(1), "b", used_up) == Retire(cast("SandboxProcess", used_up))


def test_a_free_slot_is_taken() -> None:
    """While there is one, whoever waits gets it."""
    assert decide(Slots(2), "a") == Start()
    assert decide(Slots(2), "a", Box("a", outstanding=5)) == Start()
    assert decide(Slots(2), "a", Box("a", ready=False)) == Wait()


def test_a_reserve_is_for_those_who_have_none() -> None:
    """The flooder gets all but the reserve; who comes new gets it at once."""
    slots = Slots(3, reserve=1)
    flood = [Box("a", outstanding=9), Box("a", outstanding=9)]
    assert decide(slots, "a", *flood) == Wait()
    assert decide(slots, "b", *flood) == Start()


def test_an_idle_neighbour_in_the_reserve_is_left_alone() -> None:
    """Its sandbox is the reserve: the flooder does not take it over."""
    slots = Slots(2, reserve=1)
    boxes = [Box("a", outstanding=9), Box("b")]
    assert decide(slots, "a", *boxes) == Wait()
    assert decide(Slots(2), "a", *boxes) == Retire(cast("SandboxProcess", boxes[1]))


def test_a_tenants_own_limit() -> None:
    """`sandboxes_max` holds even while slots are free; a wrong module makes way within it."""
    slots = Slots(4, most={"a": 1})
    assert decide(slots, "a", Box("a", outstanding=9)) == Wait()
    wrong = Box("a", key=OTHER_KEY)
    assert decide(slots, "a", wrong) == Retire(cast("SandboxProcess", wrong))


def test_one_who_has_none_takes_a_turn() -> None:
    """Of busy ones the one whose turn is over makes way; before that, it waits."""
    old, new = Box("a", outstanding=1), Box("c", outstanding=1, old=False)
    both = {"a": 1, "b": 1, "c": 1}
    assert decide(Slots(2), "b", old, new, waiting=both) == Retire(cast("SandboxProcess", old))
    young = [Box("a", outstanding=1, old=False), new]
    assert decide(Slots(2), "b", *young, waiting=both) == Wait(TURN_S / 5)


def test_who_has_its_share_takes_nothing_more() -> None:
    """Two tenants with one slot each, both with work: nothing moves."""
    boxes = [Box("a", outstanding=1), Box("b", outstanding=1)]
    for tenant in "ab":
        assert decide(Slots(2), tenant, *boxes, waiting={"a": 1, "b": 1}) == Wait()


@pytest.mark.parametrize(("weight", "takes"), [(1, False), (2, True), (3, True)])
def test_weights_decide_who_has_too_much(weight: int, *, takes: bool) -> None:
    """One tenant holds two of three slots: the other's weight says whether it is owed one."""
    boxes = [Box("a", outstanding=1), Box("a", outstanding=1), Box("b", outstanding=1)]
    slots = Slots(3, shares=Shares({"b": weight}))
    decision = decide(slots, "b", *boxes, waiting={"a": 1, "b": 1})
    assert isinstance(decision, Retire) is takes


def test_the_order_of_those_who_wait() -> None:
    """Fewest slots for its weight first, then who has paid least, then who has waited long."""
    slots = Slots(4, shares=Shares({"c": 4}))
    slots.shares.charge("a", 100)
    boxes = [cast("SandboxProcess", Box(name)) for name in "abc"]
    assert slots.order(dict.fromkeys("abcd", 0.0), boxes) == ["d", "c", "b", "a"]
    assert slots.order({"a": 5.0, "b": 0.0}, boxes) == ["a", "b"]
