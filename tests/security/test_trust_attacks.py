"""Signed trust against whoever holds the store, and some of the keys: T5, T6 and T7.

Each attack ends in its code, and what was in force before stays. Its harmless twin passes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole, TargetFile

from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Digest, Release
from executor.trust import metadata
from executor.trust.metadata import (
    BOUNDS,
    FIELD,
    POLICY,
    POLICY_MAX,
    POLICY_TARGET,
    RELEASES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    metadata_key,
    tuf_key,
)
from executor.trust.repository import Rule
from executor.trust.source import FILE, Fetch, Source
from tests.servers import eventually, run
from tests.support.signers import KEYS, PLAIN, Team, public

OTHER = b'[[tenant]]\nname = "zebra"\n'
HELLO = Release("acme", "hello", Digest("sha256:" + "ab" * 32), "1.0.0")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """A repository in force, with one release."""
    made = Team(tmp_path / "repository")
    made.repository.stage_release(HELLO)
    made.sign()
    return made


@pytest.fixture
def source(team: Team, tmp_path: Path) -> Source:
    """An executor that believes what is in force now."""
    made = team.source(tmp_path / "trusted")
    assert made.refresh(team.repository.get).policy == PLAIN
    return made


def refused(source: Source, store: dict[str, bytes] | Fetch) -> ExecutorError:
    """The refusal of a store; what was in force stays in force."""
    fetch = store.get if isinstance(store, dict) else store
    with pytest.raises(ExecutorError) as caught:
        source.refresh(fetch)
    return caught.value


def still(source: Source) -> bool:
    """Whether the last good state is what it was."""
    return source.load().policy == PLAIN


def judged(store: dict[str, bytes], folder: Path) -> str:
    """The code that a store ends in for whoever pins its first root; "" if it is accepted."""
    try:
        Source(store[metadata_key(ROOT, 1)], folder, "test").refresh(store.get)
    except ExecutorError as error:
        return error.code
    return ""


def test_no_flipped_byte_is_accepted(team: Team, tmp_path: Path) -> None:
    """Bytes of every file flipped in turn: root, all roles, the policy, a release; 0 pass.

    Every byte of what is small, every fifth of what has keys in it.
    """
    store = team.store()
    root = store[metadata_key(ROOT, 1)]
    codes, flips = [], 0
    for key, data in store.items():
        for index in range(0, len(data), 5 if len(data) > 1000 else 1):
            flipped = bytearray(data)
            flipped[index] ^= 0x20 if index % 2 else 1  # 0x20: the other case of a letter
            changed = {**store, key: bytes(flipped)}
            flips += 1
            codes.append(judged(changed, tmp_path / f"{flips}"))
    assert set(codes) <= {"trust.invalid", "trust.threshold-unmet"}
    assert flips > 2000
    assert Source(root, tmp_path / "t", "test").refresh(store.get).policy == PLAIN


@pytest.mark.covers("trust.rolled-back")
def test_an_older_state_is_refused(team: Team, source: Source) -> None:
    """A store that goes back to what was properly signed before is refused, after a restart too."""
    old = team.store()
    team.repository.stage_policy(OTHER)
    team.sign()
    source.refresh(team.repository.get)
    assert refused(source, old).code == "trust.rolled-back"
    assert refused(team.source(source.folder), old).code == "trust.rolled-back"
    assert source.load().policy == OTHER


def test_a_running_executor_remembers_without_its_file(team: Team, source: Source) -> None:
    """Its file of versions is deleted under it: an older state is refused, and not written."""
    old = team.store()
    team.repository.stage_policy(OTHER)
    team.sign()
    source.refresh(team.repository.get)
    (source.folder / FILE).unlink()
    assert refused(source, old).code == "trust.rolled-back"
    assert not (source.folder / FILE).exists()
    assert source.refresh(team.repository.get).policy == OTHER
    assert refused(source, old).code == "trust.rolled-back"


def test_an_older_policy_under_a_new_timestamp_is_refused(team: Team, source: Source) -> None:
    """Nor does the key of snapshot and timestamp bring an older policy back."""
    old = team.load(POLICY)
    team.repository.stage_policy(OTHER)
    team.sign()
    source.refresh(team.repository.get)
    store = team.store()
    store[metadata_key(POLICY, old.signed.version)] = old.to_bytes()
    team.cover(store, {POLICY: old})
    assert refused(source, store).code == "trust.rolled-back"


@pytest.mark.covers("trust.expired")
def test_a_store_that_stands_still_expires(tmp_path: Path) -> None:
    """A store that only ever serves the same state is believed no longer than its timestamp."""
    team = Team(tmp_path / "made", lives_s={"timestamp": 3})
    source = team.source(tmp_path / "trusted")
    assert source.refresh(team.repository.get).policy == PLAIN

    async def expired() -> bool:
        return judged(team.store(), tmp_path / "fresh") == "trust.expired"

    run(eventually(expired))
    with pytest.raises(ExecutorError) as caught:
        source.load()
    assert caught.value.code == "trust.expired"
    team.repository.renew([])
    team.sign()
    assert source.refresh(team.repository.get).policy == PLAIN


@pytest.mark.covers("trust.threshold-unmet")
def test_one_of_two_signatures_on_policy_is_none(team: Team, source: Source) -> None:
    """Policy with one signature is refused, though everything else is signed properly; T6."""

    def other(signed: Any) -> None:
        signed.targets[POLICY_TARGET] = TargetFile.from_data(POLICY_TARGET, OTHER, ["sha256"])

    for names in (("pia",), ("pia", "rob"), ("eve", "ada"), ()):
        store = team.forged(POLICY, other, *names)
        store[f"target.{sha256(OTHER).hexdigest()}"] = OTHER
        assert refused(source, store).code == "trust.threshold-unmet", names
    assert still(source)
    assert source.refresh(store_with(team, other, OTHER).get).policy == OTHER


def store_with(team: Team, change: Callable[[Any], None], policy: bytes) -> dict[str, bytes]:
    """The harmless twin: the same change, signed by both."""
    store = team.forged(POLICY, change, "pia", "quin")
    return {**store, f"target.{sha256(policy).hexdigest()}": policy}


def test_a_revoked_key_signs_nothing(team: Team, source: Source) -> None:
    """A key that the root took away makes no policy any more, with all other keys beside it."""
    team.repository.stage_keys({POLICY: Rule(public("pia", "cy"), 2, 3600)})
    assert team.sign("ada", "bo", "pia", "quin", "online") is None  # not without the new one
    assert team.sign("cy", "online") is not None
    source.refresh(team.repository.get)
    store = team.forged(POLICY, lambda _: None, "pia", "quin")
    assert refused(source, store).code == "trust.threshold-unmet"
    assert source.refresh(team.forged(POLICY, lambda _: None, "pia", "cy").get).policy == PLAIN


@pytest.mark.parametrize("names", [("ada",), ("eve", "rob"), ("ada", "eve")])
def test_a_root_without_quorum_is_refused(
    team: Team, source: Source, names: tuple[str, ...]
) -> None:
    """A new root, be it signed by all whom it names, needs two of the old ones."""

    def seize(signed: Any) -> None:
        eve, rob = tuf_key(KEYS["eve"].public), tuf_key(KEYS["rob"].public)
        signed.keys |= {eve.keyid: eve, rob.keyid: rob}
        signed.roles[ROOT].keyids = [eve.keyid, rob.keyid, *signed.roles[ROOT].keyids]

    store = team.forged(ROOT, seize, *names)
    assert refused(source, store).code == "trust.threshold-unmet"
    assert still(source)


def test_a_root_with_quorum_is_followed(team: Team, source: Source) -> None:
    """Two of the old and two of the new: the new root counts, and the old ones no more."""
    team.repository.stage_keys({ROOT: Rule(public("cy", "eve", "bo"), 2, 3600)})
    assert team.sign("ada", "online") is None
    assert team.sign("bo", "online") is None  # two of the old, one of the new
    assert team.sign("cy", "online") is not None
    assert source.refresh(team.repository.get).roles[ROOT].version == 2
    store = team.forged(ROOT, lambda _: None, "ada", "bo")
    assert refused(source, store).code == "trust.threshold-unmet"


def test_the_targets_key_alone_grants_nothing(team: Team, source: Source) -> None:
    """Who holds the key that delegates can neither sign the policy nor name who does."""
    eve = tuf_key(KEYS["eve"].public)

    def own(signed: Any) -> None:
        signed.targets[POLICY_TARGET] = TargetFile.from_data(POLICY_TARGET, OTHER, ["sha256"])

    def delegate(signed: Any) -> None:
        signed.delegations.keys[eve.keyid] = eve
        signed.delegations.roles[POLICY].keyids = [eve.keyid]
        signed.delegations.roles[POLICY].threshold = 1

    def lower(signed: Any) -> None:
        signed.delegations.roles[POLICY].threshold = 1

    def another(signed: Any) -> None:
        signed.delegations.keys[eve.keyid] = eve
        first = DelegatedRole("first", [eve.keyid], 1, terminating=True, paths=["policy/*"])
        signed.delegations.roles = {"first": first, **signed.delegations.roles}

    def wider(signed: Any) -> None:
        signed.delegations.roles[RELEASES].paths = ["*/*"]

    for change in (own, delegate, lower, another, wider):
        store = team.forged(TARGETS, change, "ada")
        assert refused(source, store).code == "trust.invalid", change.__name__
    assert still(source)
    assert source.refresh(team.forged(TARGETS, lambda _: None, "ada").get).policy == PLAIN


def test_one_key_under_two_names_counts_once(team: Team, source: Source) -> None:
    """A root that lists one key twice, under a name of its own, is refused: it would sign twice."""

    def twice(signed: Any) -> None:
        again = tuf_key(KEYS["ada"].public)
        again.keyid = "ab" * 32
        signed.keys[again.keyid] = again
        signed.roles[ROOT].keyids.append(again.keyid)

    store = team.forged(ROOT, twice, "ada", "bo")
    assert refused(source, store).code == "trust.invalid"


@pytest.mark.covers("trust.invalid")
def test_metadata_of_dev_is_worth_nothing_in_prod(tmp_path: Path) -> None:
    """Whatever was pinned, and with the very same keys: both environments are named."""
    dev = Team(tmp_path / "dev", environment="dev")
    prod = Team(tmp_path / "prod", environment="prod")
    with pytest.raises(ExecutorError) as confused:
        dev.source(tmp_path / "trusted", environment="prod")
    source = prod.source(tmp_path / "trusted", environment="prod")
    swapped = {**prod.store(), **dev.store()}
    mixed = {**prod.store(), metadata_key(TIMESTAMP, None): dev.store()["md.timestamp"]}
    for error in (confused.value, refused(source, swapped), refused(source, mixed)):
        assert error.code == "trust.invalid"
        assert "`dev`" in error.detail
        assert "`prod`" in error.detail
    assert source.refresh(prod.repository.get).environment == "prod"


@pytest.mark.parametrize("role", sorted(BOUNDS))
def test_too_much_is_refused_before_it_is_read(
    team: Team, source: Source, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file above its bound is refused unread, whatever an insider announced."""
    version = None if role == TIMESTAMP else team.load(role).signed.version + (role == ROOT)
    store = team.store()
    (source.folder / FILE).unlink()
    store[metadata_key(role, version)] = b" " * (BOUNDS[role] + 1)
    monkeypatch.setattr(json, "loads", unread(json.loads, BOUNDS[role]))
    assert refused(source, store).code == "trust.invalid"


