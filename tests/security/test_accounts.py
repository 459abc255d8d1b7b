"""What a server writes back for a caller, in accounts of their own: it reaches nobody else.

Replies and deliveries of the server go wherever a request says, without a look at the caller's
rights. Each way is tried by a tenant that wants another's subjects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.errors import ExecutorError
from executor.transport import streams
from executor.transport.api import ApiError
from executor.transport.connection import Connection, Message
from executor.transport.streams import TenantQueue
from tests.servers import Events, eventually, run
from tests.support.realm import OTHER, TENANT, Realm


@pytest.fixture(params=["static", "jwt"])
def realm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Realm]:
    """A server with an account for each tenant, in either form."""
    with Realm(tmp_path / "realm", with_jwt=request.param == "jwt") as made:
        yield made


async def _deployed(realm: Realm) -> Connection:
    deployer = await realm.connect("deployer_main")
    queues = [TenantQueue(name, 1_000, 1 << 20) for name in (TENANT, OTHER)]
    options = streams.Options(outcome_max_bytes=1 << 20, tenant_kv_max_bytes=1 << 20,
                              control_max_bytes=1 << 20)  # fmt: skip
    await streams.apply(deployer, queues, options)
    return deployer


async def _counts(deployer: Connection) -> dict[str, int]:
    names = ["KV_CONTROL", "OBJ_MODULES"]
    names += [
        f"{kind}_{t}" for t in (TENANT, OTHER) for kind in ("LATER", "TASKS", "OUTCOMES", "KV_T")
    ]
    found = {}
    for name in names:
        info = await deployer.api(f"STREAM.INFO.{name}")
        found[name] = info["state"]["last_seq"]
    return found


def test_a_tenant_s_reflections_stay_with_it(realm: Realm) -> None:
    """PubAcks and stored messages with another's subject for a reply: no stream stores them."""

    async def test() -> None:
        deployer = await _deployed(realm)
        executor = await realm.connect("executor_local")
        await executor.store("result.acme.x.id", b"stored")
        heard: list[str] = []

        def hear(message: Message) -> None:
            heard.append(message.subject)

        for subject in ("control.local", "control.all", "stored.control.>", "stored.trust.>"):
            await executor.subscribe(subject, hear)
        neighbour = await realm.connect("client_zebra")
        await neighbour.subscribe("stored.result.zebra.>", hear)
        before = await _counts(deployer)
        events = Events()
        client = await realm.connect("client_acme", events)
        targets = [
            "result.zebra.x.forged", "dead.zebra.x.forged", "result.acme.x.forged", "due.zebra.x",
            "task.zebra.x", "later.zebra.x.y.1", "$KV.CONTROL.release.zebra.x",
            "$KV.CONTROL.quarantine.x", "$KV.TRUST.md.timestamp", "$KV.T_zebra.x",
            "$O.MODULES.M.x", "control.local", "control.all", "stored.result.zebra.x.y",
            "_INBOX_executor_local.x", "_INBOX_client_zebra.x",
            "$JS.API.STREAM.DELETE.TASKS_zebra",
        ]  # fmt: skip
        get = "$JS.API.DIRECT.GET.OUTCOMES_acme"
        for target in targets:
            client.send("task.acme.x", b"a PubAck comes of it", target)
            client.send("$KV.CONTROL.cancel.acme.x.y", b"another", target)
            client.send(f"{get}.result.acme.x.id", b"", target)
            client.send(get, json.dumps({"seq": 1}).encode(), target)
            client.send(get, json.dumps({"seq": 1, "batch": 1, "next_by_subj": ">"}).encode(),
                        target)  # fmt: skip
        await client.flush()
        await client.request(f"{get}.result.acme.x.id")  # the server has done what came before

        async def stored() -> bool:
            """Streams take what their account imported when their turn comes."""
            found = await _counts(deployer)
            return all(
                found[name] - before[name] >= len(targets) for name in ("TASKS_acme", "KV_CONTROL")
            )

        await eventually(stored)
        after = await _counts(deployer)
        grown = {name for name in after if after[name] != before[name]}
        # Its own tasks and its own cancellations, as many as it asked for.
        assert grown == {"TASKS_acme", "KV_CONTROL"}
        assert after["TASKS_acme"] - before["TASKS_acme"] == len(targets)
        assert after["KV_CONTROL"] - before["KV_CONTROL"] == len(targets)
        await executor.flush()
        await neighbour.flush()
        heard = [subject for subject in heard if not subject.startswith("stored.control.cancel.")]
        assert heard == []
        assert events.count("permission-violation") == 0  # all of it was within its rights

    run(test())


def test_a_tenant_makes_no_consumer(realm: Realm) -> None:
    """A push consumer would deliver stored outcomes to any subject: no tenant can ask for one."""

    async def test() -> None:
        await _deployed(realm)
        for login in ("client_acme", "executor_local", "operator_ann", "publisher_author"):
            connection = await realm.connect(login)
            config = {"deliver_subject": "control.local", "ack_policy": "none", "name": "p"}
            body = {"stream_name": "OUTCOMES_acme", "config": config}
            for call in ("CONSUMER.CREATE.OUTCOMES_acme.p", "CONSUMER.CREATE.OUTCOMES_acme"):
                with pytest.raises(ExecutorError) as caught:
                    await connection.request(f"$JS.API.{call}", json.dumps(body).encode())
                assert caught.value.code == "transport.permission-denied"

    run(test())


