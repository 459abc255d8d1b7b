"""What holds a task up and what stands in for it: pause, quarantine, breakers, fallback."""

from __future__ import annotations

import asyncio
import gc
import signal

import pytest

from executor import config as configs
from executor.core import seal, subjects
from executor.core.breaker import BreakerRules
from executor.core.budget import BudgetRules
from executor.core.envelope import Record
from executor.errors import ExecutorError
from executor.model import Digest, TaskRequest
from executor.supervisor.guards import module_of, sandboxes_of, target_of
from executor.supervisor.job import Job
from executor.supervisor.steering import Steering
from executor.telemetry import Telemetry
from tests.support import guests, speech
from tests.support.rig import OTHER, TENANT, Rig, make_config

START = 1_700_000_000_000
AT = speech.now_ms()
# Asks its bucket for the key in its input, then for another attempt.
KV_OR_RETRY = guests.RETRY.replace(
    "(call $fail",
    guests._READ + "(drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8)))"
    "(call $fail", 1,
)  # fmt: skip


class Clock:
    """A pipeline's wall clock in the hand of the test."""

    def __init__(self, rig: Rig) -> None:
        self.now = START
        rig.now_ms = lambda: self.now


def steering(rig: Rig) -> Steering:
    """What takes the entries of CONTROL for this rig."""
    return Steering(
        "test", rig.trust, rig.guards, rig.pipeline.cancelling, rig.pipeline.schedules,
        Telemetry(rig.journal), rig.pipeline.now_ms,
    )  # fmt: skip


def say(rig: Rig, typ: str, key: str, **fields: str | int) -> None:
    """Another executor, or an operator, says something in CONTROL."""
    signer = guests.HOST if typ == "breaker" else guests.OPERATOR
    at = speech.now_ms()
    steering(rig).entry(key, speech.value(typ, key, fields, signer=signer, at=at), at)


def delay_ms(rig: Rig, clock: Clock, nth: int = -1) -> int:
    """How far ahead the nth schedule was put."""
    return rig.wire.published("later")[nth].schedule_at_ms - clock.now


async def ended(rig: Rig, request: TaskRequest) -> Record:
    """How it ended; what was acked before may have been a retry of it."""
    await rig.until(lambda: request.id in rig.records(), request.id)
    return rig.records()[request.id]


@pytest.mark.covers("task.paused")
async def test_a_paused_task_waits() -> None:
    """Its tasks are put off and lose no attempt; others run; resumed, they run as well."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("other", guests.ECHO)
        key = subjects.pause_key(TENANT, "echo")
        say(rig, "pause", key, at=1, why="maintenance")
        request = rig.ask("echo", b"x")
        again = await rig.put_off()
        assert (again.id, again.attempt, again.history) == (request.id, 1, ())
        assert (await rig.record(rig.ask("other", b"y"))).output == b"y"
        say(rig, "pause", key)
        rig.retry(rig.wire.published("later")[-1])
        assert (await ended(rig, request)).output == b"x"


@pytest.mark.parametrize(
    ("key", "value", "event"),
    [
        (f"pause.{TENANT}.echo", b"", "pause-not-authentic"),
        (f"pause.{TENANT}.echo", speech.value(
            "pause", f"pause.{TENANT}.other", {"at": 1, "why": ""}, at=AT), "pause-not-authentic"),
        (f"breaker.module.{TENANT}.{'0' * 64}", speech.value(
            "pause", f"pause.{TENANT}.echo", {"at": 1, "why": ""}, at=AT), "breaker-not-authentic"),
        ("quarantine." + "0" * 64, speech.value(
            "quarantine", "quarantine." + "0" * 64, {"at": 1, "code": "", "task": "", "by": ""},
            environment="prod", at=AT), "quarantine-not-authentic"),
        (f"cancel.{TENANT}.echo.x", b"\xc1", "cancel-not-authentic"),
    ],
)  # fmt: skip
async def test_what_is_not_valid_changes_nothing(key: str, value: bytes, event: str) -> None:
    """A value for another key, of another type or environment is a security event, and no more."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        steering(rig).entry(key, value, AT)
        assert rig.journal.security() == [event]
        assert (await rig.record(rig.ask("echo", b"x"))).output == b"x"


