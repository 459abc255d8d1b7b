"""Fuel is exact, the same everywhere, and includes what host calls cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from executor.sandbox.host import BYTE_FUEL, CALL_FUEL, CALLS_PER_CHARGE, FREE_COPY_BYTES

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab, Rooms

RUN = '(func $run (export "run") (result i32) (local $i i32) '
COUNT = (
    "(loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))"
    " (i32.const 1000))))"
)
CALL = "(drop (call $input_len))"
# A change of these numbers is a change of the engine or of its settings: read it, then write it.
COUNT_FUEL = 7_002
CALL_CODE_FUEL = 1


def fuel(lab: Lab, code: str, **fields: Any) -> int:
    """What an attempt with this code used."""
    done = lab.run(RUN + code + "(i32.const 0))", **fields)
    assert done.code == ""
    return done.fuel_used


def test_fuel_is_a_snapshot(lab: Lab) -> None:
    """A loop of a thousand rounds costs exactly this."""
    assert fuel(lab, COUNT) == COUNT_FUEL


def test_two_runs_use_the_same_fuel(lab: Lab) -> None:
    """The same module and input burn the same fuel, host calls included."""
    assert fuel(lab, COUNT + CALL * 40) == fuel(lab, COUNT + CALL * 40)


@pytest.mark.parametrize("calls", [1, CALLS_PER_CHARGE - 1, CALLS_PER_CHARGE, 40])
def test_every_call_is_on_the_bill(lab: Lab, calls: int) -> None:
    """Charged in steps or at the end: each call costs the same."""
    base = fuel(lab, "")
    assert fuel(lab, CALL * calls) - base == calls * (CALL_CODE_FUEL + CALL_FUEL)


@pytest.mark.parametrize(
    ("length", "price"),
    [(FREE_COPY_BYTES, 0), (FREE_COPY_BYTES + 1, (FREE_COPY_BYTES + 1) * BYTE_FUEL)],
)
def test_long_copies_are_charged_whole(lab: Lab, length: int, price: int) -> None:
    """A copy up to 4 KiB is in the price of its call; above that each byte costs."""
    write = "(call $output_write (i32.const 0) (i32.const {}))"
    assert fuel(lab, write.format(length)) - fuel(lab, write.format(0)) == price


def test_a_copy_that_cannot_be_paid_is_not_made(lab: Lab) -> None:
    """Without the fuel for a long copy the attempt ends, all fuel used, nothing copied."""
    code = "(call $output_write (i32.const 0) (i32.const 65536)) (i32.const 0))"
    done = lab.run(RUN + code, fuel=60_000)
    assert (done.code, done.fuel_used, done.output) == ("limit.fuel-exhausted", 60_000, b"")
    assert dict(done.facts)["last_call"] == "output_write"


def test_the_bill_never_passes_the_budget(lab: Lab) -> None:
    """Calls that were not yet charged at the end do not make the bill longer than the budget."""
    done = lab.run(RUN + CALL + "(i32.const 0))", fuel=100)
    assert (done.code, done.fuel_used) == ("", 100)


def test_enough_is_enough(lab: Lab) -> None:
    """What was used once suffices again; a round of the loop less does not.

    The engine looks at its counter at each function and at each round, not at each instruction.
    """
    needed = fuel(lab, COUNT)
    assert lab.run(RUN + COUNT + "(i32.const 0))", fuel=needed).code == ""
    done = lab.run(RUN + COUNT + "(i32.const 0))", fuel=needed - 10)
    assert (done.code, done.fuel_used) == ("limit.fuel-exhausted", needed - 10)


def test_a_forgotten_budget_traps_at_once(lab: Lab) -> None:
    """Without fuel not one instruction runs."""
    assert lab.run(RUN + "(i32.const 0))", fuel=0).code == "limit.fuel-exhausted"


def test_bulk_instructions_cost_by_the_byte(lab: Lab) -> None:
    """A fill of all memory is not one instruction's worth."""
    fill = "(memory.fill (i32.const 0) (i32.const 7) (i32.const {}))"
    assert fuel(lab, fill.format(60_000)) - fuel(lab, fill.format(0)) >= 60_000


def test_nan_bits_are_canonical(lab: Lab) -> None:
    """Whatever made a NaN, its bits are the same on every machine."""
    code = (
        "(f32.store (i32.const 0) (f32.div (f32.const 0) (f32.const 0)))"
        "(f32.store (i32.const 4) (f32.sqrt (f32.const -1)))"
        "(call $output_write (i32.const 0) (i32.const 8)) (i32.const 0))"
    )
    assert lab.run(RUN + code).output == bytes.fromhex("0000c07f") * 2


def test_another_process_uses_the_same_fuel(lab: Lab, rooms: Rooms) -> None:
    """An artifact in a locked sandbox burns what the module burns here, call for call."""
    body = RUN + COUNT + CALL * 40 + "(i32.const 0))"
    here = lab.run(body)
    room = rooms.ready(lab.text(body))
    room.send(lab.again(seq=1), lab.again(seq=2))
    first, second = room.done(), room.done()
    assert {first.fuel_used, second.fuel_used} == {here.fuel_used}