def test_a_reader_cannot_make_a_task_of_an_outcome(realm: Realm) -> None:
    """A direct get whose answer would be a task of the reader's own tenant: it is none."""

    async def test() -> None:
        deployer = await _deployed(realm)
        executor = await realm.connect("executor_local")
        await executor.store("result.acme.x.id", b"stored")
        reader = await realm.connect("reader_acme")
        get = "$JS.API.DIRECT.GET.OUTCOMES_acme.result.acme.x.id"
        reader.send(get, b"", "task.acme.x")
        await reader.request(get)
        assert (await _counts(deployer))["TASKS_acme"] == 0

    run(test())


def test_a_publisher_s_reflections_stay_with_it(realm: Realm) -> None:
    """Bytes of its choice, a chunk that is read back to another's subject: nobody has them."""

    async def test() -> None:
        deployer = await _deployed(realm)
        await deployer.api(
            "STREAM.CREATE.AUDIT", {"name": "AUDIT", "subjects": ["audit.>"], "deny_purge": True}
        )
        trust = await realm.connect("trust_sig")
        await trust.store("$KV.TRUST.md.root", b"stands")
        executor, heard = await realm.connect("executor_local"), list[str]()
        for subject in ("control.local", "control.all", "stored.trust.>"):
            await executor.subscribe(subject, lambda message: heard.append(message.subject))
        events = Events()
        publisher = await realm.connect("publisher_author", events)
        chunk = "$O.MODULES.C.evil"
        await publisher.store(chunk, b"chosen")
        before = await _counts(deployer)
        get = "$JS.API.DIRECT.GET.OBJ_MODULES"
        batch = json.dumps({"seq": 1, "batch": 9, "next_by_subj": ">"}).encode()
        for target in (
            "task.zebra.x", "due.zebra.x", "later.zebra.x.y.1", "result.zebra.x.y",
            "$KV.TRUST.md.timestamp", "$KV.CONTROL.quarantine.x", "$KV.T_zebra.x",
            "control.local", "control.all", "audit.exec.local", "stored.trust.md.timestamp",
        ):  # fmt: skip
            publisher.send(f"{get}.{chunk}", b"", target)
            publisher.send(get, json.dumps({"seq": 1}).encode(), target)
            publisher.send(get, batch, target)
        answer = await publisher.request(f"{get}.{chunk}")  # the server has done what came before
        assert answer.data == b"chosen"
        assert await _counts(deployer) == before
        for stream, messages in (("AUDIT", 0), ("KV_TRUST", 1)):
            info = await deployer.api(f"STREAM.INFO.{stream}")
            assert info["state"]["messages"] == messages, stream
        await executor.flush()
        assert heard == []
        assert events.count("permission-violation") == 0  # all of it was within its rights

    run(test())


def test_an_executor_of_one_tenant_leaves_what_another_puts_off(realm: Realm) -> None:
    """It reads none of it, deletes none of it, and puts nothing into the other's queue."""

    async def test() -> None:
        deployer = await _deployed(realm)
        owner, near = await realm.connect("executor_local"), await realm.connect("executor_near")
        waits = {"Nats-Schedule": "@every 1h", "Nats-Schedule-Target": "due.zebra.x"}
        await owner.store("later.zebra.x.id.1", b"secret", waits)
        before = await _counts(deployer)
        get = "$JS.API.DIRECT.GET.LATER_zebra"
        scan = json.dumps({"seq": 1, "batch": 9, "next_by_subj": ">"}).encode()
        for subject, body in ((get, scan), (f"{get}.later.zebra.x.id.1", b""),
                              ("$JS.API.STREAM.PURGE.LATER_zebra", b""),
                              ("later.zebra.x.id.1", b"")):  # fmt: skip
            with pytest.raises(ExecutorError) as caught:
                await near.request(subject, body)
            assert caught.value.code == "transport.permission-denied"
        # Its own stream is its own: it may empty that, and no more.
        await near.store("later.acme.x.id.1", b"", {"Nats-Rollup": "all"})
        for target in ("due.zebra.x", "task.zebra.x", "later.zebra.x.id.1"):
            with pytest.raises(ApiError) as refused:
                await near.store("later.acme.x.id.1", b"forged", {
                    "Nats-Schedule": "@at 2020-01-01T00:00:00Z", "Nats-Schedule-Target": target,
                })  # fmt: skip
            assert refused.value.err_code == 10190  # not a subject of the same stream
        after = await _counts(deployer)
        assert {name for name in after if after[name] != before[name]} == {"LATER_acme"}
        info = await deployer.api("STREAM.INFO.LATER_zebra")
        assert info["state"]["messages"] == 1

    run(test())
