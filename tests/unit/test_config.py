"""The configuration: one order of sources, every error at once, and nothing fails silently."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from executor import config, config_document
from executor.config import KEYS, Config
from executor.config_document import TABLES
from executor.config_tables import Key, Value
from executor.core.policy import Ceiling, Tenant
from executor.core.scopes import EVERY
from executor.core.settlement import Rules
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import KIB, MIB, KvScope, Limits

KEY: Final = SecretKey(bytes([1]) * 32).public
TENANT: Final = '[[tenant]]\nname = "acme"\n'
GRANT: Final = TENANT + '[[grant]]\ntenant = "acme"\nwhy = "tests"\n'
NAMES: Final = [f"{section}.{key}" for section, keys in KEYS.items() for key in keys]
# Keys that name a file, which must exist.
FILES: Final = ["host.key_file", "nats.creds_file"]


def parse(text: str, environ: Mapping[str, str] | None = None, folder: Path = Path()) -> Config:
    """The configuration in `text`."""
    return config.parse(text, folder=folder, name="executor.toml", environ=environ or {})


def refusal(
    text: str, environ: Mapping[str, str] | None = None, folder: Path = Path()
) -> ExecutorError:
    """The refusal of `text`."""
    with pytest.raises(ExecutorError) as caught:
        parse(text, environ, folder)
    return caught.value


def spec(name: str) -> Key:
    """The description of a setting."""
    section, _, key = name.partition(".")
    return KEYS[section][key]


def other_value(name: str) -> tuple[str, Value]:
    """A value that is not the default, as TOML spells it and as it is read."""
    key = spec(name)
    if isinstance(key.default, tuple):
        return "[1, 2]", (1, 2)
    if isinstance(key.default, str):
        value = next((c for c in key.choices if c != key.default), "other")
        return f'"{value}"', value
    assert isinstance(key.default, int)
    value_ = key.low if key.low != key.default else key.low + 1
    return str(value_), value_


def in_file(name: str, value: str) -> str:
    """A file that sets one key."""
    section, _, key = name.partition(".")
    return f"\n[{section}]\n{key} = {value}\n"


def variable(name: str) -> str:
    """The environment variable of a key."""
    return f"EXECUTOR_{name.replace('.', '_').upper()}"


# Sources.


# One value of it is refused alone: production demands a signed source.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "host.mode"])
def test_every_key_from_every_source(name: str, tmp_path: Path) -> None:
    """Flag wins over environment, over file, over default, and each value knows its source."""
    (tmp_path / "other").touch(mode=0o600)
    (tmp_path / "third").touch(mode=0o600)
    value, read = other_value(name)
    text = in_file(name, value)
    default = parse("")
    assert (default.values[name], default.sources[name]) == (spec(name).default, "default")
    from_file = parse(text, folder=tmp_path)
    assert (from_file.values[name], from_file.sources[name]) == (read, "executor.toml:3")
    again = read.replace("other", "third") if isinstance(read, str) else read
    spelled = again if isinstance(again, str) else re.sub(r"[()]", "", str(again))
    spelled = f"[{spelled}]" if isinstance(again, tuple) else spelled
    environ = {variable(name): spelled}
    from_environment = parse(text, environ, tmp_path)
    assert from_environment.values[name] == again
    assert from_environment.sources[name] == f"environment {variable(name)}"
    flagged = from_environment.with_values(**{name.replace(".", "__"): spec(name).default})
    assert (flagged.values[name], flagged.sources[name]) == (spec(name).default, "flag")
    untouched = {other: value for other, value in default.values.items() if other != name}
    assert untouched == {n: v for n, v in from_environment.values.items() if n != name}


@pytest.mark.parametrize("name", NAMES)
def test_every_default_says_where_it_comes_from(name: str) -> None:
    """A number without an origin is not a default, and each default is within its own bounds."""
    key = spec(name)
    assert key.why
    numbers = key.default if isinstance(key.default, tuple) else [key.default]
    assert all(key.low <= n <= key.high for n in numbers if isinstance(n, int))
    assert not key.choices or key.default in key.choices


def test_an_empty_file_gives_defaults_and_no_authority() -> None:
    """Without a policy nobody may do anything; the limits are those of the model."""
    got = parse("")
    assert (got.policy.tenants, got.policy.grants, got.publishers, got.executors) == ((),) * 4
    assert got.policy.limits == Limits()
    assert got.rules == Rules()
    assert got.revoked == frozenset()


def test_values_by_kind() -> None:
    """Texts, numbers and files are asked for as what they are."""
    got = parse('[host]\nname = "one"\n[delivery]\nbackoff_ms = []\n')
    assert got.text("host.name") == "one"
    assert got.number("sandbox.count") == 2
    assert got.path("host.key_file") is None
    assert got.rules.backoff_ms == ()
    with pytest.raises(KeyError):
        got.number("host.name")
    assert got.with_values(delivery__backoff_ms=7).rules.backoff_ms == ()


def test_limits_are_read_in_their_units() -> None:
    """MiB and KiB of the file are bytes of the model."""
    text = "[limits]\nmemory_max_mib = 2\ninput_max_kib = 3\nlog_max_kib = 4\nfuel = 5\n"
    limits = parse(text).policy.limits
    assert (limits.memory_bytes, limits.input_bytes) == (2 * MIB, 3 * KIB)
    assert (limits.log_bytes, limits.fuel) == (4 * KIB, 5)


# Values.


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(spec(n).default, int)])
def test_numbers_are_in_their_range(name: str) -> None:
    """The bounds of every number are inclusive, and one step outside is refused by name."""
    low, high = spec(name).low, spec(name).high
    for value in (low, high):
        assert parse(in_file(name, str(value))).values[name] == value
        assert parse("", {variable(name): str(value)}).values[name] == value
    for value in (low - 1, high + 1):
        for error in (
            refusal(in_file(name, str(value))), refusal("", {variable(name): str(value)})
        ):  # fmt: skip
            assert error.code == "config.invalid"
            assert f"`{name}` at " in error.detail
            assert error.detail.endswith(f"is not in {low}..{high}")


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_its_type(name: str) -> None:
    """A text for a number, a number for a text, a truth for either: all are refused."""
    kind = type(spec(name).default)
    bad = {
        int: ['"1"', "1.0", "true", "[1]", "{}", "2020-01-01"],
        str: ["1", "true", '["a"]', "{}", "1.5"],
        tuple: ["1", '"1"', '["a"]', "[1.5]", "[true]", "[[1]]", "[-1]", "[86400001]"],
    }[kind]
    for value in bad:
        error = refusal(in_file(name, value))
        assert error.code == "config.invalid"
        assert f"`{name}` at executor.toml:3 is" in error.detail


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("text", ["x", "1, 2", "1\nfuel = 2", "1]", "", " ", "9" * 5_000, "[" * 99])
def test_a_variable_holds_one_value(text: str) -> None:
    """A number from the environment is one number, and nothing follows it."""
    error = refusal("", {"EXECUTOR_LIMITS_FUEL": text})
    assert error.code == "config.invalid"
    assert "`limits.fuel` at environment EXECUTOR_LIMITS_FUEL is not" in error.detail


@pytest.mark.covers("config.invalid")
def test_choices() -> None:
    """A setting with choices takes one of them."""
    assert "none of required, best-effort" in refusal('[sandbox]\ncontainment = "off"').detail


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("key", ["environment", "name"])
@pytest.mark.parametrize("value", ["", "a b", "a/b", "a.b", "é", "*", "a" * 65])
def test_names_that_travel_are_tokens(key: str, value: str) -> None:
    """What becomes part of audiences and subjects cannot break or outgrow them."""
    error = refusal(f'[host]\n{key} = "{value}"')
    assert error.detail == f"`host.{key}` at executor.toml:2 is not of [A-Za-z0-9_-]{{1,64}}"


# Keys.


@pytest.mark.covers("config.key-unknown")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\ndeadlin_ms = 1\n",
         "unknown key `limits.deadlin_ms` at executor.toml:2, did you mean `deadline_ms`"),
        ("\n[limit]\nfuel = 1\n", "unknown key `limit` at executor.toml:2, did you mean `limits`"),
        ("limit = 1\n", "unknown key `limit` at executor.toml:1, did you mean `limits`"),
        ("[sandbox]\nxyzzy = 1\n", "unknown key `sandbox.xyzzy` at executor.toml:2; known: count, "
         "reserve, attempts_per_sandbox_max, containment, memory, engine_path, cache_folder, "
         "cache_max_mib, compile_deadline_ms"),
        (TENANT + "celing = {}\n",
         "unknown key `tenant.celing` at executor.toml:1, did you mean `ceiling`"),
        (TENANT + "ceiling = { feul = 1 }\n",
         "unknown key `limits.feul` at executor.toml:1, did you mean `fuel`"),
        (GRANT + "lgo = true\n", "unknown key `grant.lgo` at executor.toml:3, did you mean `log`"),
        ("[trust]\nrevokd = []\n",
         "unknown key `trust.revokd` at executor.toml:2, did you mean `revoked`"),
    ],
)  # fmt: skip
def test_an_unknown_key_comes_with_a_suggestion(text: str, message: str) -> None:
    """A misspelled key is never ignored: its line is named, and the key that was meant."""
    error = refusal(text)
    assert (error.code, error.detail) == ("config.key-unknown", message)


@pytest.mark.covers("config.key-unknown")
def test_an_unknown_variable_of_a_known_section() -> None:
    """A misspelled variable is an error too; variables of others are none of our business."""
    error = refusal("", {"EXECUTOR_LIMITS_FEUL": "1"})
    assert error.code == "config.key-unknown"
    assert "did you mean `EXECUTOR_LIMITS_FUEL`" in error.detail
    assert parse("", {"EXECUTOR_HOME": "/", "EXECUTORLIMITS_X": "", "PATH": ""}) == parse("")


@pytest.mark.covers("config.secret-inline")
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[nats]\npassword = "canary-7"', "`nats.password` at executor.toml:2"),
        ('[nats]\nTOKEN = "canary-7"', "`nats.TOKEN` at executor.toml:2"),
        ('[nats]\nnkey_seed = "canary-7"', "`nats.nkey_seed` at executor.toml:2"),
        ('[host]\nprivate_key = "canary-7"', "`host.private_key` at executor.toml:2"),
        (TENANT + 'secret = "canary-7"', "`tenant.secret` at executor.toml:1"),
        ('\n[nats]\nurl = "nats://me:canary-7@host:4222"', "a login in `nats.url` at "
         "executor.toml:3"),
    ],
)  # fmt: skip
def test_a_secret_in_the_file_is_refused_unseen(text: str, where: str) -> None:
    """A secret stands in a file of its own; the refusal names its place and not its value."""
    error = refusal(text)
    assert (error.code, error.detail) == ("config.secret-inline", where)
    assert "canary-7" not in str(error) + error.hint


@pytest.mark.covers("config.missing", "config.invalid")
@pytest.mark.parametrize("name", FILES)
def test_secret_files_are_there_and_private(name: str, tmp_path: Path) -> None:
    """A file with a secret exists, relative to the configuration, and nobody else can use it."""
    secret = tmp_path / "secret"
    text = in_file(name, '"secret"')
    missing = refusal(text, folder=tmp_path)
    assert missing.code == "config.missing"
    assert missing.detail == f"`{name}` at executor.toml:3 names no file"
    secret.touch()
    for mode in (0o644, 0o640, 0o604, 0o620, 0o601, 0o610):
        secret.chmod(mode)
        error = refusal(text, folder=tmp_path)
        assert (error.code, "chmod 600" in error.detail) == ("config.invalid", True)
    secret.chmod(0o600)
    assert parse(text, folder=tmp_path).path(name) == secret


@pytest.mark.covers("config.missing")
@pytest.mark.parametrize("value", ["a" * 5_000, "a\\u0000b", ".", "no/such"])
def test_a_name_that_cannot_be_a_file(value: str, tmp_path: Path) -> None:
    """A folder, or a name that the system refuses, is no file."""
    assert refusal(in_file("host.key_file", f'"{value}"'), folder=tmp_path).code == "config.missing"


# The whole file.


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize(
    "text",
    ["[", "a", "a = ", "a = 1\na = 2", "[nats]\n[nats]", '"', "a = 1 b = 2", "\0", "a = \x07",
     "[limits]\nfuel = " + "9" * 5_000, "a = " + "[" * 5_000, "a = 2020-13-40"],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_what_is_no_toml(text: str) -> None:
    """A file that does not parse is one error of ours with the file's name."""
    error = refusal(text)
    assert error.code == "config.invalid"
    assert error.detail.startswith("executor.toml: ")


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("section", list(KEYS))
def test_a_section_is_a_section(section: str) -> None:
    """A list or a value in place of a section is refused, and nothing else breaks."""
    for text in (f"[[{section}]]", f"{section} = 1"):
        assert refusal(text).detail == f"`{section}` is not a section"


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize("section", ["tenant", "grant", "publisher", "executor"])
def test_a_table_is_written_as_one_of_several(section: str) -> None:
    """`[tenant]` for `[[tenant]]` is refused, not read as none."""
    for text in (f"[{section}]\n", f"{section} = 1", f"{section} = [1]"):
        assert f"must be written as [[{section}]]" in refusal(text).detail


