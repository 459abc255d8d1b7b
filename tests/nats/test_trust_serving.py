"""`executor serve` in production, under signed trust: what takes effect live, and what never does.

Every test is the real process on a real server; the attacks on the metadata itself, each with its
code, are in tests/security.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor.client import Client
from executor.core import subjects
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.transport.control import Control
from executor.transport.kv import TenantKv
from executor.transport.speaking import Speaker
from executor.transport.trust import TrustBucket
from executor.trust.metadata import POLICY, ROOT, tuf_key
from executor.trust.repository import Rule
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests
from tests.support.served import OTHER, TENANT, Serve
from tests.support.signed_site import SignedSite, policy
from tests.support.signers import KEYS, Team, public

LONG = guests.working(2_000_000_000)  # seconds; every test that uses it ends it


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[SignedSite]:
    """A folder with a bootstrap configuration and a pinned root."""
    with SignedSite(tmp_path / "site", server) as made:
        yield made


async def began(site: SignedSite, name: str) -> None:
    """Wait until the guest with this input has begun."""
    bucket = TenantKv(await connect(site.server), TENANT)

    async def there() -> bool:
        return await bucket.get(f"own/{name}") is not None

    await eventually(there)


async def works(site: SignedSite, text: bytes = b"hello") -> None:
    """The executor does what it should."""
    async with await site.client() as client:
        assert (await client.run("echo", text, timeout_s=30)).output == text


def test_from_signed_release_to_result(site: SignedSite) -> None:
    """Policy and releases come from what is signed, a client believes the same policy's keys."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await works(site)
        await site.release(guests.signed(guests.ECHO, "late"), "late")
        await life.line("release-admitted", task=f"{TENANT}/late")
        async with await site.client() as client:
            assert (await client.run("late", b"x", timeout_s=30)).output == b"x"
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0

    run(test())


def test_a_release_in_control_counts_for_nothing(site: SignedSite) -> None:
    """Even an operator who may release cannot do so there: it is a security event, and no more."""

    async def test() -> None:
        released = await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        bucket = Control(await connect(site.server))
        speaker = Speaker(bucket, site.config().opener(), guests.OPERATOR)
        said = {"digest": released["echo"].digest, "version": "1.0.0"}
        await speaker.say("release", subjects.release_key(TENANT, "other"), said)
        await life.line("security-event", kind="release-not-signed")
        async with await site.client() as client:
            assert (await client.run("other", timeout_s=30)).code == "policy.task-unknown"
        await works(site)

    run(test())


@pytest.mark.parametrize("how", ["digest", "key", "publisher"])
def test_a_revocation_ends_what_runs(site: SignedSite, how: str) -> None:
    """A revoked digest, a revoked key, a publisher who is gone: its sandbox ends, its task too."""

    async def test() -> None:
        live = (await site.prepare(echo=guests.ECHO, long=LONG))["long"]
        life = await site.serve()
        async with await site.client() as client:
            sent = await client.submit("long", b"n")
            await began(site, "n")
            await site.release(guests.signed(guests.ECHO, "echo", key=guests.STRANGER), "echo",
                               version="1.0.1")  # fmt: skip
            running = life.sandboxes()
            await site.put({
                "digest": policy(revoked=live.digest),
                "key": policy(revoked=guests.AUTHOR.public.key_id.hex()),
                "publisher": policy(author_tasks=f"{OTHER}/*"),
            }[how])  # fmt: skip
            outcome = await client.wait(sent.id, timeout_s=30)
        wanted = "module.signer-untrusted" if how == "publisher" else "module.signer-revoked"
        assert outcome.code == wanted
        assert set(running) - set(life.sandboxes())

    run(test())


async def reflect(site: SignedSite) -> None:
    """Have the server write its own acknowledgement over the timestamp: nobody's right is asked."""
    connection = await connect(site.server)
    bucket = TrustBucket(connection)
    before = await bucket.get("md.timestamp")
    connection.send(subjects.task(TENANT, "echo"), b"x", reply="$KV.TRUST.md.timestamp",
                    headers={"Task-Id": "reflected"})  # fmt: skip

    async def written() -> bool:
        return await bucket.get("md.timestamp") != before

    await eventually(written)


