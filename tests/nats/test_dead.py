"""`executor dead` on a real server: filters, batches, what happens twice or meanwhile, export."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import pty
import select
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executor.core import envelope, fields, seal, signature, subjects
from executor.core.envelope import Draft, Origin, Record
from executor.core.schedule import Schedule
from executor.model import Receipt, TaskId, TaskRequest
from executor.transport.connection import Connection
from executor.transport.control import Control
from tests.e2e.command import WAIT_S, Done, Shell
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests, speech
from tests.support.served import TENANT, Site

A, B = "sha256:" + "aa" * 32, "sha256:" + "bb" * 32


@dataclass
class Desk:
    """A site, letters that somebody left there, and the command."""

    site: Site
    connection: Connection

    async def letter(self, task_id: str, **fields: Any) -> int:
        """Store a dead letter under the host's key; its sequence."""
        task = fields.pop("task", "work")
        body = envelope.encode_task(TaskRequest(TENANT, task, TaskId(task_id), b"in"), "test")
        digest, signers = fields.pop("digest", A), fields.pop("signers", ("author",))
        origin = fields.pop("origin", Origin(f"task.{TENANT}.{task}", body, (), len(body)))
        record = Record(
            task, 1, 3, 1, 2, Receipt(digest=digest), code=fields.pop("code", "guest.trap"),
            origin=origin, signers=signers, **fields,
        )  # fmt: skip
        subject = subjects.dead(TENANT, task, task_id)
        payload = envelope.encode_record(record)
        draft = Draft("dead", f"test/{subject}", task_id, payload, envelope.VERSION)
        (sealed,) = seal.seal(guests.HOST, [draft], at=1)
        return await self.connection.store(subject, sealed)

    async def call(self, *arguments: str, stdin: bytes | None = None) -> Done:
        """Run `executor dead …` beside the loop."""
        shell = Shell(self.site.folder)
        return await asyncio.to_thread(shell.call, "dead", *arguments, stdin=stdin)

    async def listed(self, *filters: str) -> list[str]:
        """The ids that a list shows."""
        done = await self.call("list", "--json", *filters)
        assert done.code == 0, done.err
        return [letter["id"] for letter in done.objects()]

    async def come(self, count: int) -> None:
        """Wait until so many tasks ever came into the queue: the server puts them there."""

        async def there() -> bool:
            return await self.queued() >= count

        await eventually(there)
        assert await self.queued() == count

    async def queued(self) -> int:
        """How many tasks ever came into the queue."""
        return (await self.site.state(subjects.tasks_stream(TENANT)))["last_seq"]


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


@asynccontextmanager
async def desk(site: Site, *, served: bool = False) -> AsyncIterator[Desk]:
    """The site's streams, who looks at them, and where asked for an executor, which does it."""
    await site.prepare(**({"work": guests.ECHO, "other": guests.ECHO} if served else {}))
    if served:
        await site.serve()
    connection = await connect(site.server)
    try:
        yield Desk(site, connection)
    finally:
        await connection.close()


def test_filters(site: Site) -> None:
    """Each filter keeps what it names, several keep what all of them name, oldest first."""

    async def test() -> None:
        async with desk(site) as at:
            await at.letter("a")
            await at.letter("b", task="other", code="limit.fuel-exhausted", digest=B)
            await at.letter("c", code="limit.memory-exceeded", signers=("acme-ci", "author"))
            assert await at.listed() == ["a", "b", "c"]
            assert await at.listed("--task", "work") == ["a", "c"]
            assert await at.listed("--code", "limit") == ["b", "c"]
            assert await at.listed("--code", "limit.fuel-exhausted") == ["b"]
            assert await at.listed("--digest", "bbbb") == ["b"]
            assert await at.listed("--digest", A) == ["a", "c"]
            assert await at.listed("--signer", "acme-ci") == ["c"]
            assert await at.listed("--code", "limit", "--task", "work") == ["c"]
            assert await at.listed("--since", "1h") == ["a", "b", "c"]
            assert await at.listed("--until", "1h") == []
            assert await at.listed("--until", "2030-01-01") == (
                ["a", "b", "c"] if time.gmtime().tm_year < 2030 else []
            )
            assert await at.listed("--limit", "2") == ["a", "b"]
            assert "only the first 2" in (await at.call("list", "--limit", "2")).err
            assert "acme-ci, author" in (await at.call("list", "--signer", "acme-ci")).text

    run(test())