def test_all_errors_come_together() -> None:
    """One start shows every mistake of file and environment, in a fixed order."""
    text = """
[limits]
fuel = -1
b_key = 1
a_key = 1
[delivery]
attempts_max = "3"
[[grant]]
tenant = "nobody"
"""
    error = refusal(text, {"EXECUTOR_SANDBOX_CUONT": "1", "EXECUTOR_SANDBOX_COUNT": "0"})
    known = ", ".join(KEYS["limits"])
    assert error.detail.split("; ") == [
        "`delivery.attempts_max` at executor.toml:7 is not a whole number",
        "unknown key `limits.a_key` at executor.toml:5",
        f"known: {known}",
        "unknown key `limits.b_key` at executor.toml:4",
        f"known: {known}",
        "`limits.fuel` at executor.toml:3 is not in 1..9007199254740991",
        "unknown key `EXECUTOR_SANDBOX_CUONT` at the environment, "
        "did you mean `EXECUTOR_SANDBOX_COUNT`",
        "`sandbox.count` at environment EXECUTOR_SANDBOX_COUNT is not in 1..256",
        "[[grant]] at executor.toml:8: `why` is missing",
        "[[grant]] at executor.toml:8: `why` is empty: every authority has a reason",
        "executor.toml:8 grants to unknown tenant `nobody`",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# [limits]\n[nats] # x\nurl = 'a'\n[limits] # y\n# fuel = 1\nfuel = 0", ":6"),
        ("limits = { fuel = 0 }", ":1"),
        ("\n\nlimits.fuel = 0", ":3"),
        ("[nats]\nurl = 'a'\n[limits]\ncalls_max = 1\nfuel=0", ":5"),
        ("# \u2028 \x85 a comment\n[limits]\nfuel = 0", ":3"),
        ("[limits]\r\nfuel = 0\r\n", ":2"),
        ('[limits]\n"fuel" = 0', ""),
    ],
)
def test_lines_are_named(text: str, line: str) -> None:
    """An error names the line of its key; where a search cannot tell, the file alone."""
    assert refusal(text).detail.startswith(f"`limits.fuel` at executor.toml{line} is not in")


