"""`executor run`: one attempt without NATS, its inputs and outputs, its grants and its receipt."""

from __future__ import annotations

import json

import pytest

from tests.e2e.command import TASKS, Shell, wasm

# Writes its input back; what the input and the output are is said in its task.toml.
_ECHO = """\
#include "executor_task.h"
TASK(in) { out(in); return OK; }
"""
_TOML = """\
name = "echo"
version = "1.0.0"
source = "echo.c"
output = "{kind}"
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Modules that give back their input as one of three content types."""
    shell = Shell(tmp_path_factory.mktemp("echo"))
    found = {}
    for kind in ("application/json", "application/msgpack", "application/octet-stream"):
        (shell.folder / "echo.c").write_text(_ECHO)
        (shell.folder / "task.toml").write_text(_TOML.format(kind=kind))
        name = kind.rpartition("/")[2]
        shell.run("build", ".", "-o", f"{name}.wasm")
        found[name] = str(shell.folder / f"{name}.wasm")
    return found


def test_text(shell: Shell) -> None:
    """The output is stdout, byte for byte; the log and the receipt are on stderr, in order."""
    done = shell.run("run", wasm("wordcount"), "-i", "one two two")
    assert done.out == b'{"words":3,"distinct":2}'
    log, summary = done.err.splitlines()
    assert log == "log info   counted 3 words, 2 distinct"
    assert summary.startswith("ok  wordcount  fuel ")
    assert "containment full" in summary


def test_json_shape(shell: Shell) -> None:
    """The object has an outcome, a code, the output as a value, the log, and a receipt."""
    found = shell.json("run", wasm("wordcount"), "-i", "one two")
    receipt = found.pop("receipt")
    digest = found.pop("digest")
    assert found == {
        "schema": "executor.run/1", "outcome": "result", "code": None, "task": "wordcount",
        "version": "1.0.0", "output": {"words": 2, "distinct": 2},
        "content_type": "application/json",
        "logs": [{"level": "info", "text": "counted 2 words, 2 distinct"}],
    }  # fmt: skip
    assert receipt["digest"] == digest
    assert receipt["fuel_used"] > 0
    assert receipt["memory_peak_bytes"] >= 64 * 1024
    assert receipt["guest_us"] > 0
    assert receipt["host_us"] >= 0
    assert receipt["host_calls"] >= 1
    assert (receipt["input_bytes"], receipt["log_lines"], receipt["log_dropped"]) == (7, 1, 0)
    assert receipt["output_bytes"] == len('{"words":2,"distinct":2}')
    assert receipt["engine"].startswith("wasmtime ")
    assert receipt["containment"] == "full"


