"""Kill -9 at every step of the journey: in the supervisor, its sandboxes, zygote and compilers.

The table is `tests.support.killpoints`. A point that is not reached fails its test.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor.client import TaskOutcome
from executor.core import envelope, subjects
from executor.core.envelope import Draft, Record
from executor.core.seal import seal
from executor.model import Receipt, TaskRequest
from executor.supervisor import pipeline
from executor.transport.kv import TenantKv
from tests.servers import NatsServer, connect, eventually, run
from tests.support import aftermath, guests, killpoints
from tests.support.killpoints import (
    ATTEMPTS,
    BESIDE,
    BIRTHS,
    COMPILERS,
    COUNT,
    DEAD,
    FLAKY,
    SLOW,
    STEPS,
    SUPERVISOR,
    ZYGOTES,
    Point,
)
from tests.support.served import ROOT, TENANT, Serve, Site

DRIVER = ROOT / "tests" / "support" / "armed.py"
LANES = 4  # points of a step that are tried at the same time
SLOW_TASKS = 8
DEATHS = 10  # at each point of a sandbox
LESS_MS = 9_000  # what one that fails asks for, and policy gives more
GROWTH_KIB = 8 * 1024  # of a supervisor over all of them; seen: 0.7 MiB
GUESTS = {
    COUNT: guests.COUNTER, FLAKY: guests.ONCE_MORE, DEAD: guests.FAIL,
    SLOW: guests.working(300_000_000),
}  # fmt: skip


class Armed(Serve):
    """One life of `serve` with kill points; `point` is one of the supervisor's, or none."""

    def __init__(self, site: Site, page: Path, point: str = "-") -> None:
        super().__init__(site, len(site.lives), (str(DRIVER), "serve", str(page), point))
        site.lives.append(self)


@pytest.fixture
def common() -> Iterator[NatsServer]:
    """One server for the points of a step; each has a tenant of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="executor-kill-") as folder,
        NatsServer(Path(folder) / "nats") as server,
    ):
        yield server


class Scene:
    """A point, a tenant of its own, and the tasks that go through it."""

    def __init__(self, folder: Path, server: NatsServer, point: Point, number: int) -> None:
        self.point = point
        self.tenant = f"t{number}"
        self.site = Site(folder / self.tenant, server, ack_wait_ms=1_000)
        self.site.write(tenants=(self.tenant,))
        self.page = self.site.folder / "page"
        killpoints.Page.create(self.page)
        self.ids: list[str] = []

    async def submit(self) -> None:
        """Two that count, one that retries, one that fails; before anybody serves."""
        tasks = [COUNT, COUNT, FLAKY, DEAD]
        if self.point.step == "drain" or self.point.where.endswith("_renew"):
            tasks += [SLOW] * SLOW_TASKS
        async with await self.site.client(self.tenant) as client:
            requests = [
                client.request(
                    task, f"k{n}".encode(), id=f"{task}-{n}",
                    deadline_ms=LESS_MS if task == DEAD else 0,
                )
                for n, task in enumerate(tasks)
            ]  # fmt: skip
            if self.point.step == "duplicate":
                # One of them looks first, and one finds out when it publishes.
                requests[1] = client.request(COUNT, b"k1")
                for request in requests[:2]:
                    await self.forestall(request)
            await client.submit_many(requests)
        self.ids = [request.id for request in requests]

    async def forestall(self, request: TaskRequest) -> None:
        """Another executor was faster."""
        subject = subjects.result(self.tenant, request.task, request.id)
        record = Record(
            task=request.task, attempt=1, attempts_max=3, submitted_at=1, finished_at=2,
            receipt=Receipt(), output=b"first",
        )  # fmt: skip
        draft = Draft("result", f"test/{subject}", request.id, envelope.encode_record(record))
        connection = await connect(self.site.server)
        await connection.store(subject, seal(guests.HOST, [draft], at=1)[0])

    async def die(self) -> None:
        """Serve until the point is reached, which is the process's end."""
        life = Armed(self.site, self.page, self.point.name)
        if self.point.step == "drain":
            await life.line("serving")
            bucket = TenantKv(await connect(self.site.server), self.tenant)

            async def runs() -> bool:
                return await bucket.get("own/k4") is not None

            await eventually(runs)
            life.signal(signal.SIGTERM)
        status = await life.exit_status()
        assert f"killed at {self.point.name}\n" in life.log(), f"not reached:\n{life.log()}"
        assert status == -signal.SIGKILL

    async def no_orphans(self) -> None:
        """Neither a fork server nor a sandbox nor a compiler of this scene is left."""

        async def gone() -> bool:
            return not aftermath.processes(str(self.page))

        await eventually(gone)

    async def check(self, ended: dict[str, TaskOutcome]) -> None:
        """Each ended as it should, and what acts ran at most once more than it died."""
        codes = {task_id: outcome.code for task_id, outcome in ended.items() if not outcome.ok}
        assert codes == {"dead-3": "guest.failed"}
        assert dict(ended["dead-3"].record.limits)["deadline_ms"] == LESS_MS  # it asked for that
        bucket = TenantKv(await connect(self.site.server), self.tenant)
        for number, task_id in enumerate(self.ids[:2]):
            times = await bucket.get(f"own/k{number}") or b"\0"
            if ended[task_id].output == b"first":
                assert times <= (b"\0", b"\2")[number]  # the one that looked first did not run
            else:
                assert b"\1" <= times <= b"\2"

    async def before(self) -> None:
        """Die at the point, and look while nobody serves."""
        await self.site.prepare(**GUESTS)
        await self.submit()
        await self.die()
        await self.no_orphans()
        await aftermath.nothing_lost(self.site, self.tenant, self.ids)

    async def after(self) -> None:
        """Another executor took over: look again."""
        await self.check(await aftermath.settled(self.site, self.tenant, self.ids))


