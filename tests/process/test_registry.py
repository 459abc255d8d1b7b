"""Admission: once per release, decided anew on reload, and nothing is kept that nobody needs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from executor.core import signature
from executor.core.frames import Compiled
from executor.errors import ExecutorError
from executor.supervisor import compiling
from executor.supervisor.compiling import Compiler, Product
from executor.supervisor.job import Artifact
from executor.supervisor.process import sealed_memfd
from executor.supervisor.zygote import Child
from tests.support import guests
from tests.support.rig import TENANT, Rig, make_config


def open_descriptors() -> int:
    """How many this process holds."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("same_name", [True, False])
async def test_admissions_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, *, same_name: bool
) -> None:
    """200 modules admitted and retired: artifacts are closed, under one name or under many."""

    async def fast(_: Compiler, module: bytes, **__: int) -> Product:
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
