"""Admission: once per release, decided anew on reload, and nothing is kept that nobody needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executor.core import signature
from executor.core.frames import Compiled
from executor.errors import ExecutorError
from executor.supervisor import compiling
from executor.supervisor.compiling import Budget, Compiler, Product, Turns
from executor.supervisor.job import Admitted, Artifact
from executor.supervisor.process import sealed_memfd
from executor.supervisor.zygote import Child
from tests.support import guests, zoo
from tests.support.rig import OTHER, TENANT, Rig, make_config


def open_descriptors() -> int:
    """How many this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("same_name", [True, False])
async def test_admissions_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, *, same_name: bool
) -> None:
    """200 modules admitted and retired: artifacts are closed, under one name or under many."""

    async def fast(_: Compiler, module: bytes, **__: int | str) -> Product:
        fd = sealed_memfd("artifact", module)
        return Product(
            Artifact(fd, len(module), "test"), (("executor:task@1", "input_len", "->i32"),),
            (("memory", "memory"), ("run", "->i32")), 65_536,
        )  # fmt: skip

    monkeypatch.setattr(Compiler, "compile", fast)
    code = guests.assemble(guests.TRAP)
    async with Rig() as rig:
        rig.registry._products.clear()
        before = open_descriptors()
        for number in range(200):
            task = "task" if same_name else f"task-{number}"
            version = f"1.0.{number}"
            module = signature.sign_module(
                guests.described(code, task, version=version), guests.AUTHOR
            )
            rig.store(module, task, version=version)
            admitted = await rig.registry.admit(TENANT, task)
            assert admitted.release.version == version
            if not same_name:
                del rig.shelf.live[TENANT, task]
        del admitted
        assert open_descriptors() - before <= 2
        assert len(rig.registry._admitted) <= 2
        rig.registry._products.clear()


async def test_real_admissions_and_sandboxes_leave_nothing_behind() -> None:
    """Ten releases through compilers and sandboxes: as many open descriptors after as before."""
    async with Rig() as rig:
        counts = []
        for number in range(10):
            version = f"1.1.{number}"
            rig.publish("echo", guests.ECHO, version=version)
            assert (await rig.record(rig.ask("echo"))).version == version
            await rig.until(lambda: len(rig.sandboxes()) == 1)
            counts.append(open_descriptors())
        assert max(counts[2:]) <= counts[1], counts


async def test_a_module_is_admitted_once() -> None:
    """A hundred tasks of a new release make one look at the store and one compilation."""
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO, version="3.0.0")
        rig.registry._products.clear()
        requests = [rig.ask("echo", id=f"own-{n}", fresh=False) for n in range(100)]
        for request in requests:
            assert (await rig.record(request)).code == ""
        assert len(rig.shelf.gets) == 1


@pytest.mark.covers("module.signer-revoked")
async def test_a_reload_that_revokes() -> None:
    """A digest or key revoked by a reload is refused from then on, waiting tasks included."""
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        release = rig.publish("echo", guests.ECHO)
        await rig.admit_all()
        await rig.record(rig.ask("echo"))
        held = rig.ask("hold")
        waiting = [rig.ask("echo") for _ in range(150)]
        await rig.until(rig.buckets.at_gate)
        reload(rig, ("revoked = []", f'revoked = ["{release.digest}"]'))
        for request in waiting:
            assert (await rig.record(request)).code == "module.signer-revoked"
        rig.buckets.gate.set()
        assert (await rig.record(held)).code == ""
        reload(rig, ("revoked = []", f'revoked = ["{guests.AUTHOR.public.key_id.hex()}"]'))
        assert (await rig.record(rig.ask("hold"))).code == "module.signer-revoked"
        reload(rig)
        assert (await rig.record(rig.ask("echo"))).code == ""


async def test_a_running_attempt_of_a_revoked_module_is_ended() -> None:
    """What runs while its digest is revoked does not get to its end."""
    async with Rig() as rig:
        release = rig.publish("hold", guests.HOLD)
        request = rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        reload(rig, ("revoked = []", f'revoked = ["{release.digest}"]'))
        assert (await rig.record(request)).code == "module.signer-revoked"
        assert rig.buckets.at_gate() == 1


