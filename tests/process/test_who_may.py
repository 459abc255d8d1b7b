"""Who may submit and publish, and until when a grant holds, on the whole supervisor."""

from __future__ import annotations

import pytest

from executor.core import abi, seal, subjects
from executor.core.usage import TaskUse, Usage, name_of
from executor.model import TaskRequest
from executor.supervisor import usage as supervised
from executor.supervisor.usage import Shadow
from tests.support import guests, speech
from tests.support.rig import OTHER, TENANT, Rig, make_config

_TAIL = '[[executor]]\nname = "test"'
_ENDS = ('task = "*"\nwhy', 'task = "*"\nnot_after = 2030-01-01\nwhy')
_END = 1_893_456_000_000  # that day, in ms


def binding(role: str, who: str, *, tasks: str = "*") -> tuple[str, str]:
    """A denial, as a change of the rig's configuration."""
    denial = f'[[binding]]\nrole = "{role}"\nwho = ["{who}"]\ntasks = ["{tasks}"]\n'
    return _TAIL, f'{denial}deny = true\nwhy = "not now"\n{_TAIL}'


def reload(rig: Rig, *replaced: tuple[str, str]) -> None:
    """Put another configuration in force, as `serve` does."""
    rig.config = make_config(replaced=replaced)
    rig.trust.replace(rig.config)
    rig.pipeline.usage.under(rig.config.policy, None)
    rig.pipeline.decide_again()


async def refused(rig: Rig, request: TaskRequest) -> str:
    """The message of the refusal of a request, which stands under its place in the stream."""
    delivery = rig.deliver(request)
    await rig.settle_down()
    outgoing = rig.wire.published()[-1]
    assert outgoing.subject == f"dead.{TENANT}.{request.task}._{delivery.sequence}"
    record = rig.open(outgoing)
    assert record.code == "policy.submitter-denied"
    return record.message


@pytest.mark.covers("policy.submitter-denied")
async def test_a_tenant_that_may_not_submit() -> None:
    """A task that its tenant may not ask for is a dead letter under no id that it claims.

    Its module is not fetched, and another tenant's task runs.
    """
    async with Rig(make_config(replaced=[binding("submitter", f"tenant:{TENANT}")])) as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("echo", guests.ECHO, tenant=OTHER)
        said = await refused(rig, rig.request("echo", b"x", id="mine"))
        assert "denied to it: not now" in said
        assert rig.shelf.gets == []
        assert (await rig.record(rig.ask("echo", b"x", tenant=OTHER))).output == b"x"


async def test_a_signer_may_what_the_tenant_may_not() -> None:
    """With no role for the tenant's own token, who signs is served and nobody ends its task."""
    key = guests.STRANGER.public
    party = f'[[submitter]]\nname = "sue"\nkey = "{key.text}"\n'
    given = f'{party}[[binding]]\nrole = "submitter"\nwho = ["sue"]\nwhy = "t"\n{_TAIL}'
    config = make_config(
        tenants=[TENANT], replaced=[(_TAIL, given), ("\nceiling", "\nroles = []\nceiling")]
    )
    async with Rig(config) as rig:
        rig.publish("echo", guests.ECHO)
        request = rig.request("echo", b"x", id="mine")
        assert "no role of it has `submit` there" in await refused(rig, request)
        draft = seal.signed_draft(request, "test")
        (body,) = seal.seal(guests.STRANGER, [draft], at=speech.now_ms())
        rig.hand_over(body, subjects.task(TENANT, "echo"), id="mine")
        await rig.settle_down()
        assert rig.records()["mine"].output == b"x"