def test_the_right_table_of_several_is_named() -> None:
    """An error in the third [[grant]] names the third one's line."""
    grant = '[[grant]]\ntenant = "acme"\nwhy = "tests"\n'
    text = TENANT + grant + "log = true\n" + grant + grant + "log = 1\n"
    assert refusal(text).detail == "[[grant]] at executor.toml:10: `log` is not true or false"


# Loading.


def test_load(tmp_path: Path) -> None:
    """A named file is read, relative paths start at its folder, its name stands in sources."""
    file = tmp_path / "mine.toml"
    file.write_text('[host]\nname = "mine"\nkey_file = "k"\n', encoding="utf-8")
    (tmp_path / "k").touch(mode=0o600)
    got = config.load(file, {})
    assert (got.text("host.name"), got.path("host.key_file")) == ("mine", tmp_path / "k")
    assert got.sources["host.name"] == "mine.toml:2"


@pytest.mark.covers("config.missing")
def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file there are defaults, unless one was named or is required."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXECUTOR_HOST_NAME", "from-here")
    assert config.load(None).text("host.name") == "from-here"
    for path, required in ((tmp_path / "no.toml", False), (None, True), (tmp_path, False)):
        with pytest.raises(ExecutorError) as caught:
            config.load(path, {}, required=required)
        assert caught.value.code == "config.missing"


