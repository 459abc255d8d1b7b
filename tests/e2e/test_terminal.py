"""What depends on who reads: colour, terminals, pipes, signals, completion."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import EXECUTOR, WAIT_S, House, Shell, finish, wasm

COLOUR = "\x1b["


def _on_terminal(shell: Shell, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Run the command on a pseudo-terminal; everything it wrote there."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [EXECUTOR, *arguments], cwd=shell.folder,
            env={**shell.environment(), "TERM": "xterm", **(env or {})},
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)
    written = b""
    try:
        while select.select([ours], [], [], WAIT_S)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break  # the other end is closed
            if not piece:
                break
            written += piece
        process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return written.decode("utf-8", "replace").replace("\r\n", "\n")


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_completion_script(shell: Shell, kind: str) -> None:
    """Each shell gets a script, and `doctor` says how to load it."""
    done = shell.call(env={"_EXECUTOR_COMPLETE": f"{kind}_source"})
    assert (done.code, done.err) == (0, "")
    assert "_EXECUTOR_COMPLETE" in done.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [("executor ins", "inspect"), ("executor dead sh", "show"),
     ("executor explain guest.t", "guest.trap")],
)  # fmt: skip
def test_completion(shell: Shell, words: str, expected: str) -> None:
    """Verbs and codes complete."""
    env = {"_EXECUTOR_COMPLETE": "bash_complete", "COMP_WORDS": words,
           "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    assert expected in shell.call(env=env).text


def test_colour_is_for_terminals(shell: Shell) -> None:
    """Colour on a terminal, none in a pipe, none with NO_COLOR; --color decides otherwise."""
    wrong = ["run", "nothere.wasm"]
    piped, forced = shell.call_all(wrong, [*wrong, "--color", "always"])
    assert COLOUR not in piped.err
    assert COLOUR in forced.err
    # Without its escapes a coloured message is the plain one.
    assert re.sub(r"\x1b\[[0-9;]*m", "", forced.err) == piped.err
    assert COLOUR in _on_terminal(shell, *wrong)
    assert COLOUR not in _on_terminal(shell, *wrong, env={"NO_COLOR": "1"})
    assert COLOUR not in _on_terminal(shell, *wrong, "--color", "never")


def test_json_is_never_coloured(shell: Shell) -> None:
    """--color always does not touch --json."""
    forced = ["--json", "--color", "always"]
    for done in shell.call_all(["explain", *forced], ["run", "x", *forced]):
        assert done.text
        assert COLOUR not in done.text


def test_ids_are_short_on_terminals_only(house: House) -> None:
    """A table shortens long ids where a person reads it, and only there."""
    new = house.json("dead", "retry", "bad")["id"]
    assert house.call("result", new, "--wait").code == 1
    assert new in house.run("dead", "list").text
    table = _on_terminal(house, "dead", "list").partition("look:")[0]
    assert new not in table
    assert f"{new[:6]}…{new[-4:]}" in table


def test_guest_bytes_are_escaped_on_a_terminal(shell: Shell, tmp_path: Path) -> None:
    """What a guest writes cannot move the cursor: its escapes are shown as text."""
    (tmp_path / "echo.c").write_text(
        '#include "executor_task.h"\nTASK(in) { out(in); log_info("%.*s", SHOW(in)); return OK; }\n'
    )
    (tmp_path / "task.toml").write_text(
        'name = "echo"\nversion = "1"\nsource = "echo.c"\noutput = "text/plain"\n'
        '[[uses]]\ncapability = "executor:log@1"\nreason = "x"\n'
    )
    shell.run("build", ".", "-o", "echo.wasm")
    shown = _on_terminal(shell, "run", "echo.wasm", "-i", "a\x1b[2Jb")
    assert "\x1b[2J" not in shown
    assert shown.count("a\\x1b[2Jb") == 2
    assert shell.run("run", "echo.wasm", "-i", "a\x1b[2Jb").text == "a\x1b[2Jb"


def test_long_wait_is_explained(house: House) -> None:
    """A wait above a second says what it waits for, once at its start and once at its end."""
    arguments = ["submit", "wordcount", "--delay", "2s", "--wait"]
    done, quiet = house.call_all(arguments, [*arguments, "-q"])
    assert (done.code, quiet.code) == (0, 0)
    waits = [line for line in done.err.splitlines() if line.startswith("wait")]
    assert waits[0] == "waiting for acme/wordcount …"
    assert re.fullmatch(r"waited \d\.\d s for acme/wordcount", waits[1])
    assert quiet.err == ""


def test_reader_that_leaves(shell: Shell) -> None:
    """A closed pipe ends the command quietly."""
    process = shell.start("explain")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(WAIT_S), said) == (0, b"")


def test_interrupted_wait(house: House) -> None:
    """Ctrl-C while waiting says so and ends with 130; the task goes on."""
    process = house.start("submit", "wordcount", "--id", "later", "--delay", "2s", "--wait")
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"waiting for ")
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    assert house.json("result", "later", "--wait")["outcome"] == "result"


def test_strange_locale(shell: Shell) -> None:
    """A terminal without UTF-8 gets escapes, not a traceback."""
    done = shell.call(
        "run", wasm("wordcount"), "-i", "x", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    )
    assert done.code == 0, done.err
    assert "ok  wordcount" in done.err


def test_file_names_of_any_bytes(shell: Shell) -> None:
    """A name that is no UTF-8 is named in the message, also in JSON."""
    name = os.fsdecode(b"\xff.wasm")
    assert shell.call("run", name).code == 15
    found = shell.call("run", name, "--json").object()
    assert "\udcff.wasm" in found["message"]
