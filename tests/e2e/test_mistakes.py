"""What users get wrong: each ends with one message, a hint and the documented exit status."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.command import Done, House, Shell, free_port, wasm

USAGE = "usage"


@dataclass(frozen=True)
class Mistake:
    """A command line, the code and exit status it ends with, and words that must be said."""

    arguments: str
    code: str
    exit: int
    says: str = ""


def _check(done: Done, mistake: Mistake) -> None:
    assert done.code == mistake.exit, f"{done.code}\n{done.text}\n{done.err}"
    assert done.out == b""
    assert f"error[{mistake.code}]: " in done.err, done.err
    assert len(re.findall(r"^error\[", done.err, re.MULTILINE)) == 1
    assert re.search(r"^  hint: \S", done.err, re.MULTILINE), done.err
    assert "Traceback" not in done.err
    assert mistake.says in done.err, done.err


def _both(shell: Shell, mistake: Mistake) -> None:
    """Make the mistake for people and for programs, where nothing is written at the same time."""
    arguments = mistake.arguments.split()
    if arguments[:2] == ["tenant", "add"]:
        people, done = shell.call(*arguments), shell.call(*arguments, "--json")
    else:
        people, done = shell.call_all(arguments, [*arguments, "--json"])
    _check(people, mistake)
    found = done.objects()[-1]
    assert found["schema"] == "executor.error/1"
    assert (found["code"], found["exit"], done.code) == (mistake.code, mistake.exit, mistake.exit)
    assert found["message"]
    assert found["hint"]
    assert done.err == "" or arguments[0] == "serve"  # which logs there


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a valid configuration, no server behind it, and all kinds of wrong files."""
    shell = Shell(tmp_path_factory.mktemp("mess") / "mine")
    shell.folder.mkdir()
    shell.run("init", ".")
    config = shell.folder / "executor.toml"
    config.write_text(config.read_text().replace("4222", str(free_port())))
    module = Path(wasm("wordcount")).read_bytes()
    (shell.folder / "module.wasm").write_bytes(module)
    (shell.folder / "garbage.wasm").write_bytes(bytes(range(256)))
    (shell.folder / "empty.wasm").write_bytes(b"")
    (shell.folder / "truncated.wasm").write_bytes(module[: len(module) // 2])
    (shell.folder / "bare.wasm").write_bytes(
        bytes.fromhex("0061736d010000000105016000017f030201000503010001071002066d656d6f7279020003"
                      "72756e00000a0601040041000b")
    )  # fmt: skip
    (shell.folder / "big").write_bytes(b"x" * (512 * 1024 + 1))
    (shell.folder / "deep.json").write_bytes(b"[" * 100_000)
    (shell.folder / "open.key").write_bytes((shell.folder / "keys/author.key").read_bytes())
    (shell.folder / "open.key").chmod(0o644)
    (shell.folder / "wrong.key").write_text((shell.folder / "keys/author.pub").read_text())
    (shell.folder / "wrong.key").chmod(0o600)
    shell.run("keygen", "other")
    shell.run("sign", "module.wasm", "--key", "keys/author.key", "-o", "signed.wasm")
    signed = bytearray((shell.folder / "signed.wasm").read_bytes())
    signed[-1] ^= 1
    (shell.folder / "flipped.wasm").write_bytes(bytes(signed))
    (shell.folder / "half").mkdir()
    (shell.folder / "half" / "executor.toml").write_text("")
    return shell


MISTAKES = [
    # Files.
    Mistake("run nothere.wasm", "config.missing", 15, "`nothere.wasm`"),
    Mistake("run keys", "config.missing", 15, "is a directory"),
    Mistake("run garbage.wasm", "module.invalid", 10),
    Mistake("run empty.wasm", "module.invalid", 10),
    Mistake("run truncated.wasm", "module.invalid", 10),
    Mistake("run executor.toml", "module.invalid", 10),
    Mistake("run bare.wasm", "module.manifest-invalid", 10),
    Mistake("inspect garbage.wasm", "module.invalid", 10),
    Mistake("sign garbage.wasm --key keys/author.key", "module.invalid", 10),
    Mistake("sign module.wasm --key keys/author.key -o no/such/folder", "config.invalid", 15,
            "`no/such/folder`"),
    Mistake("build nothere", "config.missing", 15, "`nothere`"),
    Mistake("build keys", "config.invalid", 15, "task.toml"),
    # Keys and signatures.
    Mistake("sign module.wasm --key open.key", "config.invalid", 15, "chmod 600"),
    Mistake("sign module.wasm --key wrong.key", "config.invalid", 15, "keygen"),
    Mistake("sign module.wasm --key nothere.key", "config.missing", 15),
    Mistake("keygen keys/author", "config.invalid", 15, "exists"),
    Mistake("keygen no/such/folder/key", "config.missing", 15, "`no/such/folder`"),
    Mistake("init .", "config.invalid", 15, "exists"),
    Mistake("init half", "config.invalid", 15, "exists"),
    Mistake("init module.wasm", USAGE, 2, "is a file"),
    Mistake("init x --tenant a.b", USAGE, 2, "`a.b`"),
    Mistake("verify module.wasm", "module.unsigned", 10, "executor sign"),
    Mistake("verify flipped.wasm", "module.signature-invalid", 10),
    Mistake("verify signed.wasm --key other.pub", "module.signer-untrusted", 10),
    Mistake("verify signed.wasm --key other.key", "config.invalid", 15, "no public key"),
    Mistake("publish module.wasm", "module.unsigned", 10, "executor sign"),
    Mistake("publish signed.wasm --tenant nobody", "policy.task-unknown", 11, "acme"),
    # The command line.
    Mistake("pubish x", USAGE, 2, "`publish`"),
    Mistake("dead lst", USAGE, 2, "`list`"),
    Mistake("submit x --wiat", USAGE, 2, "--wait"),
    Mistake("run", USAGE, 2, "MODULE"),
    Mistake("run module.wasm --fuel lots", USAGE, 2, "--fuel"),
    Mistake("run module.wasm --type yaml", USAGE, 2, "msgpack"),
    Mistake("run module.wasm --kv novalue", USAGE, 2, "KEY=VALUE"),
    Mistake("explain limit.fuel", USAGE, 2, "`limit.fuel-exhausted`"),
    Mistake("help sumbit", USAGE, 2, "`submit`"),
    Mistake("submit wordcount --wait --timeout soon", USAGE, 2, "500ms"),
    Mistake("submit wordcount --expires 99999999999d", USAGE, 2, "ten years"),
    Mistake("submit wordcount --id _mine", USAGE, 2, "_"),
    Mistake("submit wordcount --id a.b", USAGE, 2, "[A-Za-z0-9_-]"),
    Mistake("submit wordcount --id a --key b", USAGE, 2, "not both"),
    Mistake("submit a/b/c", USAGE, 2, "TENANT/TASK"),
    Mistake("submit wordcount --at noon", USAGE, 2, "2026-01-31T09:30Z"),
    Mistake("submit wordcount --at 1815-12-10", USAGE, 2, "out of reach"),
    Mistake("submit wordcount --at 2030-01-01 --delay 1s", USAGE, 2, "not both"),
    Mistake("schedule add wordcount", USAGE, 2, "--every 90s"),
    Mistake("schedule add wordcount --every 1h --cron @daily", USAGE, 2, "--cron"),
    Mistake("schedule add wordcount --every 500ms", USAGE, 2, "at least one"),
    Mistake("schedule add wordcount --every 90", USAGE, 2, "2s"),
    Mistake("schedule add wordcount --cron @often", USAGE, 2, "@daily"),
    Mistake("schedule add wordcount --cron @daily --time-zone Mars/X", USAGE, 2, "Europe/Berlin"),
    Mistake("schedule add wordcount --every 1h --time-zone UTC", USAGE, 2, "--cron"),
    Mistake("schedule add wordcount --every 1h --id _mine", USAGE, 2, "_"),
    Mistake("schedule add a/b/c --every 1h", USAGE, 2, "TENANT/TASK"),
    Mistake("schedule add nobody/wordcount --every 1h", "policy.task-unknown", 11, "tenant list"),
    Mistake("schedule add wordcount --every 1h -i @big", "message.too-large", 16),
    Mistake("schedule list --tenant a.b", USAGE, 2, "`a.b`"),
    Mistake("result no.id", USAGE, 2, "`no.id`"),
    Mistake("dead list --code guest.tarp", USAGE, 2, "`guest.trap`"),
    Mistake("dead discard x", USAGE, 2, "--yes"),
    Mistake("dead retry", USAGE, 2, "--all"),
    Mistake("dead discard x --all --yes", USAGE, 2, "--all"),
    Mistake("dead retry x --code guest", USAGE, 2, "go with --all"),
    Mistake("dead list --since yesterday", USAGE, 2, "2h (ago)"),
    Mistake("dead list --digest sha256:xyz", USAGE, 2, "hex"),
    Mistake("tenant remove acme", USAGE, 2, "--yes"),
    Mistake("tenant remove nobody --yes", "config.missing", 15, "`nobody`"),
    Mistake("tenant remove acme --yes", "config.invalid", 15, "[[grant]]"),
    Mistake("tenant add acme", "config.invalid", 15, "exists"),
    Mistake("tenant add a.b", USAGE, 2, "`a.b`"),
    # Inputs and what a run may have.
    Mistake("run module.wasm -i @missing", "config.missing", 15, "`missing`"),
    Mistake("run module.wasm -i @big", "message.too-large", 16, "524288"),
    Mistake("run module.wasm -i {broken --type json", "message.malformed", 16, "not JSON"),
    Mistake("run module.wasm -i @deep.json --type json", "message.malformed", 16, "not JSON"),
    Mistake("run module.wasm -i 1e999999999999999999999999x --type msgpack", "message.malformed",
            16),
    Mistake("run module.wasm -i 99999999999999999999 --type msgpack", "message.malformed", 16),
    Mistake("run module.wasm --allow nonsense", "config.invalid", 15, "kv[=PREFIX"),
    Mistake("--config nothere.toml config show", "config.missing", 15, "nothere.toml"),
    Mistake("--config garbage.wasm config show", "config.invalid", 15),
    # Nobody listens on this port.
    Mistake("submit wordcount", "transport.disconnected", 14, "nats-server"),
    Mistake("schedule list", "transport.disconnected", 14, "nats-server"),
    Mistake("result some", "transport.disconnected", 14),
    Mistake("publish signed.wasm", "transport.disconnected", 14),
    Mistake("serve", "transport.disconnected", 14),
    Mistake("nats check", "transport.disconnected", 14),
    Mistake("dead list", "transport.disconnected", 14),
    Mistake("tenant add beta", "transport.disconnected", 14),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.arguments.replace(" ", "_"))
def test_mistake(mess: Shell, mistake: Mistake) -> None:
    """The message names what is wrong and what to do, on stderr, or as an object with --json."""
    before = (mess.folder / "executor.toml").read_bytes()
    _both(mess, mistake)
    assert (mess.folder / "executor.toml").read_bytes() == before
    assert not (mess.folder / "x").exists()


@pytest.mark.parametrize(
    ("option", "most"),
    [("--fuel 1000000001", 10**9), ("--memory-mib 65", 64 * 2**20), ("--deadline-ms 2001", 2000)],
)
@pytest.mark.covers("policy.limit-too-high")
def test_limits_above_the_host(mess: Shell, option: str, most: int) -> None:
    """A run may have less than the host allows, never more; the message says how much."""
    mistake = Mistake(f"run module.wasm {option}", "policy.limit-too-high", 11, f"allows {most}")
    _both(mess, mistake)


@pytest.mark.covers("policy.capability-denied")
def test_denied_capabilities_are_named_together(mess: Shell) -> None:
    """A refusal names every missing function, the flags that allow them here, and the grants."""
    mistake = Mistake(f"run {wasm('curious')}", "policy.capability-denied", 11)
    _both(mess, mistake)
    text = mess.call(*mistake.arguments.split()).err
    for part in ("`clock_now_ns`", "`kv_get`", "`kv_put`", "--allow clock --allow kv",
                 "clock = true", 'kv = { prefix = "", mode = "write" }'):  # fmt: skip
        assert part in text
    allowed = mess.run("run", wasm("curious"), "--allow", "clock", "--allow", "kv")
    assert allowed.text == "last visit: "


def _without(text: str) -> Callable[[str], str]:
    return lambda config: config.replace(text, "")


CONFIGS: dict[str, tuple[Callable[[str], str], str, str]] = {
    "broken": (lambda text: text + "[nats\n", "config.invalid", "executor.toml"),
    "unknown key": (lambda text: text + "\n[limits]\nfule = 5\n", "config.key-unknown",
                    "did you mean `fuel`"),
    "unknown section": (lambda text: text + "\n[limit]\nfuel = 5\n", "config.key-unknown",
                        "did you mean `limits`"),
    "inline secret": (lambda text: text.replace("[nats]", '[nats]\npassword = "x"'),
                      "config.secret-inline", "`nats.password`"),
    "wrong type": (lambda text: text + '\n[limits]\nfuel = "much"\n', "config.invalid",
                   "whole number"),
    "out of bounds": (lambda text: text + "\n[limits]\nfuel = 0\n", "config.invalid", "1.."),
    "no reason": (_without('why = "log lines are bounded and escaped"\n'), "config.invalid",
                  "`why`"),
    "unknown tenant": (lambda text: text.replace('tenant = "acme"', 'tenant = "nobody"'),
                       "config.invalid", "`nobody`"),
    "no key file": (lambda text: text.replace("executor.key", "nothere.key"), "config.missing",
                    "host.key_file"),
    "not a key": (lambda text: text.replace("ed25519:", "rsa:"), "config.invalid", "key"),
}  # fmt: skip


@pytest.fixture
def copy(mess: Shell, tmp_path: Path) -> Shell:
    """The folder's configuration and keys, to be spoilt."""
    shutil.copytree(mess.folder / "keys", tmp_path / "keys")
    shutil.copy(mess.folder / "executor.toml", tmp_path)
    return Shell(tmp_path)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.covers("config.key-unknown", "config.secret-inline")
def test_configuration_mistake(copy: Shell, case: str) -> None:
    """A wrong executor.toml stops every verb with the place and, where there is one, a guess."""
    change, code, says = CONFIGS[case]
    path = copy.folder / "executor.toml"
    path.write_text(change(path.read_text()))
    _both(copy, Mistake("config check", code, 15, says))


def test_all_configuration_mistakes_at_once(copy: Shell) -> None:
    """Every error of the file is in one message."""
    path = copy.folder / "executor.toml"
    path.write_text(path.read_text() + '\n[limits]\nfule = 5\ndeadline_ms = "x"\n')
    text = copy.call("serve").err
    assert "fule" in text
    assert "deadline_ms" in text


@pytest.mark.parametrize(
    ("variable", "code", "says"),
    [
        ("EXECUTOR_LIMITS_FULE", "config.key-unknown", "EXECUTOR_LIMITS_FUEL"),
        ("EXECUTOR_LIMITS_FUEL", "config.invalid", "whole number"),
    ],
)
def test_environment_mistake(copy: Shell, variable: str, code: str, says: str) -> None:
    """A variable that is no setting, or has no value of its kind, is refused by name."""
    copy.env = {variable: "much"}
    _both(copy, Mistake("config check", code, 15, says))


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("serve", "config.missing", 15, "executor.toml"),
        Mistake("config check", "config.missing", 15, "executor.toml"),
        Mistake("tenant list", "config.missing", 15, "executor.toml"),
        Mistake("nats apply", "config.missing", 15, "executor.toml"),
        Mistake("submit wordcount", USAGE, 2, "--tenant"),
        Mistake("submit acme/wordcount", "trust.missing", 18, "[[executor]]"),
        Mistake("result x --tenant acme", "trust.missing", 18, "[[executor]]"),
    ],
    ids=lambda m: m.arguments.replace(" ", "_"),
)
@pytest.mark.covers("config.missing", "trust.missing")
def test_without_configuration(shell: Shell, mistake: Mistake) -> None:
    """Without executor.toml nothing is assumed: the message says what is missing."""
    _both(shell, mistake)