async def test_other_entries_are_not_taken() -> None:
    """What an executor says of itself steers nobody; a key with too few parts is nobody's."""
    async with Rig() as rig:
        steering(rig).entry("status.local_1", b"", AT)
        steering(rig).entry("pause.short", b"", AT)
        assert rig.journal.security() == []


async def crash(rig: Rig, number: int, gate: int) -> None:
    """Let the sandbox of the guest at the gate die of a signal of its own making."""
    await rig.until(lambda: rig.buckets.at_gate() == gate, "a guest at the gate")
    await rig.kill(number)


@pytest.mark.covers("module.quarantined")
async def test_a_module_that_kills_sandboxes_is_kept_from_its_tenant() -> None:
    """The second SIGSEGV on one task ends it; its module's other tasks wait, everywhere."""
    async with Rig() as rig:
        live = rig.publish("hold", guests.HOLD)
        first = rig.ask("hold")
        await crash(rig, signal.SIGSEGV, 1)
        await rig.put_off()
        assert rig.board.entries == {}
        rig.retry(rig.wire.published("later")[-1])
        await crash(rig, signal.SIGSEGV, 2)
        assert (await ended(rig, first)).code == "sandbox.crashed"
        key = subjects.quarantine_key(live.digest, TENANT)
        said = rig.board.fields(key)
        assert (said["code"], said["task"]) == ("sandbox.crashed", f"{TENANT}/hold")
        waiting = rig.ask("hold", b"x")
        assert (await rig.put_off(2)).id == waiting.id
        assert rig.journal.of("attempt")[-1]["code"] == "module.quarantined"
        # What is announced is enough for any executor; lifted, the tasks run.
        value = seal.say(guests.HOST, "test", key, rig.board.entries[key], at=AT)
        rig.guards.quarantined.clear()
        steering(rig).entry(key, value, AT)
        assert rig.guards.quarantined == {(live.digest, TENANT): "sandbox.crashed"}
        say(rig, "quarantine", key)
        rig.buckets.gate.set()
        rig.retry(rig.wire.published("later")[-1])
        assert (await ended(rig, waiting)).code == ""


async def test_a_kill_from_outside_says_nothing_about_the_module() -> None:
    """Two SIGKILLs end the task, and leave its module and its breaker alone."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.ask("hold")
        await crash(rig, signal.SIGKILL, 1)
        await rig.put_off()
        rig.retry(rig.wire.published("later")[-1])
        await crash(rig, signal.SIGKILL, 2)
        assert (await ended(rig, request)).code == "sandbox.killed"
        assert rig.board.entries == {}
        assert rig.guards.breakers.known == {}


@pytest.mark.covers("module.breaker-open")
async def test_the_breaker_of_a_module() -> None:
    """Crashes open it and it is announced; tasks wait and lose no attempt; a probe closes it."""
    async with Rig() as rig:
        clock = Clock(rig)
        rig.guards.breakers.rules = BreakerRules(threshold=2, open_ms=2_000)
        live = rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO)
        name = module_of(TENANT, live.digest)
        for count in (1, 2):
            rig.ask("hold")
            await crash(rig, signal.SIGSEGV, count)
            await rig.put_off(count)
        key = subjects.breaker_key(*name)
        assert rig.board.fields(key) == {"until": START + 2_000, "trips": 1, "by": "local"}
        waiting = rig.ask("hold")
        again = await rig.put_off(3)
        assert (again.id, again.attempt, again.crashes) == (waiting.id, 1, 0)
        assert rig.journal.of("attempt")[-1]["code"] == "module.breaker-open"
        assert delay_ms(rig, clock) == 2_500
        assert (await rig.record(rig.ask("echo", b"x"))).output == b"x"
        clock.now += 2_000
        rig.buckets.gate.set()
        rig.retry(rig.wire.published("later")[-1])
        assert (await ended(rig, waiting)).code == ""
        assert rig.board.entries == {}
        assert rig.guards.breakers.open() == {}


@pytest.mark.covers("capability.unavailable")
async def test_the_breaker_of_a_capability() -> None:
    """A bucket that is down is not asked any more; calls are answered at once, tasks wait."""
    async with Rig() as rig:
        clock = Clock(rig)
        rig.guards.breakers.rules = BreakerRules(threshold=3, open_ms=60_000)
        rig.store(guests.sample("flaky"), "flaky")
        rig.publish("zwork", guests.working(1), tenant=OTHER)
        rig.buckets.down = True
        for count in range(1, 4):
            rig.ask("flaky", b"n")
            assert (await rig.put_off(count)).attempt == 1
        asked = len(rig.buckets.asked)
        assert list(rig.guards.breakers.open()) == [target_of(TENANT, "kv")]
        request = rig.ask("flaky", b"n")
        again = await rig.put_off(4)
        assert (again.id, again.attempt) == (request.id, 1)
        assert len(rig.buckets.asked) == asked
        assert delay_ms(rig, clock) == 75_000  # until it may be asked again, and some jitter
        # Another tenant's bucket is another service.
        rig.buckets.down = False
        assert (await rig.record(rig.ask("zwork", b"n", tenant=OTHER))).code == ""
        clock.now += 60_000
        rig.retry(rig.wire.published("later")[-1])
        assert (await rig.put_off(5)).attempt == 2  # the bucket answered, and then it failed itself
        assert rig.guards.breakers.open() == {}


@pytest.mark.covers("sandbox.breaker-open")
async def test_the_breaker_of_a_tenants_sandboxes() -> None:
    """While sandboxes of a tenant cannot start its tasks wait; another tenant's run."""
    async with Rig(sandbox__count=2) as rig:
        Clock(rig)
        rig.guards.breakers.rules = BreakerRules(threshold=1)
        rig.publish("echo", guests.ECHO)
        rig.publish("zecho", guests.ECHO, tenant=OTHER)
        rig.guards.breakers.failed(sandboxes_of(TENANT))
        request = rig.ask("echo")
        assert (await rig.put_off()).id == request.id
        assert rig.journal.of("attempt")[-1]["code"] == "sandbox.breaker-open"
        assert (await rig.record(rig.ask("zecho", b"x", tenant=OTHER))).output == b"x"


