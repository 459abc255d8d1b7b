"""Operators on a real server: a session signs for hours, and two others break glass for one."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from executor.core import subjects
from executor.core.signature import SecretKey
from executor.transport.control import Control
from tests.e2e.command import Done, Shell
from tests.servers import NatsServer, connect, run
from tests.support import guests, speech
from tests.support.served import TENANT, Serve, Site

PEOPLE: Final = {"lea": guests.AUTHOR, "ann": guests.STRANGER, "bob": guests.FORGER}
TABLES: Final = (
    "".join(
        f'[[operator]]\nname = "{name}"\nkey = "{key.public.text}"\n'
        for name, key in PEOPLE.items()
    )
    + '[[binding]]\nrole = "approver"\nwho = ["ann", "bob"]\nwhy = "for tests"\n'
)
WORD: Final = {"EXECUTOR_PASSPHRASE": "word"}
ASK: Final = ("break-glass", "request", "--action", "pause", "--task", f"{TENANT}/echo",
              "--minutes", "30", "--why", "it floods", "-o", "glass.json")  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder where boss is an operator, Lea has no role, and two others may approve."""
    with Site(tmp_path / "site", server) as made:
        for name, key in PEOPLE.items():
            write(made, name, key.pem())
        made.path.write_text(made.path.read_text() + TABLES)
        yield made


def write(site: Site, name: str, pem: bytes) -> None:
    """A key where the configuration may name it."""
    path = site.folder / f"{name}.key"
    path.write_bytes(pem)
    path.chmod(0o600)


class People:
    """Who calls the command, each with a key and a session folder of their own."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def call(self, who: str, *arguments: str, **env: str) -> Done:
        """Call it as one of them."""
        names = {"EXECUTOR_KEYS_OPERATOR_FILE": f"{who}.key",
                 "EXECUTOR_KEYS_SESSION_FOLDER": f"session-{who}", **env}  # fmt: skip
        shell = Shell(self.site.folder, names)
        return await asyncio.to_thread(shell.call, *arguments)

    async def run(self, who: str, *arguments: str, **env: str) -> dict[str, Any]:
        """Call it; it must succeed."""
        done = await self.call(who, *arguments, "--json", **env)
        assert done.code == 0, done.err
        return done.object()

    async def refused(self, code: str, who: str, *arguments: str, says: str = "") -> None:
        """Call it; it must be refused so."""
        done = await self.call(who, *arguments)
        assert f"error[{code}]" in done.err, done.err or done.text
        assert says in done.err, done.err
        assert "Traceback" not in done.err


async def reload(site: Site, life: Serve, old: str, new: str) -> None:
    """Change the configuration, and have it taken."""
    text = site.path.read_text()
    assert old in text
    site.path.write_text(text.replace(old, new))
    count = len(life.events("reloaded"))
    life.signal(signal.SIGHUP)
    await life.line("reloaded", count + 1)


def test_a_session_signs(site: Site) -> None:
    """Its passphrase given once, an operator's verbs go on without; revoked or idle, none does."""

    async def test() -> None:
        write(site, "boss", guests.OPERATOR.pem(b"word"))
        people = People(site)
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await people.refused("config.missing", "boss", "pause", "echo", says="the passphrase")
        await people.refused("policy.session-expired", "boss", "session", "status")
        made = await people.run("boss", "session", "start", "--hours", "2",
                                **WORD)  # fmt: skip
        assert made["holder"] == guests.OPERATOR.public.key_id.hex()
        assert (await people.run("boss", "session", "status"))["id"] == made["id"]
        await people.run("boss", "pause", "echo")
        await life.line("paused")
        await people.run("boss", "resume", "echo")
        await life.line("resumed")
        async with await site.client() as client:
            ended = await client.run("echo", b"x", timeout_s=30)
            assert ended.output == b"x"
        assert life.events("security-event") == []

        # From now on its own key signs sessions alone.
        asked = 'name = "boss"\nsessions_from = 2020-01-01\n'
        await reload(site, life, 'name = "boss"\n', asked)
        await people.run("boss", "pause", "echo")
        await life.line("paused", 2)
        bucket, pause = Control(await connect(site.server)), subjects.pause_key(TENANT, "echo")
        await speech.put(bucket, "pause", pause, {"at": 1, "why": "by the long-lived key"})
        await life.line("security-event", kind="pause-not-authentic")

        # Revoked, what it said is taken back, and it says nothing more.
        await reload(site, life, "revoked = []", f'revoked = ["{made["id"]}"]')
        await life.line("no-longer-said", key=pause)
        await people.refused("policy.action-denied", "boss", "pause", "echo", says="revoked")

        # Idle: the verb that comes too late destroys the key, and no other steps in.
        await people.run("boss", "session", "start", "--idle-minutes", "1",
                         **WORD)  # fmt: skip
        file = site.folder / "session-boss" / "session.json"
        kept = json.loads(file.read_text())
        file.write_text(json.dumps({**kept, "used_at": kept["used_at"] - 61_000}))
        for _ in range(2):
            await people.refused("policy.session-expired", "boss", "pause", "echo", says="idle")
        assert not (file.parent / "session.key").exists()
        await people.run("boss", "session", "end")
        write(site, "boss", guests.OPERATOR.pem())
        await people.refused("policy.session-expired", "boss", "pause", "echo", says="asks `boss`")

    run(test())