def test_a_batch_says_what_it_will_do_and_wants_a_yes(site: Site) -> None:
    """Off a terminal nothing is done without --yes, and count and sample are told all the same."""

    async def test() -> None:
        async with desk(site) as at:
            for number in range(5):
                await at.letter(f"id{number}")
            for verb in ("retry", "discard"):
                done = await at.call(verb, "--all", "--code", "guest")
                assert done.code == 2
                assert "5 dead letters to" in done.err
                assert "id0  work  guest.trap" in done.err
                assert "and 2 more" in done.err
                assert "--yes" in done.err
            assert await at.queued() == 0
            assert len(await at.listed()) == 5
            none = await at.call("retry", "--all", "--code", "module", "--yes")
            assert (none.code, none.text) == (0, "")
            assert "nothing to ask for again" in none.err

    run(test())


def test_retrying_a_batch_twice_and_at_once_is_once(site: Site) -> None:
    """However often and by however many at once letters are asked again: one task for each."""

    async def test() -> None:
        async with desk(site, served=True) as at:
            for number in range(30):
                await at.letter(f"id{number}")
            both = await asyncio.gather(
                *(at.call("retry", "--all", "--yes", "--json") for _ in range(2))
            )
            again = await at.call("retry", *(f"id{number}" for number in range(30)), "--json")
            ids = []
            for done in (*both, again):
                assert done.code == 0, done.text + done.err
                ids.append({each["of"]: each["id"] for each in done.objects()})
            assert len(ids[0]) == 30
            assert ids[0] == ids[1] == ids[2]
            await at.come(30)
            assert all(each["duplicate"] for each in again.objects())

    run(test())


def test_a_long_batch_shows_its_progress(site: Site) -> None:
    """Off a terminal a long batch has a line at its start and one at its end, on stderr alone."""

    async def test() -> None:
        async with desk(site, served=True) as at:
            for number in range(30):
                await at.letter(f"id{number}")
            done = await at.call("discard", "--all", "--yes")
            assert done.code == 0
            assert "discarding: 30 …" in done.err
            assert "discarding: through" in done.err
            assert len(done.text.splitlines()) == 30

    run(test())