@pytest.mark.parametrize("before", ["another release", "another reload"])
async def test_what_runs_is_found_though_it_is_live_no_more(before: str) -> None:
    """A bad module is first replaced, then revoked: its running attempt ends all the same."""
    async with Rig() as rig:
        bad = rig.publish("hold", guests.HOLD)
        request = rig.ask("hold")
        await rig.until(rig.buckets.at_gate)
        if before == "another release":
            rig.publish("hold", guests.ECHO, version="1.0.1")
            await rig.registry.admit(TENANT, "hold")
        else:
            reload(rig)
        pids = rig.sandboxes()
        reload(rig, ("revoked = []", f'revoked = ["{bad.digest}"]'))
        await rig.until(lambda: not set(pids) & set(rig.sandboxes()))
        ended = (await rig.record(request)).code
        assert ended == ("" if before == "another release" else "module.signer-revoked")


async def test_a_reload_between_an_admission_and_its_use_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decision that was overtaken before the loop came to the task that waited for it."""
    async with Rig() as rig:
        release = rig.publish("echo", guests.ECHO)
        admit, overtaken = rig.registry.admit, list[str]()

        async def late(tenant: str, task: str) -> Admitted:
            admitted = await admit(tenant, task)
            if not overtaken:
                overtaken.append(task)
                reload(rig, ("revoked = []", f'revoked = ["{release.digest}"]'))
            return admitted

        monkeypatch.setattr(rig.registry, "admit", late)
        assert (await rig.record(rig.ask("echo"))).code == "module.signer-revoked"
        assert overtaken


async def test_a_reload_during_an_admission_counts() -> None:
    """What was being decided under the old policy is decided again under the new one."""
    async with Rig() as rig:
        release = rig.publish("echo", guests.ECHO)
        here, go = asyncio.Event(), asyncio.Event()

        async def wait(_: str) -> None:
            here.set()
            await go.wait()

        rig.shelf.before_get = wait
        request = rig.ask("echo")
        await here.wait()
        reload(rig, ("revoked = []", f'revoked = ["{release.digest}"]'))
        go.set()
        assert (await rig.record(request)).code == "module.signer-revoked"


async def test_a_reload_that_grants() -> None:
    """A task that was denied runs after the reload that grants it what it wants."""
    closed = ('kv = { prefix = "own/", mode = "write" }\n\n[[tenant]]', "\n[[tenant]]")
    async with Rig(make_config(replaced=[closed])) as rig:
        rig.publish("hold", guests.HOLD)
        rig.buckets.gate.set()
        assert (await rig.record(rig.ask("hold"))).code == "policy.capability-denied"
        reload(rig)
        assert (await rig.record(rig.ask("hold"))).code == ""


async def test_a_reload_that_narrows_reaches_the_mediator() -> None:
    """A key that was allowed before the reload is outside the scope after it."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        await rig.record(rig.ask("probe", b"pk"))
        reload(rig, ('prefix = "own/"', 'prefix = "new/"'))
        await rig.record(rig.ask("probe", b"pk"))
        assert [key for _, key in rig.buckets.data] == ["own/k", "new/k"]


async def test_a_reload_loses_nothing() -> None:
    """Reloads under load: every task ends in exactly one result."""
    async with Rig(sandbox__count=2) as rig:
        rig.publish("echo", guests.ECHO)
        requests = []
        for number in range(200):
            requests.append(rig.ask("echo", str(number).encode()))
            if number % 40 == 20:
                await rig.until(lambda: rig.wire.count("ack"))
                reload(rig)
        for request in requests:
            assert (await rig.record(request)).output == request.input
        assert len(rig.wire.published()) == len(requests)


def reload(rig: Rig, *replaced: tuple[str, str]) -> None:
    """Put another configuration in force, as `serve` does."""
    rig.config = make_config(replaced=replaced)
    rig.trust.replace(rig.config)
    rig.pipeline.decide_again()


