"""Every verb: its happy path, its `--json`, its help, its silence."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import TASKS, Done, House, Shell, wasm

_NEW = itertools.count()

_WHO = [
    *(part for who in ("root", "targets", "policy", "releases", "online")
      for part in (f"--{who}", "keys/author.pub")),
    "--threshold", "root=1", "--threshold", "policy=1",
]  # fmt: skip

# name → (arguments, schema); `{new}` is a name that was never used, `{tmp}` an empty folder.
HAPPY = {
    "init": (["init", "{tmp}/mine"], "executor.init/1"),
    "run": (["run", wasm("wordcount"), "-i", "one two"], "executor.run/1"),
    "build": (["build", str(TASKS / "hostile/trap"), "-o", "{tmp}/x.wasm"], "executor.built/1"),
    "keygen": (["keygen", "{tmp}/fresh"], "executor.key/1"),
    "sign": (["sign", wasm("wordcount"), "--key", "keys/author.key", "-o", "{tmp}/x.wasm"],
             "executor.signed/1"),
    "verify": (["verify", "wordcount.wasm"], "executor.verified/1"),
    "verify with a key": (["verify", "wordcount.wasm", "--key", "keys/author.pub"],
                          "executor.verified/1"),
    "inspect": (["inspect", wasm("curious")], "executor.module/1"),
    "build, and say who": (
        ["build", str(TASKS / "hostile/trap"), "-o", "{tmp}/x.wasm", "--builder-key",
         "keys/author.key"], "executor.built/1"
    ),
    "scan": (["scan", wasm("curious")], "executor.scan/1"),
    "publish": (["publish", "wordcount.wasm", "--tenant", "acme"], "executor.release/1"),
    "submit": (["submit", "wordcount", "-i", "one"], "executor.submitted/1"),
    "submit and wait": (["submit", "acme/wordcount", "-i", "one", "--wait"], "executor.outcome/1"),
    "result": (["result", "good"], "executor.outcome/1"),
    "cancel": (["cancel", "{new}", "--timeout", "10ms"], "executor.cancelled/1"),
    "cancel what has ended": (["cancel", "good"], "executor.cancelled/1"),
    "schedule add": (["schedule", "add", "wordcount", "--every", "1h", "--id", "{new}"],
                     "executor.schedule/1"),
    "schedule list": (["schedule", "list"], "executor.schedule/1"),
    "schedule remove": (["schedule", "remove", "{schedule}"], "executor.schedule/1"),
    "dead list": (["dead", "list"], "executor.outcome/1"),
    "dead list by code": (["dead", "list", "--code", "guest", "--task", "trap"],
                          "executor.outcome/1"),
    "dead show": (["dead", "show", "bad"], "executor.outcome/1"),
    "dead retry": (["dead", "retry", "bad"], "executor.submitted/1"),
    "dead discard": (["dead", "discard", "{dead}", "--yes"], "executor.discarded/1"),
    "dead export": (["dead", "export", "bad"], "executor.dead/1"),
    "pause": (["pause", "wordcount-zig"], "executor.paused/1"),
    "resume": (["resume", "wordcount-zig"], "executor.paused/1"),
    "quarantine add": (["quarantine", "add", f"sha256:{'ab' * 32}"], "executor.quarantine/1"),
    "quarantine list": (["quarantine", "list"], "executor.quarantined/1"),
    "quarantine lift": (["quarantine", "lift", f"sha256:{'ab' * 32}"], "executor.quarantine/1"),
    "top": (["top", "--once"], "executor.top/1"),
    "health": (["health"], "executor.health/1"),
    "tenant list": (["tenant", "list"], "executor.tenants/1"),
    "tenant add": (["tenant", "add", "{new}"], "executor.tenant/1"),
    "tenant remove": (["tenant", "remove", "{tenant}", "--yes"], "executor.tenant/1"),
    "nats apply": (["nats", "apply"], "executor.streams/1"),
    "nats check": (["nats", "check"], "executor.streams/1"),
    "bench module": (["bench", "module", wasm("wordcount"), "-i", "one", "--seconds", "0.05"],
                     "executor.bench/1"),
    "bench plan": (["bench", "plan", "--rate", "5000"], "executor.plan/1"),
    "bench plan of machines": (["bench", "plan", "--machines", "10"], "executor.plan/1"),
    "nats config": (["nats", "config", "--make-tls", "--out", "{tmp}/nats"],
                    "executor.nats-config/1"),
    "nats mint": (["nats", "mint", "reader_acme", "--out", "{tmp}/nats"], "executor.minted/1"),
    "trust init": (["trust", "init", "--folder", "{tmp}/signed", "--policy-file",
                    "{signed}/policy.toml", *_WHO], "executor.trust/1"),
    "trust status": (["trust", "status", "--config", "{signed}/executor.toml"], "executor.trust/1"),
    "trust sign": (["trust", "sign", "{signed}/policy.toml", "--config", "{signed}/executor.toml"],
                   "executor.trust/1"),
    "trust rotate": (["trust", "rotate", "--days", "policy={number}", "--config",
                      "{signed}/executor.toml"], "executor.trust/1"),
    "trust revoke": (["trust", "revoke", f"sha256:{'ab' * 32}", "--config",
                      "{signed}/executor.toml"], "executor.trust/1"),
    "trust renew": (["trust", "renew", "policy", "--config", "{signed}/executor.toml"],
                    "executor.trust/1"),
    "trust verify": (["trust", "verify", "--config", "{signed}/executor.toml"],
                     "executor.trust-verified/1"),
    "trust push": (["trust", "push", "--config", "{signed}/executor.toml"], "executor.trust/1"),
    "trust refresh": (["trust", "refresh", "--config", "{signed}/executor.toml"],
                      "executor.trust-verified/1"),
    "policy check": (["policy", "check"], "executor.policy/1"),
    "policy can-i": (["policy", "can-i", "submit", "acme/wordcount", "--as", "tenant:acme"],
                     "executor.decision/1"),
    "policy matrix": (["policy", "matrix"], "executor.matrix/1"),
    "grant explain": (["grant", "explain", "acme/wordcount"], "executor.explained/1"),
    "grant explain a file": (["grant", "explain", "acme/curious", "--module", "curious.wasm"],
                             "executor.explained/1"),
    "grant diff": (["grant", "diff", "executor.toml", "executor.toml"], "executor.difference/1"),
    "grant shadow": (["grant", "shadow"], "executor.shadow/1"),
    "grant report": (["grant", "report"], "executor.grants/1"),
    "session start": (["session", "start", "--config", "{signed}/executor.toml"],
                      "executor.session/1"),
    "session status": (["session", "status", "--config", "{signed}/executor.toml"],
                       "executor.session/1"),
    "session end": (["session", "end", "--config", "{signed}/executor.toml"],
                    "executor.session/1"),
    "break-glass request": (
        ["break-glass", "request", "--action", "pause", "--task", "acme/wordcount", "--minutes",
         "5", "--why", "it floods", "-o", "{tmp}/glass.json"], "executor.break-glass/1"
    ),
    "break-glass list": (["break-glass", "list"], "executor.openings/1"),
    "break-glass close": (["break-glass", "close", "{new}"], "executor.closed/1"),
    "doctor": (["doctor"], "executor.doctor/1"),
    "explain": (["explain"], "executor.codes/1"),
    "explain a code": (["explain", "guest.trap"], "executor.code/1"),
    "config show": (["config", "show"], "executor.config/1"),
    "config check": (["config", "check"], "executor.config/1"),
    "help": (["help", "exit-codes"], "executor.help/1"),
    "help on a verb": (["help", "dead", "list"], "executor.help/1"),
}  # fmt: skip

VERBS = [
    "demo", "init", "run", "build", "sign", "verify", "inspect", "keygen", "scan", "publish",
    "serve", "submit", "result", "cancel", "schedule add", "schedule list", "schedule remove",
    "dead list", "dead show", "dead retry", "dead discard", "dead export",
    "pause", "resume", "quarantine list", "quarantine add", "quarantine lift", "top", "health",
    "tenant list", "tenant add", "tenant remove",
    "nats apply", "nats check", "nats config", "nats mint", "nats reload", "nats revoke",
    "bench module", "bench plan", "trust init", "trust sign", "trust status", "trust rotate",
    "trust revoke", "trust renew", "trust verify", "trust push", "trust refresh",
    "policy check", "policy can-i", "policy matrix", "grant explain", "grant diff",
    "grant shadow", "grant report", "session start", "session status", "session end",
    "break-glass request", "break-glass approve", "break-glass open", "break-glass list",
    "break-glass close", "doctor", "explain", "config show", "config check", "help",
]  # fmt: skip
UNLISTED = {"help"}
FAMILIES = ["", "schedule", "dead", "quarantine", "tenant", "nats", "bench", "trust", "policy",
            "grant", "session", "break-glass", "config"]  # fmt: skip


@pytest.fixture(scope="module")
def signed(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `init --signed`, on the house's server."""
    folder = tmp_path_factory.mktemp("signed") / "mine"
    house.run("init", str(folder), "--signed")
    config = folder / "executor.toml"
    config.write_text(config.read_text().replace("nats://127.0.0.1:4222", house.url))
    house.run("trust", "push", "--config", str(config))
    return folder


