"""The raw path beside the public one: chosen by a test of itself, alike in everything but speed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest
import wasmtime

from executor.core.frames import Answer, Call, Done
from executor.errors import ExecutorError
from executor.sandbox import raw, warm
from executor.sandbox.engine import build, check_version, installed_version
from executor.sandbox.machine import Bug, Ended, Program
from executor.sandbox.memory import PAGE
from executor.sandbox.raw import Raw, RawMachine
from tests.sandbox.conftest import Lab, end, entry, text
from tests.support.nursery import Nursery

ASK = "(drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8))) (i32.const 0)"
KEY = '(data (i32.const 0) "k")'


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    """One for all tests here."""
    return build()


@pytest.fixture
def lab(engine: wasmtime.Engine) -> Lab:
    """A laboratory on the raw path."""
    return Lab(engine, Raw(installed_version()))


def machine_of(program: Program, **fields: int) -> Any:
    """A machine with limits that suffice."""
    given = {"fuel": 1_000_000, "memory_bytes": PAGE, "table_elements": 10, **fields}
    return program.machine(**given)


# The choice.


def test_the_raw_path_passes_its_test() -> None:
    """The installed engine is known, and each ending is the same on both paths, fuel included."""
    assert installed_version() in raw.VERSIONS
    assert warm.warm_up(pooled=True, path="raw").raw is not None
    assert warm.warm_up(pooled=False).raw is not None


def test_the_public_path_can_be_chosen() -> None:
    """Whoever does not want the raw path has the other."""
    assert warm.warm_up(pooled=True, path="public").raw is None


def test_the_fork_server_says_its_path(nursery: Nursery, engine_kind: tuple[str, str]) -> None:
    """What was chosen reaches the supervisor, for `doctor` and the log."""
    assert nursery.warm.path == engine_kind[1]


def unknown(patch: pytest.MonkeyPatch) -> None:
    """No version is known."""
    patch.setattr(raw, "VERSIONS", frozenset())


def missing(patch: pytest.MonkeyPatch) -> None:
    """A function is not there."""
    plain = raw._function
    patch.setattr(
        raw, "_function",
        lambda dll, name, *types: plain(dll, name.replace("trap_new", "no_such"), *types),
    )  # fmt: skip


def other_fuel(patch: pytest.MonkeyPatch) -> None:
    """The fuel left is one less than it is."""
    plain = RawMachine.fuel
    patch.setattr(RawMachine, "fuel", lambda machine: plain(machine) - 1)


def other_ending(patch: pytest.MonkeyPatch) -> None:
    """What a host call raised is lost, and its trap is taken for the guest's."""
    plain = Raw.settle

    def settle(self: Raw, error: int | None) -> None:
        self.raised = None
        plain(self, error)

    patch.setattr(Raw, "settle", settle)


def exception(patch: pytest.MonkeyPatch) -> None:
    """The path fails where it should not."""

    def fail(_machine: RawMachine) -> NoReturn:
        raise Bug

    patch.setattr(RawMachine, "locate", fail)


@pytest.mark.covers("sandbox.start-failed")
@pytest.mark.parametrize("break_it", [unknown, missing, other_fuel, other_ending, exception])
def test_any_doubt_selects_the_public_path(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """By itself it falls back; where the raw path is demanded, nothing starts."""
    break_it(monkeypatch)
    assert warm.warm_up(pooled=True).raw is None
    with pytest.raises(ExecutorError) as caught:
        warm.warm_up(pooled=True, path="raw")
    assert (caught.value.code, caught.value.detail[:11]) == ("sandbox.start-failed", "no raw path")


def test_every_listed_version_may_start() -> None:
    """A version of the raw path is one of the engine's range."""
    for version in raw.VERSIONS:
        assert check_version(version)


# The slot.


def test_one_machine_at_a_time(lab: Lab) -> None:
    """Buffers are shared by all machines: a second one is refused, and the first goes on."""
    program, _ = lab.program(text(entry("(i32.const 7)")))
    first = machine_of(program)
    with pytest.raises(Bug, match="two machines"):
        machine_of(program)
    first.instantiate()
    assert first.call("run") == 7
    first.close()
    machine_of(program).close()


def test_a_closed_machine_has_no_addresses(lab: Lab) -> None:
    """What is used behind `close` is an exception, not memory that was freed."""
    program, _ = lab.program(text(entry("(i32.const 0)")))
    machine = machine_of(program)
    machine.instantiate()
    machine.close()
    for use in (machine.locate, machine.size, machine.fuel, machine.close, machine.instantiate):
        with pytest.raises(AttributeError):
            use()
    with pytest.raises(AttributeError):
        machine.call("run")


def test_no_store_is_closed_under_its_guest(lab: Lab) -> None:
    """A host call that would free the Store that it runs in is refused: our bug, not a crash."""
    lab.kv = lambda _: lab.raw.machine.close()  # type: ignore[assignment,union-attr]
    with pytest.raises(Bug, match="inside a host call"):
        lab.run(KEY + entry(ASK))
    assert lab.status("(i32.const 0)").code == ""


# What a host call raises.


class Odd(BaseException):
    """Nothing that any code of ours expects."""


def test_what_a_host_call_raises_arrives_as_it_is(lab: Lab) -> None:
    """A callback raises nothing into the engine; once behind the guest, it is the same object."""
    raised = Odd()

    def mediate(_: Call) -> Answer:
        raise raised

    with pytest.raises(Odd) as caught:
        lab.run(KEY + entry(ASK), mediate=mediate)
    assert caught.value is raised


def test_no_later_trap_is_blamed_for_it(lab: Lab) -> None:
    """What was raised is gone with its attempt: an unrelated trap behind it is itself."""

    def mediate(_: Call) -> NoReturn:
        raise ZeroDivisionError

    body = KEY + entry(f"(if (call $input_len) (then unreachable)) {ASK}")
    program, host = lab.program(text(body), mediate=mediate)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            lab.attempt(program, host)
        assert lab.attempt(program, host, input=b"x").facts[0] == ("trap", "unreachable")


def test_a_result_of_another_type_is_our_bug(lab: Lab) -> None:
    """A host function that answers with what is no number ends the attempt as an exception."""
    program, host = lab.program(text(entry("(call $input_len)")))
    program.functions["input_len"] = lambda _: "1"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        lab.attempt(program, host)


# Numbers.


@pytest.mark.parametrize("number", [0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)])
def test_64_bits_arrive_whole(lab: Lab, number: int) -> None:
    """A delay of 64 bits is the same number on both paths, as is what stands above an i32."""
    body = entry(
        f"(call $fail (i32.wrap_i64 (i64.const 0x7777777700000001)) (i32.const 0) (i32.const 0)"
        f" (i64.const {number})) (i32.const 0)"
    )
    ended = [Lab(lab.engine, path).run(body) for path in (lab.raw, None)]
    assert len(set(map(timeless, ended))) == 1
    assert ended[0].retry_after_ms == (number if number >= 0 else -1)


