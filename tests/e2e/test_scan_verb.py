"""`executor scan`: a gate for modules, with its clean twin."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.e2e.command import Shell, wasm

# A custom section `notes` with a token in it, in pieces.
TOKEN: Final = b"ghp" + b"_" + b"Zx9Kq2Lm7Vt4Rw8Ny3Bp6Hd1Jf5Gs0CaEuIo"
SECTION: Final = b"\0" + bytes([6 + len(TOKEN)]) + b"\x05notes" + TOKEN


def test_a_clean_module_passes(shell: Shell) -> None:
    """An example task, signed, has no finding: exit 0, with all that a reader wants to know."""
    shell.run("keygen", "author")
    shell.run("sign", wasm("wordcount"), "--key", "author.key", "-o", "signed.wasm")
    found = shell.json("scan", "signed.wasm")
    assert found["findings"] == []
    assert found["signatures"] == 1
    assert found["wants"] == ["executor:log@1"]
    assert "executor:log@1.log_write" in found["imports"]
    assert ["executor.manifest", 404] in found["sections"]


def test_a_planted_secret_is_found(shell: Shell) -> None:
    """A token in the file is a finding with its place: exit 10, and the token is not shown."""
    (shell.folder / "bad.wasm").write_bytes(Path(wasm("wordcount")).read_bytes() + SECTION)
    done = shell.call("scan", "bad.wasm", "--json")
    assert (done.code, done.err) == (10, "")
    (secret,) = [each for each in done.object()["findings"] if each["grave"]]
    assert (secret["kind"], secret["where"]) == ("GitHub token", "notes")
    assert TOKEN not in done.out
    people = shell.call("scan", "bad.wasm")
    assert people.code == 10
    assert "finding   GitHub token in `notes`" in people.text
    assert TOKEN not in people.out


def test_a_forbidden_import_is_found(shell: Shell) -> None:
    """A module that asks for what nobody offers is a finding, by its name."""
    done = shell.call("scan", wasm("hostile/unknown-import"), "--json")
    assert done.code == 10
    (finding,) = done.object()["findings"]
    assert finding["kind"] == "module.import-unknown"
    assert "`env.system`" in finding["text"]
    assert done.object()["imports"] == ["env.system"]


def test_an_import_that_is_not_declared_is_found(shell: Shell) -> None:
    """What the code calls and the manifest does not say is a finding; the other way is a note."""
    data = Path(wasm("curious")).read_bytes()
    for word, other in ((b"executor:clock@1", b"executor:clock@2"),):
        assert data.count(word) == 2  # the import, and the manifest behind it
        at = data.rindex(word)
        (shell.folder / "other.wasm").write_bytes(data[:at] + other + data[at + len(word) :])
    found = shell.call("scan", "other.wasm", "--json")
    kinds = {(each["kind"], each["text"], each["grave"]) for each in found.object()["findings"]}
    assert ("undeclared import", "executor:clock@1", True) in kinds
    assert ("unused want", "executor:clock@2", False) in kinds


@pytest.mark.parametrize("data", [b"", b"\0asm\x01\0\0\0\x0b\x7f", bytes(64)])
def test_what_is_no_module_is_one_error(shell: Shell, data: bytes) -> None:
    """A file that has no sections is refused as every verb refuses it."""
    (shell.folder / "no.wasm").write_bytes(data)
    done = shell.call("scan", "no.wasm")
    assert done.code == 10
    assert "error[module.invalid]" in done.err


def test_a_module_that_says_nothing_of_itself(shell: Shell) -> None:
    """No manifest, a broken section of signatures: findings, each with its code."""
    bare = b"\0asm\x01\0\0\0" + b"\0\x0c\x09signature?!"
    (shell.folder / "odd.wasm").write_bytes(bare)
    done = shell.call("scan", "odd.wasm", "--json")
    kinds = [each["kind"] for each in done.object()["findings"]]
    assert kinds == ["module.signature-invalid", "module.manifest-invalid", "module.abi-mismatch"]
