"""Speaking under keys on a real server: operators, submitters, executors whose keys change."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from executor.client import Client
from executor.core import control, envelope, seal, subjects
from executor.core.envelope import Draft, Record
from executor.core.seal import FRESH_MS, Opener
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Receipt
from executor.transport.board import Board
from executor.transport.control import Control
from executor.transport.speaking import Speaker
from executor.transport.streams import apply
from tests.e2e.command import Shell
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import guests, speech
from tests.support.served import TENANT, Site

PAUSE = subjects.pause_key(TENANT, "echo")


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


def key_file(site: Site, name: str, key: SecretKey) -> None:
    """A key where the configuration may name it."""
    path = site.folder / f"{name}.key"
    path.write_bytes(key.pem())
    path.chmod(0o600)


def edit(site: Site, *pairs: tuple[str, str], more: str = "") -> None:
    """Change the configuration."""
    text = site.path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    site.path.write_text(text + more)


SUBMITTER = f"""
[[submitter]]
name = "asker"
key = "{guests.AUTHOR.public.text}"
[[binding]]
role = "submitter"
who = ["asker"]
tasks = ["echo", "spin"]
why = "for tests"
"""


def test_signed_requests(site: Site) -> None:
    """Where a tenant demands them: signed by the client's key they run and end, unsigned never."""

    async def test() -> None:
        key_file(site, "asker", guests.AUTHOR)
        signs = ("[keys]\n", '[keys]\nsubmitter_file = "asker.key"\n')
        edit(site, ("[[tenant]]", "[[tenant]]\nsigned_requests = true"), signs, more=SUBMITTER)
        await site.prepare(echo=guests.ECHO, spin=guests.SPIN, other=guests.ECHO)
        life = await site.serve()
        async with await site.client() as client:
            assert (await client.run("echo", b"x", timeout_s=30)).output == b"x"
            same = [await client.run("echo", b"x", id="mine", timeout_s=30) for _ in range(2)]
            assert same[0] == same[1]
            spinning = await client.submit("spin")
            await client.submit_many(client.request("echo", str(n)) for n in range(5))
        # Its own key, without a configuration: it cancels what it asked for.
        opener = site.config().opener()
        async with await Client.open(
            site.server.url, tenant=TENANT, opener=opener, environment="test",
            signer=guests.AUTHOR,
        ) as own:  # fmt: skip
            assert await own.cancel(spinning.id, task="spin") is None
            assert (await own.wait(spinning.id, timeout_s=30)).code == "task.cancelled"
            denied = await own.submit("other", b"x", id="theirs")
        async with await Client.open(
            site.server.url, tenant=TENANT, opener=opener, environment="test"
        ) as nobody:
            unsigned = await nobody.submit("echo", b"x", id="unsigned")
            for sent, task in ((denied, "other"), (unsigned, "echo")):
                ended = await nobody.wait(f"_{sent.sequence}", task=task, timeout_s=30)
                assert ended.code == "policy.submitter-denied"
            assert await nobody.outcome("unsigned") is None
            with pytest.raises(ExecutorError, match=r"config\.missing"):
                await nobody.cancel("any")
        await life.line("security-event", 2, kind="task-not-authentic")

    run(test())


def test_what_an_operator_may_not(site: Site) -> None:
    """Refused before anything is written, with the reason; and without a key nothing is said."""

    async def test() -> None:
        deny = """
[[binding]]
role = "operator"
who = ["boss"]
tasks = ["other"]
deny = true
why = "somebody else's"
"""
        edit(site, more=deny)
        await site.prepare(echo=guests.ECHO)
        shell = Shell(site.folder)

        async def call(*arguments: str) -> Any:
            return await asyncio.to_thread(shell.call, *arguments)

        bucket = Control(await connect(site.server))
        before = await bucket.keys()
        for verb in (["pause", "other"], ["resume", "other"]):
            done = await call(*verb)
            assert done.code == 11, done.err
            assert "policy.action-denied" in done.err
        edit(site, ('operator_file = "operator.key"', ""))
        digest = "sha256:" + "ab" * 32
        for verb in (["pause", "echo"], ["quarantine", "add", digest], ["cancel", "any"],
                     ["schedule", "add", "echo", "--every", "1h"], ["schedule", "remove", "x"],
                     ["dead", "retry", "x"], ["dead", "discard", "x", "--yes"]):  # fmt: skip
            done = await call(*verb)
            assert (done.code, "operator_file" in done.err) == (15, True), (verb, done.err)
        assert await bucket.keys() == before

    run(test())


