"""Reading without consumers: outcomes, scans over several batches, the live tap, KV, modules."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time

import pytest

from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport import control, records, streams
from executor.transport.connection import Connection
from executor.transport.control import Conflict, Control
from executor.transport.kv import TenantKv
from executor.transport.objects import Objects
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, run, until
from tests.support.proxy import Act, Proxy, is_publish


async def _open(server: NatsServer, events: Events | None = None) -> Connection:
    connection = await connect(server, events)
    await streams.apply(connection, [TenantQueue("acme")])
    return connection


def test_an_outcome_is_read_by_its_id(server: NatsServer) -> None:
    """Absent is an empty list; present comes with body, headers, sequence and time."""

    async def body() -> None:
        connection = await _open(server)
        assert await records.read_outcome(connection, "acme", "work", "id1") == []
        assert await records.get(connection, "acme", 1) is None
        await connection.store("dead.acme.work.id1", b"\x00\xff", {"Kind": "dead"})
        (found,) = await records.read_outcome(connection, "acme", "work", "id1")
        assert (found.subject, found.sequence, found.body) == ("dead.acme.work.id1", 1, b"\x00\xff")
        assert found.headers["Kind"] == "dead"
        assert found.stored_at_ms > 1_600_000_000_000
        by_sequence = await records.get(connection, "acme", 1)
        assert by_sequence is not None
        assert by_sequence.subject == "dead.acme.work.id1"

    run(body())


def test_a_record_that_was_written_over_is_found(server: NatsServer) -> None:
    """Bytes over a record do not hide it from a reader that knows which ones to believe."""

    async def body() -> None:
        connection = await _open(server)

        def believed(message: StoredMessage) -> bool:
            return message.body == b"true"

        async def read() -> list[bytes]:
            found = await records.read_outcome(connection, "acme", "work", "id1", believed)
            return [message.body for message in found]

        await connection.store("dead.acme.work.id1", b"forged")
        assert await read() == [b"forged"]
        await connection.store("result.acme.work.id1", b"true")
        assert await read() == [b"forged", b"true"]
        for _ in range(20):
            await connection.store("result.acme.work.id1", b"over it")
        assert await read() == [b"forged", b"true", b"over it"]
        await connection.store("result.acme.work.id11", b"true")
        last = await records.read_outcome(connection, "acme", "work", "id1")
        assert [message.body for message in last] == [b"forged", b"over it"]

    run(body())


@pytest.mark.parametrize("act", ["drop", 0.6])
def test_a_replica_that_stands_still_delays_a_read_and_no_more(
    server: NatsServer, act: Act
) -> None:
    """A question that is lost, or answered after the next one, is put again; nothing comes twice.

    A cluster hands a third of all direct gets to a node that is cut off.
    """

    async def body() -> None:
        direct = await _open(server)
        for number in range(5):
            await direct.store(f"dead.acme.work.id{number}", b"x")
        async with Proxy(server) as proxy:
            connection = await connect(proxy)
            rule = proxy.on(is_publish("$JS.API.DIRECT.GET."), act, times=2)
            (found,) = await records.read_outcome(connection, "acme", "work", "id3")
            assert (found.sequence, rule.hits) == (4, 2)
            rule = proxy.on(is_publish("$JS.API.DIRECT.GET."), act, times=1)
            every = records.iterate(connection, "acme", "dead.acme.>", batch=2)
            assert [record.sequence async for record in every] == [1, 2, 3, 4, 5]
            assert rule.hits == 1

    run(body())


def test_an_unknown_tenant_is_a_missing_stream(server: NatsServer) -> None:
    """Reading where no stream is names the cause at once."""

    async def body() -> None:
        connection = await _open(server)
        with pytest.raises(ExecutorError) as caught:
            await records.read_outcome(connection, "nobody", "work", "id1")
        assert caught.value.code == "transport.stream-missing"
        with pytest.raises(ExecutorError) as caught:
            _ = [found async for found in records.iterate(connection, "nobody", "dead.nobody.>")]
        assert caught.value.code == "transport.stream-missing"

    run(body())


def test_a_scan_covers_several_batches(server: NatsServer) -> None:
    """All matches in order, none of the others, from any start, empty bodies included."""

    async def body() -> None:
        connection = await _open(server)
        for number in range(60):
            kind = "dead" if number % 3 == 0 else "result"
            await connection.store(f"{kind}.acme.work.id{number}", b"" if number == 30 else b"x")
        found = [
            record async for record in records.iterate(connection, "acme", "dead.acme.>", batch=7)
        ]
        assert [record.subject for record in found] == [
            f"dead.acme.work.id{number}" for number in range(0, 60, 3)
        ]
        assert found[10].body == b""
        late = [
            record.sequence
            async for record in records.iterate(
                connection, "acme", "dead.acme.>", batch=7, start_sequence=found[15].sequence
            )
        ]
        assert late == [record.sequence for record in found[15:]]
        async for record in records.iterate(connection, "acme", "result.acme.>", batch=5):
            assert record.subject == "result.acme.work.id1"
            break
        assert [r.subject for r in await records.find(connection, "acme", "id33")] == [
            "dead.acme.work.id33"
        ]
        assert await records.find(connection, "acme", "id99") == []
        assert await records.find(connection, "acme", "*") == []

    run(body())


def test_the_tap_hears_only_what_was_stored(server: NatsServer) -> None:
    """A refused second record is not heard; subject and sequence are the stored ones."""

    async def body() -> None:
        connection = await _open(server)
        heard: asyncio.Queue[StoredMessage] = asyncio.Queue()
        tap = await records.tap(connection, "acme", heard.put_nowait)
        once = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            "Nats-Expected-Last-Subject-Sequence-Subject": "*.acme.work.id1",
        }
        connection.send("result.acme.work.id1", b"first", headers=once)
        connection.send("dead.acme.work.id1", b"second", headers=once)
        connection.send("dead.acme.work.id2", b"third")
        first, third = await heard.get(), await heard.get()
        assert (first.subject, first.sequence, first.body) == ("result.acme.work.id1", 1, b"first")
        assert (third.subject, third.sequence, third.body) == ("dead.acme.work.id2", 2, b"third")
        await tap.stop()
        await tap.stop()
        with pytest.raises(ValueError, match="tenant"):
            await records.tap(connection, "*", heard.put_nowait)

    run(body())


class _State:
    """What a watch told."""

    def __init__(self) -> None:
        self.values: dict[str, bytes | None] = {}
        self.calls: list[tuple[str, bytes | None]] = []
        self.changed = asyncio.Event()

    def __call__(self, key: str, value: bytes | None, stored_at: int) -> None:
        assert stored_at > 1_700_000_000_000
        self.values[key] = value
        self.calls.append((key, value))
        self.changed.set()


def test_a_watch_tells_the_state_then_every_change(server: NatsServer) -> None:
    """Deleted keys are not part of the state; later changes and deletions arrive in order."""

    async def body() -> None:
        connection = await _open(server)
        bucket = Control(connection)
        for number in range(600):  # more than two batches
            await bucket.put(f"release.acme.t{number}", b"1")
        await bucket.delete("release.acme.t7")
        state = _State()
        watch = await control.watch(connection, state)
        assert watch.ready.is_set()
        assert len(state.values) == 599
        assert "release.acme.t7" not in state.values
        state.calls.clear()
        await bucket.put("pause.acme.t1", b"yes")
        await bucket.put("pause.acme.t1", b"no")
        await bucket.delete("pause.acme.t1")
        await until(lambda: len(state.calls) == 3, state.changed)
        assert state.calls == [
            ("pause.acme.t1", b"yes"),
            ("pause.acme.t1", b"no"),
            ("pause.acme.t1", None),
        ]
        await watch.stop()
        await watch.stop()

    run(body())


def test_a_watch_survives_a_restart(server: NatsServer) -> None:
    """What changed while the watcher was away is told after the reconnect, and what follows."""

    async def body() -> None:
        events = Events()
        connection = await _open(server, events)
        await Control(connection).put("a", b"1")
        state = _State()
        watch = await control.watch(connection, state)
        await asyncio.to_thread(server.restart, signal.SIGTERM)
        await events.wait("disconnected")
        other = await connect(server)
        await Control(other).put("b", b"2")
        await Control(other).delete("a")
        await until(lambda: state.values == {"a": None, "b": b"2"}, state.changed)
        await Control(other).put("c", b"3")
        await until(lambda: "c" in state.values, state.changed)
        assert len(state.calls) == len(set(state.calls))
        await watch.stop()

    run(body())


def test_a_watch_finds_what_no_message_told(server: NatsServer) -> None:
    """A republished message that was lost is made good by the next look at the stream."""

    async def body() -> None:
        connection = await _open(server)
        state = _State()
        watch = control.Watch(connection, state, resync_s=0.05)
        await watch.start()
        assert watch._subscription is not None
        await connection.unsubscribe(watch._subscription)  # deaf from now on
        await Control(connection).put("a", b"1")
        await until(lambda: state.values == {"a": b"1"}, state.changed)
        await watch.stop()

    run(body())


def test_control_reads_and_writes(server: NatsServer) -> None:
    """Values, revisions, expected revisions, key lists below a prefix, and refused keys."""

    async def body() -> None:
        connection = await _open(server)
        bucket = Control(connection)
        assert await bucket.get("release.acme.work") is None
        revision = await bucket.put("release.acme.work", b"one", revision=0)
        stored = await bucket.get("release.acme.work")
        assert stored is not None
        assert (stored.body, stored.sequence) == (b"one", revision)
        assert abs(stored.stored_at_ms - time.time() * 1000) < 60_000
        with pytest.raises(Conflict):
            await bucket.put("release.acme.work", b"two", revision=0)
        await bucket.put("release.acme.work", b"two", revision=revision)
        await bucket.put("release.beta.work", b"x")
        await bucket.put("releases", b"x")
        assert await bucket.keys() == ["release.acme.work", "release.beta.work", "releases"]
        assert await bucket.keys("release") == ["release.acme.work", "release.beta.work"]
        assert await bucket.keys("release.acme") == ["release.acme.work"]
        await bucket.delete("release.acme.work")
        assert await bucket.get("release.acme.work") is None
        assert await bucket.keys("release.acme") == []
        for key in ("", ".a", "a.", "a..b", "a b", "*", "a.>", "ä", "a" * 257):
            with pytest.raises(ValueError, match="not a key"):
                await bucket.put(key, b"x")

    run(body())


@pytest.mark.covers("capability.deadline-exceeded")
def test_a_tenants_kv(server: NatsServer) -> None:
    """Get, put and delete; failures carry the codes of a capability."""

    async def body() -> None:
        events = Events()
        connection = await _open(server, events)
        kv = TenantKv(connection, "acme")
        assert await kv.get("count") is None
        await kv.put("count", b"\x00\x01")
        assert await kv.get("count") == b"\x00\x01"
        await kv.put("empty", b"")
        assert await kv.get("empty") == b""
        await kv.delete("count")
        assert await kv.get("count") is None
        for key, value in (("a.*", b""), ("big", bytes(connection.max_payload + 1))):
            with pytest.raises(ExecutorError) as caught:
                await kv.put(key, value)
            assert caught.value.code == "capability.bad-argument"
        with pytest.raises(ExecutorError) as caught:
            await TenantKv(connection, "nobody").get("count")
        assert caught.value.code == "capability.unavailable"
        with pytest.raises(ExecutorError) as caught:
            await kv.get("count", timeout_s=0)
        assert caught.value.code == "capability.deadline-exceeded"
        await asyncio.to_thread(server.stop)
        await events.wait("disconnected")
        with pytest.raises(ExecutorError) as caught:
            await kv.put("count", b"1", timeout_s=0.05)
        assert caught.value.code == "capability.unavailable"

    run(body())


def test_modules_are_stored_by_name_and_read_within_a_bound(server: NatsServer) -> None:
    """Put is idempotent, get is exact, and a larger one than allowed is refused while reading."""

    async def body() -> None:
        connection = await _open(server)
        store = Objects(connection)
        data = bytes(range(256)) * 20_000  # 5 MB: 40 chunks, two batches
        assert await store.get("sha256:aa", len(data)) is None
        assert await store.put("sha256:aa", data)
        assert not await store.put("sha256:aa", data)
        assert await store.get("sha256:aa", len(data)) == data
        with pytest.raises(ExecutorError) as caught:
            await store.get("sha256:aa", len(data) - 1)
        assert caught.value.code == "module.too-complex"
        assert await store.put("sha256:aa", b"another under the same name")
        assert await store.get("sha256:aa", len(data)) == b"another under the same name"
        assert await store.put("sha256:empty", b"")
        assert await store.get("sha256:empty", 0) == b""

    run(body())


async def _meta(connection: Connection, name: str, meta: bytes) -> None:
    subject = f"$O.MODULES.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
    await connection.store(subject, meta)


def test_what_an_object_says_about_itself_is_not_believed(server: NatsServer) -> None:
    """A small stored size hides no large body; a damaged entry is named; damage can be mended."""

    async def body() -> None:
        connection = await _open(server)
        store = Objects(connection)
        await store.put("sha256:aa", bytes(1_000_000))
        stream = await connection.api("STREAM.INFO.OBJ_MODULES", {"subjects_filter": "$O.*.C.>"})
        nuid = next(iter(stream["state"]["subjects"])).rpartition(".")[2]
        lie = json.dumps({"name": "sha256:bb", "nuid": nuid, "size": 10, "chunks": 1}).encode()
        await _meta(connection, "sha256:bb", lie)
        with pytest.raises(ExecutorError) as caught:
            await store.get("sha256:bb", 1_000)
        assert caught.value.code == "module.too-complex"
        for meta in (b"", b"[]", b"{", b'{"nuid": 1}', b'{"nuid": "a.>"}', b"[" * 60_000):
            await _meta(connection, "sha256:cc", meta)
            with pytest.raises(ExecutorError) as caught:
                await store.get("sha256:cc", 1_000)
            assert caught.value.code == "module.digest-mismatch"
        assert await store.put("sha256:cc", b"mended")
        assert await store.get("sha256:cc", 1_000) == b"mended"
        await _meta(connection, "sha256:cc", b'{"deleted": true, "nuid": "x"}')
        assert await store.get("sha256:cc", 1_000) is None

    run(body())
