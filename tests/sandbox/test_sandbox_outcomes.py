"""Every row of the ABI's table of outcomes that a sandbox decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from executor.core import abi
from executor.core.frames import UNRETURNED, Answer, Call, Done
from executor.sandbox.machine import Bug

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab

FAIL = '(data (i32.const 0) "disk is full")'
RUN = '(func $run (export "run") (result i32) '


def fail(kind: int, delay: int = -1, length: int = 12) -> str:
    """A call of `fail` with the text above."""
    return f"(call $fail (i32.const {kind}) (i32.const 0) (i32.const {length}) (i64.const {delay}))"


def facts(done: Done) -> dict[str, str]:
    """The facts of a Done frame by name."""
    return dict(done.facts)


def test_run_0_is_a_result(lab: Lab) -> None:
    """`run` = 0 without `fail` is a result with the output that was written."""
    done = lab.run(
        '(data (i32.const 0) "hi")'
        + RUN
        + "(call $output_write (i32.const 0) (i32.const 2)) (i32.const 0))"
    )
    assert (done.code, done.output, done.facts) == ("", b"hi", ())


@pytest.mark.covers("guest.failed")
def test_run_1_is_a_transient_failure(lab: Lab) -> None:
    """`run` = 1 without `fail` asks for another attempt, with the host's back-off."""
    done = lab.status("(i32.const 1)")
    assert (done.code, done.transient, done.retry_after_ms) == ("guest.failed", True, -1)
    assert facts(done)["status"] == "1"


@pytest.mark.parametrize("status", [2, 75, -1])
def test_any_other_run_is_permanent(lab: Lab, status: int) -> None:
    """Any other value of `run` is a permanent failure that names the value."""
    done = lab.status(f"(i32.const {status})")
    assert (done.code, done.transient) == ("guest.failed", False)
    assert done.message == f"run returned {status}"


@pytest.mark.parametrize("returned", [0, 1, 7])
def test_fail_1_is_transient_whatever_run_returns(lab: Lab, returned: int) -> None:
    """`fail(1)` asks for a retry after its delay; the output is dropped."""
    done = lab.run(
        FAIL
        + RUN
        + "(call $output_write (i32.const 0) (i32.const 2))"
        + f"{fail(1, 1500)} (i32.const {returned}))"
    )
    assert (done.code, done.message) == ("guest.failed", "disk is full")
    assert (done.transient, done.retry_after_ms, done.output) == (True, 1500, b"")


@pytest.mark.parametrize("kind", [0, 2, 3, 99, -1])
def test_fail_of_any_other_kind_is_permanent(lab: Lab, kind: int) -> None:
    """`fail(2)` and a kind that the ABI does not know are permanent, with the message."""
    done = lab.run(FAIL + RUN + fail(kind, 5) + "(i32.const 0))")
    assert (done.code, done.message) == ("guest.failed", "disk is full")
    assert (done.transient, done.retry_after_ms) == (False, -1)


@pytest.mark.parametrize("delay", [-1, -(2**63)])
def test_a_negative_delay_is_the_hosts_back_off(lab: Lab, delay: int) -> None:
    """A negative delay is data, not an error."""
    assert lab.run(FAIL + RUN + fail(1, delay) + "(i32.const 1))").retry_after_ms == -1


def test_the_last_fail_counts(lab: Lab) -> None:
    """A second `fail` replaces the first."""
    done = lab.run(FAIL + RUN + fail(1, 5) + fail(2, length=4) + "(i32.const 0))")
    assert (done.message, done.transient) == ("disk", False)


@pytest.mark.covers("guest.trap")
def test_a_trap_names_itself_and_the_functions(lab: Lab) -> None:
    """A trap carries its name and the guest's functions, innermost first."""
    done = lab.run("(func $parse_line unreachable)" + RUN + "(call $parse_line) (i32.const 0))")
    assert (done.code, done.message, done.transient) == (
        "guest.trap", "unreachable in parse_line", False,
    )  # fmt: skip
    assert facts(done)["trap"] == "unreachable"
    assert (facts(done)["frame0"], facts(done)["frame1"]) == ("parse_line", "run")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("(i32.div_s (i32.const 1) (i32.const 0))", "integer-division-by-zero"),
        ("(i32.load (i32.const -4))", "memory-out-of-bounds"),
        ("(call_indirect (result i32) (i32.const 9))", "table-out-of-bounds"),
        ("(call_indirect (result i32) (i32.const 0))", "indirect-call-to-null"),
        ("(i32.trunc_f32_s (f32.const nan))", "bad-conversion-to-integer"),
        ("(i32.div_s (i32.const 0x80000000) (i32.const -1))", "integer-overflow"),
    ],
)
def test_each_kind_of_trap_has_a_name(lab: Lab, code: str, name: str) -> None:
    """What the engine stops is named in words that stay."""
    done = lab.run("(table 2 funcref)" + RUN + code + ")")
    assert (done.code, facts(done)["trap"]) == ("guest.trap", name)