@pytest.mark.covers("config.invalid")
def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """A file in another encoding is refused as such."""
    file = tmp_path / "executor.toml"
    file.write_bytes(b"[host]\nname = '\xff\xfe'\n")
    with pytest.raises(ExecutorError) as caught:
        config.load(file, {})
    assert caught.value.code == "config.invalid"
    assert "no readable UTF-8 text" in caught.value.detail


# Tables.

FULL: Final = f"""
[trust]
revoked = ["{KEY.key_id.hex()}", "sha256:{"ab" * 32}"]
[[tenant]]
name = "acme"
raw_bodies = false
queue_max_messages = 5
queue_max_mib = 6
ceiling = {{ capabilities = ["log", "kv"], memory_max_mib = 32, fuel = 7 }}
[[grant]]
tenant = "acme"
task = "thumbs"
signer = "ci"
why = "stores thumbnails"
log = true
clock = false
kv = {{ prefix = "thumbs/", mode = "write" }}
limits = {{ deadline_ms = 9 }}
[[publisher]]
name = "ci"
key = "{KEY.text}"
tasks = ["acme/*", "*/thumbs"]
ceiling = {{ capabilities = ["log"] }}
[[executor]]
name = "one"
key = "{KEY.text}"
tenants = ["acme"]
"""


