"""The signers' side: what is staged, who has to sign it, and what goes in force when."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.cli.main import cli
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Digest, Release
from executor.trust.metadata import (
    POLICY,
    RELEASES,
    ROLES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    metadata_key,
)
from executor.trust.repository import (
    SINGLE_DAYS,
    STAGED,
    THRESHOLDS,
    Repository,
    Rule,
    rule,
)
from tests.support.signers import KEYS, PLAIN, Team, public, rules

OTHER = b'[[tenant]]\nname = "zebra"\n'
HELLO = Release("acme", "hello", Digest("sha256:" + "ab" * 32), "1.0.0")


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """A repository in force."""
    return Team(tmp_path / "repository")


def secrets(*names: str) -> list[SecretKey]:
    """Some of the team's keys."""
    return [KEYS[name] for name in names]


def needs(repository: Repository) -> dict[str, int]:
    """Staged role → signatures that are missing."""
    return {s.role: s.needs for s in repository.signings() if s.staged}


def test_nothing_is_in_force_before_all_have_signed(tmp_path: Path) -> None:
    """The first version needs two of root and policy; one signer after the other, in any order."""
    repository = Repository(tmp_path / "r")
    with pytest.raises(ExecutorError) as caught:
        repository.put_in_force([])
    assert caught.value.code == "trust.missing"
    repository.make("test", rules(), PLAIN)
    assert needs(repository) == {ROOT: 2, TARGETS: 1, POLICY: 2, RELEASES: 1}
    for name in ("quin", "ada", "rob", "pia"):
        assert repository.sign(secrets(name, "online")) > 0
        assert repository.sign(secrets(name)) == 0  # once
        with pytest.raises(ExecutorError) as caught:
            repository.put_in_force(secrets("online"))
        assert caught.value.code == "trust.missing"
        assert not repository.in_force
    repository.sign(secrets("cy"))
    assert set(repository.ready()) == set(STAGED)
    assert repository.put_in_force(secrets("online")).policy == PLAIN
    assert needs(repository) == {}
    assert repository.in_force


@pytest.mark.covers("trust.threshold-unmet")
def test_without_the_online_key_all_stays_staged(team: Team) -> None:
    """Who has no online key signs, and says where it goes on."""
    repository = team.repository
    repository.stage_policy(OTHER)
    repository.sign(secrets("pia", "quin"))
    with pytest.raises(ExecutorError) as caught:
        repository.put_in_force(secrets("pia"))
    assert caught.value.code == "trust.threshold-unmet"
    assert "executor trust renew" in caught.value.hint
    assert repository.verify().policy == PLAIN
    assert repository.put_in_force(secrets("online")).policy == OTHER


def test_a_half_signed_policy_holds_up_nothing(team: Team) -> None:
    """While one signature on policy is missing, releases and renewals go on."""
    repository = team.repository
    repository.stage_policy(OTHER)
    repository.stage_release(HELLO)
    repository.sign(secrets("pia", "rob"))
    assert repository.ready() == [RELEASES]
    found = repository.put_in_force(secrets("online"))
    assert (found.policy, list(found.releases)) == (PLAIN, [("acme", "hello")])
    assert needs(repository) == {POLICY: 1}
    assert repository.put_in_force(secrets("online")).roles[TIMESTAMP].version == 3
    repository.sign(secrets("quin"))
    assert repository.put_in_force(secrets("online")).policy == OTHER


def test_a_change_of_keys_goes_whole(team: Team) -> None:
    """New keys of policy wait for root, targets and the new signers together; releases do not."""
    repository = team.repository
    assert set(repository.stage_keys({POLICY: Rule(public("pia", "cy"), 2, 3600)})) == {
        ROOT, TARGETS, POLICY,
    }  # fmt: skip
    repository.stage_release(HELLO)
    repository.sign(secrets("ada", "bo", "pia", "quin", "rob"))
    assert needs(repository)[POLICY] == 1
    assert repository.ready() == [RELEASES]
    assert repository.put_in_force(secrets("online")).roles[ROOT].version == 1
    repository.sign(secrets("cy"))
    found = repository.put_in_force(secrets("online"))
    assert (found.roles[ROOT].version, found.roles[POLICY].version) == (2, 2)
    assert set(repository.rules()[POLICY].keys) == set(public("pia", "cy"))
    assert repository.rules()[POLICY].life_s == 3600