def _arguments(house: House, template: list[str], tmp_path: Path, signed: Path) -> list[str]:
    number = next(_NEW)
    name = f"n{number}"
    if "{tenant}" in template:
        house.run("tenant", "add", name)
    if "{dead}" in template:
        assert house.call("submit", "trap", "--id", name, "--wait").code == 1
    if "{schedule}" in template or template[:2] == ["schedule", "list"]:
        house.run("schedule", "add", "wordcount", "--every", "1h", "--id", name)
    if template[:2] == ["session", "status"]:
        house.run("session", "start", "--config", str(signed / "executor.toml"))
    if template[:2] == ["nats", "mint"]:
        house.run("nats", "config", "--jwt", "--plain", "--out", str(tmp_path / "nats"))
    return [
        part.format(
            new=name,
            tenant=name,
            dead=name,
            schedule=name,
            tmp=tmp_path,
            signed=signed,
            number=number + 1,
        )
        if "{" in part
        else part
        for part in template
    ]


def _undo(house: House, arguments: list[str]) -> None:
    """One tenant is the others' state: `submit` then needs not say which."""
    if arguments[:2] == ["tenant", "add"]:
        house.run("tenant", "remove", arguments[2], "--yes")


@pytest.mark.parametrize("case", HAPPY)
def test_happy_path(house: House, tmp_path: Path, signed: Path, case: str) -> None:
    """A text on stdout, or with --json one object with its schema; stderr is empty with either.

    A list is one object a line. The text is asked for with -q, which silences all talk.
    """
    template, schema = HAPPY[case]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    people = [*_arguments(house, template, tmp_path / "1", signed), "-q"]
    programs = [*_arguments(house, template, tmp_path / "2", signed), "--json"]
    if template[0] in {"tenant", "trust", "session"}:  # which write the same file
        quiet, plain = house.call(*people), house.call(*programs)
    else:
        quiet, plain = house.call_all(people, programs)
    for arguments in (people, programs):
        _undo(house, arguments)
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.text.strip()
    assert (plain.code, plain.err) == (0, "")
    found = plain.objects()
    assert {each["schema"] for each in found} == {schema}
    assert len(found) == 1 or case.startswith("dead list") or case == "schedule list"