def on_terminal(site: Site, *arguments: str, answer: bytes) -> str:
    """Run `executor dead …` on a pseudo-terminal, answering its question; what it wrote there."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    shell = Shell(site.folder)
    process = shell.start(
        "dead", *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm"}
    )
    os.close(theirs)
    written = b""
    try:
        while select.select([ours], [], [], WAIT_S)[0]:
            try:
                written += os.read(ours, 65536)
            except OSError:
                break  # the other end is closed
        process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return written.decode("utf-8", "replace")


def test_a_batch_asks_on_a_terminal(site: Site) -> None:
    """On a terminal the plan is a question: no touches nothing, yes does it with a progress bar."""

    async def test() -> None:
        async with desk(site, served=True) as at:
            for number in range(30):
                await at.letter(f"id{number}")
            call = functools.partial(on_terminal, site, "discard", "--all")
            text = await asyncio.to_thread(call, answer=b"n\n")
            assert "30 dead letters to discard" in text
            assert "Go on?" in text
            assert len(await at.listed()) == 30
            text = await asyncio.to_thread(call, answer=b"y\n")
            assert "100%" in text
            assert text.count("discarded id") == 30
            assert await at.listed() == []

    run(test())


def test_everything_is_checked_before_anything_is_touched(site: Site) -> None:
    """One id that cannot be asked again keeps all the others from being asked."""

    async def test() -> None:
        async with desk(site, served=True) as at:
            await at.letter("good")
            cut = Origin(f"task.{TENANT}.work", b"x", (), 600_000, "ab" * 32)
            await at.letter("cut", code="message.too-large", origin=cut)
            done = await at.call("retry", "good", "cut")
            assert done.code == 16
            assert "not kept whole" in done.err
            assert (await at.call("retry", "good", "nosuch")).code == 14
            assert (await at.call("discard", "good", "nosuch", "--yes")).code == 14
            assert await at.queued() == 0
            assert await at.listed() == ["good", "cut"]
            # Of all that match, what cannot be asked for again is left out, and named.
            done = await at.call("retry", "--all", "--yes")
            assert done.code == 0
            assert "1 letter left out: cut (message.too-large)" in done.err
            await at.come(1)

    run(test())


def test_a_discarded_letter_is_closed(site: Site) -> None:
    """It is superseded, not deleted; it cannot be asked for again, nor discarded twice."""

    async def test() -> None:
        async with desk(site, served=True) as at:
            await at.letter("a")
            assert (await at.call("discard", "a", "--yes")).code == 0
            assert await at.listed() == []
            for verb in (["retry", "a"], ["discard", "a", "--yes"]):
                done = await at.call(*verb)
                assert done.code == 2
                assert "was discarded at" in done.err
            assert "no dead letters match" in (await at.call("retry", "--all", "--yes")).err
            assert await at.queued() == 0
            assert [m.subject for m in await site.stored()] == [f"dead.{TENANT}.work.a"] * 2
            shown = (await at.call("show", "a")).text
            assert "it is closed" in shown
            # What it came from is kept for whoever wants to submit it as a new task.
            (found,) = (await at.call("export", "a")).objects()
            assert found["discarded_at"]
            body = base64.b64decode(found["original"]["base64"])
            assert fields.unpack(body, lists=False)["input"] == b"in"

    run(test())


@pytest.mark.covers("policy.action-denied")
def test_single_failures_do_not_stop_the_rest(site: Site) -> None:
    """Letters of a task that is not the operator's: what went is told, what failed is counted."""

    async def test() -> None:
        site.path.write_text(site.path.read_text() + _NOT_OTHER)
        async with desk(site, served=True) as at:
            for number in range(20):
                await at.letter(f"id{number:02}", task="work" if number % 2 else "other")
            done = await at.call("retry", "--all", "--yes", "--json")
            assert done.code == 11
            objects = done.objects()
            sent = [each for each in objects if each["schema"] == "executor.submitted/1"]
            failed = [each for each in objects if each["schema"] == "executor.failed/1"]
            assert len(sent) == 10
            await at.come(10)
            assert {each["code"] for each in failed} == {"policy.action-denied"}
            assert {each["of"] for each in sent} | {each["id"] for each in failed} == {
                f"id{number:02}" for number in range(20)
            }
            assert objects[-1]["schema"] == "executor.error/1"
            assert objects[-1]["facts"] == {"done": 10, "failed": 10, "not_tried": 0}
            people = await at.call("retry", "--all", "--code", "guest", "--yes")
            assert people.code == 11
            assert "10 of 20 dead letters failed" in people.err
            assert people.text.count("the queue had it already") == 10

    run(test())


_NOT_OTHER = """
[[binding]]
role = "operator"
who = ["boss"]
tasks = ["other"]
deny = true
why = "somebody else's"
"""