def test_every_table_is_read() -> None:
    """Tenants, grants, publishers, executors and revocations arrive in every field."""
    got = parse(FULL)
    ceiling = Ceiling(frozenset({"log", "kv"}), (("memory_bytes", 32 * MIB), ("fuel", 7)))
    assert got.policy.tenants == (Tenant("acme", ceiling, False, 5, 6),)
    (grant,) = got.policy.grants
    assert (grant.tenant, grant.task, grant.signer) == ("acme", "thumbs", "ci")
    assert grant.why == "stores thumbnails"
    assert grant.capabilities == {"log", "kv"}
    assert (grant.kv, grant.limits) == (KvScope("thumbs/", write=EVERY), (("deadline_ms", 9),))
    (publisher,) = got.publishers
    assert (publisher.name, publisher.key, publisher.tasks) == ("ci", KEY, ("acme/*", "*/thumbs"))
    assert publisher.ceiling == Ceiling(frozenset({"log"}))
    (executor,) = got.executors
    assert (executor.name, executor.key, executor.tenants) == ("one", KEY, ("acme",))
    assert got.revoked == {KEY.key_id.hex(), "sha256:" + "ab" * 32}


def test_defaults_of_tables() -> None:
    """A grant covers any task and signer of its tenant and gives nothing by itself."""
    got = parse(GRANT + f'[[executor]]\nname = "x"\nkey = "{KEY.text}"\n')
    (grant,) = got.policy.grants
    assert (grant.task, grant.signer, grant.capabilities, grant.kv) == ("*", "*", frozenset(), None)
    assert got.policy.tenants == (Tenant("acme"),)
    assert got.executors[0].tenants == ("*",)
    assert parse(GRANT + 'kv = { mode = "read" }').policy.grants[0].kv == KvScope()


