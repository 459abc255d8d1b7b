"""Every cap of an attempt, at its value and one above; all caps are inclusive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from executor.core import abi
from executor.core.frames import FRAME_MAX, Answer, Call, encode
from executor.model import PAYLOAD_MAX
from executor.sandbox import host

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab

RUN = '(func $run (export "run") (result i32) (local $i i32) '
BIG = '(memory (export "memory") 9)'


def repeat(count: int, code: str) -> str:
    """`code`, this many times."""
    return (
        f"(loop $l {code} (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i)"
        f" (i32.const 1))) (i32.const {count}))))"
    )


@pytest.mark.covers("limit.output-too-large")
def test_output_ends_at_its_cap(lab: Lab) -> None:
    """Output up to the cap is a result; a byte more ends the attempt and drops it all."""
    body = RUN + repeat(4, "(call $output_write (i32.const 0) (i32.const 25))") + "(i32.const 0))"
    assert len(lab.run(body, output_bytes=100).output) == 100
    done = lab.run(body, output_bytes=99)
    assert (done.code, done.output, done.transient) == ("limit.output-too-large", b"", False)


def test_output_never_passes_what_a_frame_carries(lab: Lab) -> None:
    """A limit above 512 KiB does not raise the frame's own bound."""
    body = RUN + "(call $output_write (i32.const 0) (i32.const {})) (i32.const 0))"
    done = lab.run(body.format(PAYLOAD_MAX), memory=BIG, output_bytes=2**40)
    assert len(done.output) == PAYLOAD_MAX
    done = lab.run(body.format(PAYLOAD_MAX + 1), memory=BIG, output_bytes=2**40)
    assert done.code == "limit.output-too-large"


def test_512_kib_in_and_out(lab: Lab) -> None:
    """The largest input comes back as the largest output."""
    data = bytes(range(256)) * 2048
    done = lab.run(
        RUN + "(drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))"
        "(call $output_write (i32.const 0) (call $input_len)) (i32.const 0))",
        memory=BIG, input=data,
    )  # fmt: skip
    assert done.output == data


@pytest.mark.covers("limit.calls-exceeded")
def test_host_calls_end_at_their_cap(lab: Lab) -> None:
    """As many calls as allowed are served, `take` and those that fail included; then it ends."""
    body = RUN + repeat(100, "(drop (call $take (i32.const 0) (i32.const 0)))") + "(i32.const 0))"
    assert lab.run(body, calls=100).host_calls == 100
    done = lab.run(body, calls=99)
    assert (done.code, done.host_calls, done.transient) == ("limit.calls-exceeded", 99, False)


def test_mediated_calls_end_at_their_cap(lab: Lab) -> None:
    """The mediator never sees a call above the cap."""
    code = repeat(8, "(drop (call $kv_delete (i32.const 0) (i32.const 1)))")
    body = '(data (i32.const 0) "k")' + RUN + code + "(i32.const 0))"
    assert lab.run(body, mediated_calls=8).code == ""
    lab.kv.calls.clear()
    assert lab.run(body, mediated_calls=7).code == "limit.calls-exceeded"
    assert len(lab.kv.calls) == 7


def test_calls_that_never_leave_are_not_mediated(lab: Lab) -> None:
    """A bad key costs a call, not a mediated one."""
    body = (
        RUN + repeat(9, "(drop (call $kv_delete (i32.const 0) (i32.const 1)))") + "(i32.const 0))"
    )
    assert lab.run(body, mediated_calls=0).code == ""


def test_log_lines_above_their_count_are_dropped_and_counted(lab: Lab) -> None:
    """Lines are capped by count and never a failure."""
    body = (
        RUN
        + repeat(9, "(call $log_write (i32.const 1) (i32.const 0) (i32.const 1))")
        + "(i32.const 0))"
    )
    done = lab.run(body, log_lines=7)
    assert (done.code, len(done.logs), done.log_dropped) == ("", 7, 2)
    done = lab.run(body.replace("const 9)", "const 300)"), log_lines=2**40)
    assert (len(done.logs), done.log_dropped) == (256, 44)


def test_log_lines_above_their_bytes_are_dropped_and_counted(lab: Lab) -> None:
    """Lines are capped by bytes; a shorter one still fits after a long one was dropped."""
    write = "(call $log_write (i32.const 1) (i32.const 0) (i32.const {}))"
    code = write.format(60) + write.format(50) + write.format(40) + write.format(1)
    done = lab.run(RUN + code + "(i32.const 0))", log_bytes=100)
    assert ([len(line) for _, line in done.logs], done.log_dropped) == ([60, 40], 2)


@pytest.mark.parametrize(("length", "kept"), [(4096, 1), (4097, 0), (5120, 0), (65_536, 0)])
def test_a_line_above_4_kib_is_dropped_and_counted(lab: Lab, length: int, kept: int) -> None:
    """A line has a cap of its own."""
    code = f"(call $log_write (i32.const 1) (i32.const 0) (i32.const {length})) (i32.const 0))"
    done = lab.run(RUN + code)
    assert (done.code, len(done.logs), done.log_dropped) == ("", kept, 1 - kept)