def test_a_key_of_an_operator_that_others_can_read(site: Site) -> None:
    """It is no key until it is closed to them; one that is none is named."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        shell, key = Shell(site.folder), site.folder / "operator.key"
        for mode, content, word in ((0o644, None, "chmod 600"), (0o600, b"junk", "Ed25519")):
            key.chmod(mode)
            if content is not None:
                key.write_bytes(content)
            done = await asyncio.to_thread(shell.call, "pause", "echo")
            assert done.code == 15
            assert word in done.err
        key.write_bytes(guests.OPERATOR.pem(b"open sesame"))
        done = await asyncio.to_thread(shell.call, "pause", "echo")
        assert (done.code, "passphrase" in done.err) == (15, True)
        env = {"EXECUTOR_PASSPHRASE": "open sesame"}
        assert (await asyncio.to_thread(shell.call, "pause", "echo", env=env)).code == 0
        key.unlink()
        done = await asyncio.to_thread(shell.call, "pause", "echo")
        assert (done.code, "operator.key" in done.err) == (15, True)
        assert (await asyncio.to_thread(shell.call, "nats", "check")).code == 0

    run(test())


def test_words_of_operators_whose_clocks_differ(server: NatsServer) -> None:
    """The later word counts, though its speaker's clock is behind; far behind, it is refused."""

    async def test() -> None:
        connection = await connect(server)
        await apply(connection, [])
        folder = server.directory / "site"
        with Site(folder, server) as site:
            opener, bucket = site.config().opener(), Control(connection)
            ahead = speech.value("pause", PAUSE, {"at": 1, "why": "a"},
                                 at=speech.now_ms() + FRESH_MS // 2)  # fmt: skip
            await bucket.put(PAUSE, ahead)
            speaker = Speaker(bucket, opener, guests.OPERATOR)
            assert await speaker.take_back(PAUSE)
            assert not await speaker.take_back(PAUSE)
            stored = await bucket.get(PAUSE)
            assert stored is not None
            found = opener.said(PAUSE, stored.body, stored_at=stored.stored_at_ms)
            assert found.iat == envelope.decode_sealed(ahead).iat + 1
            assert found.fields is None
            assert stored.headers["Nats-TTL"] == "604800s"

    run(test())


def test_a_clock_that_is_far_off(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever speaks at another time than the server's is told that nobody believes it."""

    async def test() -> None:
        connection = await connect(server)
        await apply(connection, [])
        with Site(server.directory / "site", server) as site:
            late = speech.now_ms() - 2 * FRESH_MS
            monkeypatch.setattr("executor.transport.speaking._now_ms", lambda: late)
            speaker = Speaker(Control(connection), site.config().opener(), guests.OPERATOR)
            with pytest.raises(ExecutorError, match="no executor believes it"):
                await speaker.say("pause", PAUSE, {"at": 1, "why": ""})
            # An opener that lists nobody cannot tell.
            blind = Speaker(Control(connection), Opener("test", {}), guests.OPERATOR)
            await blind.say("pause", PAUSE, {"at": 1, "why": ""})

    run(test())


def test_executors_keys_change(site: Site) -> None:
    """A new key beside the old: old outcomes stay true, new ones are the new key's alone."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        async with await site.client() as client:
            first = await client.run("echo", b"one", id="first", timeout_s=30)
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        end = datetime.fromtimestamp(first.stored_at / 1000, UTC).isoformat()
        key_file(site, "executor", guests.FORGER)
        old, new = guests.HOST.public.text, guests.FORGER.public.text
        listed = f'[[executor]]\nname = "local"\nkey = "{new}"'
        edit(site, (f'key = "{old}"', f'key = "{old}"\nnot_after = {end}\n{listed}'))
        life = await site.serve()
        connection = await connect(site.server)
        async with await site.client() as client:
            second = await client.run("echo", b"two", id="second", timeout_s=30)
            assert (await client.wait("first")).output == b"one"
            assert (second.output, await client.outcome("second")) == (b"two", second)
            by = {m.subject: envelope.decode_sealed(m.body).by for m in await site.stored()}
            assert list(by.values()) == [
                key.public.key_id.hex() for key in (guests.HOST, guests.FORGER)
            ]
            # Whoever kept the old key says nothing with it.
            subject = subjects.result(TENANT, "echo", "third")
            record = Record("echo", 1, 3, 1, 2, Receipt(), output=b"stolen")
            payload = envelope.encode_record(record)
            draft = Draft("result", f"test/{subject}", "third", payload)
            at = first.stored_at - 1
            await connection.store(subject, seal.seal(guests.HOST, [draft], at=at)[0])
            assert await client.outcome("third", task="echo") is None
            assert (await client.run("echo", b"three", id="third", timeout_s=30)).output == b"three"
            await life.line("security-event", kind="record-not-authentic")
            key = subjects.breaker_key("module", TENANT, "ab" * 32)
            said: dict[str, control.Value] = {"until": 2**42, "trips": 1, "by": "x"}
            await speech.put(Control(connection), "breaker", key, said, signer=guests.HOST)
            await life.line("security-event", kind="breaker-not-authentic")

    run(test())


def test_one_bad_key_blocks_no_other(server: NatsServer) -> None:
    """What can never be written is dropped with an event; what waits behind it is written."""

    async def test() -> None:
        events = Events()
        connection = await connect(server, events)
        await apply(connection, [])
        board = Board(connection, lambda _key, payload: payload or b"gone")
        board.put("no key", b"x")
        board.put("status.large", bytes(2_000_000))
        board.put("status.b", b"first")
        board.put("quarantine.ab", b"x")
        board.delete("status.c")
        bucket = Control(connection)

        async def written() -> bool:
            return await bucket.keys() == ["quarantine.ab", "status.b", "status.c"]

        await eventually(written)
        ttls = [
            stored.headers.get("Nats-TTL", "") for _, stored in sorted(
                (await bucket.entries()).items()
            )
        ]  # fmt: skip
        assert ttls == ["", "604800s", "604800s"]
        assert {facts["key"] for name, facts in events.seen if name == "error"} == {
            "no key", "status.large",
        }  # fmt: skip
        # A key that fails for a while waits, alone.
        await connection.api("STREAM.UPDATE.KV_CONTROL", (
            await connection.api("STREAM.INFO.KV_CONTROL")
        )["config"] | {"max_bytes": 40_000})  # fmt: skip
        board.put("status.big", bytes(50_000))
        board.put("status.d", b"x")

        async def past() -> bool:
            return "status.d" in await bucket.keys()

        await eventually(past)
        assert "status.big" in board._waiting
        await board.stop()

    run(test())


def test_a_reload_hears_whom_it_did_not_believe(site: Site) -> None:
    """An operator that is listed later is believed from then on; struck off, no more."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        connection = await connect(site.server)
        value: dict[str, control.Value] = {"at": 1, "why": "new here"}
        await speech.put(Control(connection), "pause", PAUSE, value, signer=guests.STRANGER)
        await life.line("security-event", kind="pause-not-authentic")
        before = site.path.read_text()
        listed = f"""
[[operator]]
name = "late"
key = "{guests.STRANGER.public.text}"
[[binding]]
role = "operator"
who = ["late"]
why = "for tests"
"""
        edit(site, more=listed)
        life.signal(signal.SIGHUP)
        await life.line("paused", task=f"{TENANT}/echo")
        site.path.write_text(before)
        life.signal(signal.SIGHUP)
        await life.line("no-longer-said", key=PAUSE)
        async with await site.client() as client:
            assert (await client.run("echo", b"x", timeout_s=30)).output == b"x"

    run(test())


def test_an_executor_is_told_to_drain(site: Site) -> None:
    """By its name, under the operator's key: it ends what runs and ends; no other is told."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        shell = Shell(site.folder)
        other = await asyncio.to_thread(shell.call, "serve", "--drain", "other")
        assert (other.code, "no executor answered" in other.err) == (14, True)
        assert life.process.poll() is None
        done = await asyncio.to_thread(shell.json, "serve", "--drain", "local")
        assert done == {"schema": "executor.draining/1", "executor": "local"}
        assert await life.exit_status() == 0
        await life.line("stopped")

    run(test())