def test_a_firing_that_died_is_asked_for_again(site: Site) -> None:
    """Its letter holds a sealed schedule: what is asked again is its task, with its input."""

    async def test() -> None:
        await site.prepare(work=guests.TRAP)
        life = await site.serve()
        bucket = Control(await connect(site.server))
        key = subjects.schedule_key(TENANT, "work", "tick")
        said = Schedule("@every 1s", input=b"tick", content_type="text/plain", at=1)
        await speech.put(bucket, "schedule", key, said.fields())
        letter = next(iter((await site.all_ended(1)).values()))
        assert letter.code == "guest.trap"
        assert letter.record.origin is not None
        assert envelope.decode_sealed(letter.record.origin.data).typ == "schedule"
        await speech.put(bucket, "schedule", key)
        # Mended, and running again before it is asked for.
        mended = signature.sign_module(
            guests.described(guests.assemble(guests.ECHO), "work", version="1.0.1"), guests.AUTHOR
        )
        await site.release(mended, "work", version="1.0.1")
        await life.line("release-admitted", version="1.0.1")
        shell = Shell(site.folder)
        first, again = [
            await asyncio.to_thread(shell.call, "dead", "retry", letter.id, "--json")
            for _ in range(2)
        ]
        assert first.code == 0, first.err
        (asked,), (twice,) = first.objects(), again.objects()
        assert (asked["of"], asked["id"] == twice["id"]) == (letter.id, True)
        assert (asked["duplicate"], twice["duplicate"]) == (False, True)

        async def there() -> bool:
            return asked["id"] in await site.ended()

        await eventually(there)
        outcome = (await site.ended())[asked["id"]]
        assert (outcome.code, outcome.output) == ("", b"tick")

    run(test())


def test_export_to_a_file(site: Site) -> None:
    """Whole letters, one a line, in a new file that others cannot read; never over another."""

    async def test() -> None:
        async with desk(site) as at:
            await at.letter("a", last_calls=(("kv_get", -4),), limits=(("fuel", 7),))
            await at.letter("b", code="limit.fuel-exhausted")
            path = site.folder / "letters.jsonl"
            done = await at.call("export", "-o", str(path))
            assert (done.code, done.text) == (0, "")
            assert "2 dead letters in" in done.err
            lines = Done(0, path.read_bytes(), "").objects()
            assert [(each["schema"], each["id"]) for each in lines] == [
                ("executor.dead/1", "a"), ("executor.dead/1", "b"),
            ]  # fmt: skip
            assert lines[0]["last_calls"] == [
                {"function": "kv_get", "status": -4, "ended": "unavailable"}
            ]
            assert lines[0]["limits"] == {"fuel": 7}
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            before = path.read_bytes()
            assert (await at.call("export", "-o", str(path))).code == 15
            assert path.read_bytes() == before
            other = site.folder / "other.jsonl"
            assert (await at.call("export", "nosuch", "-o", str(other))).code == 14
            assert not other.exists()
            only = await at.call("export", "--code", "limit")
            assert [each["id"] for each in only.objects()] == ["b"]

    run(test())


@pytest.mark.covers("transport.unanswered")
def test_nobody_to_do_it(site: Site) -> None:
    """Without an executor nothing is asked again or closed, which is said at once."""

    async def test() -> None:
        async with desk(site) as at:
            await at.letter("a")
            for verb in (["retry", "a"], ["discard", "a", "--yes"]):
                done = await at.call(*verb)
                assert done.code == 14
                assert "no executor answered" in done.err
            assert await at.listed() == ["a"]
            assert await at.queued() == 0

    run(test())


def test_a_degraded_result_says_so(site: Site) -> None:
    """Whoever asks for the outcome is told that a fallback gave it, and in place of which code."""

    async def test() -> None:
        async with desk(site) as at:
            subject = subjects.result(TENANT, "work", "soft")
            record = Record("work", 1, 3, 1, 2, Receipt(), output=b"instead", degraded=True,
                            cause="capability.unavailable")  # fmt: skip
            payload = envelope.encode_record(record)
            draft = Draft("result", f"test/{subject}", "soft", payload, envelope.VERSION)
            await at.connection.store(subject, seal.seal(guests.HOST, [draft], at=1)[0])
            shell = Shell(site.folder)
            done = await asyncio.to_thread(shell.run, "result", "soft")
            assert done.out == b"instead"
            assert "a fallback stood in for capability.unavailable" in done.err
            found = await asyncio.to_thread(shell.json, "result", "soft")
            assert (found["degraded"], found["cause"]) == (True, "capability.unavailable")

    run(test())