_HELP = """
import contextlib, io, json, sys
from executor.cli.main import main
for name in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([*name.split(), "--help"])
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What `--help` says of every verb and family, from one process: a start takes longer."""
    names = [*VERBS, *FAMILIES]
    done = subprocess.run(
        [sys.executable, "-c", _HELP], input=json.dumps(names), capture_output=True, text=True,
        cwd=tmp_path_factory.mktemp("help"), check=True,
    )  # fmt: skip
    said = map(json.loads, done.stdout.splitlines())
    return {
        name: Done(code, out.encode(), err)
        for name, (code, out, err) in zip(names, said, strict=True)
    }


def test_every_verb_is_in_the_table(helps: dict[str, Done]) -> None:
    """No verb is offered that these tests do not know."""
    offered = set()
    for family in FAMILIES:
        listed = helps[family].text.partition("Commands:\n")[2]
        names = re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)
        offered |= {f"{family} {name}".strip() for name in names}
    assert offered - set(FAMILIES) == set(VERBS) - UNLISTED


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_one_screen(helps: dict[str, Done], verb: str) -> None:
    """Help says the usage first, shows an example, and fits one screen."""
    done = helps[verb]
    assert done.code == 0
    lines = done.text.splitlines()
    assert lines[0].startswith(f"Usage: executor {verb} ")
    assert any(line.startswith(f"  Example: executor {verb}") for line in lines)
    assert len(lines) <= 40
    assert all(len(line) <= 80 for line in lines)
    assert done.err == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_family_help_cuts_no_sentence(helps: dict[str, Done], family: str) -> None:
    """The list of verbs says of each what it does, whole."""
    text = helps[family].text
    assert not [line for line in text.partition("Commands:")[2].splitlines() if "..." in line]
    assert len(text.splitlines()) <= 40


