"""What each host function does when it is used well, and the rule of the park."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from executor.core import abi
from executor.errors import ExecutorError

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab

RUN = '(func $run (export "run") (result i32) '
KEY = '(data (i32.const 0) "key") '
GET = "(call $kv_get (i32.const 0) (i32.const 3) (i32.const 100) (i32.const {cap}))"


def check(*pairs: tuple[str, int]) -> str:
    """Code that traps unless each i32 expression has its value, and then returns 0."""
    lines = [
        f"(if (i32.ne {code} (i32.const {value})) (then unreachable))" for code, value in pairs
    ]
    return " ".join(lines) + " (i32.const 0))"


def wrap(code: str) -> str:
    """An i64 answer as i32."""
    return f"(i32.wrap_i64 {code})"


def test_input_arrives_whole_and_in_pieces(lab: Lab) -> None:
    """`input_read` copies from an offset, stops at the end, and says how much it copied."""
    code = check(
        ("(call $input_len)", 6),
        ("(call $input_read (i32.const 0) (i32.const 0) (i32.const 4))", 4),
        ("(call $input_read (i32.const 4) (i32.const 4) (i32.const 90))", 2),
        ("(call $input_read (i32.const 9) (i32.const 6) (i32.const 90))", 0),
        ("(call $input_read (i32.const 9) (i32.const -1) (i32.const 90))", 0),
    ).removesuffix("(i32.const 0))")
    done = lab.run(
        RUN + code + "(call $output_write (i32.const 0) (i32.const 10)) (i32.const 0))",
        input=b"\0\xffabcd",
    )
    assert (done.code, done.output) == ("", b"\0\xffabcd\0\0\0\0")


def test_output_appends(lab: Lab) -> None:
    """Each `output_write` adds to the output; an empty one adds nothing."""
    write = "(call $output_write (i32.const {}) (i32.const {}))"
    code = write.format(0, 2) + write.format(2, 0) + write.format(1, 2)
    assert lab.run(KEY + RUN + code + "(i32.const 0))").output == b"keey"


def test_log_lines_leave_with_the_last_frame(lab: Lab) -> None:
    """Lines arrive in order, repaired where not UTF-8; escaping is left to the reader."""
    done = lab.run(
        '(data (i32.const 0) "a\\00\\nb\\ff")' + RUN
        + "(call $log_write (i32.const 3) (i32.const 0) (i32.const 5))"
        + "(call $log_write (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 0))"
    )  # fmt: skip
    assert done.logs == ((3, "a\0\nb�"), (0, ""))


@pytest.mark.parametrize(("level", "kept"), [(-1, 0), (4, 3), (2**31 - 1, 3)])
def test_a_strange_log_level_is_data(lab: Lab, level: int, kept: int) -> None:
    """A level outside 0 to 3 is clamped."""
    code = f"(call $log_write (i32.const {level}) (i32.const 0) (i32.const 3)) (i32.const 0))"
    assert lab.run(KEY + RUN + code).logs == ((kept, "key"),)


def test_logs_survive_a_failure(lab: Lab) -> None:
    """The lines of an attempt that traps are its best explanation."""
    code = "(call $log_write (i32.const 1) (i32.const 0) (i32.const 3)) unreachable)"
    assert lab.run(KEY + RUN + code).logs == ((1, "key"),)


def test_the_clock_is_the_wall_clock(lab: Lab) -> None:
    """`clock_now_ns` lies between the times before and after the attempt."""
    before = time.time_ns()
    done = lab.run(
        RUN + "(i64.store (i32.const 0) (call $clock_now_ns))"
        + "(call $output_write (i32.const 0) (i32.const 8)) (i32.const 0))"
    )  # fmt: skip
    assert before <= int.from_bytes(done.output, "little") <= time.time_ns()


def test_random_fills_exactly_its_range(lab: Lab) -> None:
    """Two attempts get different bytes, and nothing beside the range is written."""
    body = (
        RUN + "(call $random_fill (i32.const 8) (i32.const 32))"
        + "(call $output_write (i32.const 0) (i32.const 48)) (i32.const 0))"
    )  # fmt: skip
    first, second = lab.run(body).output, lab.run(body).output
    assert first != second
    assert first[:8] == first[40:] == bytes(8)
    assert first[8:40] != bytes(32)


def test_kv_round_trip(lab: Lab) -> None:
    """put, get and delete reach the mediator as fixed fields, in order."""
    code = check(
        (wrap("(call $kv_put (i32.const 0) (i32.const 3) (i32.const 1) (i32.const 2))"), 0),
        (wrap(GET.format(cap=50)), 2),
        ("(i32.load16_u (i32.const 100))", int.from_bytes(b"ey", "little")),
        (wrap("(call $kv_delete (i32.const 0) (i32.const 3))"), 0),
        (wrap(GET.format(cap=50)), abi.NOT_FOUND),
    )
    assert lab.run(KEY + RUN + code).code == ""
    assert [(c.seq, c.ordinal, c.function, c.key, c.value) for c in lab.kv.calls] == [
        (1, 0, "kv_put", b"key", b"ey"), (1, 1, "kv_get", b"key", b""),
        (1, 2, "kv_delete", b"key", b""), (1, 3, "kv_get", b"key", b""),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [0, 512])
def test_an_answer_that_fits_is_not_parked(lab: Lab, size: int) -> None:
    """An answer as long as the buffer is written to it; `take` has nothing."""
    lab.kv.data[b"key"] = b"v" * size
    code = check(
        (wrap(GET.format(cap=512)), size),
        ("(call $take (i32.const 2000) (i32.const 600))", 0),
        ("(i32.load8_u (i32.const 100))", ord("v") if size else 0),
    )
    assert lab.run(KEY + RUN + code).code == ""


def test_an_answer_that_does_not_fit_is_parked_once(lab: Lab) -> None:
    """A longer answer leaves the buffer alone and waits for one `take`; no second Call."""
    lab.kv.data[b"key"] = b"v" * 513
    code = check(
        (wrap(GET.format(cap=512)), 513),
        ("(i32.load8_u (i32.const 100))", 0),
        ("(call $take (i32.const 2000) (i32.const 513))", 513),
        ("(i32.load8_u (i32.const 2512))", ord("v")),
        ("(i32.load8_u (i32.const 2513))", 0),
        ("(call $take (i32.const 2000) (i32.const 513))", 0),
    )
    assert lab.run(KEY + RUN + code).code == ""
    assert len(lab.kv.calls) == 1


def test_take_copies_at_most_what_is_asked_and_empties(lab: Lab) -> None:
    """A short `take` gets the first bytes, and the rest is gone."""
    lab.kv.data[b"key"] = b"0123456789"
    code = check(
        (wrap(GET.format(cap=0)), 10),
        ("(call $take (i32.const 2000) (i32.const 4))", 4),
        ("(call $take (i32.const 2000) (i32.const 4))", 0),
        ("(i32.load8_u (i32.const 2004))", 0),
    )
    assert lab.run(KEY + RUN + code).code == ""


@pytest.mark.parametrize(
    "between",
    [
        "(call $log_write (i32.const 1) (i32.const 0) (i32.const 3))",
        "(drop (call $clock_now_ns))",
        "(call $random_fill (i32.const 9) (i32.const 1))",
        "(drop (call $kv_delete (i32.const 0) (i32.const 3)))",
    ],
)
def test_each_capability_call_empties_the_park(lab: Lab, between: str) -> None:
    """What one call parked is never read after another."""
    lab.kv.data[b"key"] = b"0123456789"
    code = f"(drop {GET.format(cap=0)}) {between}" + check(
        ("(call $take (i32.const 2000) (i32.const 10))", 0)
    )
    assert lab.run(KEY + RUN + code).code == ""


def test_calls_of_the_task_leave_the_park(lab: Lab) -> None:
    """The task's own input and output are no capability calls."""
    lab.kv.data[b"key"] = b"0123456789"
    code = f"(drop {GET.format(cap=0)}) (drop (call $input_len))" + check(
        ("(call $take (i32.const 2000) (i32.const 10))", 10)
    )
    assert lab.run(KEY + RUN + code).code == ""


