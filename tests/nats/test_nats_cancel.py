"""Cancelling through NATS: announced in CONTROL, heard by a running executor, one record each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core import subjects
from executor.transport.control import Control
from tests.servers import NatsServer, eventually, run
from tests.support import guests, speech
from tests.support.served import TENANT, Serve, Site


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


def test_running_queued_and_waiting(site: Site) -> None:
    """A spinning task, one queued behind it, one whose retry is an hour away: all end cancelled."""

    async def test() -> None:
        later = guests.RETRY.replace("(i64.const 7)", "(i64.const 3600000)")
        await site.prepare(spin=guests.SPIN, echo=guests.ECHO, later=later)
        async with await site.client() as client:
            waiting = await client.submit("later")
            life = await site.serve()
            await life.line("attempt", code="guest.failed")
            spinning = await client.submit("spin", id="spinning")
            for task_id in (waiting.id, spinning.id):
                assert await client.cancel(task_id) is None
                ended = await client.wait(task_id, timeout_s=30)
                assert ended.code == "task.cancelled"
            assert await client.cancel("never-submitted", task="echo") is None
            assert (await client.run("echo", b"x", id="never-submitted", timeout_s=30)).code == (
                "task.cancelled"
            )
            # The same id of another task, and what has ended, are untouched.
            assert (await client.run("echo", b"x", id="other", timeout_s=30)).output == b"x"
            again = await client.cancel("other")
            assert again is not None
            assert again.output == b"x"
        assert len(await site.ended()) == 4

    run(test())


def test_a_restarted_executor_remembers(site: Site) -> None:
    """What was cancelled while nobody served ends at its turn; what ran out is swept away."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        async with await site.client() as client:
            control, old = Control(client.connection), subjects.cancel_key(TENANT, "echo", "old")
            await control.put(old, speech.value("cancel", old, {"until": 1}), ttl_s=1)
            sent = await client.submit("echo", b"x")
            await client.cancel(sent.id, task="echo")
            (left,) = [subjects.cancel_key(TENANT, "echo", sent.id)]

            async def gone() -> bool:
                return await control.keys(f"cancel.{TENANT}") == [left]

            await eventually(gone)
            stored = await control.get(left)
            assert stored is not None
            assert stored.headers["Nats-TTL"] == "604800s"
            await site.serve()
            assert (await client.wait(sent.id, timeout_s=30)).code == "task.cancelled"
            assert (await client.run("echo", b"x", id="old", timeout_s=30)).output == b"x"
            with pytest.raises(ValueError, match="an id is of"):
                await client.cancel("no id")

    run(test())


def test_a_busy_sandbox_does_not_outlive_a_killed_supervisor(site: Site) -> None:
    """A guest that spins reads no socket: the kernel ends it with the zygote, as root too."""

    async def test() -> None:
        await site.prepare(spin=guests.SPIN)
        async with await site.client() as client:
            life = await site.serve()
            await client.submit("spin", id="spinning")
            await eventually(lambda: busy(life))
            life.signal(signal.SIGKILL)
            await life.no_orphans()

    async def busy(life: Serve) -> bool:
        return any(cpu_ticks(pid) > 20 for pid in life.sandboxes())

    run(test())


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in hundredths of a second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11])