def unread(loads: Callable[..., Any], most: int) -> Callable[..., Any]:
    """`json.loads` that takes nothing larger."""

    def bounded(data: bytes | str, **options: Any) -> Any:
        assert len(data) <= most
        return loads(data, **options)

    return bounded


def test_a_policy_above_its_bound_is_not_even_asked_for(team: Team, source: Source) -> None:
    """What is announced as too large is not fetched."""

    def large(signed: Any) -> None:
        signed.targets[POLICY_TARGET] = TargetFile(
            POLICY_MAX + 1, {"sha256": "ab" * 32}, POLICY_TARGET
        )

    store = team.forged(POLICY, large, "pia", "quin")
    asked: list[str] = []

    def fetch(key: str) -> bytes | None:
        asked.append(key)
        return store.get(key)

    assert refused(source, fetch).code == "trust.invalid"
    assert f"target.{'ab' * 32}" not in asked


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"a":1,"a":1}', b'{"a": 1}', b'{"a":1.0}']
)
def test_junk_leaves_the_last_good_state(team: Team, source: Source, junk: bytes) -> None:
    """Junk in place of any file that is read is refused, and what is in force stays."""
    team.repository.stage_policy(OTHER)
    team.sign()
    for key in set(team.store()) - set(_kept(source)):
        if key.startswith("md."):
            assert refused(source, {**team.store(), key: junk}).code.startswith("trust.")
    assert still(source)
    assert source.refresh(team.repository.get).policy == OTHER


