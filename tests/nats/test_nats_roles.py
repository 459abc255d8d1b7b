"""Roles on a real server: all that is used works, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core.nats_roles import ROLES, Rights
from executor.errors import ExecutorError
from executor.transport import accounts
from executor.transport.connection import Settings
from tests.servers import Events, connect, run
from tests.support import guests
from tests.support.realm import TENANT, Realm

FORMS = ["static", "jwt"]


@pytest.fixture(params=FORMS)
def realm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Realm]:
    """A server with every login, in either form."""
    with Realm(tmp_path / "realm", with_jwt=request.param == "jwt") as made:
        yield made


def _rights(realm: Realm, login: str) -> Rights:
    return accounts.rights_of(realm.config().document, login, at_ms=None)


def _concrete(pattern: str) -> str:
    return pattern.replace("*", "x").replace(">", "x.y")


def _covers(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or token not in {"*", given[index]}:
            return False
    return len(wanted) == len(given)


def _may(rights: Rights, subject: str) -> bool:
    return any(_covers(p, subject) for p in rights.publish) and not any(
        _covers(p, subject) for p in rights.denied
    )


def test_every_cross_role_attempt_is_refused(realm: Realm) -> None:
    """Each role tries every subject of every other: what its row lacks is refused, the rest not."""

    async def test() -> None:
        logins = [login.stem for login in realm.nats.logins()]
        assert {login.partition("_")[0] for login in logins} == set(ROLES) - {"auditor", "notary"}
        every = {login: _rights(realm, login) for login in logins}
        publish = {_concrete(s) for r in every.values() for s in (*r.publish, *r.denied)}
        publish |= {"due.acme.x", "stored.result.acme.x.y", "$JS.API.STREAM.DELETE.TASKS_acme"}
        listen = {s for r in every.values() for s in r.subscribe} | {"task.acme.*", ">", "$KV.>"}
        refused = 0
        for login in logins:
            events, own = Events(), every[login]
            connection = await realm.connect(login, events)
            wrong = {s for s in publish if not _may(own, s)}
            for subject in publish:
                connection.send(subject)
            await connection.flush()
            told = {str(f["subject"]) for n, f in events.seen if n == "permission-violation"}
            assert told == {s.lower() for s in wrong}, login
            for subject in listen - set(own.subscribe):
                with pytest.raises(ExecutorError) as caught:
                    await connection.subscribe(subject, lambda _m: None)
                assert caught.value.code == "transport.permission-denied", (login, subject)
            for subject in own.subscribe:
                await connection.unsubscribe(await connection.subscribe(subject, lambda _m: None))
            refused += len(wrong) + len(listen - set(own.subscribe))
            await connection.close()
        assert refused > 500

    run(test())


def test_a_refusal_is_typed_and_at_once(realm: Realm) -> None:
    """A publish, an API call and a subscription without the right end with the code, no timeout."""

    async def test() -> None:
        events = Events()
        connection = await realm.connect("reader_acme", events)
        for subject in (
            "task.acme.x",
            "$JS.API.STREAM.INFO.TASKS_acme",
            "$KV.CONTROL.pause.acme.x",
        ):
            with pytest.raises(ExecutorError) as caught:
                await connection.request(subject, timeout_s=60)
            assert caught.value.code == "transport.permission-denied"
        assert events.count("permission-violation") == 3

    run(test())


def test_all_verbs_work_with_their_roles(realm: Realm, tmp_path: Path) -> None:
    """Streams, serving, publishing, submitting, reading, steering: the server refuses nothing."""

    async def test() -> None:
        if realm.with_jwt:  # as `nats.mint` of a host would, for a quarter of an hour
            for login in realm.nats.logins():
                if login.role != "system":
                    await realm.call("nats", "mint", login.stem, "--minutes", "15",
                                     "--credentials", f"nats/users/{login.stem}.creds")  # fmt: skip
        await realm.call("nats", "apply")
        await realm.call("nats", "check")
        life = await realm.serve()
        for name, body in (("echo", guests.ECHO), ("trap", guests.TRAP), ("kv", guests.COUNTER)):
            (tmp_path / f"{name}.wasm").write_bytes(guests.signed(body, name))
            await realm.call("publish", str(tmp_path / f"{name}.wasm"), "--tenant", TENANT)
        of = ("--tenant", TENANT)
        found = await realm.json("submit", "echo", "-i", "hi", "--wait", *of)
        assert found["output"] == "hi"
        await realm.call("submit", "kv", "-i", "count", "--wait", *of)
        await realm.call("submit", "trap", "--id", "bad", "--wait", *of, code=1)
        await realm.call("result", found["id"], *of)
        assert "bad" in await realm.call("dead", "list", *of)
        await realm.call("dead", "show", "bad", *of)
        await realm.call("dead", "retry", "bad", *of)
        await realm.call("dead", "discard", "bad", "--yes", *of)
        await realm.call("grant", "explain", "acme/echo")
        await realm.call("pause", "acme/echo")
        await realm.call("submit", "echo", "--id", "held", *of)
        await realm.call("resume", "acme/echo")
        await realm.call("quarantine", "add", f"sha256:{'ab' * 32}")
        await realm.call("quarantine", "list")
        await realm.call("quarantine", "lift", f"sha256:{'ab' * 32}")
        assert "local" in await realm.call("top", "--once")
        await realm.call("schedule", "add", "acme/echo", "--every", "1h", "--id", "hourly")
        await realm.call("schedule", "list")
        await realm.call("schedule", "remove", "hourly", *of)
        await realm.call("cancel", "nobody", "--timeout", "10ms", *of)
        await realm.call("serve", "--drain", "local")
        assert await life.exit_status() == 0
        assert not life.events("security-event")
        assert "Violation" not in realm.server.log()

    run(test(), bound_s=110)


def test_a_login_is_of_one_tenant(realm: Realm) -> None:
    """A tenant's login has no right to another's subjects, and its account no way to them."""

    async def test() -> None:
        async with asyncio.timeout(30):
            deployer = await realm.connect("deployer_main")
            await deployer.api("STREAM.CREATE.probe", {"name": "probe", "subjects": ["p"]})
            reader = await realm.connect("client_zebra")
            for subject in ("task.acme.x", "$JS.API.DIRECT.GET.OUTCOMES_acme",
                            "$JS.API.INFO", "result.acme.x.y"):  # fmt: skip
                with pytest.raises(ExecutorError) as caught:
                    await reader.request(subject)
                assert caught.value.code == "transport.permission-denied"

    run(test())


def test_without_a_login_nobody_enters(realm: Realm) -> None:
    """No key, or another's, is refused."""

    async def test() -> None:
        with pytest.raises(ExecutorError) as caught:
            await connect(realm.server, settings=Settings(realm.server.url))
        assert caught.value.code == "transport.permission-denied"

    run(test())
