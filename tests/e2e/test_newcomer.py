"""The first ten minutes with the executor, in the order of its README."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.e2e.command import House


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A folder made by `init`, nothing running."""
    made = House(tmp_path_factory.mktemp("newcomer") / "mine")
    made.folder.mkdir()
    made.run("init", ".")
    return made


def test_init_makes_a_folder_that_is_ready(mine: House) -> None:
    """The folder has a valid configuration, secret keys for its owner alone, and a task."""
    mine.run("config", "check")
    for name in ("author", "executor"):
        secret = mine.folder / "keys" / f"{name}.key"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert (mine.folder / "keys" / f"{name}.pub").read_text().startswith("ed25519:")
    assert sorted(path.name for path in (mine.folder / "hello").iterdir()) == [
        "hello.c", "sample.in", "sample.out", "task.toml"
    ]  # fmt: skip


def test_from_init_to_the_first_result(mine: House, tmp_path: Path) -> None:
    """Build, serve, publish, submit: `Hello, world!`; `run` gives the same without NATS."""
    built = mine.json("build", "hello", "--key", "keys/author.key")
    assert built["signed"] is True
    assert built["sample"]["outcome"] == "result"
    assert built["sample"]["compared"] == "sample.out"
    assert built["sample"]["fuel_used"] > 0
    assert built["grant"] == ["log = true"]
    alone = mine.run("run", "hello/hello.wasm", "-i", "world")
    assert alone.text == "Hello, world!\n"
    house = House(tmp_path / "house")
    house.open()
    try:
        (house.folder / "hello.wasm").write_bytes(
            (mine.folder / "hello" / "hello.wasm").read_bytes()
        )
        # Another folder has other keys: the module is foreign until its own author signs it.
        assert house.call("publish", "hello.wasm").code == 10
        house.run("sign", "hello.wasm", "--key", "keys/author.key")
        house.run("publish", "hello.wasm")
        done = house.run("submit", "hello", "-i", "world", "--wait")
        assert done.text == "Hello, world!\n"
        assert "ok  hello  attempt 1 of 3" in done.err
    finally:
        assert house.close() == 0


def test_a_second_build_has_the_same_bytes(mine: House) -> None:
    """`build --verify` builds twice in two places and finds one digest; so does a later build."""
    first = mine.json("build", "hello", "--verify", "-o", "first.wasm")
    second = mine.json("build", "hello", "-o", "second.wasm")
    assert first["reproduced"] is True
    assert first["digest"] == second["digest"]
    assert (mine.folder / "first.wasm").read_bytes() == (mine.folder / "second.wasm").read_bytes()


def test_build_shows_the_sample(mine: House) -> None:
    """`build` runs the task's sample in a sandbox and says what it used."""
    text = mine.run("build", "hello", "-o", "shown.wasm").text
    (line,) = [line for line in text.splitlines() if line.startswith("sample")]
    assert "result" in line
    assert "fuel" in line
    assert "memory" in line
    assert "as in sample.out" in line
    assert "not run" in mine.run("build", "hello", "-o", "shown.wasm", "--no-sample").text


def test_build_without_network_or_home(mine: House, tmp_path: Path) -> None:
    """A C build needs neither a home folder nor a cache of an earlier one."""
    empty = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
             "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}  # fmt: skip
    done = mine.call("build", "hello", "-o", "fresh.wasm", env=empty)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (("sample.out", "Goodbye!\n"), 15, "expected  Goodbye!\\n"),
        (("sample.in", ""), 1, "nobody to greet"),
        (("hello.c", "int x = ;"), 10, "hello.c:1:9: error"),
        (("task.toml", "name = 7"), 15, "`name` must be a text"),
    ],
    ids=["another output", "a failing sample", "a syntax error", "a wrong task.toml"],
)
def test_build_mistakes(mine: House, change: tuple[str, str], code: int, said: str) -> None:
    """What is wrong with a task is said, and no module is written."""
    name, text = change
    path = mine.folder / "hello" / name
    before = path.read_bytes()
    path.write_text(text)
    try:
        done = mine.call("build", "hello", "-o", "never.wasm")
    finally:
        path.write_bytes(before)
    assert done.code == code, done.err
    assert said in done.err
    assert "hint: " in done.err
    assert "Traceback" not in done.err
    assert not (mine.folder / "never.wasm").exists()