def test_junk_changes_nothing(site: SignedSite) -> None:
    """A reflected acknowledgement over the timestamp is a security event; work goes on.

    A restart begins from the last good state; another push mends the bucket.
    """

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await reflect(site)
        await life.line("security-event", kind="trust-refused", code="trust.invalid")
        await works(site)
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        again = await site.serve()
        await again.line("security-event", kind="trust-refused", code="trust.invalid")
        await works(site, b"again")
        await site.put(policy(tenants=(TENANT, OTHER)))
        await again.line("reloaded", tenants=f"{TENANT},{OTHER}")

    run(test())


def forged(site: SignedSite, tmp_path: Path, how: str) -> dict[str, bytes]:
    """What a store operator with the online key may put into the bucket."""

    def seize(signed: Any) -> None:
        eve = tuf_key(KEYS["eve"].public)
        signed.keys[eve.keyid] = eve
        signed.roles[ROOT].keyids = [eve.keyid, *signed.roles[ROOT].keyids]

    def nothing(_signed: Any) -> None:
        pass

    match how:
        case "one of two on policy":
            return site.team.forged(POLICY, nothing, "pia")
        case "root without quorum":
            return site.team.forged(ROOT, seize, "ada", "eve")
        case _:  # of dev, by the same keys
            return Team(tmp_path / "dev", policy(), environment="dev").store()


@pytest.mark.parametrize(
    ("how", "code"),
    [("one of two on policy", "trust.threshold-unmet"),
     ("root without quorum", "trust.threshold-unmet"), ("dev in prod", "trust.invalid")],
)  # fmt: skip
def test_what_is_not_signed_enough_changes_nothing(
    site: SignedSite, tmp_path: Path, how: str, code: str
) -> None:
    """Each is refused with its code by the running executor, which goes on as before."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        await site.push(forged(site, tmp_path, how))
        event = await life.line("security-event", kind="trust-refused", code=code)
        if how == "dev in prod":
            assert "`dev`" in event["reason"]
            assert "`test`" in event["reason"]
        await works(site)
        assert not life.events("reloaded")
        await site.put(policy(tenants=(TENANT, OTHER)))  # which also takes a forged root away
        await life.line("reloaded", tenants=f"{TENANT},{OTHER}")

    run(test())


def test_a_rollback_changes_nothing(site: SignedSite) -> None:
    """An older state put back is refused, while it runs and after a restart."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        old = site.team.store()
        await site.put(policy(revoked="ab" * 12))
        await life.line("reloaded")
        await site.push(old)
        await life.line("security-event", kind="trust-refused", code="trust.rolled-back")
        life.signal(signal.SIGTERM)
        assert await life.exit_status() == 0
        again = await site.serve()
        await again.line("security-event", kind="trust-refused", code="trust.rolled-back")
        assert site.config().revoked == {"ab" * 12}

    run(test())