@pytest.mark.parametrize("status", sorted(abi.ERRORS))
def test_each_error_parks_its_text(lab: Lab, status: int) -> None:
    """An error number passes through, its text is parked, 512 bytes at most."""
    lab.kv.status, lab.kv.error_text = status, b"e" * 600
    code = check(
        (wrap(GET.format(cap=4)), status),
        ("(call $take (i32.const 2000) (i32.const 600))", 512),
    )
    assert lab.run(KEY + RUN + code).code == ""


@pytest.mark.parametrize(
    "key",
    [
        b"", b".a", b"a.", b"a..b", b".", b"a b", b"a*", b"a>", b"k\xc3\xa9y", b"a\n", b"a\0",
        b"k" * 513,
    ],
)  # fmt: skip
def test_a_key_that_nats_does_not_allow_is_minus_3(lab: Lab, key: bytes) -> None:
    """A bad key is answered without a Call, its text parked, the attempt goes on."""
    escaped = "".join(f"\\{byte:02x}" for byte in key)
    code = check(
        (
            wrap(
                f"(call $kv_put (i32.const 0) (i32.const {len(key)}) (i32.const 0) (i32.const 1))"
            ),
            -3,
        ),
        (wrap(f"(call $kv_delete (i32.const 0) (i32.const {len(key)}))"), -3),
        (
            wrap(
                f"(call $kv_get (i32.const 0) (i32.const {len(key)}) (i32.const 0) (i32.const 1))"
            ),
            -3,
        ),
        ("(call $take (i32.const 2000) (i32.const 600))", len("invalid argument")),
    )
    assert lab.run(f'(data (i32.const 0) "{escaped}")' + RUN + code).code == ""
    assert lab.kv.calls == []


