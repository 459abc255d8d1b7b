"""Three nats-servers, every stream on all of them: nodes die, pause and restart under load.

Invariants, whatever happens: no task is lost, each id has exactly one authentic record, the queue
is empty at the end, no process is left behind.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from executor.core import subjects
from tests.servers import eventually, run
from tests.support import guests, load
from tests.support.cluster import Cluster
from tests.support.proxy import Proxy
from tests.support.served import OTHER, TENANT, Site

TASKS = subjects.tasks_stream(TENANT)
OUTCOMES = subjects.outcomes_stream(TENANT)
STREAMS = (
    TASKS, OUTCOMES, subjects.later_stream(TENANT), f"KV_{subjects.CONTROL_BUCKET}",
    f"OBJ_{subjects.MODULES_BUCKET}", f"KV_{subjects.tenant_bucket(TENANT)}",
)  # fmt: skip


@asynccontextmanager
async def clustered(
    tmp_path: Path, *, ack_wait_ms: int = 5_000, tenants: tuple[str, ...] = (TENANT,), **bodies: str
) -> AsyncIterator[tuple[Cluster, Site]]:
    """A cluster with a site whose streams are on all three nodes."""
    with Cluster(tmp_path / "cluster") as cluster:
        await cluster.ready()
        with Site(tmp_path / "site", cluster, ack_wait_ms=ack_wait_ms, replicas=3) as site:
            site.write(tenants=tenants)
            await site.prepare(**bodies)
            try:
                yield cluster, site
                await load.stopped(site)
            except BaseException as error:
                error.add_note(f"{cluster.log()}\n{site.log()[-6_000:]}")
                raise


@pytest.mark.parametrize("stream", [OUTCOMES, pytest.param(TASKS, marks=pytest.mark.soak)])
def test_a_leader_is_killed(tmp_path: Path, stream: str) -> None:
    """Attacks *a stored record stays*: the node that leads the outcomes, or the queue, dies."""

    async def test() -> None:
        async with clustered(tmp_path, work=load.MIDDLE) as (cluster, site):
            life = await site.serve()
            ids = await load.submit(site, "work", 80)
            await load.stored(site, 5)
            leader = await cluster.leader(stream)
            cluster.nodes[leader].stop(signal.SIGKILL)
            ids += await load.insist(site, "work", 20, start=len(ids))
            await load.stored(site, len(ids) - 15)
            cluster.nodes[leader].start()
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())
            assert life.process.poll() is None

    run(test())


def test_every_node_restarts_in_turn(tmp_path: Path) -> None:
    """Attacks *nothing is lost*: a rolling restart, while `serve` and tasks go on."""

    async def test() -> None:
        async with clustered(tmp_path, work=load.MIDDLE) as (cluster, site):
            life = await site.serve()
            ids = await load.submit(site, "work", 40)
            for node in cluster.nodes.values():
                node.restart(signal.SIGTERM)
                ids += await load.insist(site, "work", 20, start=len(ids))
                await cluster.leader(TASKS)
                await cluster.leader(OUTCOMES)
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())
            assert life.process.poll() is None

    run(test())


def test_a_node_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    """Attacks *exactly one record*: the leader of the outcomes stands still while another leads.

    Back again, it still believes that it leads; what it held is not stored a second time.
    """

    async def test() -> None:
        async with clustered(tmp_path, ack_wait_ms=2_000, work=load.MIDDLE) as (cluster, site):
            await site.serve()
            ids = await load.submit(site, "work", 80)
            await load.stored(site, 5)
            old = await cluster.leader(OUTCOMES)
            with cluster.paused(old):
                others = cluster.without(old)
                await others.leader(OUTCOMES, besides=old)
                site.server = others
                ids += await load.insist(site, "work", 10, start=len(ids))
                await load.stored(site, len(ids) - 5)
            await cluster.leader(OUTCOMES)
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())

    run(test())


def test_two_executors_share_and_one_dies(tmp_path: Path) -> None:
    """Attacks *the redelivery owns the task*: of two executors on two tenants one is killed.

    Each had work by then, seen at the slots that it started; the other finishes everything, once.
    """

    async def test() -> None:
        async with clustered(
            tmp_path, tenants=(TENANT, OTHER), ack_wait_ms=1_000, work=load.MIDDLE, trap=guests.TRAP
        ) as (_, site):
            lives = [await site.serve(), await site.serve()]
            ids = {}
            for tenant in (TENANT, OTHER):
                # A failure is an event in the log: it shows who ran it.
                ids[tenant] = await load.submit(site, "trap", 20, tenant=tenant)
                ids[tenant] += await load.submit(site, "work", 60, tenant=tenant)
            for life in lives:
                for tenant in (TENANT, OTHER):
                    await life.line("attempt", task=f"{tenant}/trap")
            lives[0].signal(signal.SIGKILL)
            await lives[0].exit_status()
            for tenant in (TENANT, OTHER):
                ended = await load.each_once(site, ids[tenant], tenant)
                assert sum(outcome.ok for outcome in ended.values()) == 60

    run(test())


def test_clients_are_not_led_round_a_proxy(tmp_path: Path) -> None:
    """What a node tells of its neighbours stays behind the fault proxy, else it would be none."""

    async def test(cluster: Cluster) -> None:
        node = cluster.nodes["n1"]

        async def told() -> bool:
            return b"connect_urls" in await greeting(node.url)

        await eventually(told)
        async with Proxy(node) as proxy:
            through = await greeting(proxy.url)
        assert b'"server_name": "n1"' in through
        assert b"connect_urls" not in through

    with Cluster(tmp_path / "cluster") as cluster:
        run(test(cluster))


async def greeting(url: str) -> bytes:
    """The first line that a server says."""
    host, _, port = url.rpartition("//")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return line


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chaos(tmp_path: Path, seed: int) -> None:
    """Attacks *nothing is lost, nothing is twice*: 12 random harms of nodes and executors."""

    async def test() -> None:
        seeded = random.Random(seed)
        async with clustered(tmp_path, ack_wait_ms=2_000, work=load.MIDDLE) as (cluster, site):
            lives = [await site.serve(), await site.serve()]
            ids = await load.submit(site, "work", 50)
            for _ in range(12):
                name = seeded.choice(sorted(cluster.nodes))
                match seeded.choice(["kill", "restart", "pause", "serve"]):
                    case "kill":
                        cluster.nodes[name].restart(signal.SIGKILL)
                    case "restart":
                        cluster.nodes[name].restart()
                    case "pause":
                        others = cluster.without(name)
                        with cluster.paused(name):
                            site.server = others
                            await others.leader(TASKS, besides=name)
                        site.server = cluster
                    case _:
                        lives.pop(0).signal(signal.SIGKILL)
                        for stream in STREAMS:  # without leaders `serve` says so and ends
                            await cluster.leader(stream)
                        lives.append(await site.serve())
                ids += await load.insist(site, "work", 50, start=len(ids))
            ended = await load.each_once(site, ids)
            assert all(outcome.ok for outcome in ended.values())

    run(test(), bound_s=590)
