"""Keys of people: encrypted, opened by the environment or on a terminal, refused elsewhere."""

from __future__ import annotations

import os
import pty

from tests.e2e.command import Shell, finish, wasm

WORD = {"EXECUTOR_PASSPHRASE": "correct horse"}


def test_an_encrypted_key_signs_with_its_passphrase(shell: Shell) -> None:
    """The file is encrypted; it signs with the passphrase in the environment, and only with it."""
    assert shell.call("keygen", "mine", "--encrypt", env=WORD).code == 0
    assert b"ENCRYPTED" in (shell.folder / "mine.key").read_bytes()
    sign = ("sign", wasm("wordcount"), "--key", "mine.key", "-o", "x.wasm")
    for env, code, word in (
        ({}, "config.missing", "EXECUTOR_PASSPHRASE"),
        ({"EXECUTOR_PASSPHRASE": "wrong"}, "config.invalid", "another passphrase"),
    ):
        done = shell.call(*sign, env=env)
        assert done.code == 15
        assert f"error[{code}]" in done.err
        assert word in done.err
    assert not (shell.folder / "x.wasm").exists()
    done = shell.call(*sign, env=WORD)
    assert done.code == 0, done.err
    assert shell.json("verify", "x.wasm", "--key", "mine.pub")["signers"] == ["mine.pub"]


def test_a_terminal_asks_for_the_passphrase(shell: Shell) -> None:
    """Without the variable a terminal asks, on stderr, and shows nothing of what is typed."""
    shell.call("keygen", "mine", "--encrypt", env=WORD)
    ours, theirs = pty.openpty()
    try:
        process = shell.start(
            "sign", wasm("wordcount"), "--key", "mine.key", "-o", "x.wasm", stdin=theirs,
            stderr=theirs, start_new_session=True,
        )  # fmt: skip
        shown = b""
        while b"passphrase" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, b"correct horse\n")
        done = finish(process)
        assert done.code == 0
        assert b"sha256:" in done.out
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_serves_has_nobody_to_ask(shell: Shell) -> None:
    """`serve` refuses an encrypted key at its start, whatever the environment says."""
    shell.run("init", ".")
    shell.call("keygen", "locked", "--encrypt", env=WORD)
    config = shell.folder / "executor.toml"
    config.write_text(config.read_text().replace("keys/executor.key", "locked.key"))
    done = shell.call("serve", env=WORD)
    assert done.code == 15, done.err
    assert "is encrypted" in done.err