SIGNED: Final = '[trust]\nsource = "tuf"\n'
PRODUCTION: Final = '[host]\nmode = "production"\n'


@pytest.mark.covers("config.invalid")
def test_production_demands_a_signed_source() -> None:
    """Whoever can write the file of a production host must not be who grants."""
    assert '`host.mode = "production"` needs' in refusal(PRODUCTION).detail
    assert parse(PRODUCTION + SIGNED).signed


def test_the_environment_only_raises_the_mode() -> None:
    """A variable makes a development host one of production, and never the other way round."""
    raised = parse(SIGNED, {"EXECUTOR_HOST_MODE": "production"})
    assert raised.values["host.mode"] == "production"
    with pytest.raises(ExecutorError, match=r"EXECUTOR_HOST_MODE lowers `host\.mode`"):
        parse(PRODUCTION + SIGNED, {"EXECUTOR_HOST_MODE": "development"})


@pytest.mark.parametrize("mode", ["", PRODUCTION])
@pytest.mark.parametrize("table", TABLES)
def test_with_a_signed_source_the_file_grants_nothing(table: str, mode: str) -> None:
    """Each table that grants is refused with its place, in development too: one place grants."""
    error = refusal(f"{mode}{SIGNED}[[{table}]]\n")
    assert error.code == "config.invalid"
    assert f"[[{table}]] at executor.toml:{5 if mode else 3}" in error.detail
    assert ("in production" in error.detail) == bool(mode)


def test_with_a_signed_source_the_file_revokes_nothing() -> None:
    """A local list that seems to revoke, and which no other host hears of, is refused as well."""
    assert "`trust.revoked` at executor.toml:3" in refusal(SIGNED + "revoked = []\n").detail


def test_a_signed_policy_names_no_files() -> None:
    """Its signers see no file of a host, so its fallbacks cannot give one away."""
    grant = GRANT + 'fallback = { on = ["guest.trap"], result_file = "/etc/hostname" }\n'
    with pytest.raises(ExecutorError) as caught:
        config_document.parse(grant.encode(), name="policy.toml", folder=None)
    assert "cannot stand in a signed policy" in caught.value.detail