def test_bare_family_shows_its_help(shell: Shell) -> None:
    """Without a verb the help is shown, as for any wrong command line on stderr with status 2."""
    for done in shell.call_all([], ["dead"]):
        assert done.code == 2
        assert "Usage: executor" in done.err


def test_exit_codes_are_documented(shell: Shell) -> None:
    """`help exit-codes` has every status that a code of the table can end with."""
    codes = shell.json("explain")["codes"]
    documented = {row["exit"] for row in shell.json("help", "exit-codes")["rows"]}
    assert {str(code["exit"]) for code in codes} | {"0", "2", "130"} == documented


def test_options_stand_before_and_after_the_verb(house: House) -> None:
    """Global options are accepted on either side of the verb."""
    options = ["--json", "--config", "executor.toml"]
    before, after = house.call_all([*options, "config", "check"], ["config", "check", *options])
    assert before == after
    assert before.code == 0


def test_config_show_says_where_values_come_from(house: House) -> None:
    """The environment wins over the file, the file over the default, and each is named."""
    shown = house.call("config", "show", "--json", env={"EXECUTOR_LIMITS_FUEL": "12345"}).object()
    assert shown["values"]["limits.fuel"] == 12345
    assert shown["sources"]["limits.fuel"] == "environment EXECUTOR_LIMITS_FUEL"
    assert shown["sources"]["nats.url"].startswith("executor.toml:")
    assert shown["sources"]["delivery.attempts_max"] == "default"


def test_outcome_fields(house: House) -> None:
    """`result --json` has everything that the terminal record says."""
    found = house.json("result", "good")
    assert found["outcome"] == "result"
    assert found["output"] == {"words": 3, "distinct": 2}
    assert (found["task"], found["tenant"], found["id"]) == ("wordcount", "acme", "good")
    assert found["receipt"]["fuel_used"] > 0
    assert found["receipt"]["containment"] == "full"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["finished_at"])


def test_dead_letter_is_shown_whole(house: House) -> None:
    """`dead show` says why, where in the guest, what was used and what was asked."""
    text = house.run("dead", "show", "bad").text
    assert "guest.trap" in text
    assert "parse_header < load_image < run" in text
    assert "fuel" in text
    assert "original" in text
    assert "hint" in text
    found = house.json("dead", "show", "bad")
    assert found["code"] == "guest.trap"
    assert found["facts"]["frame0"] == "parse_header"
    assert found["original"]["whole"] is True
    assert found["limits"]["fuel"] == 1_000_000_000
    assert found["signers"] == ["author"]


def test_retry_twice_is_once(house: House) -> None:
    """Asking again for a dead letter twice gives one new id; the second is a duplicate."""
    assert house.call("submit", "trap", "--id", "again", "--wait").code == 1
    first, second = (house.json("dead", "retry", "again") for _ in range(2))
    assert first["id"] == second["id"] != "again"
    assert (first["duplicate"], second["duplicate"]) == (False, True)
    assert house.call("result", first["id"], "--wait").code == 1


def test_retry_keeps_what_was_asked(house: House) -> None:
    """A retried task has the limits and attempts of the first."""
    asked = ["--fuel", "10", "--attempts", "2", "--deadline-ms", "900"]
    first = house.call("submit", "wordcount", "--id", "poor", *asked, "--wait", "--json")
    assert first.object()["code"] == "limit.fuel-exhausted"
    new = house.json("dead", "retry", "poor")["id"]
    found = house.call("result", new, "--wait", "--json").object()
    assert (found["code"], found["attempts_max"]) == ("limit.fuel-exhausted", 2)


def test_discarded_letter_leaves_the_list_only(house: House) -> None:
    """A discarded letter is no longer listed, but its record stays and says so."""
    assert house.call("submit", "trap", "--id", "closed", "--wait").code == 1
    house.run("dead", "discard", "closed", "--yes")
    listed = house.run("dead", "list", "--json").objects()
    assert "closed" not in {letter["id"] for letter in listed}
    assert house.json("dead", "show", "closed")["discarded_at"]