@pytest.mark.parametrize("status", [0, -1, -6])
def test_an_answer_of_64_bits_arrives_whole(lab: Lab, status: int) -> None:
    """An error number is negative in all 64 bits."""
    lab.kv.status = status
    body = (
        "(call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8))"
        f" (i64.ne (i64.const {status}))"
    )
    assert lab.run(KEY + entry(body)).code == ""


def timeless(done: Done) -> Done:
    """An ending without what the clock says."""
    return replace(done, guest_us=0, host_us=0)


def test_a_trap_has_its_frames(lab: Lab) -> None:
    """The names of a guest's functions are read before the trap is freed."""
    body = "(func $inner unreachable)" + entry("(call $inner) (i32.const 0)")
    ended = [Lab(lab.engine, path).run(body) for path in (lab.raw, None)]
    assert ended[0].message == "unreachable in inner"
    assert len(set(map(timeless, ended))) == 1


def test_a_second_instance_of_a_store_is_refused(lab: Lab) -> None:
    """An error that is no trap is decoded, freed and raised, and the next attempt is well."""
    program, _ = lab.program(text(entry("(i32.const 0)")))
    machine = machine_of(program)
    machine.instantiate()
    with pytest.raises(Ended):
        machine.instantiate()
    machine.close()
    assert lab.status("(i32.const 0)").code == ""


# What the engine does to a process that uses it wrongly, and why this file's rules are as they are.


def ready(**functions: Callable[[], None]) -> tuple[wasmtime.Store, Any]:
    """A Store of its own and the exports of a guest in it."""
    engine = build(pooled=False)
    linker = wasmtime.Linker(engine)
    call = functions.get("call", lambda: None)
    linker.define_func("m", "f", wasmtime.FuncType([], []), call)
    module = wasmtime.Module(
        engine,
        '(module (import "m" "f" (func $f)) (func $deep (export "deep") (call $deep))'
        ' (func (export "run") (call $f)))',
    )
    store = wasmtime.Store(engine)
    store.set_fuel(10**9)
    return store, linker.instantiate(store, module).exports(store)


def test_a_function_of_another_store_aborts() -> None:
    """No exception, the end of the process: a machine never hands out what it found."""

    def work() -> bool:
        silence()
        store, _ = ready()
        _, exports = ready()
        exports["run"](store)
        return True

    assert end(work) == -signal.SIGABRT


def test_recursion_on_a_small_stack_is_a_crash() -> None:
    """The engine's limit of stack does not know the thread's: guests run on the main one."""

    def work() -> bool:
        store, exports = ready()
        threading.stack_size(256 * 1024)
        thread = threading.Thread(target=lambda: exports["deep"](store))
        thread.start()
        thread.join()
        return True

    assert end(work) == -signal.SIGSEGV


def test_an_altered_artifact_loads_and_runs() -> None:
    """The engine does not notice other code in an artifact: it is authenticated before."""

    def work() -> bool:
        engine = build(pooled=False)
        module = wasmtime.Module(
            engine, '(module (func (export "run") (result i32) (i32.const 0x12345678)))'
        )
        data = bytes(module.serialize()).replace(b"\x78\x56\x34\x12", b"\1\0\0\0")
        store = wasmtime.Store(engine)
        store.set_fuel(1_000)
        altered = wasmtime.Module.deserialize(engine, data)
        run = wasmtime.Instance(store, altered, []).exports(store)["run"]
        return isinstance(run, wasmtime.Func) and run(store) == 1

    assert end(work) == 0


def silence() -> None:
    """What a child says of its end is no concern of the tests' output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
