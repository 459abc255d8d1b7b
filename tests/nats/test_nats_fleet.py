"""Steering a running executor: pause, quarantine, breakers of others, rates, tenants, health."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core import control, subjects
from executor.transport.control import Control
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests, speech
from tests.support.served import OTHER, ROOT, TENANT, Site


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


def call(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One call of the command in the site's folder."""
    return subprocess.run(
        [sys.executable, "-m", "executor.cli.main", "--config", str(site.path), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_pause_and_resume(site: Site) -> None:
    """A paused task's tasks wait, another's run; after `resume` new ones run at once."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO, other=guests.ECHO)
        life = await site.serve()
        assert call(site, "pause", "echo", "--why", "maintenance").returncode == 0
        await life.line("paused", task=f"{TENANT}/echo")
        async with await site.client() as client:
            waiting = await client.submit("echo", b"x")
            assert (await client.run("other", b"y", timeout_s=30)).output == b"y"
            await life.line("attempt", code="task.paused")
            top = json.loads(call(site, "--json", "top").stdout)
            assert [(h["kind"], h["what"], h["why"]) for h in top["held_up"]] == [
                ("pause", f"{TENANT}/echo", "maintenance")
            ]
            assert call(site, "resume", "echo").returncode == 0
            await life.line("resumed", task=f"{TENANT}/echo")
            assert (await client.run("echo", b"z", timeout_s=30)).output == b"z"
            outcome = await client.wait(waiting.id, timeout_s=60)
            assert (outcome.output, outcome.record.attempt) == (b"x", 1)

    run(test())


def test_a_pause_of_what_nobody_knows(site: Site) -> None:
    """It is said, with a warning: a task may be held up before its first release, or misspelt."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        known, unknown = call(site, "pause", "echo"), call(site, "pause", "ecko")
        assert (known.returncode, unknown.returncode) == (0, 0)
        assert "warning" not in known.stderr
        assert f"no release of {TENANT}/ecko is known" in unknown.stderr
        bucket = Control(await connect(site.server))
        assert await bucket.keys("pause") == [f"pause.{TENANT}.{t}" for t in ("echo", "ecko")]

    run(test())


def test_what_is_put_off_is_counted(site: Site) -> None:
    """`top` shows how many of a tenant's tasks wait for their time; recurring schedules are none.

    Told to be done later they are put off at once, and their place in the queue is free.
    """

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        every = ("schedule", "add", "echo", "--every", "1h", "--id", "hourly")
        assert call(site, *every).returncode == 0
        life = await site.serve()
        async with await site.client() as client:
            for _ in range(3):
                await client.submit("echo", b"x", not_before=speech.now_ms() + 3_600_000)

        async def stored() -> bool:
            state = await site.state(subjects.later_stream(TENANT))
            return state["messages"] == 4

        await eventually(stored)
        (queue,) = json.loads(call(site, "--json", "top").stdout)["queues"]
        assert (queue["queued"], queue["put_off"]) == (0, 3)
        assert "PUT OFF" in call(site, "top").stdout
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0

    run(test())


def test_a_quarantine_holds_for_all_executors(site: Site) -> None:
    """What one operator says, two executors keep; lifted, the tasks run."""

    async def test() -> None:
        live = (await site.prepare(echo=guests.ECHO, other=guests.ECHO))["echo"]
        lives = [await site.serve(), await site.serve()]
        assert call(site, "quarantine", "add", live.digest).returncode == 0
        key = subjects.quarantine_key(live.digest, TENANT)
        bucket = Control(await connect(site.server))
        fields: dict[str, control.Value] = {"at": 1, "code": "c", "task": "-", "by": "x"}
        await speech.put(bucket, "quarantine", key, fields, signer=guests.HOST)
        listed = json.loads(call(site, "--json", "quarantine", "list").stdout)["modules"]
        assert {(m["digest"], m["tenant"]) for m in listed} == {
            (live.digest, TENANT), (live.digest, "*")
        }  # fmt: skip

        async def refused_by_both() -> bool:
            async with await site.client() as client:
                await client.submit("echo", b"x")
            return all(
                any(e.get("code") == "module.quarantined" for e in life.events("attempt"))
                for life in lives
            )

        await eventually(refused_by_both)
        assert await site.ended() == {}
        assert call(site, "quarantine", "lift", live.digest).returncode == 0
        for life in lives:
            await life.line("quarantine-lifted")
        assert json.loads(call(site, "--json", "quarantine", "list").stdout)["modules"] == []
        async with await site.client() as client:
            assert (await client.run("echo", b"y", timeout_s=30)).output == b"y"

    run(test())


def test_a_breaker_of_another_executor_is_heard(site: Site) -> None:
    """An announced opening puts tasks off here, no attempt counted, until it is taken back."""

    async def test() -> None:
        live = (await site.prepare(echo=guests.ECHO))["echo"]
        life = await site.serve()
        connection = await connect(site.server)
        key = subjects.breaker_key("module", TENANT, live.digest.removeprefix("sha256:"))
        bucket = Control(connection)
        fields: dict[str, control.Value] = {"until": 2**42, "trips": 2, "by": "another"}
        await speech.put(bucket, "breaker", key, fields, signer=guests.HOST)
        async with await site.client() as client:
            first = await client.submit("echo", b"x")
            await life.line("attempt", code="module.breaker-open")
            assert "breaker" in call(site, "top", "--once").stdout
            assert await client.cancel(first.id, task="echo") is None
            assert (await client.wait(first.id, timeout_s=30)).code == "task.cancelled"
            await speech.put(bucket, "breaker", key, signer=guests.HOST)

            async def runs() -> bool:
                outcome = await client.run("echo", b"y", timeout_s=30)
                return outcome.record.attempt == 1

            await eventually(runs)

    run(test())


def test_top_and_health(site: Site) -> None:
    """`top` shows executors and queues; `health` says ready, draining or gone."""

    async def test() -> None:
        text = site.path.read_text().replace("[host]", '[host]\nhealth_file = "h"')
        site.path.write_text(text)
        await site.prepare(echo=guests.ECHO, long=guests.SPIN)
        assert "no executor serves" in call(site, "top").stdout
        gone = call(site, "health")
        assert (gone.returncode, gone.stdout) == (
            1, "no executor runs here: there is no health file\n"
        )  # fmt: skip
        life = await site.serve()
        assert call(site, "health").returncode == 0
        async with await site.client() as client:
            assert (await client.run("echo", b"x", timeout_s=30)).ok
            await client.submit("long")
        top = json.loads(call(site, "--json", "top").stdout)
        (seen,) = top["executors"]
        assert (seen["ready"], seen["clock_offset_ms"]) == ("ready", 0)
        assert [q["tenant"] for q in top["queues"]] == [TENANT]
        life.signal(signal.SIGTERM)
        await life.line("draining")
        asked = call(site, "health")
        assert (asked.returncode, asked.stdout) == (1, "draining\n")
        assert call(site, "health", "--live").returncode == 0
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        assert call(site, "health").returncode == 1
        assert json.loads(call(site, "--json", "top").stdout)["executors"] == []

    run(test())


def test_a_rate_bounds_what_is_taken(site: Site) -> None:
    """A tenant with a rate leaves its tasks in the queue; another's run meanwhile."""

    async def test() -> None:
        site.write(tenants=(TENANT, OTHER))
        text = site.path.read_text()
        text = text.replace(f'name = "{TENANT}"\n', f'name = "{TENANT}"\ntasks_per_s = 1\n', 1)
        site.path.write_text(text)
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        async with await site.client() as slow, await site.client(OTHER) as fast:
            for number in range(30):
                await slow.submit("echo", b"%d" % number)
            for number in range(60):
                assert (await fast.run("echo", b"%d" % number, timeout_s=30)).ok
        left = (await site.state(subjects.tasks_stream(TENANT)))["messages"]
        assert left > 0, "the rate was not kept"
        # Raised, the rest follows at once.
        site.path.write_text(text.replace("tasks_per_s = 1\n", ""))
        life.signal(signal.SIGHUP)
        await life.line("reloaded")
        assert len(await site.all_ended(30)) == 30

    run(test())