async def test_a_refused_module_frees_its_artifact() -> None:
    """An admission that fails after the compiler keeps no file open for ever."""
    closed = ('kv = { prefix = "own/", mode = "write" }\n\n[[tenant]]', "\n[[tenant]]")
    async with Rig(make_config(replaced=[closed])) as rig:
        rig.publish("hold", guests.HOLD)
        with pytest.raises(ExecutorError):
            await rig.admit_all()
        rig.shelf.live.clear()
        rig.publish("echo", guests.ECHO, version="4.0.0")
        await rig.admit_all()
        assert [release.task for release in rig.shelf.releases()] == ["echo"]
        assert len(rig.registry._products) == 1


@pytest.mark.parametrize(("times", "code"), [(1, ""), (2, "module.too-complex")])
async def test_a_compiler_that_is_killed_blames_nobody_at_first(
    monkeypatch: pytest.MonkeyPatch, times: int, code: str
) -> None:
    """SIGKILL from outside says nothing about the module: once more; again, and it is refused."""
    born: list[Child] = []

    class Watched(Child):
        def forked(self, pid: int, pidfd: int) -> None:
            super().forked(pid, pidfd)
            born.append(self)
            there.set()

    there = asyncio.Event()
    converse = compiling._converse

    async def killed(ours: socket.socket, order: bytes) -> Compiled | None:
        await there.wait()
        there.clear()
        if len(born) <= times:
            os.kill(born[-1].pid, signal.SIGKILL)  # before it has its order
        return await converse(ours, order)

    monkeypatch.setattr(compiling, "Child", Watched)
    monkeypatch.setattr(compiling, "_converse", killed)
    async with Rig() as rig:
        rig.registry._products.clear()
        rig.publish("echo", guests.ECHO)
        record = await rig.record(rig.ask("echo", b"x"))
        assert record.code == code
        assert len(born) == 2


class Told(Turns):
    """Turns that tell who asked and who was next."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.asked: list[str] = []
        self.order: list[str] = []
        self.all_asked = asyncio.Event()

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[int]:
        """A turn as ever."""
        self.asked.append(tenant)
        if len(self.asked) == 13:
            self.all_asked.set()
        async with super().turn(tenant) as place:
            self.order.append(tenant)
            yield place


async def test_tenants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen modules of one tenant: few compilers at once, and a neighbour's module is next."""
    running: set[socket.socket] = set()
    most = 0
    gate = asyncio.Event()
    converse = compiling._converse

    async def held(ours: socket.socket, order: bytes) -> Compiled | None:
        nonlocal most
        running.add(ours)
        most = max(most, len(running))
        await gate.wait()
        try:
            return await converse(ours, order)
        finally:
            running.discard(ours)

    monkeypatch.setattr(compiling, "_converse", held)
    async with Rig() as rig:
        rig.registry._products.clear()
        rig.registry.compiler.turns = turns = Told(2)
        for number in range(12):
            rig.publish(f"many-{number}", guests.ECHO, tenant=OTHER)
        rig.publish("one", guests.ECHO)
        admissions = asyncio.gather(*[
            rig.registry.admit(release.tenant, release.task) for release in rig.shelf.releases()
        ])  # fmt: skip
        await turns.all_asked.wait()
        gate.set()
        await admissions
    assert most == 2
    assert turns.order.index(TENANT) <= 3, turns.order  # behind the two that ran, and one more


async def test_turns_that_are_given_up() -> None:
    """Whoever is cancelled while it waits, or as its turn comes, takes no place with it."""
    turns = Turns(1)

    async def take(tenant: str) -> None:
        async with turns.turn(tenant):
            taken.append(tenant)

    taken: list[str] = []
    async with turns.turn("a"):
        tasks = [asyncio.ensure_future(take(tenant)) for tenant in ("a", "b", "b", "c")]
        await asyncio.wait(tasks, timeout=0)
        tasks[1].cancel()
    tasks[0].cancel()  # its turn has come, and it has not heard of it
    await asyncio.gather(*tasks, return_exceptions=True)
    assert taken == ["b", "c"]
    assert (turns._free, turns._waiting) == ([0], {})


