"""Admission asks for as many publishers and for the builder that policy names."""

from __future__ import annotations

import datetime as dt
from typing import Final

import pytest

from executor import config as configs
from executor.core import provenance, signature
from executor.core.provenance import Build
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Release
from tests.support import guests
from tests.support.rig import TENANT, Rig, make_config

SECOND, NEXT, FARM, LAPTOP = (
    SecretKey(guests.seed(name)) for name in ("second", "next", "farm", "laptop")
)
NOW_MS: Final = 1_800_000_000_000
DAY_MS: Final = 24 * 3600 * 1000


def key_id(key: SecretKey) -> str:
    """As `revoked` names it."""
    return key.public.key_id.hex()


def table(section: str, name: str, key: SecretKey, more: str = "") -> str:
    """A publisher or a builder."""
    tasks = 'tasks = ["*/*"]\n' if section == "publisher" else ""
    return f'[[{section}]]\nname = "{name}"\nkey = "{key.public.text}"\n{tasks}{more}\n'


TWO: Final = '[[requirement]]\ntasks = ["acme/*"]\nsignatures = 2\n'
BUILT: Final = '[[requirement]]\ntasks = ["acme/*"]\nbuilders = ["farm"]\n'
BUILDERS: Final = table("builder", "farm", FARM) + table("builder", "laptop", LAPTOP)


def config_of(*more: str, revoked: str = "") -> configs.Config:
    """The rig's configuration with more tables in front of its publisher."""
    tables = "".join(more)
    return make_config(replaced=[
        ("revoked = []", f"revoked = [{revoked}]"), ("[[publisher]]", f"{tables}[[publisher]]"),
    ])  # fmt: skip


def signed_by(*keys: SecretKey) -> bytes:
    """The guest `echo`, signed by each."""
    module = guests.signed(guests.ECHO, "echo", key=keys[0])
    for key in keys[1:]:
        module = signature.sign_module(module, key)
    return module


def statement(module: bytes, key: SecretKey = FARM) -> bytes:
    """A builder's word about a module."""
    digest = signature.content_digest(module)
    return provenance.sign(Build(digest, "echo", "1.0.0", "wat", (), ()), key)


def put(rig: Rig, module: bytes, said: bytes | None = None) -> Release:
    """Store and release a module, with a statement or without."""
    release = rig.store(module, "echo")
    if said is not None:
        rig.shelf.stored[provenance.object_name(release.digest)] = said
    return release


async def refusal(rig: Rig) -> ExecutorError:
    """Why `echo` is not admitted."""
    with pytest.raises(ExecutorError) as caught:
        await rig.registry.admit(TENANT, "echo")
    return caught.value


async def test_two_publishers_where_two_are_required() -> None:
    """A module signed by two is admitted, and its task runs."""
    async with Rig(config_of(table("publisher", "second", SECOND), TWO)) as rig:
        put(rig, signed_by(guests.AUTHOR, SECOND))
        assert (await rig.record(rig.ask("echo"))).code == ""
        admitted = await rig.registry.admit(TENANT, "echo")
        assert admitted.publishers == ("second", "author")


@pytest.mark.covers("module.signer-untrusted")
@pytest.mark.parametrize(
    "keys", [(guests.AUTHOR,), (guests.AUTHOR, guests.STRANGER), (guests.AUTHOR, NEXT)],
    ids=["alone", "with a stranger", "with an older key of the same publisher"],
)  # fmt: skip
async def test_one_publisher_where_two_are_required(keys: tuple[SecretKey, ...]) -> None:
    """One publisher is one, whoever else and however often it signed."""
    tables = (table("publisher", "second", SECOND), table("publisher", "author", NEXT), TWO)
    async with Rig(config_of(*tables)) as rig:
        put(rig, signed_by(*keys))
        error = await refusal(rig)
        assert error.code == "module.signer-untrusted"
        assert "1 of 2" in error.detail
        assert "collect the missing signatures" in error.hint
        assert error.facts == {"signed_by": "author"}


async def test_one_key_under_two_names_is_one_publisher() -> None:
    """Listing a key twice does not make two of it."""
    async with Rig(config_of(table("publisher", "alias", guests.AUTHOR), TWO)) as rig:
        put(rig, signed_by(guests.AUTHOR))
        assert "1 of 2" in (await refusal(rig)).detail


async def test_a_revoked_key_among_several_does_not_count() -> None:
    """Of two who signed, one is revoked: too few are left, and what was admitted is found."""
    tables = (table("publisher", "second", SECOND), table("publisher", "next", NEXT), TWO)
    async with Rig(config_of(*tables)) as rig:
        release = put(rig, signed_by(guests.AUTHOR, SECOND))
        await rig.registry.admit(TENANT, "echo")
        rig.trust.replace(config_of(*tables, revoked=f'"{key_id(SECOND)}"'))
        assert rig.registry.revoked() == {release.digest}
        rig.registry.forget()
        error = await refusal(rig)
        assert (error.code, error.detail) == ("module.signer-revoked", "`second`")
        # Three signed: one may go.
        put(rig, signed_by(guests.AUTHOR, SECOND, NEXT))
        assert (await rig.registry.admit(TENANT, "echo")).publishers == ("next", "author")
        assert rig.registry.revoked() == set()


