"""What a terminal record says of the attempt: limits, last calls, signers, what it stood in for."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace

import pytest

from executor.core import abi, envelope
from executor.core.frames import LAST_CALLS_MAX, UNRETURNED
from executor.model import Fallback, Refused
from tests.support import guests
from tests.support.rig import Rig, make_config

_GET = "(drop (call $kv_get (i32.const 589000) (i32.const {0}) (i32.const 0) (i32.const 0)))"
# Looks for the key `gat`, which is not there, then traps in a function of its own.
BROKEN = (
    '(data (i32.const 589000) "gate") (func $parse_header unreachable)' + guests.RUN
    + "(drop (call $input_len))" + _GET.format(3) + "(call $parse_header) (i32.const 0))"
)  # fmt: skip
# The same look, then one at the gate, which holds it.
HELD = (
    '(data (i32.const 589000) "gate")' + guests.RUN + "(drop (call $input_len))"
    + _GET.format(3) + _GET.format(4) + "(i32.const 0))"
)  # fmt: skip
MANY = (
    guests.RUN.replace("(result i32) ", "(result i32) (local $n i32) ", 1)
    + "(local.set $n (i32.const 50)) (loop $l (drop (call $input_len)) (br_if $l (local.tee $n"
    " (i32.sub (local.get $n) (i32.const 1))))) (call $output_write (i32.const -1) (i32.const 9))"
    "(i32.const 0))"
)  # fmt: skip


async def test_a_trap_is_told_whole() -> None:
    """A dead letter says where it trapped, after which calls, under which limits, who signed it."""
    async with Rig() as rig:
        release = rig.publish("broken", BROKEN)
        request = rig.ask("broken", b"in", limits=(("fuel", 123_456_789),), trace="00-ab-cd-01")
        record = await rig.record(request)
        assert record.code == "guest.trap"
        facts = dict(record.facts)
        assert (facts["frame0"], facts["frame1"]) == ("parse_header", "run")
        assert record.last_calls == (("input_len", 0), ("kv_get", abi.NOT_FOUND))
        assert dict(record.limits) == asdict(rig.config.policy.limits) | {"fuel": 123_456_789}
        assert record.signers == ("author",)
        assert (record.receipt.digest, record.trace) == (release.digest, "00-ab-cd-01")
        assert [(past.attempt, past.code) for past in record.history] == [(1, "guest.trap")]
        assert record.origin is not None
        assert record.origin.data == envelope.encode_task(request, "test")


async def test_the_last_calls_are_the_last() -> None:
    """Of many calls the newest are kept; the one that ended the attempt had not returned."""
    async with Rig() as rig:
        rig.publish("many", MANY)
        record = await rig.record(rig.ask("many"))
        assert record.code == "guest.bad-pointer"
        kept = [("input_len", 0)] * (LAST_CALLS_MAX - 1)
        assert record.last_calls == (*kept, ("output_write", UNRETURNED))


@pytest.mark.covers("limit.deadline-exceeded")
async def test_a_killed_sandbox_leaves_its_mediated_calls() -> None:
    """Of a sandbox that was killed the supervisor tells what it served, and what it was serving."""
    async with Rig() as rig:
        rig.publish("held", HELD)
        request = rig.ask("held", attempts_max=1, limits=(("deadline_ms", 150),))
        record = await rig.record(request)
        assert record.code == "limit.deadline-exceeded"
        assert record.last_calls[0] == ("kv_get", abi.NOT_FOUND)
        # The call that was held is told too, or that it ended with the attempt's time.
        assert record.last_calls[1] in {("kv_get", UNRETURNED), ("kv_get", abi.DEADLINE)}
        assert dict(record.limits)["deadline_ms"] == 150


async def test_what_never_ran_has_no_limits() -> None:
    """A refused message had no attempt: its letter says nothing of one, and stays version 1."""
    async with Rig() as rig:
        rig.publish("broken", BROKEN)
        request = rig.ask("broken", expires_at=1)
        record = await rig.record(request)
        assert (record.limits, record.last_calls, record.signers) == ((), (), ())
        (outgoing,) = rig.wire.published("dead")
        assert envelope.decode_sealed(outgoing.body).version == 1


@pytest.mark.parametrize("version", [1, 2])
async def test_the_version_that_is_written(version: int) -> None:
    """A result stays version 1; a letter is 2, or 1 without what came with 2 if so configured."""
    async with Rig(delivery__envelope_version=version) as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("broken", BROKEN)
        rig.publish("retry", guests.RETRY)
        await rig.record(rig.ask("echo"))
        record = await rig.record(rig.ask("broken"))
        assert bool(record.limits) is bool(record.last_calls) is (version > 1)
        rig.ask("retry")
        await rig.put_off()
        written = {
            out.subject.split(".")[0]: envelope.decode_sealed(out.body).version
            for out in rig.wire.published()
        }
        assert written == {"result": 1, "dead": version, "later": 1}


def falling_back(fallback: Fallback, *, version: int = 2) -> Rig:
    """A rig whose grant puts something in place of failures."""
    config = make_config(delivery__envelope_version=version)
    grants = tuple(replace(grant, fallback=fallback) for grant in config.policy.grants)
    return Rig(replace(config, policy=replace(config.policy, grants=grants)))


@pytest.mark.parametrize("version", [1, 2])
async def test_a_degraded_result_names_its_cause(version: int) -> None:
    """What a fallback gave says the code it stood in for; in version 1 only that it is degraded."""
    fallback = Fallback(frozenset({"guest.trap"}), b"instead", "text/plain")
    async with falling_back(fallback, version=version) as rig:
        rig.publish("trap", guests.TRAP)
        record = await rig.record(rig.ask("trap"))
        assert (record.output, record.degraded, record.code) == (b"instead", True, "")
        assert record.cause == ("guest.trap" if version > 1 else "")


async def test_a_call_that_outlives_its_run_is_no_bug() -> None:
    """A fallback runs while the call that its task was killed in is still served; each ends."""
    fallback = Fallback(frozenset({"limit.deadline-exceeded"}), task="echo")
    async with falling_back(fallback) as rig:
        rig.publish("held", HELD)
        rig.publish("echo", guests.ECHO)
        request = rig.ask("held", b"x", attempts_max=1, limits=(("deadline_ms", 150),))
        record = await rig.record(request)
        assert (record.output, record.cause) == (b"x", "limit.deadline-exceeded")
        rig.buckets.gate.set()
        await asyncio.gather(*rig.pool._calls)
        assert rig.journal.of("bug") == []


async def test_a_fallback_that_failed_too_leaves_the_letter_its_task() -> None:
    """The letter is of the task's own module, version and calls, and names the other's failure."""
    fallback = Fallback(frozenset({"guest.trap"}), task="other")
    async with falling_back(fallback) as rig:
        release = rig.publish("broken", BROKEN, version="1.2.3")
        rig.publish("other", guests.FAIL, version="9.9.9")
        record = await rig.record(rig.ask("broken"))
        assert (record.code, record.version) == ("guest.trap", "1.2.3")
        assert record.receipt.digest == release.digest
        assert record.last_calls[-1] == ("kv_get", abi.NOT_FOUND)
        assert dict(record.facts)["fallback"] == "guest.failed"


# Deliveries of one id in one executor.

COUNTING = guests.working(1_000)


def runs(rig: Rig) -> int:
    """How often a guest said in its bucket that it began."""
    return sum(function == "put" for _, function, _ in rig.buckets.asked)


async def test_deliveries_of_one_id_follow_each_other() -> None:
    """Copies that are in hand together run once: each waits for the one before, then looks."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("work", COUNTING)
        await rig.admit_all()
        for _ in range(5):
            rig.deliver(rig.request("work", b"once", id="mine"))
        await rig.settle_down()
        assert runs(rig) == 1
        assert rig.acked() == ["mine"] * 5
        assert len(rig.wire.published("result")) == 1
        assert len(rig.journal.of("duplicate")) == 4