def test_a_releases_key_is_the_targets_to_change(team: Team) -> None:
    """A new deployer needs no root: the delegation is signed anew, and the releases by him."""
    life_s = team.repository.rules()[RELEASES].life_s
    staged = team.repository.stage_keys({RELEASES: Rule(public("eve"), 1, life_s)})
    assert set(staged) == {TARGETS, RELEASES}
    assert team.sign("ada", "eve", "online") is not None


def test_text_that_changes_is_signed_anew(team: Team) -> None:
    """A signature is for one text: what is staged over it has none, under the same version."""
    repository = team.repository
    repository.stage_policy(OTHER)
    repository.sign(secrets("pia"))
    repository.stage_policy(OTHER + b"\n")
    assert needs(repository) == {POLICY: 2}
    (staged,) = [s for s in repository.signings() if s.staged]
    assert staged.version == 2
    assert repository.policy() == OTHER + b"\n"
    assert repository.withdraw() == [POLICY]
    assert repository.policy() == PLAIN


@pytest.mark.covers("module.manifest-invalid")
def test_whoever_releases_or_renews_signs_nothing_else(team: Team) -> None:
    """What another has staged beside it waits for a look, whatever keys are in the folder."""
    team.repository.stage_policy(OTHER)
    team.repository.sign(secrets("pia"))  # one of the two that it needs
    team.repository.stage_release(HELLO)
    team.repository.sign(secrets("quin", "rob", "online"), (RELEASES,))
    assert needs(team.repository) == {POLICY: 1, RELEASES: 0}
    with pytest.raises(ExecutorError) as caught:
        team.repository.renew([POLICY])
    assert caught.value.code == "config.invalid"
    team.repository.withdraw([POLICY])
    team.repository.renew([POLICY])
    team.repository.renew([POLICY])  # a date over a date
    team.repository.sign(secrets("quin", "pia"), (POLICY,))
    assert team.repository.put_in_force(secrets("online")).policy == PLAIN


def test_a_released_version_is_not_overwritten(team: Team) -> None:
    """Other bytes under the same version are refused, the same bytes are no news."""
    team.repository.stage_release(HELLO)
    team.sign()
    assert not team.repository.stage_release(HELLO)
    other = Release("acme", "hello", Digest("sha256:" + "cd" * 32), "1.0.0")
    with pytest.raises(ExecutorError) as caught:
        team.repository.stage_release(other)
    assert caught.value.code == "module.manifest-invalid"
    assert caught.value.facts["released"] == HELLO.digest
    assert team.repository.stage_release(Release("acme", "hello", other.digest, "1.0.1"))


def test_every_signing_renews_what_is_short_lived(team: Team) -> None:
    """Snapshot and timestamp are new with every change; a role is renewed when it is asked for."""
    before = team.repository.verify().roles
    team.repository.renew([POLICY, SNAPSHOT])
    assert needs(team.repository) == {POLICY: 2}
    after = team.sign()
    assert after is not None
    assert {r: after.roles[r].version - before[r].version for r in ROLES} == {
        ROOT: 0, TARGETS: 0, POLICY: 1, RELEASES: 0, SNAPSHOT: 1, TIMESTAMP: 1,
    }  # fmt: skip


def test_a_change_that_was_cut_off_is_taken_up(team: Team) -> None:
    """Files of a version that no timestamp names are not in force; the same change goes through."""
    repository = team.repository
    repository.stage_policy(OTHER)
    repository.sign(secrets("pia", "quin"))
    cut = (repository.folder / "metadata" / "timestamp.json").read_bytes()
    staged = (repository.folder / "staged" / "policy.json").read_bytes()
    repository.put_in_force(secrets("online"))
    (repository.folder / "metadata" / "timestamp.json").write_bytes(cut)
    (repository.folder / "staged" / "policy.json").write_bytes(staged)
    assert repository.verify().policy == PLAIN
    assert repository.put_in_force(secrets("online")).policy == OTHER