async def test_what_another_executor_opened_holds_here() -> None:
    """Its announcement is enough, for no longer than breakers stay open; its removal closes."""
    async with Rig() as rig:
        clock = Clock(rig)
        live = rig.publish("echo", guests.ECHO)
        name = module_of(TENANT, live.digest)
        key = subjects.breaker_key(*name)
        say(rig, "breaker", key, until=START + 10**9, trips=3, by="other")
        request = rig.ask("echo", b"x")
        await rig.put_off()
        longest = 2 * rig.guards.breakers.rules.open_max_ms
        assert delay_ms(rig, clock) == longest * 5 // 4
        say(rig, "breaker", key)
        rig.retry(rig.wire.published("later")[-1])
        assert (await ended(rig, request)).output == b"x"
        # What an executor left behind that is long gone holds nobody up.
        say(rig, "breaker", key, until=START - 10**9, trips=3, by="other")
        assert rig.guards.breakers.known == {}


async def test_a_storm_of_retries_is_spread() -> None:
    """Beyond the budget a retry waits for its turn, attempt counted as always, none refused."""
    async with Rig() as rig:
        clock = Clock(rig)
        rig.guards.budgets.rules = BudgetRules(share=0, per_s=1, most=2)
        rig.publish("retry", guests.RETRY)
        for count in range(1, 5):
            rig.ask("retry", attempts_max=3)
            assert (await rig.put_off(count)).attempt == 2
        delays = [delay_ms(rig, clock, nth) for nth in range(4)]
        assert delays == [7, 7, 1_007, 2_007]


def fallback_config(on: str, form: str, *, grants: str = "") -> configs.Config:
    """One tenant whose task `main` has a fallback."""
    text = make_text(on, form) + grants
    return make_config(tenants=(TENANT,), replaced=[("[[publisher]]", f"{text}\n[[publisher]]")])


def make_text(on: str, form: str) -> str:
    """The grant with the fallback."""
    return (
        f'[[grant]]\ntenant = "{TENANT}"\ntask = "main"\nwhy = "tests"\n'
        f"fallback = {{ on = [{on}], {form} }}\n"
    )


async def test_a_value_stands_in_for_a_failure() -> None:
    """The task ends in a result, marked degraded, with what its own attempt used."""
    config = fallback_config('"guest.trap"', 'result = "{}", content_type = "application/json"')
    async with Rig(config) as rig:
        rig.publish("main", guests.TRAP)
        record = await ended(rig, rig.ask("main"))
        assert (record.code, record.output, record.content_type) == ("", b"{}", "application/json")
        assert record.degraded
        assert record.receipt.fuel_used > 0
        # Another code is not on the list.
        rig.publish("main", guests.SPIN, version="1.0.1")
        record = await ended(rig, rig.ask("main", limits=(("fuel", 1_000),)))
        assert (record.code, record.degraded) == ("limit.fuel-exhausted", False)