def test_doctor_without_nats(mess: Shell) -> None:
    """`doctor` reports all it found, each with a hint, and ends as its first failure."""
    done = mess.call("doctor", "--json")
    findings = done.object()["findings"]
    failed = [f for f in findings if f["state"] == "fail"]
    assert [(f["code"], bool(f["hint"])) for f in failed] == [("transport.disconnected", True)]
    assert done.code == 14
    well = [f["what"] for f in findings if f["state"] == "ok"]
    assert any("containment full" in what for what in well)
    assert "attempts take the raw path" in well


def test_no_files_left_by_a_refused_keygen(mess: Shell) -> None:
    """A public key that stands alone is not overwritten, and no secret key is made."""
    alone = mess.folder / "alone.pub"
    alone.write_text("precious")
    assert mess.call("keygen", "alone").code == 15
    assert alone.read_text() == "precious"
    assert not (mess.folder / "alone.key").exists()


# What needs a running executor.


@pytest.fixture(scope="module")
def ghost(house: House) -> Shell:
    """The same NATS with a tenant in executor.toml whose streams nobody made."""
    folder = house.folder / "ghost"
    folder.mkdir()
    text = (house.folder / "executor.toml").read_text().replace("keys/", "../keys/")
    (folder / "executor.toml").write_text(text + '\n[[tenant]]\nname = "ghost"\n')
    return Shell(folder)


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("schedule remove nosuch", "config.missing", 15, "schedule list"),
        Mistake("submit nosuch --wait", "policy.task-unknown", 11, "wordcount"),
        Mistake("submit nobody/wordcount", "transport.stream-missing", 14, "tenant"),
        Mistake("result nosuch", "transport.outcome-pending", 14, "executor result nosuch --wait"),
        Mistake("result nosuch --wait --timeout 100ms", "transport.outcome-pending", 14),
        Mistake(
            "submit wordcount --delay 1h --wait --timeout 100ms",
            "transport.outcome-pending",
            14,
            "--wait",
        ),
        Mistake("dead show good", USAGE, 2, "has a result"),
        Mistake("dead show nosuch", "transport.outcome-pending", 14, "executor dead list"),
        Mistake("dead retry good", USAGE, 2, "has a result"),
        Mistake("dead discard nosuch --yes", "transport.outcome-pending", 14),
        Mistake("submit wordcount --id mine/1", USAGE, 2),
    ],
    ids=lambda m: m.arguments.replace(" ", "_"),
)
@pytest.mark.covers("transport.outcome-pending")
def test_mistake_with_an_executor(house: House, mistake: Mistake) -> None:
    """What a running executor or its NATS refuses is said as clearly."""
    arguments = mistake.arguments.split()
    people, programs = house.call_all(arguments, [*arguments, "--json"])
    _check(people, mistake)
    found = programs.objects()[-1]
    assert (found["code"], found["schema"]) in {
        (mistake.code, "executor.error/1"), (mistake.code, "executor.outcome/1")
    }  # fmt: skip