@pytest.mark.covers("config.invalid")
def test_rules_that_nobody_could_meet_are_refused(tmp_path: Path) -> None:
    """Fewer keys than are needed, a key twice, no life: refused before anything is written."""
    for role, wrong in (
        (ROOT, Rule(public("ada"), 2, 9)), (POLICY, Rule(public("pia", "pia"), 2, 9)),
        (POLICY, Rule((), 1, 9)), (ROOT, Rule(public("ada"), 0, 9)),
        (TIMESTAMP, Rule(public("online"), 1, 0)),
    ):  # fmt: skip
        repository = Repository(tmp_path / "r")
        with pytest.raises(ExecutorError) as caught:
            repository.make("test", {**rules(), role: wrong}, PLAIN)
        assert caught.value.code == "config.invalid"
        assert not repository.made


def test_there_is_one_repository_in_a_folder(team: Team) -> None:
    """A second one would forget the versions of the first."""
    with pytest.raises(ExecutorError) as caught:
        team.repository.make("test", rules(), PLAIN)
    assert caught.value.code == "config.invalid"


def test_one_command_changes_it_at_a_time(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one is refused while the first goes on, and may when it has ended."""
    monkeypatch.setattr("executor.trust.locking._WAIT_S", 0.0)
    with team.repository.locked():
        second = Repository(team.repository.folder).locked()
        with pytest.raises(ExecutorError, match="another command changes") as caught, second:
            pass
        assert caught.value.code == "config.invalid"
    with Repository(team.repository.folder).locked():
        pass
    with pytest.raises(ExecutorError) as missing, Repository(tmp_path / "none").locked():
        pass
    assert missing.value.code == "trust.missing"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "verb", [["sign"], ["renew"], ["rotate", "--days", "policy=1"], ["revoke", "ab"]]
)
def test_every_verb_that_changes_it_waits(
    verb: list[str], team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What signs or stages does neither while another command does."""
    monkeypatch.setattr("executor.trust.locking._WAIT_S", 0.0)
    monkeypatch.chdir(tmp_path)
    before = team.repository.signings()
    call = ["trust", *verb, "--offline", "--folder", str(team.repository.folder)]
    with (
        team.repository.locked(), pytest.raises(ExecutorError, match="another command changes"),
    ):  # fmt: skip
        cli.main(call, standalone_mode=False)
    assert team.repository.signings() == before


def test_a_policy_that_is_too_large_is_refused(team: Team) -> None:
    """It has to fit into one message, with what stands around it."""
    with pytest.raises(ExecutorError) as caught:
        team.repository.stage_policy(PLAIN + b"#" * 768 * 1024)
    assert caught.value.code == "config.invalid"


def test_the_defaults_are_those_of_the_design() -> None:
    """Two people for the root and for what grants; one operator needs one key of each kind."""
    assert (THRESHOLDS[ROOT], THRESHOLDS[POLICY]) == (2, 2)
    made = rule(public("ada"), ROOT, SINGLE_DAYS, 1)
    assert (made.threshold, made.life_s) == (1, 365 * 24 * 3600)
    assert (SINGLE_DAYS[SNAPSHOT], SINGLE_DAYS[TIMESTAMP]) == (30, 30)


def test_what_is_pushed_is_all_that_is_read(team: Team) -> None:
    """The listing has every root, each role in force, each file, and the timestamp at its end."""
    team.repository.stage_release(HELLO)
    team.sign()
    listing = team.repository.listing()
    assert listing[-1] == metadata_key(TIMESTAMP, None)
    assert {metadata_key(ROOT, 1), metadata_key(RELEASES, 2), metadata_key(POLICY, 1)} < {*listing}
    assert team.repository.next_root == metadata_key(ROOT, 2)
    store = team.store()
    assert len(store) == len(listing)