PUBLISHER: Final = f'[[publisher]]\nname = "ci"\nkey = "{KEY.text}"\n'
WEAK: Final = "ed25519:AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.covers("config.invalid")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[tenant]]\n", "`name` is missing"),
        ('[[tenant]]\nname = ""\n', "`name` is not of"),
        ('[[tenant]]\nname = "a.b"\n', "`name` is not of"),
        ('[[tenant]]\nname = "*"\n', "`name` is not of"),
        ("[[tenant]]\nname = 1\n", "`name` is not a text"),
        (TENANT * 2, "executor.toml:3 is a second tenant `acme`"),
        (TENANT + "raw_bodies = 1\n", "`raw_bodies` is not true or false"),
        (TENANT + "queue_max_mib = 0\n", "`queue_max_mib` is not in 1..1073741824"),
        (TENANT + "queue_max_mib = -1\n", "`queue_max_mib` is not in 1..1073741824"),
        (TENANT + "queue_max_messages = true\n", "`queue_max_messages` is not a whole number"),
        (TENANT + "ceiling = 1\n", "`ceiling` is not a table"),
        (TENANT + 'ceiling = { capabilities = "log" }\n', "`ceiling.capabilities` lists other"),
        (TENANT + 'ceiling = { capabilities = ["lgo"] }\n', "`ceiling.capabilities` lists other"),
        (TENANT + "ceiling = { capabilities = [[1]] }\n", "`ceiling.capabilities` lists other"),
        (TENANT + "ceiling = { fuel = 0 }\n", "limit `fuel` is no whole number from 1"),
        (TENANT + "ceiling = { fuel = true }\n", "limit `fuel` is no whole number from 1"),
        (GRANT.replace("tests", " "), "`why` is empty: every authority has a reason"),
        (TENANT + '[[grant]]\ntenant = "acme"\n', "`why` is missing"),
        (TENANT + '[[grant]]\nwhy = "x"\n', "`tenant` is missing"),
        (GRANT.replace('tenant = "acme"', 'tenant = "other"'), "unknown tenant `other`"),
        (GRANT.replace('tenant = "acme"', 'tenant = "*"'), "`tenant` is not of"),
        (GRANT + 'task = "a.b"\n', "`task` is not of"),
        (GRANT + 'task = ""\n', "`task` is not of"),
        (GRANT + "signer = 1\n", "`signer` is not a text"),
        (GRANT + "log = 1\n", "`log` is not true or false"),
        (GRANT + "kv = true\n", "`kv` is not a table"),
        (GRANT + "kv = {}\n", "`kv` is { prefix = TEXT"),
        (GRANT + 'kv = { mode = "rw" }\n', "`kv` is { prefix = TEXT"),
        (GRANT + "kv = { mode = [] }\n", "`kv` is { prefix = TEXT"),
        (GRANT + "kv = { prefix = 3 }\n", "`kv` is { prefix = TEXT"),
        (GRANT + 'kv = { prefix = "é" }\n', "`kv` is { prefix = TEXT"),
        (GRANT + 'kv = { prefix = "a*" }\n', "`kv` is { prefix = TEXT"),
        (GRANT + 'kv = { prefix = "a", moed = "read" }\n', "`kv` is { prefix = TEXT"),
        (GRANT + "limits = { fuel = 1.5 }\n", "limit `fuel` is no whole number from 1"),
        (PUBLISHER, "`tasks` is missing"),
        (PUBLISHER + 'tasks = "acme/*"\n', "`tasks` is not a list"),
        (PUBLISHER + "tasks = [1]\n", "`tasks` is not a list of texts"),
        (PUBLISHER + 'tasks = ["acme"]\n', "`acme`, which is not TENANT/TASK"),
        (PUBLISHER + 'tasks = ["acme/a/b"]\n', "`acme/a/b`, which is not TENANT/TASK"),
        (PUBLISHER + 'tasks = ["acme/th*"]\n', "`acme/th*`, which is not TENANT/TASK"),
        ('[[publisher]]\nname = "ci"\ntasks = []\n', "`key` is missing"),
        ('[[executor]]\nname = "x"\nkey = "ed25519:x"\n', "`key` is no public key"),
        (f'[[executor]]\nname = "x"\nkey = "{WEAK}"\n', "`key` is no public key"),
        ('[[executor]]\nname = "x"\nkey = "é"\n', "`key` is no public key"),
        ('[trust]\nrevoked = "x"\n', "`revoked` is not a list"),
        ('[trust]\nrevoked = ["ci"]\n', "neither a digest nor a key id"),
        (f'[trust]\nrevoked = ["{"AB" * 12}"]\n', "neither a digest nor a key id"),
    ],
)
def test_every_table_is_checked(text: str, message: str) -> None:
    """What could make a grant, a ceiling or a revocation fail silently stops the start."""
    error = refusal(text)
    assert error.code == "config.invalid"
    assert message in error.detail


@pytest.mark.parametrize("section", ["executor", "operator", "submitter", "builder"])
def test_a_key_stands_once_in_a_table(section: str) -> None:
    """Of two rows of one key only one would count: neither is taken."""
    key = SecretKey(bytes(32)).public.text
    rows = [f'[[{section}]]\nname = "{name}"\nkey = "{key}"\n' for name in ("a", "b")]
    assert config.parse(rows[0], folder=Path(), name="t", environ={})
    with pytest.raises(ExecutorError, match="of the same key"):
        config.parse("".join(rows), folder=Path(), name="t", environ={})
