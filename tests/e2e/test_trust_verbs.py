"""Signed trust from the command line: one operator with all keys, a team with offline ones."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core.signature import PublicKey
from tests.e2e.command import House, Shell

_GRANT = """
[[grant]]
tenant = "acme"
task = "flaky"
why = "remembers what it has seen"
kv = { prefix = "seen-", mode = "write" }
"""


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A folder of `init --signed` with its executor, and `wordcount` released."""
    made = House(tmp_path_factory.mktemp("signed") / "mine")
    made.open("--signed")
    try:
        made.publish("wordcount")
        yield made
    finally:
        status = made.close()
    assert status == 0, made.log


def change(house: Shell, text: str) -> None:
    """Add to policy.toml and put it in force."""
    path = house.folder / "policy.toml"
    path.write_text(path.read_text() + text)
    done = house.json("trust", "sign", "policy.toml")
    assert done["pushed"] > 0


def test_one_operator_signs_with_one_command(signed: House) -> None:
    """`init --signed` works like `init`: publish, submit, and a changed policy is one command."""
    assert "[[tenant]]" not in (signed.folder / "executor.toml").read_text()
    assert signed.json("submit", "wordcount", "-i", "one two", "--wait")["output"]["words"] == 2
    assert signed.json("verify", "wordcount.wasm")["signers"] == ["author"]
    assert signed.json("tenant", "list")["tenants"][0]["name"] == "acme"
    change(signed, _GRANT)
    signed.publish("flaky")
    found = signed.json("submit", "flaky", "-i", "x", "--wait")
    assert (found["outcome"], found["attempt"]) == ("result", 2)
    assert signed.json("result", found["id"])["outcome"] == "result"


def test_what_was_said_is_taken_back_under_signed_trust(signed: House) -> None:
    """Quarantine and drain read answers and entries by the keys of the signed policy."""
    digest = f"sha256:{'ab' * 32}"
    signed.run("quarantine", "add", digest)
    assert [m["digest"] for m in signed.json("quarantine", "list")["modules"]] == [digest]
    assert "may run again" in signed.run("quarantine", "lift", digest).text
    assert signed.json("quarantine", "list")["modules"] == []
    assert signed.call("serve", "--drain", "local").code == 0
    assert signed.server is not None
    assert signed.server.wait(60) == 0
    signed.serve_again()


def test_keys_are_the_owners_alone(signed: House) -> None:
    """Every key that `init --signed` makes is a file of its own, mode 0600, and none is shared."""
    keys = sorted((signed.folder / "keys" / "trust").glob("*.key"))
    assert [key.stem for key in keys] == ["online", "policy", "releases", "root"]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    assert len({key.read_bytes() for key in keys}) == 4


def test_serve_reads_no_signing_key(tmp_path: Path) -> None:
    """Without the keys' folder an executor starts, and tasks run."""
    house = House(tmp_path / "mine")
    house.open("--signed")
    try:
        house.publish("wordcount")
        shutil.move(house.folder / "keys" / "trust", tmp_path / "elsewhere")
        assert house.close() == 0
        house.serve_again()
        assert house.json("submit", "wordcount", "-i", "a b", "--wait")["output"]["words"] == 2
        done = house.call("publish", "wordcount.wasm")
        assert done.code == 0  # the same release is in force: nothing has to be signed
        refused = house.call("trust", "renew")
        assert refused.code == 18
        assert "trust.threshold-unmet" in refused.err
    finally:
        house.close()


def test_a_revoked_module_runs_no_more(signed: House) -> None:
    """`trust revoke DIGEST` edits policy.toml, signs and pushes it; the next task is refused."""
    signed.run("sign", "wordcount.wasm", "--key", "keys/author.key", "-o", "again.wasm")
    digest = signed.json("verify", "wordcount.wasm")["digest"]
    assert signed.json("trust", "revoke", digest)["pushed"] > 0
    policy = signed.folder / "policy.toml"
    assert tomllib.loads(policy.read_text())["revoked"] == [digest]
    done = signed.call("submit", "wordcount", "-i", "x", "--wait", "--json")
    assert done.object()["code"] == "module.signer-revoked"
    assert signed.call("publish", "wordcount.wasm").code == 10
    policy.write_text(policy.read_text().replace(f'"{digest}"', ""))
    assert signed.call("trust", "revoke", "ab" * 12).code == 15  # not what was signed last
    signed.run("trust", "sign", "policy.toml")
    signed.run("trust", "revoke", "ab" * 12)
    assert tomllib.loads(policy.read_text())["revoked"] == ["ab" * 12]
    done = signed.call("submit", "wordcount", "-i", "x", "--wait", "--json")
    assert done.object()["outcome"] == "result"


def test_verbs_that_edit_grants_say_where_they_stand(signed: House) -> None:
    """`tenant add` and `remove` change no signed policy behind its signers' backs."""
    for arguments in (["add", "zebra"], ["remove", "acme", "--yes"]):
        done = signed.call("tenant", *arguments)
        assert done.code == 15
        assert "executor trust sign policy.toml" in done.err


def test_a_local_grant_is_refused_everywhere(signed: House, tmp_path: Path) -> None:
    """A table in executor.toml that grants stops every verb that would believe it."""
    text = (signed.folder / "executor.toml").read_text()
    for name, more in (("grant", _GRANT), ("revoke", "revoked = []\n")):
        path = tmp_path / f"{name}.toml"
        path.write_text(text + more)
        for verb in (["serve"], ["submit", "wordcount"], ["config", "check"]):
            done = signed.call("--config", str(path), *verb)
            assert done.code == 15, (verb, done.err)
            assert "signed policy alone" in done.err