def test_same_id_gives_the_first_outcome(house: House) -> None:
    """An id or a key asked for twice is one task; another key is another task."""

    def ask(*how: str, text: str) -> tuple[str, dict[str, int]]:
        asked = house.json("submit", "wordcount", "-i", text, *how, "--wait")
        return asked["id"], asked["output"]

    for how in (["--id", "mine"], ["--key", "order 7"]):
        assert ask(*how, text="one") == ask(*how, text="one two three")
    assert ask("--key", "order 8", text="one two")[1]["words"] == 2


def test_flaky_task_needs_its_second_attempt(house: House) -> None:
    """A transient failure is retried by itself, and the record tells of both attempts."""
    found = house.json("submit", "flaky", "-i", "once", "--wait")
    assert (found["outcome"], found["attempt"], found["output"]) == ("result", 2, "done: once")
    assert [past["code"] for past in found["history"]] == ["guest.failed"]


def test_tenant_comes_and_goes_while_serving(house: House) -> None:
    """A tenant is added to the file and its streams, listed, and removed again."""
    before = (house.folder / "executor.toml").read_text()
    created = house.json("tenant", "add", "visitor")["created"]
    assert "TASKS_visitor" in created
    assert "visitor" in house.run("tenant", "list").text
    removed = house.json("tenant", "remove", "visitor", "--yes")["removed"]
    assert "TASKS_visitor" in removed
    assert (house.folder / "executor.toml").read_text().strip() == before.strip()


def test_publish_warns_of_missing_grants(house: House) -> None:
    """A release that will be denied is published, with the lines that would allow it."""
    done = house.run("publish", "curious.wasm")
    assert "warning" in done.err
    assert "kv = {" in done.err
    assert house.json("publish", "curious.wasm")["missing_grants"] == [
        "clock = true", 'kv = { prefix = "", mode = "write" }'
    ]  # fmt: skip


def test_no_is_an_exit_status(house: House) -> None:
    """`can-i` says no with status 11 and why; whom nobody knows is a mistake with the names."""
    denied = house.call("policy", "can-i", "change-policy", "acme/x", "--as", "author")
    assert (denied.code, denied.text) == (11, "no, no role of it has `change-policy` there\n")
    unknown = house.call("policy", "can-i", "submit", "acme/x", "--as", "authr")
    assert unknown.code == 2
    assert "Known: " in unknown.err
    elsewhere = house.call("policy", "can-i", "submit", "nowhere/x", "--as", "tenant:nowhere")
    assert (elsewhere.code, "no tenant `nowhere`" in elsewhere.text) == (11, True)


def test_findings_fail_with_strict(house: House, tmp_path: Path) -> None:
    """A policy file with a finding passes, with --strict it does not; an error always fails."""
    key = re.search(r"ed25519:[\w+/=-]+", (house.folder / "executor.toml").read_text())
    assert key is not None
    file = tmp_path / "policy.toml"
    file.write_text(f'[[publisher]]\nname = "x"\nkey = "{key[0]}"\ntasks = ["*/*"]\n')
    checked, strict = house.call_all(
        ["policy", "check", str(file)], ["policy", "check", str(file), "--strict"]
    )
    assert (checked.code, strict.code) == (0, 15)
    assert "wildcard" in checked.text
    file.write_text('[[role]]\nname = "x"\nactions = ["fly"]\n')
    done = house.call("policy", "check", str(file))
    assert (done.code, "which is none of" in done.err) == (15, True)


def test_an_explanation_names_the_side(house: House) -> None:
    """What is not granted comes with the line that would allow it; each limit with who set it."""
    found = house.json("grant", "explain", "acme/curious", "--module", "curious.wasm")
    sides = {each["function"]: each["narrowed_by"] for each in found["functions"]}
    assert "grant" in sides["clock_now_ns"]
    assert found["limits"]["fuel"]["by"] == "host"
    assert "clock = true" in house.run("grant", "explain", "acme/curious", "--module",
                                       "curious.wasm").text  # fmt: skip
    assert house.call("grant", "explain", "acme/nothing").code == 11


def test_a_difference_is_told_by_effect(house: House) -> None:
    """A grant that is gone: who loses what; nothing else."""
    text = (house.folder / "executor.toml").read_text()
    less = house.folder / "less.toml"  # beside the keys that it names
    less.write_text(text.replace("log = true", "clock = true", 1))
    rows = house.json("grant", "diff", "executor.toml", str(less))["changes"]
    assert {("log_write", 1, 0), ("clock_now_ns", 0, 1)} >= {
        (row["what"], row["before"], row["after"]) for row in rows
    }
    assert rows
    less.unlink()