async def take_over(folder: Path, scenes: list[Scene]) -> None:
    """One plain `serve` brings the tasks of all scenes to their end, and leaves."""
    with Site(folder / "heir", scenes[0].site.server, ack_wait_ms=1_000) as heir:
        heir.write(tenants=tuple(scene.tenant for scene in scenes))
        life = await heir.serve()
        await together(scenes, Scene.after)
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        await life.no_orphans()


async def together(scenes: list[Scene], act: Callable[[Scene], Awaitable[None]]) -> None:
    """A few at a time; whoever fails says at which point."""
    lanes = asyncio.Semaphore(LANES)

    async def one(scene: Scene) -> None:
        async with lanes:
            try:
                await act(scene)
            except Exception as error:
                raise AssertionError(f"{scene.point.name}\n{scene.site.log()[-6000:]}") from error

    async with asyncio.TaskGroup() as group:
        for scene in scenes:
            group.create_task(one(scene))


@pytest.mark.parametrize("step", [*STEPS, *BESIDE])
def test_the_supervisor_dies_at_every_step(step: str, tmp_path: Path, common: NatsServer) -> None:
    """Killed at any point of a step: nothing was acked too early, one record each, no orphan."""
    points = [point for point in SUPERVISOR if point.step == step]
    scenes = [Scene(tmp_path, common, point, number) for number, point in enumerate(points)]

    async def test() -> None:
        try:
            await together(scenes, Scene.before)
        finally:
            for scene in scenes:
                scene.site.close()
        await take_over(tmp_path, scenes)

    run(test())


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_kib(pid: int) -> int:
    """The memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


class Rounds:
    """One life of `serve` under which its children die, point after point."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.site = Site(folder / "site", server, ack_wait_ms=1_000)
        self.path = self.site.folder / "page"
        self.page = killpoints.Page.create(self.path)
        self.ids: list[str] = []

    async def start(self) -> None:
        """Serve."""
        await self.site.prepare(**GUESTS)
        self.life = Armed(self.site, self.path)
        await self.life.line("serving")

    async def submit(self, inputs: list[bytes], task: str = COUNT) -> list[str]:
        """A task for each input."""
        async with await self.site.client() as client:
            requests = [client.request(task, data) for data in inputs]
            await client.submit_many(requests)
        ids: list[str] = [request.id for request in requests]
        self.ids += ids
        return ids

    async def ended(self) -> dict[str, TaskOutcome]:
        """All outcomes so far."""
        settling = asyncio.create_task(aftermath.settled(self.site, TENANT, self.ids))
        await self.slay_until(settling)
        return settling.result()

    async def slay_until(self, done: asyncio.Task[Any]) -> None:
        """Meanwhile, who waits at a point to be killed is killed."""
        while not done.done():
            for pid in self.page.spinning():
                os.kill(pid, signal.SIGKILL)
            await asyncio.wait([done], timeout=0.01)
        assert self.life.process.poll() is None, self.life.log()

    async def rest(self) -> tuple[int, int]:
        """Two sandboxes are ready and nothing goes on: descriptors and KiB of the supervisor."""
        await self.submit([b"x"] * SLOW_TASKS, SLOW)  # more than one sandbox takes at once
        await self.ended()

        async def two() -> bool:
            return len(self.life.sandboxes()) == 2

        await eventually(two)
        pid = self.life.process.pid
        return descriptors(pid), resident_kib(pid)

    async def victims(self, point: Point, first: int) -> None:
        """Each victim dies once, at the point or, if that lies in births, as it begins to run."""
        place = killpoints.JAILED.index(point)
        self.page.arm(place, deaths=DEATHS // 2)
        ids = await self.submit([b"v%d" % (first + n) for n in range(DEATHS)])
        ended = await self.ended()
        assert self.page.victims == DEATHS, point.name
        assert point in ATTEMPTS or self.page.deaths > 1, point.name
        failed = {task_id: ended[task_id].code for task_id in ids if not ended[task_id].ok}
        assert not failed, f"{point.name}: {failed}\n{self.life.log()[-6000:]}"
        # Whoever died ran again, and once more if the next victim took its unsent outcome along.
        assert {ended[task_id].output for task_id in ids} <= {b"\1", b"\2", b"\3"}, point.name
        assert {ended[task_id].record.attempt for task_id in ids} == {1}, point.name

    async def zygotes(self, point: Point) -> None:
        """The fork server dies at the point, when its sandboxes were killed and are missed."""
        self.page.arm(killpoints.JAILED.index(point), deaths=1)
        zygotes = children(self.life.process.pid)
        for pid in zygotes if point.step == "start" else self.life.sandboxes():
            os.kill(pid, signal.SIGKILL)
        ids = await self.submit([b"x"] * 4)
        ended = await self.ended()
        assert self.page.deaths == 1, point.name
        assert all(ended[task_id].ok for task_id in ids), point.name
        assert children(self.life.process.pid) != zygotes, point.name

    async def compilers(self, point: Point, version: str) -> None:
        """The compiler of a new release dies at the point."""
        self.page.arm(killpoints.JAILED.index(point), deaths=1)
        module = guests.signed(guests.COUNTER, COUNT, version=version)
        await self.site.release(module, COUNT, version=version)
        admitted = asyncio.create_task(self.life.line("release-admitted", version=version))
        await self.slay_until(admitted)
        (task_id,) = await self.submit([b"x"])
        ended = await self.ended()
        assert self.page.deaths == 1, point.name
        assert ended[task_id].record.version == version


def children(pid: int) -> list[int]:
    """Of a process; a supervisor has its fork server."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_jailed_processes_die_at_every_point(tmp_path: Path, common: NatsServer) -> None:
    """Sandboxes, fork server and compilers die at every point and in all ways.

    One record for each task, and over a hundred deaths cost their supervisor no descriptor and
    little memory.
    """

    async def test() -> None:
        rounds = Rounds(tmp_path, common)
        with rounds.site:
            await rounds.start()
            at_first = await rounds.rest()
            for number, point in enumerate([*BIRTHS, *ATTEMPTS]):
                await rounds.victims(point, DEATHS * number)
            for point in ZYGOTES:
                await rounds.zygotes(point)
            for number, point in enumerate(COMPILERS):
                await rounds.compilers(point, f"2.0.{number}")
            rounds.page.disarm()
            at_last = await rounds.rest()
            assert at_last[0] <= at_first[0]
            assert at_last[1] - at_first[1] < GROWTH_KIB
            rounds.life.signal(signal.SIGTERM)
            assert await rounds.life.exit_status() == 0
        assert not aftermath.processes(str(rounds.path))

    run(test())


@pytest.mark.parametrize("point", [*SUPERVISOR, *killpoints.JAILED], ids=lambda point: point.name)
def test_the_table_is_of_this_product(point: Point) -> None:
    """What a point names is there: a method that was renamed takes its point along."""
    holder, name = killpoints.place(point)
    assert callable(getattr(holder, name))
    assert killpoints.find(point.name) is point if point in SUPERVISOR else True


def test_the_table_is_whole() -> None:
    """Every step that the pipeline's own list names has a point, and so has what is beside it."""
    listed = re.findall(r"\d+ (\w+)", (pipeline.__doc__ or "").partition("\n\nThe common")[0])
    assert tuple(listed) == STEPS
    assert {point.step for point in SUPERVISOR} == {*STEPS, *BESIDE}
    names = [point.name for point in SUPERVISOR]
    assert len(set(names)) == len(names)