@pytest.mark.covers("module.signer-untrusted")
def test_untrusted_signer(house: House) -> None:
    """A module signed by a key that executor.toml does not list is not published."""
    house.run("keygen", "stranger")
    house.run("sign", wasm("wordcount"), "--key", "stranger.key", "-o", "foreign.wasm")
    _both(house, Mistake("publish foreign.wasm", "module.signer-untrusted", 10, "[[publisher]]"))
    _both(house, Mistake("verify foreign.wasm", "module.signer-untrusted", 10))


@pytest.mark.parametrize("verb", ["nats check", "submit ghost/wordcount", "serve"])
def test_streams_missing(ghost: Shell, verb: str) -> None:
    """A tenant without streams is refused with the verb that makes them."""
    _both(ghost, Mistake(verb, "transport.stream-missing", 14, "executor"))


@pytest.mark.covers("message.expired")
def test_expired_before_it_started(house: House) -> None:
    """`--expires 0s` is not `for ever`: the task is dead with its code."""
    done = house.call("submit", "wordcount", "--expires", "0s", "--wait", "--json")
    assert done.object()["code"] == "message.expired"
    assert done.code == 16


def test_port_taken(house: House) -> None:
    """A second embedded server on the same port is refused before it opens the store."""
    done = house.call("serve", "--embedded")
    assert done.code == 15, done.err
    assert "error[config.invalid]" in done.err
    assert "already listens" in done.err