def test_log_bytes_count_as_they_travel(lab: Lab) -> None:
    """Bytes that are not UTF-8 grow to three each; the cap counts those."""
    code = "(call $log_write (i32.const 1) (i32.const 0) (i32.const 2)) (i32.const 0))"
    body = '(data (i32.const 0) "\\ff\\ff")' + RUN + code
    assert (lab.run(body, log_bytes=6).log_dropped, lab.run(body, log_bytes=5).log_dropped) == (
        0,
        1,
    )


def test_a_message_is_cut_at_8_kib(lab: Lab) -> None:
    """`fail` keeps 8 KiB of its text, without half a character at the cut."""
    body = (
        '(data (i32.const 8191) "\\c3\\a4")' + RUN
        + "(call $fail (i32.const 2) (i32.const 0) (i32.const {}) (i64.const 0)) (i32.const 0))"
    )  # fmt: skip
    assert lab.run(body.format(65_536)).message == "\0" * 8191
    assert lab.run(body.format(8191)).message == "\0" * 8191


def test_a_message_that_is_not_utf_8_is_repaired(lab: Lab) -> None:
    """A text that is not UTF-8 is data: damaged bytes are shown as such."""
    body = (
        '(data (i32.const 0) "a\\ff\\c3")' + RUN
        + "(call $fail (i32.const 2) (i32.const 0) (i32.const 3) (i64.const 0)) (i32.const 0))"
    )  # fmt: skip
    assert lab.run(body).message == "a��"


def test_the_largest_done_fits_a_frame(lab: Lab) -> None:
    """Output, log and message at their caps, all damaged text, still make one legal frame."""
    lines = repeat(256, "(call $log_write (i32.const 1) (i32.const 0) (i32.const 4096))")
    data = '(data (i32.const 0) "' + "\\ff" * 8192 + '")'
    out = f"(call $output_write (i32.const 0) (i32.const {PAYLOAD_MAX}))"
    done = lab.run(data + RUN + lines + out + "(i32.const 0))", memory=BIG, log_bytes=2**40)
    assert (len(done.output), done.code) == (PAYLOAD_MAX, "")
    assert len(encode(done)) <= FRAME_MAX
    fail = "(call $fail (i32.const 2) (i32.const 0) (i32.const 8192) (i64.const 0))"
    done = lab.run(data + RUN + lines + fail + "unreachable)", memory=BIG, log_bytes=2**40)
    assert len(done.message) == abi.FAIL_MESSAGE_MAX
    assert len(encode(done)) <= FRAME_MAX


def test_names_of_functions_are_bounded(lab: Lab) -> None:
    """A function with an endless name cannot blow up the facts."""
    name = "n" * 5000
    done = lab.run(f"(func ${name} unreachable)" + RUN + f"(call ${name}) (i32.const 0))")
    assert len(dict(done.facts)["frame0"]) == 128
    assert all(len(value) <= 512 for _, value in done.facts)


def test_deep_traps_have_few_frames(lab: Lab) -> None:
    """A deep stack leaves the innermost frames."""
    done = lab.run("(func $deep (call $deep))" + RUN + "(call $deep) (i32.const 0))")
    assert sum(name.startswith("frame") for name, _ in done.facts) == 8


def test_random_above_a_chunk(lab: Lab) -> None:
    """A range longer than one piece is filled to its end."""
    done = lab.run(
        RUN + "(call $random_fill (i32.const 0) (i32.const 524288))"
        "(call $output_write (i32.const 524256) (i32.const 64)) (i32.const 0))",
        memory=BIG,
    )
    assert done.output[:32] != bytes(32)
    assert done.output[32:] == bytes(32)


def test_endless_host_calls_end(lab: Lab) -> None:
    """A loop of host calls pays for them: it runs out of fuel before the cap of calls."""
    body = RUN + repeat(10**6, "(drop (call $clock_now_ns))") + "(i32.const 0))"
    done = lab.run(body, fuel=1_000_000, calls=10**6)
    assert (done.code, done.fuel_used) == ("limit.fuel-exhausted", 1_000_000)
    assert done.host_calls < 1_000_000 // 2_000 + 16


def test_endless_random_ends(lab: Lab) -> None:
    """Random bytes cost fuel by the byte, so that a cheap loop cannot buy seconds of the host."""
    fill = "(call $random_fill (i32.const 0) (i32.const 524288))"
    body = RUN + repeat(10**6, fill) + "(i32.const 0))"
    done = lab.run(body, memory=BIG, fuel=10_000_000)
    assert done.code == "limit.fuel-exhausted"
    assert dict(done.facts)["last_call"] == "random_fill"
    assert done.host_calls < 10


