"""The values: frozen, slotted, and limits that can only be lowered."""

from __future__ import annotations

import dataclasses

import pytest

from executor import model
from executor.model import MIB, PAYLOAD_MAX, Authority, Limits, Result, TaskRequest

VALUES = [value for value in vars(model).values() if dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_values_are_slotted_and_compared(value: type) -> None:
    """No value can grow an attribute after it was made, and equal ones hash equally."""
    parameters = value.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen or parameters.unsafe_hash
    assert "__dict__" not in dir(value)


def test_light_values_are_frozen_for_the_type_checker() -> None:
    """An assignment is refused by mypy, which would report that this `ignore` is not needed."""
    light = Result(b"", "text/plain")
    light.output = b"changed"  # type: ignore[misc]
    assert light == Result(b"changed", "text/plain")
    assert hash(light) == hash(Result(b"changed", "text/plain"))


def test_lowering_takes_the_minimum_of_each_limit() -> None:
    """A cap below lowers, a cap above or at the limit changes nothing, a stranger is ignored."""
    limits = Limits(fuel=100, memory_bytes=MIB)
    lowered = limits.lowered({"fuel": 7, "memory_bytes": 2 * MIB, "calls": 10_000, "unheard": 1})
    assert lowered == dataclasses.replace(limits, fuel=7)
    assert limits.lowered({}) == limits


def test_every_limit_can_be_lowered() -> None:
    """No limit is left out of the set that policy may lower."""
    names = {field.name for field in dataclasses.fields(Limits)}
    assert names == model.FIELDS
    assert dataclasses.astuple(Limits().lowered(dict.fromkeys(names, 1))) == (1,) * len(names)


def test_defaults_allow_nothing() -> None:
    """An authority that nobody filled in has no function, no data and bounded limits."""
    nothing = Authority()
    assert nothing.functions == frozenset()
    assert nothing.kv is None
    assert all(value > 0 for value in dataclasses.astuple(nothing.limits))
    assert nothing.limits.input_bytes == nothing.limits.output_bytes == PAYLOAD_MAX == 512 * 1024


def test_a_request_begins_at_its_first_attempt() -> None:
    """Counters of a request that nobody ran say so."""
    request = TaskRequest("acme", "resize", model.TaskId("1"), b"")
    assert (request.attempt, request.crashes, request.fresh, request.history) == (1, 0, False, ())