async def test_followers_of_another_task_or_id_do_not_wait() -> None:
    """Only the same id of the same task is one task."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("work", COUNTING)
        rig.publish("other", COUNTING)
        for task, task_id in (("work", "a"), ("work", "b"), ("other", "a")):
            rig.deliver(rig.request(task, f"{task}-{task_id}".encode(), id=task_id))
        await rig.settle_down()
        assert runs(rig) == len(rig.wire.published("result")) == 3
        assert rig.journal.of("duplicate") == []


async def test_a_follower_takes_over_what_was_refused() -> None:
    """If the first delivery ends without a record, the next one runs and makes it."""
    async with Rig() as rig:
        rig.publish("work", COUNTING)
        await rig.admit_all()
        lost = iter([Refused(403, "the permission is missing")])
        rig.wire.answer = lambda outgoing: next(lost, None) or rig.wire.store(outgoing)
        for _ in range(3):
            rig.deliver(rig.request("work", b"again", id="mine"))
        await rig.settle_down()
        # The first record was refused: its run is repeated, since nothing says that it was done.
        assert runs(rig) == 2
        assert len(rig.records()) == 1
        assert rig.acked() == ["mine"] * 2


async def test_a_redelivered_fresh_id_is_looked_up() -> None:
    """`fresh` vouches for the first hand-over only: the second finds the record and does not run.

    The harmless twin: a first hand-over of a fresh id is not looked up.
    """
    async with Rig() as rig:
        rig.publish("work", COUNTING)
        request = rig.request("work", b"fresh")
        assert request.fresh
        rig.deliver(request, sequence=7)
        await rig.record(request)
        assert rig.wire.count("read") == 0
        rig.deliver(request, delivered=2, sequence=7)
        await rig.settle_down()
        assert rig.wire.count("read") == 1
        assert runs(rig) == 1
        assert rig.acked() == [request.id] * 2