async def test_a_value_stands_in_while_a_service_is_down() -> None:
    """For a systemic failure nobody waits: the fallback answers at once. A retry comes first."""
    on = '"capability.unavailable", "guest.failed"'
    async with Rig(fallback_config(on, 'result = "none"')) as rig:
        rig.publish("main", KV_OR_RETRY)
        rig.buckets.down = True
        record = await ended(rig, rig.ask("main", b"n"))
        assert (record.output, record.degraded) == (b"none", True)
        rig.publish("main", guests.RETRY, version="1.0.1")
        request = rig.ask("main", attempts_max=2)
        assert (await rig.put_off()).attempt == 2
        rig.retry(rig.wire.published("later")[-1])
        assert (await ended(rig, request)).output == b"none"


async def test_another_module_stands_in() -> None:
    """It runs with the same input; its result is the task's, degraded, and says which module."""
    async with Rig(fallback_config('"guest.trap"', 'task = "echo"')) as rig:
        rig.publish("main", guests.TRAP)
        other = rig.publish("echo", guests.ECHO)
        record = await ended(rig, rig.ask("main", b"same input"))
        assert (record.output, record.degraded) == (b"same input", True)
        assert record.receipt.digest == other.digest


async def test_a_fallback_that_fails_changes_nothing() -> None:
    """The task ends as it would have without it, and says what became of its fallback."""
    async with Rig(fallback_config('"guest.trap"', 'task = "other"')) as rig:
        rig.publish("main", guests.TRAP)
        record = await ended(rig, rig.ask("main"))
        assert (record.code, dict(record.facts)["fallback"]) == (
            "guest.trap",
            "policy.task-unknown",
        )
        rig.publish("other", guests.TRAP)
        record = await ended(rig, rig.ask("main"))
        assert (record.code, dict(record.facts)["fallback"]) == ("guest.trap", "guest.trap")


async def test_a_task_is_cancelled_while_its_fallback_runs() -> None:
    """It ends as cancelled, not as the failure that its fallback stood in for."""
    async with Rig(fallback_config('"guest.trap"', 'task = "spin"')) as rig:
        rig.publish("main", guests.TRAP)
        spin = rig.publish("spin", guests.SPIN)
        request = rig.ask("main")
        async with asyncio.timeout(20):
            while not _runs(rig, spin.digest):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        rig.pipeline.cancelling.cancel(TENANT, "main", request.id)
        assert (await ended(rig, request)).code == "task.cancelled"


def _runs(rig: Rig, digest: str) -> bool:
    """Whether an attempt of this module lies in a sandbox."""
    jobs = [job for sandbox in rig.sandboxes() for job in sandbox._jobs.values()]
    return any(job.admitted is not None and job.admitted.digest == digest for job in jobs)


async def test_a_fallback_has_no_more_authority_than_its_task() -> None:
    """A module that calls what the task's own does not is not run in its place."""
    async with Rig(fallback_config('"guest.trap"', 'task = "work"')) as rig:
        rig.publish("main", guests.TRAP)
        rig.publish("work", guests.working(1))
        record = await ended(rig, rig.ask("main"))
        assert dict(record.facts)["fallback"] == "policy.capability-denied"
        assert rig.buckets.asked == []


def test_a_wider_fallback_is_refused_at_load() -> None:
    """Its task is granted more than the task it stands in for: nothing starts."""
    more = f'[[grant]]\ntenant = "{TENANT}"\ntask = "echo"\nwhy = "t"\nkv = {{ prefix = "" }}\n'
    with pytest.raises(ExecutorError) as caught:
        fallback_config('"guest.trap"', 'task = "echo"', grants=more)
    assert caught.value.code == "config.invalid"
    assert "more than its own task" in caught.value.message


