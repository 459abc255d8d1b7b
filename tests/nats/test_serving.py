"""`executor serve` as a process: from a submitted task to its record, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from executor import config as configs
from executor.cli.serving import Host, serve
from executor.core import subjects
from executor.telemetry import Log, Telemetry
from executor.transport.kv import TenantKv
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests, load
from tests.support.served import OTHER, TENANT, Serve, Site, until

LONG = load.ENDLESS  # every test that uses it ends it


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


async def began(site: Site, name: str, tenant: str = TENANT) -> None:
    """Wait until the guest with this input has begun."""
    bucket = TenantKv(await connect(site.server), tenant)

    async def there() -> bool:
        return await bucket.get(f"own/{name}") is not None

    await eventually(there)


def test_from_submit_to_result(site: Site) -> None:
    """A task, a failing one, a raw one and one that needs a retry each end in their record."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO, trap=guests.TRAP)
        await site.release(guests.sample("flaky"), "flaky")
        life = await site.serve()
        async with await site.client() as client:
            assert (await client.run("echo", b"hello", timeout_s=30)).output == b"hello"
            assert (await client.run("trap", timeout_s=30)).code == "guest.trap"
            await client.submit_bytes("echo", b"raw", id="mine")
            assert (await client.wait("mine", timeout_s=30)).output == b"raw"
            flaky = await client.run("flaky", b"x", timeout_s=30)
            assert (flaky.output, flaky.record.attempt) == (b"done: x", 2)
            assert [past.code for past in flaky.record.history] == ["guest.failed"]
        assert len(await site.ended()) == 4
        await site.empty()
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        await life.no_orphans()

    run(test())


def test_a_duplicate_runs_once(site: Site) -> None:
    """The same id submitted while it waits, runs, or is done, is one run and one record."""

    async def test() -> None:
        await site.prepare(work=guests.working(30_000_000))
        await site.serve()
        async with await site.client() as client:
            again = [await client.submit("work", b"once", id="once") for _ in range(3)]
            assert [sent.duplicate for sent in again] == [False, True, True]
            assert (await client.wait("once", timeout_s=30)).output == b"once"
            await site.empty()
            # A raw body carries no message id: the stream takes it, the look-up finds the record.
            await client.submit_bytes("work", b"once", id="once")
            await site.empty()
        assert [m.subject for m in await site.stored()] == [f"result.{TENANT}.work.once"]
        assert (await site.state(f"KV_{subjects.tenant_bucket(TENANT)}"))["last_seq"] == 1

    run(test())


def test_copies_in_hand_together_make_one_record(site: Site) -> None:
    """Copies of an id that nothing could tell apart in time end in one record all the same."""

    async def test() -> None:
        await site.prepare(work=guests.working(10_000_000))
        await site.serve()
        async with await site.client() as client:
            for _ in range(5):
                await client.submit_bytes("work", b"x", id="mine")
            await client.wait("mine", timeout_s=30)
        await site.empty()
        assert len(await site.stored()) == 1

    run(test())


def test_sigterm_drains(site: Site) -> None:
    """The first SIGTERM lets the running attempts end, gives the rest back, and exits 0."""

    async def test() -> None:
        await site.prepare(work=guests.working(300_000_000))
        life = await site.serve()
        async with await site.client() as client:
            ids = [(await client.submit("work", f"n{n}".encode())).id for n in range(12)]
        await began(site, "n0")
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        assert life.events("draining")
        await life.no_orphans()
        ended = await site.ended()
        left = (await site.state(subjects.tasks_stream(TENANT)))["messages"]
        assert ended
        assert all(outcome.ok for outcome in ended.values())
        assert len(ended) + left == len(ids)
        # Nobody has to wait for a lease to lapse: what was given back is there at once.
        await site.serve()
        assert sorted(await site.all_ended(len(ids))) == sorted(ids)

    run(test())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_stops(site: Site, number: signal.Signals) -> None:
    """While it drains, a second signal ends it at once; the task goes back to the queue."""

    async def test() -> None:
        await site.prepare(long=LONG)
        life = await site.serve()
        async with await site.client() as client:
            await client.submit("long", b"n")
        await began(site, "n")
        life.signal(number)
        await life.line("draining")
        life.signal(number)
        assert await life.exit_status() == 0
        await life.no_orphans()
        assert await site.stored() == []
        assert (await site.state(subjects.tasks_stream(TENANT)))["messages"] == 1

    run(test())


def test_the_drain_has_a_deadline(site: Site) -> None:
    """What does not end within `drain_ms` is given back, and the process exits 0."""

    async def test() -> None:
        site.write(drain_ms=300)
        await site.prepare(long=LONG)
        life = await site.serve()
        async with await site.client() as client:
            await client.submit("long", b"n")
        await began(site, "n")
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        await life.no_orphans()
        assert (await site.state(subjects.tasks_stream(TENANT)))["messages"] == 1

    run(test())


async def _hup(life: Serve, event: str, count: int = 1) -> dict[str, str]:
    life.signal(signal.SIGHUP)
    return await life.line(event, count)