def test_two_others_break_glass(site: Site) -> None:
    """Lea may not, two approve, Lea may; closed, it and her pause are gone from every executor."""

    async def test() -> None:
        people = People(site)
        await site.prepare(echo=guests.ECHO)
        lives = [await site.serve(), await site.serve()]
        await people.refused("policy.action-denied", "lea", "pause", "echo", says="no role")
        asked = await people.run("lea", *ASK)
        assert asked["approved"] == []
        await people.refused("policy.approvals-missing", "lea", "break-glass", "open", "glass.json",
                             says="0 of 2")  # fmt: skip
        approve = ("break-glass", "approve", "glass.json", "--yes")
        await people.run("ann", "session", "start")
        assert (await people.run("ann", *approve))["approved"] == ["ann"]
        await people.refused("policy.approvals-missing", "lea", "break-glass", "open", "glass.json",
                             says="1 of 2")  # fmt: skip
        await people.refused("policy.approvals-missing", "ann", *approve, says="approved twice")
        await people.refused("policy.action-denied", "operator", *approve, says="no role of it")
        await people.refused("policy.action-denied", "lea", *approve, says="no role of it")
        assert (await people.run("bob", *approve))["approved"] == ["ann", "bob"]
        await people.refused("policy.approvals-missing", "bob", "break-glass", "open", "glass.json",
                             says="for somebody else")  # fmt: skip
        opened = await people.run("lea", "break-glass", "open", "glass.json")
        assert opened["approved"] == ["ann", "bob"]
        (listed,) = (await people.run("ann", "break-glass", "list"))["openings"]
        assert (listed["id"], listed["who"]) == (asked["id"], "lea")
        await people.run("lea", "pause", "echo")
        for life in lives:
            found = await life.line("security-event", kind="break-glass-opened", approved="ann,bob")
            assert found["id"] == asked["id"]
            await life.line("paused")
            await life.line("security-event", kind="break-glass-used", id=asked["id"])
        await people.refused("policy.action-denied", "lea", "pause", "other")
        digest = "sha256:" + "ab" * 32
        await people.refused("policy.action-denied", "lea", "quarantine", "add", digest)

        # Who starts now hears of both.
        late = await site.serve()
        await late.line("paused")
        for life in lives:
            assert len(life.events("security-event")) == 2
        assert (await people.run("ann", "break-glass", "close", asked["id"]))["closed"]
        for life in (*lives, late):
            await life.line("resumed")
            await life.line("security-event", kind="break-glass-closed")
        await people.refused("policy.action-denied", "lea", "pause", "echo")
        assert (await people.run("ann", "break-glass", "list"))["openings"] == []

    run(test())


def test_what_opens_nothing(site: Site) -> None:
    """A file altered, of another environment, or of a revoked approver; and a forged entry."""

    async def test() -> None:
        people, path = People(site), site.folder / "glass.json"
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await people.run("lea", *ASK)
        for who in ("ann", "bob"):
            await people.run(who, "break-glass", "approve", "glass.json", "--yes")
        good = path.read_text()
        paper = json.loads(good)
        open_ = ("break-glass", "open", "glass.json")
        request = base64.b64decode(paper["request"])
        longer = request.replace(b"it floods", b"it drains")
        for changed, code in (
            ({"request": base64.b64encode(longer).decode()}, "policy.approvals-missing"),
            ({"request": base64.b64encode(request[:-1]).decode()}, "message.malformed"),
            ({"id": "ab"}, "message.audience-mismatch"),
            ({"approvals": [paper["approvals"][0]] * 2}, "policy.approvals-missing"),
            ({"approvals": paper["approvals"][:1]}, "policy.approvals-missing"),
            ({"approvals": [paper["request"]] * 2}, "policy.approvals-missing"),
            ({"approvals": 3}, "message.malformed"),
            ({"schema": "x"}, "message.malformed"),
        ):
            path.write_text(json.dumps({**paper, **changed}))
            await people.refused(code, "lea", *open_)
        path.write_text(good)
        done = await people.call("lea", *open_, EXECUTOR_HOST_ENVIRONMENT="prod")
        assert "error[message.audience-mismatch]" in done.err
        done = await people.call("bob", "break-glass", "approve", "glass.json")
        assert (done.code, "--yes" in done.err) == (2, True)

        # Executors judge anew, whatever a client lets pass.
        forged = speech.value("break-glass", f"break-glass.{paper['id']}", {
            "request": request, **dict.fromkeys(
                ("first", "second"), base64.b64decode(paper["approvals"][0])),
        }, signer=guests.AUTHOR)  # fmt: skip
        await Control(await connect(site.server)).put(f"break-glass.{paper['id']}", forged)
        found = await life.line("security-event", kind="break-glass-not-authentic")
        assert "approved twice" in found["reason"]
        await people.refused("policy.action-denied", "lea", "pause", "echo")

        bob = guests.FORGER.public.key_id.hex()
        site.path.write_text(site.path.read_text().replace("revoked = []", f'revoked = ["{bob}"]'))
        await people.refused("policy.approvals-missing", "lea", *open_, says="nobody who is listed")
        never = [*ASK]
        never[never.index("pause")] = "drain"
        await people.refused("policy.action-denied", "lea", *never, says="names no tenant")

    run(test())


def test_a_key_of_a_session_stays_private(site: Site) -> None:
    """Mode 0600 in a folder of 0700; one that others can use signs nothing."""

    async def test() -> None:
        people = People(site)
        write(site, "boss", guests.OPERATOR.pem())
        await people.run("boss", "session", "start")
        folder = site.folder / "session-boss"
        assert folder.stat().st_mode & 0o777 == 0o700
        key = folder / "session.key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert SecretKey.parse(key.read_bytes()).public != guests.OPERATOR.public
        assert {path.name for path in folder.iterdir()} == {"session.json", "session.key"}
        key.chmod(0o644)
        await people.refused("config.invalid", "boss", "pause", "echo", says="others can use")

    run(test())