def test_a_function_without_a_name_is_a_number(lab: Lab) -> None:
    """A stripped module still tells which function trapped."""
    done = lab.run('(func unreachable) (func (export "run") (result i32) (call 0) (i32.const 0))')
    assert facts(done)["frame0"] == "function 0"


def test_a_trap_keeps_the_text_of_fail(lab: Lab) -> None:
    """A panic hook's message survives the trap that follows; the class stays permanent."""
    done = lab.run(FAIL + RUN + fail(1, 10) + "unreachable)")
    assert (done.code, done.message, done.transient) == ("guest.trap", "disk is full", False)
    assert facts(done)["trap"] == "unreachable"
    assert facts(done)["last_call"] == "fail"


@pytest.mark.covers("guest.bad-pointer")
def test_a_range_outside_memory_ends_the_attempt(lab: Lab) -> None:
    """A range outside memory is the guest's failure, with range, memory and call as facts."""
    done = lab.status("(call $output_write (i32.const 65535) (i32.const 2)) (i32.const 0)")
    assert (done.code, done.transient) == ("guest.bad-pointer", False)
    assert facts(done)["last_call"] == "output_write"
    assert (facts(done)["pointer"], facts(done)["length"]) == ("65535", "2")


def test_a_bad_pointer_keeps_the_text_of_fail(lab: Lab) -> None:
    """An earlier `fail` text is kept here too."""
    done = lab.run(
        FAIL + RUN + fail(2) + "(call $output_write (i32.const -1) (i32.const 2)) (i32.const 0))"
    )
    assert (done.code, done.message) == ("guest.bad-pointer", "disk is full")


@pytest.mark.covers("limit.fuel-exhausted")
def test_fuel_runs_out(lab: Lab) -> None:
    """An endless loop ends with all of its fuel used, not one unit more."""
    done = lab.run(RUN + "(loop $l (br $l)) (i32.const 0))", fuel=123_456)
    assert (done.code, done.fuel_used) == ("limit.fuel-exhausted", 123_456)


@pytest.mark.covers("limit.stack-exhausted")
def test_the_stack_runs_out(lab: Lab) -> None:
    """Endless recursion ends with its own code and names the function."""
    done = lab.run(
        "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))"
        + RUN + "(call $deep (i32.const 1)))"
    )  # fmt: skip
    assert done.code == "limit.stack-exhausted"
    assert facts(done)["frame0"] == "deep"


@pytest.mark.covers("limit.memory-exceeded")
def test_a_trap_with_memory_at_its_cap(lab: Lab) -> None:
    """A guest that traps after it took all its memory needs more memory."""
    done = lab.run(
        RUN + "(drop (memory.grow (i32.const 3))) unreachable)", memory_bytes=4 * 65_536 + 100
    )
    assert (done.code, done.memory_bytes) == ("limit.memory-exceeded", 4 * 65_536)
    assert facts(done)["memory"] == "262144 of 262144"
    assert facts(done)["trap"] == "unreachable"


def test_a_trap_below_the_cap_is_a_trap_with_the_memory_facts(lab: Lab) -> None:
    """Below the cap the same trap is the guest's, and the memory stands in the facts."""
    done = lab.run(RUN + "unreachable)", memory_bytes=2 * 65_536)
    assert (done.code, facts(done)["memory"]) == ("guest.trap", "65536 of 131072")


def test_a_refused_grow_is_no_trap(lab: Lab) -> None:
    """`memory.grow` past the cap answers -1 and the guest goes on."""
    done = lab.run(
        RUN + "(i32.eqz (i32.eq (memory.grow (i32.const 16)) (i32.const -1))))",
        memory_bytes=65_536,
    )
    assert (done.code, done.memory_bytes) == ("", 65_536)


def test_fuel_at_the_memory_cap_is_fuel(lab: Lab) -> None:
    """Memory at its cap explains traps only, not other limits."""
    done = lab.run(RUN + "(loop $l (br $l)) (i32.const 0))", memory_bytes=65_536, fuel=1000)
    assert done.code == "limit.fuel-exhausted"


def test_a_minimum_above_the_cap_never_starts(lab: Lab) -> None:
    """A declared minimum above the cap is the same code, without a unit of fuel."""
    done = lab.run(
        RUN + "(i32.const 0))", memory='(memory (export "memory") 3)', memory_bytes=65_536
    )
    assert (done.code, done.fuel_used, done.memory_bytes) == ("limit.memory-exceeded", 0, 0)


@pytest.mark.parametrize("tables", ["(table 2000 funcref)", "(table 1 funcref)" * 5])
def test_tables_above_the_limit_never_start(lab: Lab, tables: str) -> None:
    """Tables are memory too: too many elements or tables are refused at the start."""
    assert lab.run(tables + RUN + "(i32.const 0))").code == "limit.memory-exceeded"