def test_reload(site: Site) -> None:
    """SIGHUP takes a new tenant and a new grant, and loses no task that is on its way."""

    async def test() -> None:
        site.write(kv=False)
        await site.prepare(echo=guests.ECHO, work=guests.working(1_000_000))
        life = await site.serve()
        async with await site.client() as client:
            denied = await client.run("work", b"n", timeout_s=30)
            assert denied.code == "policy.capability-denied"
            ids = [(await client.submit("echo", f"n{n}".encode())).id for n in range(100)]
            site.write(tenants=(TENANT, OTHER))
            await _hup(life, "reloaded")
            assert (await client.run("work", b"n", timeout_s=30)).output == b"n"
        await site.release(guests.signed(guests.ECHO, "echo"), "echo", tenant=OTHER)
        await life.line("release-admitted", task=f"{OTHER}/echo")
        async with await site.client(OTHER) as client:
            assert (await client.run("echo", b"other", timeout_s=30)).output == b"other"
        ended = await site.all_ended(len(ids) + 2)
        assert all(ended[task_id].ok for task_id in ids)
        site.write(tenants=(TENANT,))
        await _hup(life, "reloaded", 2)
        async with await site.client() as client:
            assert (await client.run("echo", b"still", timeout_s=30)).ok

    run(test())


def test_a_broken_file_changes_nothing(site: Site) -> None:
    """A file that does not load, or that would leave nobody to trust, is refused on SIGHUP."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        good = site.path.read_text()
        broken: list[tuple[str | bytes, str]] = [
            ("[nats\n", "config.invalid"),
            (good + "[nonsense]\n", "config.key-unknown"),
            (b"\xff\xfe", "config.invalid"),
            (good.replace("[[tenant]]\nname", "[[tenant]]\nnam"), "config.invalid"),
            ("", "config.missing"),
            (good.replace(guests.HOST.public.text, guests.FORGER.public.text), "trust.missing"),
            (
                good.replace('[[executor]]\nname = "local"', '[[executor]]\nname = "another"'),
                "config.invalid",
            ),
        ]
        async with await site.client() as client:
            for count, (text, code) in enumerate(broken, 1):
                site.path.write_bytes(text if isinstance(text, bytes) else text.encode())
                refused = await _hup(life, "reload-refused", count)
                assert refused["code"] in {code, "config.key-unknown"}, (text, refused)
                assert (await client.run("echo", b"x", timeout_s=30)).ok
            site.path.unlink()
            await _hup(life, "reload-refused", len(broken) + 1)
            assert (await client.run("echo", b"x", timeout_s=30)).ok
        assert life.events("reloaded") == []

    run(test())


@pytest.mark.covers("module.signer-revoked")
def test_revocation_on_reload(site: Site) -> None:
    """After a reload that revokes a digest, or the signer's key, every later task is refused."""

    async def test() -> None:
        released = await site.prepare(echo=guests.ECHO, long=LONG)
        module = guests.signed(guests.ECHO, "other", key=guests.STRANGER)
        await site.release(module, "other")
        life = await site.serve()
        async with await site.client() as client:
            assert (await client.run("echo", b"x", timeout_s=30)).ok
            assert (await client.run("other", b"x", timeout_s=30)).ok
            site.write(revoked=released["echo"].digest)
            await _hup(life, "reloaded")
            for _ in range(3):
                assert (await client.run("echo", timeout_s=30)).code == "module.signer-revoked"
            running = await client.submit("long", b"n")
            await began(site, "n")
            site.write(revoked=guests.AUTHOR.public.key_id.hex())
            await _hup(life, "reloaded", 2)
            ended = await client.wait(running.id, timeout_s=30)
            assert ended.code == "module.signer-revoked"
            assert (await client.run("echo", timeout_s=30)).code == "module.signer-revoked"
            assert (await client.run("other", b"x", timeout_s=30)).ok

    run(test())


def test_a_release_while_serving(site: Site) -> None:
    """A new version is picked up by a running process; tasks are lost in neither version."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        async with await site.client() as client:
            first = await client.run("echo", b"x", timeout_s=30)
            newer = guests.signed(guests.ECHO, "echo", version="2.0.0")
            await site.release(newer, "echo", version="2.0.0")
            await life.line("release-admitted", version="2.0.0")
            second = await client.run("echo", b"x", timeout_s=30)
            assert (first.record.version, second.record.version) == ("1.0.0", "2.0.0")

    run(test())


def test_what_is_not_served_is_not_admitted(site: Site) -> None:
    """A tenant of other executors costs no fetch and no compiler, until a reload brings it here."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        await site.release(guests.signed(guests.TRAP, "trap"), "trap", tenant=OTHER)
        life = await site.serve()
        assert [e["task"] for e in life.events("release-admitted")] == [f"{TENANT}/echo"]
        assert life.events("release-refused") == []
        site.write(tenants=(TENANT, OTHER))
        life.signal(signal.SIGHUP)
        await life.line("release-admitted", task=f"{OTHER}/trap")

    run(test())


def test_it_does_not_start_without_trust(site: Site) -> None:
    """No key of its own among the executors: the process refuses to start and says what to add."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        text = site.path.read_text()
        site.path.write_text(text.replace(guests.HOST.public.text, guests.FORGER.public.text))
        life = Serve(site, 0)
        site.lives.append(life)
        assert await life.exit_status() == 18
        assert "trust.missing" in life.log()
        assert guests.HOST.public.text in life.log()
        assert "Traceback" not in life.log()
        await until(lambda: not life.sandboxes())

    run(test())


class _Ending:
    """A host whose drain is at its last step, which a cancellation does not stop."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.telemetry = Telemetry(Log(quiet=True))
        self.config = configs.load(None)

    async def start(self) -> None:
        """Asked to end at once."""
        signal.raise_signal(signal.SIGTERM)

    async def close(self, *, drain_ms: int) -> None:
        """Note it; a second signal comes meanwhile."""
        self.closed.append(drain_ms)
        signal.raise_signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def test_a_second_signal_at_the_end_closes_nothing_twice() -> None:
    """What had ended when the signal came is closed once: the second time has no connection."""
    host = _Ending()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        run(serve(cast(Host, host), lambda: host.config))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert host.closed == [host.config.number("delivery.drain_ms")]