async def test_a_denial_reaches_what_waits() -> None:
    """A task that was taken before the reload and has not started ends under its own id."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("echo", guests.ECHO)
        rig.buckets.gate.clear()
        await rig.admit_all()
        held = rig.ask("hold", b"x")
        await rig.running()
        waiting = [rig.ask("echo", b"y", id=f"w{n}") for n in range(3)]
        reload(rig, binding("submitter", f"tenant:{TENANT}", tasks="echo"))
        rig.buckets.gate.set()
        assert (await rig.record(held)).output == b"x"
        codes = {(await rig.record(request)).code for request in waiting}
        assert codes <= {"", "policy.submitter-denied"}
        await refused(rig, rig.request("echo"))


@pytest.mark.covers("module.signer-untrusted")
async def test_a_signature_without_the_right_to_publish() -> None:
    """A publisher whose right is denied for a task signs in vain there, and nowhere else."""
    async with Rig(make_config(replaced=[binding("publisher", "author", tasks="echo")])) as rig:
        rig.publish("echo", guests.ECHO)
        rig.publish("other", guests.ECHO)
        record = await rig.record(rig.ask("echo", b"x"))
        assert record.code == "module.signer-untrusted"
        assert "denied to it: not now" in record.message
        assert (await rig.record(rig.ask("other", b"x"))).output == b"x"


async def test_a_grant_ends_while_it_is_used() -> None:
    """At its `not_after` a grant is gone: for the next attempt, and for a call of a running one."""
    async with Rig(make_config(replaced=[_ENDS])) as rig:
        rig.publish("hold", guests.HOLD)
        rig.publish("probe", guests.KV)
        clock = [_END]
        rig.now_ms = lambda: clock[0]
        assert (await rig.record(rig.ask("probe", b"pk"))).code == ""
        known = rig.registry.now(TENANT, "probe")
        assert rig.registry.now(TENANT, "probe") is known
        clock[0] += 1
        assert rig.registry.now(TENANT, "probe") is None
        assert (await rig.record(rig.ask("probe", b"pk"))).code == "policy.capability-denied"


async def test_a_call_after_the_end_of_its_grant() -> None:
    """An attempt that began in time is denied what it asks for too late."""
    async with Rig(make_config(replaced=[_ENDS])) as rig:
        rig.publish("probe", guests.KV)
        await rig.admit_all()
        clock = [_END]
        rig.now_ms = lambda: clock[0]
        serve = rig.pipeline.mediator.serve

        async def late(*arguments: object) -> object:
            clock[0] += 1
            return await serve(*arguments)  # type: ignore[arg-type]

        rig.pipeline.mediator.serve = late  # type: ignore[assignment,method-assign]
        record = await rig.record(rig.ask("probe", b"pk"))
        assert int.from_bytes(record.output, "little", signed=True) == abi.DENIED
        assert rig.buckets.data == {}


# What is counted.


def used(rig: Rig, tenant: str = TENANT) -> Usage:
    """What the supervisor has to say of a tenant."""
    return rig.pipeline.usage.changed()[tenant]


async def test_what_attempts_use_is_counted() -> None:
    """Runs, functions called, keys let through and the most of each limit; not what was denied."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        rig.publish("echo", guests.ECHO)
        for what in (b"pa", b"pa", b"gb/1", b"g..", b"dk"):
            assert (await rig.record(rig.ask("probe", what))).code == ""
        await rig.record(rig.ask("echo", b"12345"))
        usage = used(rig)
        probe, echo = usage.tasks["probe"], usage.tasks["echo"]
        assert (probe.runs, echo.runs) == (5, 1)
        assert {name: runs for name, (runs, _) in probe.used.items()} == {
            "kv_put": 2, "kv_get": 1, "kv_delete": 1
        }  # fmt: skip
        assert (probe.prefix, probe.read, probe.write) == ("own/", ("b/1",), ("a", "k"))
        assert probe.imports == ("kv_delete", "kv_get", "kv_put")
        assert probe.signers == ("author",)
        assert echo.used == {}
        assert echo.most["input_bytes"] == echo.most["output_bytes"] == 5
        assert echo.most["fuel"] > 0
        assert rig.pipeline.usage.changed() == {}


async def test_what_the_sandbox_serves_is_counted() -> None:
    """Calls that never reach the supervisor are told with the end of the attempt."""
    body = guests.RUN + "(drop (call $clock_now_ns)) (if (i32.const 0) (then (call $random_fill"
    body += " (i32.const 0) (i32.const 1)))) (i32.const 0))"
    async with Rig() as rig:
        rig.publish("tick", body)
        await rig.record(rig.ask("tick"))
        use = used(rig).tasks["tick"]
        assert set(use.used) == {"clock_now_ns"}
        assert use.imports == ("clock_now_ns", "random_fill")


def shadow(*replaced: tuple[str, str]) -> Shadow:
    """A stricter configuration, to be counted."""
    config = make_config(replaced=replaced)
    return Shadow("strict", config.policy, config.publishers)


@pytest.mark.parametrize(
    ("strict", "denied"),
    [
        ([], {}),
        ([('kv = { prefix = "own/", mode = "write" }\n', "")], {"kv_delete, kv_get, kv_put": 2}),
        ([('mode = "write" }', 'mode = "write", keys = ["a"] }')], {"kv_put of other keys": 1}),
        ([('prefix = "own/"', 'prefix = "own/x/"')], {"kv_put of other keys": 2}),
        ([("ceiling = {", "ceiling = { fuel = 10,")], {"limit fuel": 2}),
        ([binding("submitter", f"tenant:{TENANT}")], {"submit": 2}),
        ([binding("publisher", "author")], {"signer": 2}),
    ],
    ids=["the same", "no kv", "fewer keys", "another prefix", "less fuel", "submit", "signer"],
)  # fmt: skip
async def test_a_shadow_denies_nothing_and_is_counted(
    strict: list[tuple[str, str]], denied: dict[str, int]
) -> None:
    """A stricter document beside the policy in force: what it would deny is told, once each."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        rig.pipeline.usage.under(rig.config.policy, shadow(*strict))
        for what in (b"pa", b"pb"):
            assert (await rig.record(rig.ask("probe", what))).code == ""
        usage = used(rig)
        assert usage.shadow == "strict"
        assert usage.tasks["probe"].denied == denied
        assert [facts["what"] for facts in rig.journal.of("shadow-denies")] == list(denied)
        # Another shadow, or none, starts anew.
        rig.pipeline.usage.under(rig.config.policy, None)
        assert used(rig).tasks["probe"].denied == {}


async def test_it_is_bounded_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that ran longest ago makes room; what an earlier life saw is counted once more."""
    monkeypatch.setattr(supervised, "TASKS_MAX", 2)
    async with Rig() as rig:
        for name in ("a", "b", "c"):
            rig.publish(name, guests.ECHO)
            await rig.record(rig.ask(name))
        assert set(used(rig).tasks) == {"b", "c"}
        (grant,) = (g for g in rig.config.policy.grants if g.tenant == TENANT)
        before = Usage({"c": TaskUse(1, 2, 5, denied={"x": 1})},
                       {name_of(grant): 7, "gone": 8}, "other")  # fmt: skip
        rig.pipeline.usage.adopt(TENANT, before)
        rig.pipeline.usage.adopt("nobody", before)
        await rig.record(rig.ask("c"))
        usage = used(rig)
        assert (usage.tasks["c"].runs, usage.tasks["c"].denied) == (7, {})
        assert usage.grants == {name_of(grant): 7}