def test_a_client_without_a_verified_state_is_told_how_to_get_one(
    signed: House, tmp_path: Path
) -> None:
    """`trust.missing` names `trust refresh`, which fetches it with nothing but the root file."""
    shell = Shell(tmp_path)
    shutil.copy(signed.folder / "executor.toml", tmp_path)
    text = (tmp_path / "executor.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("key_file", "cache_key"))]
    (tmp_path / "executor.toml").write_text("\n".join(lines))
    done = shell.call("submit", "wordcount")
    assert done.code == 18
    assert "no root file" in done.err
    (tmp_path / "trust").mkdir()
    shutil.copy(signed.folder / "trust" / "root.json", tmp_path / "trust")
    done = shell.call("submit", "wordcount")
    assert (done.code, "executor trust refresh" in done.err) == (18, True)
    assert shell.json("trust", "refresh")["environment"] == "dev"
    assert shell.json("submit", "wordcount", "-i", "a b c", "--wait")["outcome"] == "result"


def test_a_team_signs_on_machines_of_its_own(tmp_path: Path) -> None:
    """Three people, no NATS: staged here, signed there, and in force only when all have signed."""
    first = Shell(tmp_path)
    for name in ("ada", "bo", "pia", "quin", "rob", "online"):
        first.run("keygen", name)
    (tmp_path / "policy.toml").write_text('[[tenant]]\nname = "acme"\n')
    keys = ["--root", "ada.pub", "--root", "bo.pub", "--targets", "ada.pub", "--policy", "pia.pub",
            "--policy", "quin.pub", "--releases", "rob.pub", "--online", "online.pub"]  # fmt: skip
    few = first.call(
        "trust", "init", "--policy-file", "policy.toml", *keys[4:], "--root", "ada.pub"
    )
    assert few.code == 15
    assert "`root` has 1 keys, and needs 2" in few.err
    made = first.json("trust", "init", "--environment", "prod", *keys, "--days", "policy=10")
    assert (made["environment"], made["in_force"]) == ("prod", False)
    assert {role["role"]: role["needs"] for role in made["roles"]} == {
        "root": 2, "targets": 1, "policy": 2, "releases": 1,
    }  # fmt: skip
    for name in ("ada", "pia", "rob", "bo"):
        first.run("trust", "sign", "--key", f"{name}.key", "--offline")
    assert first.call("trust", "verify").code == 18
    # Another machine: a copy of the folder, and a key that never left it.
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "trust", tmp_path / "elsewhere" / "trust")
    shutil.move(tmp_path / "quin.key", tmp_path / "elsewhere")
    second = Shell(tmp_path / "elsewhere")
    done = second.run("trust", "sign", "--key", "quin.key", "--offline")
    assert "executor trust renew" in done.err  # all have signed; the online key is not here
    shutil.rmtree(tmp_path / "trust")
    shutil.copytree(tmp_path / "elsewhere" / "trust", tmp_path / "trust")
    assert first.json("trust", "renew", "--key", "online.key", "--offline")["in_force"]
    assert first.json("trust", "verify")["roles"]["policy"] == 1
    # A key is lost: with two of two, the root cannot do without another one first.
    assert first.call("trust", "revoke", "quin.pub", "--offline").code == 15
    rotated = first.json("trust", "rotate", "--policy", "pia.pub", "--policy", "bo.pub",
                         *_key("ada", "bo", "pia", "online"), "--offline")  # fmt: skip
    versions = {role["role"]: role["version"] for role in rotated["roles"]}
    assert (versions["root"], versions["policy"], versions["releases"]) == (2, 2, 1)
    assert first.json("trust", "status")["roles"][0]["needs"] == 0
    # Fewer keys than must sign do not make that fewer.
    few = first.call("trust", "rotate", "--policy", "pia.pub", "--offline")
    assert few.code == 15
    assert "`policy` has 1 keys, and needs 2" in few.err


def test_a_revoked_signer_is_no_operator_either(tmp_path: Path) -> None:
    """A key that signs releases and is an operator's: both end with one command."""
    shell = Shell(tmp_path)
    shell.run("keygen", "rob")
    key = (tmp_path / "rob.pub").read_text().strip()
    text = f'[[tenant]]\nname = "acme"\n[[operator]]\nname = "rob"\nkey = "{key}"\n'
    (tmp_path / "policy.toml").write_text(text)
    shell.run("trust", "init", "--offline")
    mine = str(tmp_path / "keys" / "trust" / "releases.pub")
    shell.run("trust", "rotate", "--releases", mine, "--releases", "rob.pub", "--offline")
    done = shell.json("trust", "revoke", "rob.pub", "--offline")
    assert {role["role"]: role["version"] for role in done["roles"]}["policy"] == 2
    policy = tomllib.loads((tmp_path / "policy.toml").read_text())
    assert policy["revoked"] == [PublicKey.parse(key).key_id.hex()]
    status = shell.json("trust", "status")["roles"]
    assert all(policy["revoked"][0] not in role["signed_by"] for role in status)


def _key(*names: str) -> list[str]:
    return [part for name in names for part in ("--key", f"{name}.key")]
