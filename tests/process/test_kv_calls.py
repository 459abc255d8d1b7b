"""The kv capability from guest to bucket: scopes, keys, and a bucket that is down."""

from __future__ import annotations

import struct

import pytest

from executor.core import abi
from executor.errors import ExecutorError
from tests.support import guests
from tests.support.ports import Bucket
from tests.support.rig import OTHER, TENANT, Rig, make_config


async def status(rig: Rig, what: bytes, *, tenant: str = TENANT) -> int:
    """Run the probe once; the number that its call answered."""
    record = await rig.record(rig.ask("probe", what, tenant=tenant))
    assert record.code == "", record
    return int(struct.unpack("<q", record.output)[0])


async def test_the_prefix_is_the_grants() -> None:
    """What a guest calls `k` is `own/k` in the bucket: it never names the prefix itself."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        assert await status(rig, b"pk") == 0
        assert rig.buckets.data == {(TENANT, "own/k"): b"p"}
        assert await status(rig, b"gk") == 1
        assert await status(rig, b"gown/k") == abi.NOT_FOUND
        assert await status(rig, b"dk") == 0
        assert rig.buckets.data == {}
        assert await status(rig, b"gk") == abi.NOT_FOUND
        assert await status(rig, b"dk") == 0


async def test_tenants_have_buckets_of_their_own() -> None:
    """The same key of two tenants is two values."""
    async with Rig() as rig:
        for tenant in (TENANT, OTHER):
            rig.publish("probe", guests.KV, tenant=tenant)
        assert await status(rig, b"pk") == 0
        assert await status(rig, b"gk", tenant=OTHER) == abi.NOT_FOUND
        assert {tenant for tenant, _ in rig.buckets.data} == {TENANT}


@pytest.mark.covers("capability.denied")
async def test_a_read_grant_does_not_write() -> None:
    """With a grant to read, put and delete are denied without reaching the bucket."""
    read_only = ('mode = "write" }\n\n[[tenant]]', 'mode = "read" }\n\n[[tenant]]')
    body = guests.KV
    async with Rig(make_config(replaced=[read_only])) as rig:
        rig.publish("probe", body)
        request = rig.ask("probe", b"gk")
        record = await rig.record(request)
        if record.code:  # the import alone is more than the grant: refused before it ran
            assert record.code == "policy.capability-denied"
            assert rig.buckets.asked == []
            return
        assert await status(rig, b"gk") == abi.NOT_FOUND
        assert await status(rig, b"pk") == abi.DENIED
        assert await status(rig, b"dk") == abi.DENIED
        assert {function for _, function, _ in rig.buckets.asked} == {"get"}


BAD_KEYS = [
    b"../x", b".x", b"x.", b"a..b", b"", b"k" * 513, b"a\0b", b"a b", b"a*", b">", b"a\nb",
    b"\xff", b"\xc3\xa9", b"a.*.b", b"$KV", b"a\x7f", "\uff41".encode(),
]  # fmt: skip


async def test_keys_that_try_to_escape() -> None:
    """No key outside the alphabet reaches the bucket, by get, put or delete."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        answers = {
            (function, key): await status(rig, function + key)
            for function in (b"g", b"p", b"d") for key in BAD_KEYS
        }  # fmt: skip
        assert rig.buckets.asked == []
        assert set(answers.values()) == {abi.BAD_ARGUMENT}, answers


async def test_keys_that_look_like_paths_stay_below_the_prefix() -> None:
    """Slashes and dots inside a key are letters of it, not directions."""
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        for key in (b"a/b", b"a.b", b"/etc", b"a/./b", b"-", b"k" * 508):
            assert await status(rig, b"p" + key) == 0
        assert await status(rig, b"p" + b"k" * 509) == abi.BAD_ARGUMENT
        stored = [key for _, key in rig.buckets.data]
        assert all(key.startswith("own/") and ".." not in key for key in stored)
        assert max(map(len, stored)) == abi.KV_KEY_MAX


@pytest.mark.covers("capability.unavailable")
async def test_a_bucket_that_is_down() -> None:
    """A guest that asks for a retry because kv is down is put off; no attempt is counted."""
    async with Rig() as rig:
        rig.store(guests.sample("flaky"), "flaky")
        rig.buckets.down = True
        request = rig.ask("flaky", b"x")
        again = await rig.put_off()
        assert (again.attempt, again.crashes) == (1, 0)
        assert [f["code"] for f in rig.journal.of("attempt")] == ["capability.unavailable"]
        rig.buckets.down = False
        rig.retry(rig.wire.published("later")[0])
        again = await rig.put_off(2)
        assert (again.attempt, again.history[-1].code) == (2, "guest.failed")
        rig.retry(rig.wire.published("later")[1])
        await rig.settle_down()
        assert rig.records()[request.id].output == b"done: x"


async def test_a_bucket_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call past its own deadline tells the guest so; what it then does is its own failure."""

    async def slow(_self: Bucket, _key: str) -> bytes | None:
        raise ExecutorError("capability.deadline-exceeded", "kv")

    monkeypatch.setattr(Bucket, "get", slow)
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        assert await status(rig, b"gk") == abi.DEADLINE


async def test_our_own_mistake_in_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the mediator is logged, and answered as a service that is not there."""

    async def broken(_self: Bucket, _key: str) -> bytes | None:
        raise ZeroDivisionError

    monkeypatch.setattr(Bucket, "get", broken)
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        assert await status(rig, b"gk") == abi.UNAVAILABLE
        assert len(rig.journal.of("bug")) == 1


async def test_large_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value above the cap in the bucket is refused to the guest, not cut and not sent."""

    async def large(_self: Bucket, _key: str) -> bytes | None:
        return bytes(512 * 1024 + 1)

    monkeypatch.setattr(Bucket, "get", large)
    async with Rig() as rig:
        rig.publish("probe", guests.KV)
        assert await status(rig, b"gk") == abi.TOO_LARGE