@pytest.mark.parametrize(
    ("on", "form"),
    [
        ('"module.unsigned"', 'result = ""'), ('"task.cancelled"', 'result = ""'),
        ('"nonsense"', 'result = ""'), ("", 'result = ""'), ('"guest.trap"', "x = 1"),
        ('"guest.trap"', 'result = "", task = "echo"'), ('"guest.trap"', 'task = "a b"'),
        ('"guest.trap"', 'result_file = "not-there"'), ("7", 'result = ""'),
        ('"transport.lease-lost"', 'result = ""'),
    ],
)  # fmt: skip
def test_what_is_no_fallback(on: str, form: str) -> None:
    """No fallback hides a sign of attack, a cancellation or what is never settled."""
    with pytest.raises(ExecutorError) as caught:
        fallback_config(on, form)
    assert caught.value.code == "config.invalid"


async def test_deliveries_of_one_id_follow_each_other() -> None:
    """The second message of an id that is in hand waits for the first and finds its outcome."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        request = rig.request("hold", b"x", id="mine")
        for sequence in (7, 8, 9):
            rig.deliver(request, sequence=sequence)
        await rig.until(rig.buckets.at_gate)
        rig.buckets.gate.set()
        await rig.settle_down()
        assert rig.buckets.at_gate() == 1
        assert len(rig.wire.published("result")) == 1
        assert rig.wire.count("ack") == 3


async def test_a_quarantine_names_its_digest() -> None:
    """The key's token is the digest, whatever the value says."""
    async with Rig() as rig:
        key = "quarantine." + "ab" * 32
        say(rig, "quarantine", key, at=1, code="sandbox.crashed", task="a/b", by="x")
        assert list(rig.guards.quarantined) == [(Digest("sha256:" + "ab" * 32), "*")]


async def test_a_tenants_quarantine_is_no_other_tenants() -> None:
    """What holds up one tenant's use of a module leaves another's alone; for all, it does not."""
    async with Rig() as rig:
        live = rig.publish("echo", guests.ECHO)
        say(rig, "quarantine", subjects.quarantine_key(live.digest, OTHER), at=1,
            code="sandbox.crashed", task=f"{OTHER}/echo", by="x")  # fmt: skip
        assert (await rig.record(rig.ask("echo", b"x"))).output == b"x"
        say(rig, "quarantine", subjects.quarantine_key(live.digest), at=1, code="-", task="-",
            by="operator")  # fmt: skip
        rig.ask("echo", b"y")
        await rig.put_off()
        assert rig.journal.of("attempt")[-1]["code"] == "module.quarantined"


async def test_what_is_refused_is_let_go() -> None:
    """A module that is refused for good costs no memory for each task that meets it."""
    async with Rig() as rig:
        rig.publish("main", guests.working(1), key=guests.STRANGER)
        for _ in range(50):
            rig.ask("main", b"x" * 1_000)
        await rig.settle_down()
        assert {record.code for record in rig.records().values()} == {"module.signer-untrusted"}
        await asyncio.sleep(0)
        gc.collect()
        assert sum(isinstance(kept, Job) for kept in gc.get_objects()) <= 2


async def test_a_pause_holds_up_what_waits_for_a_sandbox() -> None:
    """What was dispatched and not yet sent is put off, and what runs goes on to its end."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO, tenant=OTHER)
        running = rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        waiting = rig.ask("echo", tenant=OTHER)
        rig.guards.paused[OTHER, "echo"] = "tests"
        rig.pipeline.look_again()
        assert (await rig.put_off()).id == waiting.id
        rig.buckets.gate.set()
        assert (await ended(rig, running)).code == ""


async def test_a_paused_task_stands_in_for_nobody() -> None:
    """A fallback whose own task is paused is not run; the failure stands."""
    async with Rig(fallback_config('"guest.trap"', 'task = "echo"')) as rig:
        rig.publish("main", guests.TRAP)
        rig.publish("echo", guests.ECHO)
        rig.guards.paused[TENANT, "echo"] = "tests"
        record = await ended(rig, rig.ask("main"))
        assert (record.code, dict(record.facts)["fallback"]) == ("guest.trap", "task.paused")


async def test_the_breaker_hears_of_a_fallback() -> None:
    """What a fallback's own module does to its sandbox counts against that module."""
    async with Rig(fallback_config('"guest.trap"', 'task = "spin"')) as rig:
        rig.publish("main", guests.TRAP)
        other = rig.publish("spin", guests.SPIN)
        record = await ended(rig, rig.ask("main", limits=(("deadline_ms", 200),)))
        assert record.code == "guest.trap"
        assert dict(record.facts)["fallback"] == "limit.deadline-exceeded"
        assert rig.guards.breakers.known[module_of(TENANT, other.digest)].score == 1