@pytest.mark.parametrize("key", [b"a", b"a.b-c/d_e=F9", b"k" * 512, b"-"])
def test_a_key_that_nats_allows_is_asked_for(lab: Lab, key: bytes) -> None:
    """The whole legal alphabet and the longest key pass."""
    code = check(
        (
            wrap(
                f"(call $kv_get (i32.const 0) (i32.const {len(key)}) (i32.const 0) (i32.const 0))"
            ),
            -1,
        ),
    )
    assert lab.run(f'(data (i32.const 0) "{key.decode()}")' + RUN + code).code == ""
    assert lab.kv.calls[0].key == key


def test_a_value_above_the_payload_cap_is_minus_5(lab: Lab) -> None:
    """A value that no frame may carry is answered without a Call."""
    code = check(
        (
            wrap("(call $kv_put (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 524289))"),
            abi.TOO_LARGE,
        ),
    )
    done = lab.run(KEY + RUN + code, memory='(memory (export "memory") 9)')
    assert (done.code, lab.kv.calls) == ("", [])


def test_state_is_fresh_on_each_attempt(lab: Lab) -> None:
    """Globals, memory, output, log, park and failure start anew for a second attempt."""
    body = (
        KEY + "(global $g (mut i32) (i32.const 0))" + RUN
        + check(
            ("(global.get $g)", 0),
            ("(i32.load (i32.const 5000))", 0),
            ("(memory.size)", 1),
            ("(call $take (i32.const 2000) (i32.const 10))", 0),
        ).removesuffix("(i32.const 0))")
        + "(global.set $g (i32.const 1)) (i32.store (i32.const 5000) (i32.const 7))"
        + "(drop (memory.grow (i32.const 1)))"
        + "(call $output_write (i32.const 0) (i32.const 3))"
        + "(call $log_write (i32.const 1) (i32.const 0) (i32.const 3))"
        + f"(drop {GET.format(cap=0)}) (i32.const 0))"
    )  # fmt: skip
    lab.kv.data[b"key"] = b"0123456789"
    program, host = lab.prepared(body)
    first, second = lab.attempt(program, host), lab.attempt(program, host, seq=2)
    assert (first.code, first.output, first.logs) == ("", b"key", ((1, "key"),))
    assert (second.code, second.output, second.logs) == ("", b"key", ((1, "key"),))
    assert second.host_calls == first.host_calls
    assert lab.kv.calls[1].ordinal == 0