@pytest.mark.parametrize(
    ("call", "size"),
    [
        ("(drop (call $input_read (i32.const 0) (i32.const 0) (i32.const 500)))", 500),
        ("(call $output_write (i32.const 0) (i32.const 500))", 500),
        ("(call $log_write (i32.const 1) (i32.const 0) (i32.const 500))", 500),
        ("(call $random_fill (i32.const 0) (i32.const 500))", 500),
        ("(drop (call $kv_put (i32.const 0) (i32.const 3) (i32.const 8) (i32.const 500)))", 503),
        ("(drop (call $kv_delete (i32.const 0) (i32.const 3)))", 3),
        # Bad keys: each is read, and none goes to the mediator; the text of the refusal is taken.
        ("(drop (call $kv_delete (i32.const 8) (i32.const 500)))", 500),
        (
            "(drop (call $kv_delete (i32.const 8) (i32.const 0)))"
            "(drop (call $take (i32.const 0) (i32.const 5)))",
            5,
        ),
    ],
)
def test_the_bytes_of_all_calls_have_a_cap(lab: Lab, call: str, size: int) -> None:
    """Ten copies of 500 bytes fit 5,000 and not 4,999, whichever way they go."""
    body = '(data (i32.const 0) "key")' + RUN + repeat(10, call) + "(i32.const 0))"
    whole = lab.run(body, input=bytes(size), call_bytes=10 * size)
    assert whole.code == ""
    done = lab.run(body, input=bytes(size), call_bytes=10 * size - 1)
    assert (done.code, done.host_calls) == ("limit.calls-exceeded", whole.host_calls)
    assert "bytes of calls" in done.message


@pytest.mark.parametrize(("length", "counted"), [(500, 500), (65_536, 8_192)])
def test_what_a_guest_says_of_its_failure_counts(lab: Lab, length: int, counted: int) -> None:
    """Each `fail` counts what is kept of its text, and above the cap ends the attempt."""
    fail = f"(call $fail (i32.const 2) (i32.const 0) (i32.const {length}) (i64.const 0))"
    body = RUN + repeat(10, fail) + "(i32.const 0))"
    assert lab.run(body, call_bytes=10 * counted).code == "guest.failed"
    done = lab.run(body, call_bytes=10 * counted - 1)
    assert (done.code, done.host_calls) == ("limit.calls-exceeded", 10)


@pytest.mark.parametrize("cap", [0, 100, 500])
@pytest.mark.parametrize("take", ["", "(drop (call $take (i32.const 0) (i32.const 500)))"])
def test_answers_count_when_they_arrive(lab: Lab, cap: int, take: str) -> None:
    """Ten answers of 500 bytes to a key of 3 count once: wherever they went, taken or not."""
    lab.kv.data[b"key"] = bytes(500)
    ask = f"(drop (call $kv_get (i32.const 600) (i32.const 3) (i32.const 0) (i32.const {cap})))"
    body = '(data (i32.const 600) "key")' + RUN + repeat(10, ask + take) + "(i32.const 0))"
    whole = lab.run(body, call_bytes=5_030)
    assert (whole.code, len(lab.kv.calls)) == ("", 10)
    done = lab.run(body, call_bytes=5_029)
    assert (done.code, dict(done.facts)["last_call"]) == ("limit.calls-exceeded", "kv_get")


def test_texts_of_errors_count_when_they_arrive(lab: Lab) -> None:
    """What the mediator says of a call that failed counts as its answer does."""
    lab.kv.status, lab.kv.error_text = abi.NOT_FOUND, bytes(100)
    ask = "(drop (call $kv_delete (i32.const 600) (i32.const 3)))"
    body = '(data (i32.const 600) "key")' + RUN + repeat(10, ask) + "(i32.const 0))"
    assert lab.run(body, call_bytes=1_030).code == ""
    assert lab.run(body, call_bytes=1_029).code == "limit.calls-exceeded"


@pytest.mark.covers("capability.deadline-exceeded")
def test_the_time_in_calls_has_a_cap(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that waits in calls beyond its share ends, and not at the guest's cost."""
    now_ns = 0

    def slow(call: Call) -> Answer:
        nonlocal now_ns
        now_ns += 3_000_000
        return Answer(call.seq, call.ordinal, 0, b"")

    # A clock that goes on in calls alone: what else this machine does is not counted.
    monkeypatch.setattr(host, "perf_counter_ns", lambda: now_ns)
    ask = "(drop (call $kv_get (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 0)))"
    body = '(data (i32.const 0) "key")' + RUN + repeat(8, ask) + "(i32.const 0))"
    done = lab.run(body, mediate=slow, host_ms=23)
    assert (done.code, done.host_calls) == ("capability.deadline-exceeded", 8)
    assert done.host_us == 24_000
    assert lab.run(body, mediate=slow, host_ms=5).host_calls == 2
    assert lab.run(body, mediate=slow, host_ms=24).code == ""