def test_fuel_is_the_same_each_time(shell: Shell) -> None:
    """The same input costs the same fuel; exactly that much suffices, a tenth does not."""

    def used(*more: str) -> int:
        found = shell.json("run", wasm("wordcount"), "-i", "a b", *more)
        fuel: int = found["receipt"]["fuel_used"]
        return fuel

    fuel = used()
    assert used("--fuel", str(fuel)) == fuel
    poor = shell.call("run", wasm("wordcount"), "-i", "a b", "--fuel", str(fuel // 10))
    assert poor.code == 12
    assert "limit.fuel-exhausted" in poor.err


def test_input_from_file_and_stdin(shell: Shell) -> None:
    """`@FILE` reads a file, `-` reads stdin; all three spellings are one input."""
    data = "zwölf Bären\n".encode()
    (shell.folder / "poem").write_bytes(data)
    call = ["run", wasm("wordcount")]
    from_file, from_text, empty = shell.call_all(
        [*call, "-i", "@poem"], [*call, "-i", data.decode()], call
    )
    assert b'"words":2' in from_file.out
    assert from_file.out == from_text.out
    assert from_file.out == shell.run(*call, "-i", "-", stdin=data).out
    assert empty.out == b'{"words":0,"distinct":0}'


def test_every_byte_passes(shell: Shell, echo: dict[str, str]) -> None:
    """Raw bytes go in and out unchanged; --json carries them as base64."""
    data = bytes(range(256))
    (shell.folder / "bytes").write_bytes(data)
    arguments = ["run", echo["octet-stream"], "--type", "raw", "-i", "@bytes"]
    assert shell.run(*arguments).out == data
    found = shell.json(*arguments)
    assert found["output"] is None
    assert found["output_base64"].startswith("AAECAwQF")


def test_json_and_msgpack(shell: Shell, echo: dict[str, str]) -> None:
    """JSON stays JSON; with --type msgpack it is packed, and unpacked for --json."""
    value = {"name": "Zoë", "sizes": [1, 2.5, None, True]}
    text = json.dumps(value)
    assert shell.json("run", echo["json"], "--type", "json", "-i", text)["output"] == value
    packed = shell.run("run", echo["msgpack"], "--type", "msgpack", "-i", text).out
    assert packed[:1] == b"\x82"
    found = shell.json("run", echo["msgpack"], "--type", "msgpack", "-i", text)
    assert found["output"] == value


@pytest.mark.parametrize("output", [b"[" * 100_000, b"NaN", b"\xff", b"{"], ids=repr)
def test_output_that_is_not_what_it_says(shell: Shell, echo: dict[str, str], output: bytes) -> None:
    """A guest that calls anything JSON gets it printed as base64: it cannot break the command."""
    (shell.folder / "bytes").write_bytes(output)
    done = shell.run("run", echo["json"], "--type", "raw", "-i", "@bytes", "--json")
    found = json.loads(done.out, parse_constant=pytest.fail)
    assert found["output"] is None
    assert found["output_base64"]


def test_bucket(shell: Shell) -> None:
    """`--kv` fills the bucket first: the flaky task finds that it ran before."""
    module = wasm("flaky")
    call = ["run", module, "-i", "x"]
    first, second = shell.call_all(
        [*call, "--allow", "log", "--allow", "kv"], [*call, "--kv", "seen-x=1"]
    )
    assert first.code == 1
    assert "error[guest.failed]" in first.err
    assert "log warn   first attempt for `x`: asking for another" in first.err
    assert second.text == "done: x"
    assert "log info   second attempt for `x`" in second.err


def test_scope_of_a_grant(shell: Shell) -> None:
    """`--allow kv=PREFIX` is the part of the bucket that the guest sees; `:read` refuses writes."""
    arguments = ["run", wasm("flaky"), "-i", "x", "--allow", "log"]
    inside = ["--kv", "space/seen-x=1", "--allow", "kv=space/"]
    assert shell.run(*arguments, *inside).text == "done: x"
    outside = ["--kv", "seen-x=1", "--allow", "kv=space/"]
    assert "not ready" in shell.call(*arguments, *outside).err
    # The module can write: a grant that only reads does not cover it, and it never starts.
    done = shell.call(*arguments, "--kv", "seen-x=1", "--allow", "kv=:read")
    assert done.code == 11
    assert "`kv_put`" in done.err


ENDS = {
    "hostile/trap": ("guest.trap", 1),
    "hostile/bad-pointer": ("guest.bad-pointer", 1),
    "hostile/spin": ("limit.fuel-exhausted", 12),
    "hostile/start-loop": ("limit.fuel-exhausted", 12),
    "hostile/balloon": ("limit.memory-exceeded", 12),
    "hostile/recursion": ("limit.stack-exhausted", 12),
    "hostile/huge-output": ("limit.output-too-large", 12),
    "hostile/unknown-import": ("module.import-unknown", 10),
    "flaky": ("policy.capability-denied", 11),
}


@pytest.mark.parametrize("name", ENDS)
def test_exit_status_is_the_code(shell: Shell, name: str) -> None:
    """A guest's failure is one message with its code, and the status that belongs to it."""
    code, status = ENDS[name]
    few = ["--fuel", "200000000"]
    call = ["run", wasm(name), *few]
    done, plain = shell.call_all(call, [*call, "--json"])
    assert f"error[{code}]: " in done.err
    assert "hint: " in done.err
    assert done.out == b""
    found = plain.object()
    assert (done.code, plain.code) == (status, status)
    assert (found.get("exit", status), found["code"]) == (status, code)
    if found["schema"] == "executor.run/1":
        assert found["outcome"] == "failure"
        assert found["hint"]
        assert found["receipt"]["containment"] == "full"
    else:
        assert found["schema"] == "executor.error/1"


def test_deadline(shell: Shell) -> None:
    """A guest with fuel to spare is killed at its deadline."""
    (shell.folder / "executor.toml").write_text("[limits]\nfuel = 50_000_000_000\n")
    done = shell.call("run", wasm("hostile/slow"), "--deadline-ms", "100")
    assert (done.code, "error[limit.deadline-exceeded]" in done.err) == (12, True)


def test_trap_names_the_functions(shell: Shell) -> None:
    """A trap's message has the guest's frames, innermost first."""
    text = shell.call("run", wasm("hostile/trap")).err
    assert "frames  parse_header < load_image < run" in text


def test_log_flood_is_cut(shell: Shell) -> None:
    """Log lines past the cap are dropped, counted and said so; the task succeeds."""
    call = ["run", wasm("hostile/log-flood")]
    done, plain = shell.call_all(call, [*call, "--json"])
    assert done.code == 0
    assert done.err.count("log info ") == 256
    assert "9 742 more lines dropped" in done.err
    assert plain.object()["receipt"]["log_dropped"] == 9742


def test_configuration_lowers_the_caps(shell: Shell) -> None:
    """The limits of executor.toml hold for `run` as they do for `serve`."""
    (shell.folder / "executor.toml").write_text("[limits]\nfuel = 10\n")
    done = shell.call("run", wasm("wordcount"), "-i", "a")
    assert "limit.fuel-exhausted" in done.err


def test_samples_give_what_they_promise(shell: Shell) -> None:
    """The committed modules give the committed output, for C and Zig alike."""
    samples = {"wordcount": "in", "wordcount-zig": "in", "ascii-art": "ppm"}
    ended = shell.call_all(*[
        ["run", wasm(name), "--type", "raw", "-i", f"@{TASKS / name / f'sample.{kind}'}"]
        for name, kind in samples.items()
    ])  # fmt: skip
    for name, done in zip(samples, ended, strict=True):
        assert done.out == (TASKS / name / "sample.out").read_bytes()