@pytest.mark.covers("policy.capability-denied")
def test_what_is_not_granted_is_not_linked(lab: Lab) -> None:
    """An import that is not granted cannot be linked; all missing ones are named at once."""
    body = (
        KEY + RUN + f"(drop {GET.format(cap=0)}) (drop (call $clock_now_ns))"
        + "(call $log_write (i32.const 1) (i32.const 0) (i32.const 3)) (i32.const 0))"
    )  # fmt: skip
    with pytest.raises(ExecutorError) as caught:
        lab.run(body, functions=("log_write",))
    assert (caught.value.code, caught.value.detail) == (
        "policy.capability-denied", "clock_now_ns, kv_get",
    )  # fmt: skip


def test_the_task_functions_need_no_grant(lab: Lab) -> None:
    """`executor:task@1` is always linked, what is unused does not matter."""
    assert lab.run(RUN + "(call $input_len))", functions=()).code == ""


@pytest.mark.covers("module.import-unknown")
@pytest.mark.parametrize(
    "line",
    [
        '(import "env" "abort" (func))',
        '(import "wasi_snapshot_preview1" "fd_write" (func))',
        '(import "executor:kv@2" "kv_get" (func (param i32 i32 i32 i32) (result i64)))',
        '(import "executor:kv@1" "kv_get" (func (param i32 i32) (result i64)))',
        '(import "executor:task@1" "input_len" (global i32))',
        '(import "env" "memory" (memory 1))',
    ],
)
def test_an_import_that_nobody_offers(lab: Lab, line: str) -> None:
    """Another module, version, type or kind than the ABI's is refused, granted or not."""
    wat = f"(module {line} {RUN} (i32.const 0)))"
    with pytest.raises(ExecutorError) as caught:
        lab.program(wat)
    assert caught.value.code in {"module.import-unknown", "module.abi-mismatch"}


@pytest.mark.covers("module.abi-mismatch")
@pytest.mark.parametrize(
    "body",
    [
        '(memory (export "memory") 1)',
        '(memory (export "memory") 1) (func (export "run"))',
        '(memory (export "memory") 1) (func (export "run") (param i32) (result i32) (i32.const 0))',
        '(func (export "run") (result i32) (i32.const 0))',
        '(func (export "memory")) (func (export "run") (result i32) (i32.const 0))',
        (
            '(memory (export "memory") 1) (func (export "run") (result i32) (i32.const 0))'
            '(func (export "_initialize") (param i32))'
        ),
        '(memory (export "memory") 1) (global (export "run") i32 (i32.const 0))',
    ],
)
def test_exports_that_are_not_the_abis(lab: Lab, body: str) -> None:
    """A module without `memory` and `run: () -> i32`, or with another `_initialize`."""
    with pytest.raises(ExecutorError) as caught:
        lab.program(f"(module {body})")
    assert caught.value.code == "module.abi-mismatch"


def test_an_import_may_be_listed_twice(lab: Lab) -> None:
    """Go lists imports twice; both are the same function."""
    line = '(import "executor:task@1" "input_len" (func {} (result i32)))'
    prepared = lab.program(
        f'(module {line.format("$a")} {line.format("$b")} (memory (export "memory") 1)'
        f"{RUN} (i32.sub (call $a) (call $b))))"
    )
    assert lab.attempt(*prepared, input=b"abc").code == ""