@pytest.mark.covers("trust.missing")
def test_a_file_that_is_withheld_is_missed(team: Team, source: Source) -> None:
    """A store that hides a file has it named, and what is in force stays."""
    team.repository.stage_policy(OTHER)
    team.sign()
    known = team.source(source.folder)
    for key in set(team.store()) - set(_kept(source)):
        store = {k: v for k, v in team.store().items() if k != key}
        error = refused(known, store)
        assert error.code == "trust.missing", key
    assert still(source)


def _kept(source: Source) -> list[str]:
    state = source._read()
    return [metadata_key(ROOT, 1), *(f"target.{name}" for name in state.files),
            metadata_key(TARGETS, 1), metadata_key(RELEASES, 2)]  # fmt: skip


def test_an_edited_last_good_state_is_no_state(team: Team, source: Source) -> None:
    """Whoever edits the local file is found out; it is said how to begin again."""
    path = source.folder / FILE
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    for changed in (before.replace(b"acme", b"zebr"), b"", before[:-1], b"{}", b'{"roots":1}'):
        path.write_bytes(changed)
        with pytest.raises(ExecutorError) as caught:
            source.load()
        assert caught.value.code in {"trust.invalid", "trust.missing"}
    path.unlink()
    assert source.refresh(team.repository.get).policy == PLAIN