def test_a_root_with_quorum_is_followed_live(site: SignedSite) -> None:
    """New keys for policy, by two of the root: the running executor takes what they sign."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        site.team.repository.stage_keys({POLICY: Rule(public("bo", "cy"), 2, 3600)})
        assert site.team.sign("ada", "bo", "cy", "online") is not None
        site.team.repository.stage_policy(policy(tenants=(TENANT, OTHER)))
        assert site.team.sign("bo", "cy", "online") is not None
        await site.push()
        await life.line("reloaded", tenants=f"{TENANT},{OTHER}")
        await works(site)

    run(test())


def health(site: SignedSite) -> dict[str, Any]:
    """What `executor health` reads."""
    found: dict[str, Any] = json.loads((site.folder / "health.json").read_text())
    return found


def test_expired_trust_waits_and_loses_nothing(tmp_path: Path, server: NatsServer) -> None:
    """Trust ends while it serves: nothing is taken, it is not ready; renewed, all tasks end well.

    What ran goes on to its end; no task loses an attempt.
    """
    with SignedSite(tmp_path / "site", server, timestamp=6) as site:

        async def test() -> None:
            await site.prepare(echo=guests.ECHO, work=guests.working(30_000_000))
            life = await site.serve()
            await life.line("trust-ends-soon", role="timestamp")
            async with await Client.from_config(site.config(), TENANT) as client:
                await life.line("held", why="trust expired")
                ids = [(await client.submit("echo", f"{n}".encode())).id for n in range(20)]
                assert (health(site)["ready"], health(site)["why"]) == (False, "trust expired")
                stream = subjects.tasks_stream(TENANT)
                assert (await site.state(stream))["messages"] == len(ids)
                with pytest.raises(ExecutorError) as caught:
                    site.config()
                assert caught.value.code == "trust.expired"
                site.team.repository.stage_keys({"timestamp": Rule(public("online"), 1, 3600)})
                site.team.sign()
                await site.push()
                await life.line("going-on")
                ended = [await client.wait(task_id, timeout_s=30) for task_id in ids]
            assert [outcome.record.attempt for outcome in ended] == [1] * len(ids)
            assert all(outcome.ok for outcome in ended)

        run(test())


def test_a_host_that_policy_lists_no_more_stops(site: SignedSite) -> None:
    """An executor whose key was taken out of the policy takes nothing more; its key back, it does.

    Its old key could still sign: nobody would believe it.
    """

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        stranger = SecretKey(bytes([9]) * 32).public.text
        await site.put(policy(host=stranger))
        await life.line("security-event", kind="trust-not-taken", code="trust.missing")
        await life.line("held")
        assert not health(site)["ready"]
        await site.put(policy(revoked=guests.HOST.public.key_id.hex()))
        await life.line("security-event", count=2, kind="trust-not-taken", code="trust.missing")
        await site.put(policy())
        await life.line("going-on")
        await works(site)

    run(test())


async def refused_start(site: SignedSite) -> tuple[int, str]:
    """The exit status and the words of a start that does not happen."""
    life = Serve(site, 99)
    site.lives.append(life)
    return await life.exit_status(), life.log()


@pytest.mark.parametrize("more", ["revoked = []\n", '[[tenant]]\nname = "zebra"\n'])
def test_a_local_grant_stops_the_start(site: SignedSite, more: str) -> None:
    """In production, whoever edits executor.toml to grant or revoke anything stops its start."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        site.write(more=more)
        status, said = await refused_start(site)
        assert status == 15
        assert "in production what grants or revokes stands in the signed policy" in said

    run(test())


def test_dev_roots_do_not_start_prod(site: SignedSite) -> None:
    """A pin of another environment stops the start and names both."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        site.write(environment="prod")
        status, said = await refused_start(site)
        assert status == 18
        assert "made for `test`, this is `prod`" in said

    run(test())


def test_nothing_signed_is_no_start(site: SignedSite) -> None:
    """With an empty bucket and no last good state there is nobody to trust."""

    async def test() -> None:
        await site.prepare()
        connection = await connect(site.server)
        await connection.api("STREAM.PURGE.KV_TRUST")
        status, said = await refused_start(site)
        assert status == 18
        assert "trust.missing" in said
        with pytest.raises(ExecutorError) as caught:
            site.config()
        assert "executor trust refresh" in caught.value.hint

    run(test())


def test_a_reload_does_not_change_whom_to_believe(site: SignedSite) -> None:
    """A host's file cannot leave production, nor signed trust, by a reload: that is a new start."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        life = await site.serve()
        text = site.path.read_text().replace('mode = "production"\n', "")
        text = text.replace('source = "tuf"\n', "").replace('"test"', '"other"', 1)
        site.path.write_text(text + policy(tenants=(TENANT, OTHER)).decode().replace(
            "revoked = []", ""))  # fmt: skip
        life.signal(signal.SIGHUP)
        said = await life.line("reloaded")
        assert set(said["needs_restart"].split(",")) == {
            "host.environment", "host.mode", "trust.source"}  # fmt: skip
        assert said["tenants"] == TENANT
        site.write()
        await works(site)

    run(test())


def test_a_revocation_does_not_wait_for_a_file_of_the_host(site: SignedSite) -> None:
    """A shadow that is not there any more keeps no revocation from taking effect."""

    async def test() -> None:
        (site.path.parent / "shadow.toml").write_bytes(policy())
        site.write(more='[policy]\nshadow_file = "shadow.toml"\n')
        live = (await site.prepare(echo=guests.ECHO, long=LONG))["long"]
        await site.serve()
        (site.path.parent / "shadow.toml").unlink()
        async with await site.client() as client:
            sent = await client.submit("long", b"n")
            await began(site, "n")
            await site.put(policy(revoked=live.digest))
            outcome = await client.wait(sent.id, timeout_s=30)
        assert outcome.code == "module.signer-revoked"

    run(test())
