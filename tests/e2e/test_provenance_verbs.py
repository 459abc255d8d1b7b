"""A team whose operator asks who built a module: from the build to a task that runs."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import TASKS, House, Shell

ADDED = """
[[publisher]]
name = "lead"
key = "{lead}"
tasks = ["acme/*"]
[[builder]]
name = "farm"
key = "{farm}"
[[requirement]]
tasks = ["acme/trap"]
signatures = 2
builders = ["farm"]
"""


def team(shell: Shell) -> None:
    """Keys of a second publisher, of the build farm and of somebody's laptop; and the rules."""
    for name in ("lead", "farm", "laptop"):
        shell.run("keygen", f"keys/{name}")
    config = shell.folder / "executor.toml"
    keys = {name: (shell.folder / f"keys/{name}.pub").read_text().strip()
            for name in ("lead", "farm")}  # fmt: skip
    config.write_text(config.read_text() + ADDED.format(**keys))


def build(shell: Shell, builder: str, folder: Path = TASKS / "hostile/trap") -> None:
    """Build and sign `trap.wasm`, on a builder's machine."""
    shell.run("build", str(folder), "-o", "trap.wasm", "--verify",
              "--key", "keys/author.key", "--builder-key", f"keys/{builder}.key")  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A running executor with such a team."""
    house = House(tmp_path_factory.mktemp("team") / "mine")
    house.open()
    try:
        team(house)
        house.signal(signal.SIGHUP)
        yield house
    finally:
        assert house.close() == 0, house.log


def refused(shell: Shell, *arguments: str) -> tuple[str, str]:
    """Code and message of a refusal; its exit status is that of every `module.*`."""
    done = shell.call(*arguments, "--json")
    found = done.objects()[-1]
    assert (done.code, found["schema"]) == (10, "executor.error/1"), done
    return found["code"], found["message"]


def test_from_the_build_to_a_task(shop: House) -> None:
    """Two publishers and the farm: each that is missing is named before, then the task runs."""
    build(shop, "laptop")
    for verb in ("verify", "publish"):
        code, message = refused(shop, verb, "trap.wasm")
        assert code == "module.signer-untrusted"
        assert "1 of 2" in message
    shop.run("sign", "trap.wasm", "--key", "keys/lead.key")
    for verb in ("verify", "publish"):
        code, message = refused(shop, verb, "trap.wasm")
        assert code == "module.provenance-invalid"
        assert "no builder accepted here" in message
    statement = shop.folder / "trap.wasm.provenance.json"
    statement.unlink()
    for verb in ("verify", "publish"):
        assert refused(shop, verb, "trap.wasm")[0] == "module.provenance-missing"
    build(shop, "farm")
    shop.run("sign", "trap.wasm", "--key", "keys/lead.key")
    verified = shop.json("verify", "trap.wasm", "--tenant", "acme")
    assert (verified["builder"], verified["signers"]) == ("farm", ["author", "lead"])
    assert "src/trap.wat" in verified["sources"]
    assert shop.json("publish", "trap.wasm")["provenance"] is True
    done = shop.call("submit", "acme/trap", "--wait", "--json")
    assert done.object()["code"] == "guest.trap"  # it was admitted and ran


def test_a_stored_statement_is_not_believed(shop: House) -> None:
    """Whoever can write to the store puts another statement there: the task is refused."""
    folder = shutil.copytree(TASKS / "hostile/trap", shop.folder / "next")
    recipe = folder / "task.toml"
    recipe.write_text(recipe.read_text().replace("1.0.0", "1.0.1"))
    build(shop, "laptop", folder)
    shop.run("sign", "trap.wasm", "--key", "keys/lead.key")
    # A publisher with rules of its own stores what the laptop says.
    text = (shop.folder / "executor.toml").read_text()
    (shop.folder / "lax.toml").write_text(text.partition("[[builder]]")[0])
    shop.run("publish", "trap.wasm", "--config", "lax.toml")
    done = shop.call("submit", "acme/trap", "--wait", "--json")
    assert done.object()["code"] == "module.provenance-invalid"


def test_who_built_it_with_keys_alone(shell: Shell) -> None:
    """Without a configuration, `verify` takes the keys of publisher and builder."""
    (shell.folder / "keys").mkdir()
    for name in ("author", "farm", "laptop"):
        shell.run("keygen", f"keys/{name}")
    build(shell, "farm")
    keys = ("--key", "keys/author.pub", "--builder")
    assert shell.json("verify", "trap.wasm", *keys, "keys/farm.pub")["builder"] == "keys/farm.pub"
    assert refused(shell, "verify", "trap.wasm", *keys, "keys/laptop.pub")[0] == (
        "module.provenance-invalid"
    )
    text = shell.run("verify", "trap.wasm", *keys, "keys/farm.pub").text
    assert "built by keys/farm.pub from 2 files" in text
    (shell.folder / "huge").write_bytes(bytes(300_000))
    assert refused(
        shell, "verify", "trap.wasm", *keys, "keys/farm.pub", "--provenance", "huge"
    )[0] == "module.provenance-invalid"  # fmt: skip
    Path(shell.folder / "trap.wasm.provenance.json").unlink()
    assert refused(shell, "verify", "trap.wasm", *keys, "keys/farm.pub")[0] == (
        "module.provenance-missing"
    )