def test_an_unreadable_last_good_state_is_not_forgotten(team: Team, source: Source) -> None:
    """What cannot be read, be it another user's, is no reason to take older versions."""
    old = team.store()
    team.repository.stage_policy(OTHER)
    team.sign()
    source.refresh(team.repository.get)
    path = source.folder / FILE
    kept = path.read_bytes()
    path.unlink()
    path.symlink_to(FILE)  # also for root unreadable
    assert refused(source, old).code == "trust.missing"
    assert refused(source, team.store()).code == "trust.missing"
    path.unlink()
    path.write_bytes(kept)
    assert refused(source, old).code == "trust.rolled-back"
    assert source.load().policy == OTHER


def test_no_link_in_the_folder_is_followed(team: Team, tmp_path: Path) -> None:
    """What others left where the lock or a new file goes is neither followed nor emptied."""
    source, victim = team.source(tmp_path / "shared"), tmp_path / "victim"
    source.folder.mkdir()
    victim.write_text("mine")
    (source.folder / f".{FILE}.{os.getpid()}").symlink_to(victim)
    source.refresh(team.repository.get)
    (source.folder / "lock").unlink()
    (source.folder / "lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        source.refresh(team.repository.get)
    assert victim.read_text() == "mine"
    assert source.load().policy == PLAIN


def test_a_signed_policy_that_nobody_can_read_is_refused(team: Team, source: Source) -> None:
    """A policy that both have signed, and that does not parse, is not put in force."""
    wrong = b"[[tenant]]\nname = 5\n"

    def other(signed: Any) -> None:
        signed.targets[POLICY_TARGET] = TargetFile.from_data(POLICY_TARGET, wrong, ["sha256"])

    assert "signed, and wrong" in refused(source, store_with(team, other, wrong)).detail
    with pytest.raises(ExecutorError) as caught:
        team.repository.stage_policy(wrong)
    assert caught.value.code == "config.invalid"
    assert still(source)


def test_a_release_of_another_form_is_refused(team: Team, source: Source) -> None:
    """A release role that signs something else than releases is refused as a whole."""

    def strange(path: str, data: bytes) -> Callable[[Any], None]:
        def change(signed: Any) -> None:
            signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])

        return change

    good = b'{"digest":"sha256:' + b"ab" * 32 + b'","v":1,"version":"1"}'
    cases = [
        ("releases/acme/hello/x", good),
        ("releases/acme/a b", good),
        ("policy/p", good),
        ("releases/acme/other", b'{"v":1}'),
        ("releases/acme/other", good[:-1] + b',"x":1}'),
    ]
    for path, data in cases:
        store = team.forged(RELEASES, strange(path, data), "rob")
        store[f"target.{sha256(data).hexdigest()}"] = data
        assert refused(source, store).code == "trust.invalid", (path, data)
    store = team.forged(RELEASES, strange("releases/acme/other", good), "rob")
    store[f"target.{sha256(good).hexdigest()}"] = good
    assert ("acme", "other") in source.refresh(store.get).releases


def test_a_key_of_another_kind_is_no_key() -> None:
    """Only Ed25519, named by its own hash: else one person could be two."""
    key = tuf_key(SecretKey(bytes(range(32))).public)
    metadata.check_key(key.keyid, key)
    for wrong in ("00" * 32, key.keyid.upper()):
        with pytest.raises(ExecutorError):
            metadata.check_key(wrong, key)
    key.scheme = "ecdsa-sha2-nistp256"
    with pytest.raises(ExecutorError):
        metadata.check_key(key.keyid, key)


def test_the_environment_is_signed_in_every_file(team: Team) -> None:
    """So that nothing of one environment can be carried into another with the same keys."""
    for role in (ROOT, TARGETS, POLICY, RELEASES, SNAPSHOT, TIMESTAMP):
        assert team.load(role).signed.unrecognized_fields[FIELD]["environment"] == "test"