async def test_a_module_beside_bombs_is_compiled() -> None:
    """What waits and shares the cores with another tenant's bombs is not blamed for that."""
    async with Rig(sandbox__compile_deadline_ms=1_500) as rig:
        rig.registry._products.clear()
        for number in range(4):
            name = f"bomb-{number}"
            rig.store(zoo._sign(zoo.MADE["values_time"](name), name), name, tenant=OTHER)
        rig.publish("innocent", guests.ECHO)
        bombs = [rig.ask(f"bomb-{number}", tenant=OTHER) for number in range(4)]
        assert (await rig.record(rig.ask("innocent", b"x"))).output == b"x"
        await rig.settle_down()
        ended = rig.records()
        # A host that others keep busy may not have had the time to find out: then it is put off.
        assert {ended[bomb.id].code for bomb in bombs if bomb.id in ended} <= {"module.too-complex"}
        assert {facts["code"] for facts in rig.journal.of("attempt")} <= {
            "module.too-complex", "sandbox.start-failed",
        }  # fmt: skip


async def test_a_host_without_time_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that got no CPU time in time is our failure, which passes: no word stays."""
    forked, converse = Child.forked, compiling._converse
    stopped = asyncio.Event()

    def stop(child: Child, pid: int, pidfd: int) -> None:
        forked(child, pid, pidfd)
        os.kill(pid, signal.SIGSTOP)
        stopped.set()

    async def late(ours: socket.socket, order: bytes) -> Compiled | None:
        await stopped.wait()  # or it would have compiled by then
        return await converse(ours, order)

    async with Rig(sandbox__compile_deadline_ms=100) as rig:
        rig.registry._products.clear()
        rig.publish("echo", guests.ECHO)
        with monkeypatch.context() as patch:
            patch.setattr(Child, "forked", stop)
            patch.setattr(compiling, "_converse", late)
            with pytest.raises(ExecutorError) as caught:
                await rig.registry.admit(TENANT, "echo")
        assert caught.value.code == "sandbox.start-failed"
        assert "CPU time" in caught.value.detail
        assert rig.registry._refused[TENANT, "echo"].until < float("inf")
        rig.registry.compiler.standard = Budget()
        rig.registry._refused.clear()
        await rig.registry.admit(TENANT, "echo")


async def test_an_end_during_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled or waits for its turn when the executor ends is given up at once."""
    begun: list[bytes] = []
    both = asyncio.Event()
    converse = compiling._converse

    async def told(ours: socket.socket, order: bytes) -> Compiled | None:
        begun.append(order)
        if len(begun) == 2:
            both.set()
        return await converse(ours, order)

    monkeypatch.setattr(compiling, "_converse", told)
    async with Rig() as rig:
        names = [f"bomb-{number}" for number in range(3)]
        for name in names:
            rig.store(zoo._sign(zoo.MADE["values_time"](name), name), name)
        asked = [asyncio.ensure_future(rig.registry.admit(TENANT, name)) for name in names]
        compiler = rig.registry.compiler
        compiler.turns = Turns(2)
        await both.wait()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}
    assert sorted(compiler.turns._free) == [0, 1]


async def test_large_is_a_matter_of_the_signer() -> None:
    """What a `large` signer's caps let through is refused under another's, then and afterwards."""
    code = guests.assemble(guests.ECHO + "(func (local" + " i32" * 2_000 + "))")
    module = signature.sign_module(guests.described(code, "big"), guests.AUTHOR)
    module = signature.sign_module(module, guests.STRANGER)
    granted = [
        ('tasks = ["*/*"]', 'tasks = ["acme/*"]\nlarge = true'),
        ("[[executor]]", f'[[publisher]]\nname = "other"\nkey = "{guests.STRANGER.public.text}"\n'
         'tasks = ["zebra/*"]\n[[executor]]'),
    ]  # fmt: skip
    async with Rig(make_config(replaced=granted)) as rig:
        rig.store(module, "big")
        rig.store(module, "big", tenant=OTHER)
        assert (await rig.record(rig.ask("big", b"x"))).output == b"x"
        refused = await rig.record(rig.ask("big", b"x", tenant=OTHER))
        assert (refused.code, "locals" in refused.message) == ("module.too-complex", True)
        reload(rig, granted[0], granted[1])
        assert (await rig.record(rig.ask("big", b"x"))).output == b"x"
        reload(rig)
        assert (await rig.record(rig.ask("big", b"x"))).code == "module.too-complex"