@pytest.mark.covers("capability.unavailable")
def test_a_retry_after_minus_4_is_systemic(lab: Lab) -> None:
    """A retry after the mediator answered -4 is the service's fault, not the task's."""
    lab.kv.status = abi.UNAVAILABLE
    done = lab.run(
        FAIL + RUN
        + "(drop (call $kv_delete (i32.const 0) (i32.const 4)))" + fail(1, 9) + "(i32.const 1))"
    )  # fmt: skip
    assert (done.code, done.message) == ("capability.unavailable", "disk is full")


def test_a_permanent_failure_after_minus_4_stays_one(lab: Lab) -> None:
    """Only a retry is put off; a guest that gives up has given up."""
    lab.kv.status = abi.UNAVAILABLE
    done = lab.run(
        FAIL + RUN
        + "(drop (call $kv_delete (i32.const 0) (i32.const 4)))" + fail(2) + "(i32.const 1))"
    )  # fmt: skip
    assert done.code == "guest.failed"


def test_our_own_failure_is_raised(lab: Lab) -> None:
    """An exception in a host call is never an outcome: the process ends with it."""

    def broken(_call: Call) -> Answer:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lab.run(
            FAIL + RUN + "(drop (call $kv_delete (i32.const 0) (i32.const 4))) (i32.const 0))",
            mediate=broken,
        )


@pytest.mark.parametrize(
    "answer",
    [Answer(2, 0, 0, b""), Answer(1, 1, 0, b""), Answer(1, 0, -9, b""), Answer(1, 0, 3, b"")],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_a_bug(lab: Lab, answer: Answer) -> None:
    """An answer to another call, with an unknown error or a wrong length ends the process."""
    code = "(drop (call $kv_get (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0)))"
    with pytest.raises(Bug):
        lab.run(FAIL + RUN + code + "(i32.const 0))", mediate=lambda _call: answer)


def test_a_start_section_runs(lab: Lab) -> None:
    """A start section may prepare the instance."""
    done = lab.run(
        "(global $g (mut i32) (i32.const 9)) (func $s (global.set $g (i32.const 0))) (start $s)"
        + RUN + "(global.get $g))"
    )  # fmt: skip
    assert done.code == ""


def test_a_host_call_from_the_start_section_traps(lab: Lab) -> None:
    """The host does not know the memory yet, so even a call without pointers traps."""
    done = lab.run("(func $s (drop (call $input_len))) (start $s)" + RUN + "(i32.const 0))")
    assert (done.code, facts(done)["last_call"]) == ("guest.trap", "input_len")
    assert "start section" in done.message


def test_a_trapping_start_section(lab: Lab) -> None:
    """A start section that traps is the guest's trap."""
    assert lab.run("(func $s unreachable) (start $s)" + RUN + "(i32.const 0))").code == "guest.trap"


def test_initialize_runs_first_and_is_metered(lab: Lab) -> None:
    """`_initialize` is called before `run`, may call the host, and pays for it."""
    body = (
        "(global $g (mut i32) (i32.const 9))"
        '(func (export "_initialize") (global.set $g (call $input_len)))'
        + RUN + "(global.get $g))"
    )  # fmt: skip
    done = lab.run(body)
    assert (done.code, done.host_calls) == ("", 1)
    assert done.fuel_used > lab.run(RUN + "(i32.const 0))").fuel_used


def test_initialize_may_loop_only_as_long_as_its_fuel(lab: Lab) -> None:
    """An endless `_initialize` runs out of fuel."""
    done = lab.run('(func (export "_initialize") (loop $l (br $l)))' + RUN + "(i32.const 0))")
    assert done.code == "limit.fuel-exhausted"


def test_a_failure_names_its_last_calls(lab: Lab) -> None:
    """The newest eight calls of a failure are told with how they ended; a result tells none."""
    look = "(drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8)))"
    data = '(data (i32.const 0) "k")'
    calls = "(drop (call $input_len))" * 7 + look
    done = lab.run(data + RUN + calls + "(i32.const 7))")
    assert done.last_calls == (*[("input_len", 0)] * 7, ("kv_get", abi.NOT_FOUND))
    done = lab.run(data + RUN + "(drop (call $input_len))" + calls + "unreachable)")
    assert done.last_calls == (*[("input_len", 0)] * 7, ("kv_get", abi.NOT_FOUND))
    outside = "(call $output_write (i32.const -1) (i32.const 9))"
    done = lab.run(data + RUN + calls + outside + "(i32.const 0))")
    assert (done.code, done.last_calls[-1]) == ("guest.bad-pointer", ("output_write", UNRETURNED))
    assert lab.run(data + RUN + calls + "(i32.const 0))").last_calls == ()


def test_a_call_over_the_limit_is_the_last_one(lab: Lab) -> None:
    """The call that was one too many is named, as one that did not return."""
    calls = "(drop (call $input_len))(drop (call $clock_now_ns))"
    done = lab.run(RUN + calls + "(i32.const 0))", calls=1)
    assert done.code == "limit.calls-exceeded"
    assert done.last_calls == (("input_len", 0), ("clock_now_ns", UNRETURNED))