async def test_keys_rotate_without_a_gap() -> None:
    """While the old and the new key of a publisher are valid, modules of either are admitted.

    When the old one is taken out, or revoked, only those of the new one are.
    """
    rotating = config_of(table("publisher", "author", NEXT))
    async with Rig(rotating) as rig:
        for key in (guests.AUTHOR, NEXT):
            put(rig, signed_by(key))
            assert (await rig.registry.admit(TENANT, "echo")).publishers == ("author",)
        rig.trust.replace(
            config_of(table("publisher", "author", NEXT), revoked=f'"{key_id(guests.AUTHOR)}"')
        )
        rig.registry.forget()
        assert (await rig.registry.admit(TENANT, "echo")).publishers == ("author",)
        put(rig, signed_by(guests.AUTHOR))
        assert (await refusal(rig)).code == "module.signer-revoked"


def day(offset: int) -> str:
    """A time some days from the test's now, for the file."""
    at = dt.datetime.fromtimestamp((NOW_MS + offset * DAY_MS) / 1000, dt.UTC)
    return at.isoformat()


async def test_an_expired_key_admits_nothing() -> None:
    """A key counts until its last day: what it admitted has to be decided again, and is refused."""
    async with Rig(config_of(table("publisher", "next", NEXT, f"not_after = {day(1)}"))) as rig:
        now = NOW_MS
        rig.now_ms = lambda: now
        put(rig, signed_by(NEXT))
        admitted = await rig.registry.admit(TENANT, "echo")
        assert admitted.until == NOW_MS + DAY_MS
        assert rig.registry.now(TENANT, "echo") is admitted
        now += DAY_MS + 1
        assert rig.registry.now(TENANT, "echo") is None
        error = await refusal(rig)
        assert error.code == "module.signer-untrusted"
        assert "the key of `next`" in error.detail
        put(rig, signed_by(NEXT, guests.AUTHOR))
        assert (await rig.registry.admit(TENANT, "echo")).publishers == ("author",)


async def test_a_key_that_is_not_valid_yet_admits_later() -> None:
    """A refusal for a key that will become valid is not kept for ever."""
    async with Rig(config_of(table("publisher", "next", NEXT, f"not_before = {day(1)}"))) as rig:
        now = NOW_MS
        rig.now_ms = lambda: now
        put(rig, signed_by(NEXT))
        assert "not valid now" in (await refusal(rig)).detail
        now += DAY_MS
        rig.registry._refused.clear()  # as after its second
        assert (await rig.registry.admit(TENANT, "echo")).publishers == ("next",)
        assert all(refused.until < float("inf") for refused in rig.registry._refused.values())


async def test_a_builders_statement_where_one_is_required() -> None:
    """A module with a statement by the accepted builder runs; who signs later changes nothing."""
    async with Rig(config_of(BUILDERS, BUILT)) as rig:
        module = signed_by(guests.AUTHOR)
        put(rig, module, statement(signed_by(guests.STRANGER)))
        assert (await rig.record(rig.ask("echo"))).code == ""


async def test_a_statement_is_fetched_only_where_one_is_required() -> None:
    """A task that needs none costs one look at the store."""
    async with Rig(config_of(BUILDERS, BUILT.replace("acme", "zebra"))) as rig:
        put(rig, signed_by(guests.AUTHOR), b"junk")
        await rig.registry.admit(TENANT, "echo")
        assert len(rig.shelf.gets) == 1


@pytest.mark.covers("module.provenance-missing")
async def test_a_missing_statement_is_refused() -> None:
    """Without a statement the module does not run; once it is stored, the module does."""
    async with Rig(config_of(BUILDERS, BUILT)) as rig:
        module = signed_by(guests.AUTHOR)
        put(rig, module)
        error = await refusal(rig)
        assert (error.code, error.detail) == (
            "module.provenance-missing", "it must be built by `farm`"
        )  # fmt: skip
        put(rig, module, statement(module))
        rig.registry._refused.clear()
        await rig.registry.admit(TENANT, "echo")


@pytest.mark.parametrize("fault", ["another builder", "another module", "flipped", "cut", "huge"])
async def test_a_statement_that_does_not_hold_is_refused(fault: str) -> None:
    """By another builder, about another module, or damaged: refused, and put right by a new one."""
    module = signed_by(guests.AUTHOR)
    good = statement(module)
    bad = {
        "another builder": statement(module, LAPTOP),
        "another module": statement(guests.signed(guests.SPIN, "echo")),
        "flipped": good[:-20] + bytes([good[-20] ^ 1]) + good[-19:],
        "cut": good[:-1],
        "huge": bytes(provenance.STATEMENT_MAX + 1),
    }[fault]
    async with Rig(config_of(BUILDERS, BUILT)) as rig:
        put(rig, module, bad)
        assert (await rig.record(rig.ask("echo"))).code == "module.provenance-invalid"
        # No digest covers the statement: the refusal must not outlive it.
        put(rig, module, good)
        rig.registry._refused.clear()
        assert (await rig.record(rig.ask("echo"))).code == ""


@pytest.mark.parametrize(
    ("more", "revoked"),
    [("not_after = 2020-01-01", ""), ("not_before = 2100-01-01", ""), ("", key_id(FARM))],
)
async def test_a_builders_key_can_expire_and_be_revoked(more: str, revoked: str) -> None:
    """A statement counts while its builder's key does."""
    tables = table("builder", "farm", FARM, more) + BUILT
    async with Rig(config_of(tables, revoked=f'"{revoked}"' if revoked else "")) as rig:
        module = signed_by(guests.AUTHOR)
        put(rig, module, statement(module))
        assert (await refusal(rig)).code == "module.provenance-invalid"
