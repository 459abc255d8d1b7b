"""`executor.toml` to one frozen Config, checked whole before anything starts.

Flag > `EXECUTOR_<SECTION>_<KEY>` > file > default. Every error is reported at once; an unknown key
comes with a suggestion. Secrets are files, never values: a key that looks like one is refused.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from executor.core import subjects
from executor.core.abi import SHORT_NAMES
from executor.core.policy import Ceiling, Grant, Policy, Publisher, Tenant
from executor.core.seal import ExecutorKey
from executor.core.settlement import RETRY_AFTER_MAX_MS, Rules
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import KIB, MIB, KvScope, Limits

FILE: Final = "executor.toml"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: default, bounds and where its number came from."""

    default: str | int | bool | tuple[int, ...]
    why: str
    low: int = 0
    high: int = 2**53 - 1
    choices: tuple[str, ...] = ()
    items_max: int = 2  # of a list
    token: bool = False  # stands in subjects and audiences


# Section → key → Key. `config show`, the environment and the documentation derive from this.
KEYS: Final[dict[str, dict[str, Key]]] = {
    "host": {
        "environment": Key("dev", "part of every audience: dev, stage and prod never mix",
                           token=True),
        "name": Key("local", "this executor's name in NATS and in logs", token=True),
        "key_file": Key("", "signs outcomes; made by `executor init`"),
        "cache_key_file": Key("", "authenticates compiled modules on this disk; unset: no cache"),
    },
    "nats": {
        "url": Key("nats://127.0.0.1:4222", "nats-server's own default"),
        "creds_file": Key("", "a credentials file, mode 0600"),
        "replicas": Key(1, "copies of each stream; 3 in a cluster", 1, 5),
    },
    "delivery": {
        "attempts_max": Key(3, "the task's own failures", 1, 16),
        "deliveries_max": Key(10, "hand-overs by the server: drains and lost leases", 2, 1_000),
        "ack_wait_ms": Key(30_000, "the lease, renewed every third of it", 1_000, 600_000),
        "backoff_ms": Key((1_000, 30_000), "least and most before a retry, at random between; "
                          "the most is three times the least unless given", 0,
                          RETRY_AFTER_MAX_MS),
        "drain_ms": Key(20_000, "below the 30 s that service managers wait", 0, 600_000),
        "window": Key(256, "messages held at once; 512 gains 16 % over 64 and holds more", 1, 4096),
        "outcomes_days": Key(7, "once-only holds as long as outcomes are kept", 1, 3650),
        "outcomes_max_mib": Key(1_024, "reserved on disk for each tenant, like its queue; about a "
                                "million outcomes, then the oldest go and may run again", 1,
                                1_048_576),
        "envelope_version": Key(2, "1 while executors that read no 2 share the work: what it adds "
                                "to records is left out", 1, 2),
    },
    "limits": {
        "fuel": Key(1_000_000_000, "0.1-0.6 s of CPU", 1),
        "memory_max_mib": Key(64, "a guest in Python needs 16", 1, 4096),
        "table_elements": Key(20_000, "function tables of the largest examples are a tenth", 1),
        "deadline_ms": Key(2_000, "several times what the fuel takes", 1, 3_600_000),
        "input_max_kib": Key(512, "envelope and dead letter fit NATS's 1 MiB", 1, 512),
        "output_max_kib": Key(512, "the same", 1, 512),
        "log_max_kib": Key(64, "16 full lines", 0, 64),
        "log_lines_max": Key(256, "dropped and counted beyond", 0, 256),
        "calls_max": Key(10_000, "host calls of one attempt", 1, 10_000_000),
        "mediated_calls_max": Key(64, "host calls that reach the supervisor", 0, 10_000),
        "call_max_mib": Key(64, "bytes all host calls copy; a whole input 128 times", 1, 65_536),
        "host_max_ms": Key(10_000, "time in host calls, which is not the guest's own", 1,
                           3_600_000),
    },
    "sandbox": {
        "count": Key(2, "one a core", 1, 256),
        "attempts_per_sandbox_max": Key(50_000, "a respawn costs what 1000 attempts cost", 1),
        "containment": Key(
            "required", "refuse to start rather than run weaker",
            choices=("required", "best-effort"),
        ),
        "memory": Key("pooled", "a fresh instance costs 20 µs less than on-demand",
                      choices=("pooled", "on-demand")),
        "cache_folder": Key("cache", "compiled modules; may be deleted at any time"),
        "cache_max_mib": Key(512, "a module of 1 MB makes 5.5 MB", 1, 1_048_576),
        "compile_deadline_ms": Key(10_000, "a module of 1 MB takes 2.5 s", 100, 600_000),
    },
}  # fmt: skip

_TABLES: Final = ("tenant", "grant", "publisher", "executor")
_LIMIT_NAMES: Final = {
    "fuel": ("fuel", 1), "memory_max_mib": ("memory_bytes", MIB),
    "table_elements": ("table_elements", 1), "deadline_ms": ("deadline_ms", 1),
    "input_max_kib": ("input_bytes", KIB), "output_max_kib": ("output_bytes", KIB),
    "log_max_kib": ("log_bytes", KIB), "log_lines_max": ("log_lines", 1),
    "calls_max": ("calls", 1), "mediated_calls_max": ("mediated_calls", 1),
    "call_max_mib": ("call_bytes", MIB), "host_max_ms": ("host_ms", 1),
}  # fmt: skip
_SECRET: Final = re.compile(r"(password|passwd|secret|token|seed|private)", re.IGNORECASE)
_USER_INFO: Final = re.compile(r"//[^/]*@")  # of a URL: a user's name, mostly with a password
_PREFIX: Final = re.compile(r"[A-Za-z0-9/_=-]*")  # what NATS allows in a key, without the dot
_REVOKED: Final = re.compile(r"sha256:[0-9a-f]{64}|[0-9a-f]{24}")  # a digest, or a key id
_QUOTA_MAX: Final = 2**30  # of MiB: below the server's 63 bits of bytes

_KINDS: Final[dict[type, str]] = {
    int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "a table",
}  # fmt: skip

Value = str | int | bool | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. `values` and `sources` are keyed "section.key"."""

    values: Mapping[str, Value]
    sources: Mapping[str, str]  # "default", "environment NAME", "FILE:LINE", "flag"
    policy: Policy
    publishers: tuple[Publisher, ...] = ()
    executors: tuple[ExecutorKey, ...] = ()
    revoked: frozenset[str] = frozenset()
    folder: Path = field(default_factory=Path)

    def text(self, name: str) -> str:
        """A text setting."""
        return str(self.values[name])

    def number(self, name: str) -> int:
        """A whole number."""
        value = self.values[name]
        if not isinstance(value, int):
            raise KeyError(name)
        return value

    def path(self, name: str) -> Path | None:
        """A file named relative to the configuration's folder; None when unset."""
        value = self.text(name)
        return self.folder / value if value else None

    @property
    def rules(self) -> Rules:
        """What settlement needs."""
        backoff = self.values["delivery.backoff_ms"]
        return Rules(
            attempts_max=self.number("delivery.attempts_max"),
            deliveries_max=self.number("delivery.deliveries_max"),
            backoff_ms=backoff if isinstance(backoff, tuple) else (),
        )

    def with_values(self, **flags: Value) -> Config:
        """The same with some settings replaced by flags; `nats__url` is `nats.url`."""
        changed = {name.replace("__", "."): value for name, value in flags.items()}
        return replace(
            self, values={**self.values, **changed},
            sources={**self.sources, **dict.fromkeys(changed, "flag")},
        )  # fmt: skip


class _Reader:
    """One reading of one file: collects every error before it raises."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.errors: list[tuple[str, str]] = []  # code, message
        self._lines = text.split("\n")  # no other character ends a line of TOML

    def where(self, section: str, key: str = "", index: int = 0) -> str:
        """`FILE:LINE` of a key, or of the index-th [[section]], as well as text search can tell."""
        seen, inside, top = -1, False, True
        under = re.compile(rf"{re.escape(key)}\s*=")  # below the section's header
        # In front of every header: `section = {…}`, or `section.key = …`.
        above = re.compile(rf"{re.escape(section)}\s*(=|\.\s*{under.pattern if key else ''})")
        for number, line in enumerate(self._lines, 1):
            head = line.split("#")[0].strip()
            if head in {f"[{section}]", f"[[{section}]]"}:
                seen, top = seen + 1, False
                inside = seen == index
                if inside and not key:
                    return f"{self.name}:{number}"
            elif head.startswith("["):
                inside = top = False
            elif (inside and under.match(head)) or (top and above.match(head)):
                return f"{self.name}:{number}"
        return self.name

    def fail(self, code: str, message: str) -> None:
        self.errors.append((code, message))

    def unknown(self, what: str, name: str, known: list[str], where: str) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean `{near[0]}`" if near else f"; known: {', '.join(known)}"
        if _SECRET.search(name):
            self.fail("config.secret-inline", f"`{what}{name}` at {where}")
        else:
            self.fail("config.key-unknown", f"unknown key `{what}{name}` at {where}{hint}")

    def scalar(self, name: str, key: Key, value: object, where: str) -> Value:
        kind = type(key.default)
        if kind is tuple:
            if isinstance(value, list) and len(value) > key.items_max:
                self.fail("config.invalid", f"`{name}` at {where} has more than {key.items_max}")
                return key.default
            if isinstance(value, list) and all(type(v) is int for v in value):
                if all(key.low <= v <= key.high for v in value):
                    return tuple(value)
                self.fail("config.invalid", f"`{name}` at {where} is not in {key.low}..{key.high}")
                return key.default
            self.fail("config.invalid", f"`{name}` at {where} is no list of whole numbers")
            return key.default
        if type(value) is not kind:
            self.fail("config.invalid", f"`{name}` at {where} is not {_KINDS[kind]}")
        elif isinstance(value, int) and not key.low <= value <= key.high:
            self.fail("config.invalid", f"`{name}` at {where} is not in {key.low}..{key.high}")
        elif key.choices and value not in key.choices:
            self.fail("config.invalid", f"`{name}` at {where} is none of {', '.join(key.choices)}")
        elif key.token and not subjects.is_token(str(value)):
            self.fail("config.invalid", f"`{name}` at {where} is not of [A-Za-z0-9_-]{{1,64}}")
        else:
            return value
        return key.default

    def finish(self) -> None:
        if not self.errors:
            return
        code = self.errors[0][0]
        raise ExecutorError(code, "; ".join(message for _, message in self.errors))


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, *, required: bool = False
) -> Config:
    """Read and check the configuration; without a file, defaults and no authority at all.

    Errors  `config.*`, all of them in one message.
    """
    environ = os.environ if environ is None else environ
    file = path if path is not None else Path(FILE)
    text = ""
    if file.is_file():
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExecutorError("config.invalid", f"`{file}` is no readable UTF-8 text") from error
    elif path is not None or required:
        raise ExecutorError("config.missing", f"no file `{file}`")
    return parse(text, folder=file.parent, name=file.name, environ=environ)


def parse(text: str, *, folder: Path, name: str, environ: Mapping[str, str]) -> Config:
    """The configuration in `text`. Errors  `config.*`, all of them in one message."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5000 digits
        raise ExecutorError("config.invalid", f"{name}: {error}") from error
    reader = _Reader(text, name)
    for section in sorted(document.keys() - KEYS.keys() - {*_TABLES, "trust"}):
        reader.unknown("", section, [*KEYS, *_TABLES, "trust"], reader.where(section))
    values, sources = _scalars(reader, document, environ)
    config = Config(values=values, sources=sources, policy=Policy(), folder=folder)
    trust = _tables(reader, document, "trust", _trust)
    tenants = _tables(reader, document, "tenant", _tenant)
    grants = _tables(reader, document, "grant", _grant)
    publishers = _tables(reader, document, "publisher", _publisher)
    executors = _tables(reader, document, "executor", _executor)
    names = [tenant.name for tenant in tenants]
    for index, tenant in enumerate(names):
        if tenant in names[:index]:
            where = reader.where("tenant", index=index)
            reader.fail("config.invalid", f"{where} is a second tenant `{tenant}`")
    for index, grant in enumerate(grants):
        if grant.tenant not in names:
            where = reader.where("grant", index=index)
            reader.fail("config.invalid", f"{where} grants to unknown tenant `{grant.tenant}`")
    _check_files(reader, config)
    reader.finish()
    limits = Limits(**{
        field_name: int(values[f"limits.{key}"]) * unit  # type: ignore[arg-type]  # checked ints
        for key, (field_name, unit) in _LIMIT_NAMES.items()
    })  # fmt: skip
    policy = Policy(
        limits=limits, tenants=tuple(tenants), grants=tuple(grants),
        attempts_max=config.rules.attempts_max,
    )  # fmt: skip
    return replace(
        config, policy=policy, publishers=tuple(publishers), executors=tuple(executors),
        revoked=frozenset().union(*trust),
    )  # fmt: skip


def _scalars(
    reader: _Reader, document: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Value], dict[str, str]]:
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for section, keys in KEYS.items():
        table = document.get(section, {})
        if not isinstance(table, dict):
            reader.fail("config.invalid", f"`{section}` is not a section")
            table = {}
        for key in sorted(table.keys() - keys.keys()):
            reader.unknown(f"{section}.", key, list(keys), reader.where(section, key))
        prefix = f"EXECUTOR_{section.upper()}_"
        known = {f"{prefix}{key.upper()}": key for key in keys}
        for variable in sorted(environ):
            if variable.startswith(prefix) and variable not in known:
                reader.unknown("", variable, list(known), "the environment")
        for key, spec in keys.items():
            name, variable = f"{section}.{key}", f"{prefix}{key.upper()}"
            values[name], sources[name] = spec.default, "default"
            if key in table:
                sources[name] = reader.where(section, key)
                values[name] = reader.scalar(name, spec, table[key], sources[name])
                if isinstance(table[key], str) and _USER_INFO.search(table[key]):
                    reader.fail("config.secret-inline", f"a login in `{name}` at {sources[name]}")
            if variable in environ:
                sources[name] = f"environment {variable}"
                parsed = _from_environment(spec, environ[variable])
                values[name] = reader.scalar(name, spec, parsed, sources[name])
    return values, sources


def _from_environment(key: Key, text: str) -> object:
    if isinstance(key.default, str):
        return text
    try:
        # As a list of one, so that nothing can follow the value.
        (value,) = tomllib.loads(f"value = [{text}]")["value"]
    except (ValueError, RecursionError):
        return text
    return value


def _check_files(reader: _Reader, config: Config) -> None:
    for name in ("nats.creds_file", "host.key_file"):
        path = config.path(name)
        if path is None:
            continue
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):  # also a name that is too long, or has a NUL
            mode = 0
        if not stat.S_ISREG(mode):
            reader.fail("config.missing", f"`{name}` at {config.sources[name]} names no file")
        elif mode & (stat.S_IRWXG | stat.S_IRWXO):
            reader.fail("config.invalid", f"others can use the file in `{name}`: chmod 600 it")


class _Table:
    """One [[table]] of the file, taken apart key by key."""

    def __init__(self, reader: _Reader, section: str, index: int, table: dict[str, Any]) -> None:
        self._reader, self._table, self._section = reader, dict(table), section
        self._index = index
        self._known: list[str] = []

    @property
    def where(self) -> str:
        return self._reader.where(self._section, index=self._index)

    def fail(self, message: str) -> None:
        self._reader.fail("config.invalid", f"[[{self._section}]] at {self.where}: {message}")

    def take(self, key: str, kind: type, default: object = None) -> Any:
        self._known.append(key)
        value = self._table.pop(key, None)
        if value is None:
            if default is None:
                self.fail(f"`{key}` is missing")
                return kind()
            return default
        if type(value) is not kind:
            self.fail(f"`{key}` is not {_KINDS[kind]}")
            return kind()
        return value

    def token(self, key: str, *, wildcard: bool = False, default: str | None = None) -> str:
        given = isinstance(self._table.get(key), str)  # else `take` has said what is wrong
        value: str = self.take(key, str, default)
        if given and not subjects.is_token(value) and not (wildcard and value == "*"):
            self.fail(f"`{key}` is not of [A-Za-z0-9_-]{{1,64}}")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        value = self.take(key, list, default)
        if not all(isinstance(item, str) for item in value):
            self.fail(f"`{key}` is not a list of texts")
            return ()
        return tuple(value)

    def count(self, key: str, default: int, *, high: int) -> int:
        value: int = self.take(key, int, default)
        if not 1 <= value <= high:
            self.fail(f"`{key}` is not in 1..{high}")
        return value

    def key(self, key: str) -> PublicKey:
        text = self.take(key, str)
        try:
            return PublicKey.parse(text)
        except ExecutorError:
            self.fail(f"`{key}` is no public key: ed25519:…, from `executor keygen`")
            return PublicKey(bytes(32))

    def limits(self, table: dict[str, Any]) -> tuple[tuple[str, int], ...]:
        lowered = {}
        for key, value in table.items():
            if key not in _LIMIT_NAMES:
                self._reader.unknown("limits.", key, list(_LIMIT_NAMES), self.where)
            elif type(value) is not int or value < 1:
                self.fail(f"limit `{key}` is no whole number from 1")
            else:
                name, unit = _LIMIT_NAMES[key]
                lowered[name] = value * unit
        return tuple(lowered.items())

    def ceiling(self, key: str) -> Ceiling | None:
        self._known.append(key)
        if key not in self._table:
            return None
        table = self.take(key, dict)
        names = table.pop("capabilities", [])
        if not isinstance(names, list) or not all(
            isinstance(name, str) and name in SHORT_NAMES for name in names
        ):
            self.fail(f"`{key}.capabilities` lists other than {', '.join(SHORT_NAMES)}")
            names = []
        return Ceiling(frozenset(names), self.limits(table))

    def kv(self, key: str) -> KvScope | None:
        given = key in self._table
        scope = self.take(key, dict, {})
        if not given:
            return None
        empty = not scope
        mode, prefix = scope.pop("mode", "read"), scope.pop("prefix", "")
        if (
            scope
            or empty
            or mode not in ("read", "write")
            or not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix))
        ):
            self.fail(f'`{key}` is {{ prefix = TEXT, mode = "read" or "write" }}')
            return None
        return KvScope(prefix, mode == "write")

    def finish(self) -> None:
        for key in self._table:
            self._reader.unknown(f"{self._section}.", key, self._known, self.where)


def _tables(
    reader: _Reader, document: dict[str, Any], section: str, build: Callable[[_Table], Any]
) -> list[Any]:
    found = document.get(section, [])
    rows = [found] if isinstance(found, dict) and section == "trust" else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        reader.fail("config.invalid", f"`{section}` must be written as [[{section}]]")
        return []
    built = []
    for index, row in enumerate(rows):
        table = _Table(reader, section, index, row)
        built.append(build(table))
        table.finish()
    return built


def _trust(table: _Table) -> frozenset[str]:
    revoked = table.texts("revoked", [])
    for name in revoked:
        if not _REVOKED.fullmatch(name):
            table.fail(f"`revoked` has `{name}`, which is neither a digest nor a key id in hex")
    return frozenset(revoked)


def _tenant(table: _Table) -> Tenant:
    return Tenant(
        name=table.token("name"), ceiling=table.ceiling("ceiling") or Ceiling(),
        raw_bodies=table.take("raw_bodies", bool, default=True),
        queue_max_messages=table.count("queue_max_messages", 1_000_000, high=2**53 - 1),
        queue_max_mib=table.count("queue_max_mib", 1_024, high=_QUOTA_MAX),
    )  # fmt: skip


def _grant(table: _Table) -> Grant:
    capabilities = {
        name for name in ("log", "clock", "random") if table.take(name, bool, default=False)
    }
    kv = table.kv("kv")
    if kv is not None:
        capabilities.add("kv")
    why = table.take("why", str)
    if not why.strip():
        table.fail("`why` is empty: every authority has a reason")
    return Grant(
        tenant=table.token("tenant"), task=table.token("task", wildcard=True, default="*"),
        why=why, signer=table.take("signer", str, "*"), capabilities=frozenset(capabilities),
        kv=kv, limits=table.limits(table.take("limits", dict, {})),
    )  # fmt: skip


def _publisher(table: _Table) -> Publisher:
    tasks = table.texts("tasks")
    for pattern in tasks:
        parts = pattern.split("/")
        if len(parts) != 2 or not all(p == "*" or subjects.is_token(p) for p in parts):  # noqa: PLR2004
            table.fail(f"`tasks` has `{pattern}`, which is not TENANT/TASK")
    return Publisher(
        table.token("name"), table.key("key"), tasks, table.ceiling("ceiling"),
        large=table.take("large", bool, default=False),
    )  # fmt: skip


def _executor(table: _Table) -> ExecutorKey:
    return ExecutorKey(table.token("name"), table.key("key"), table.texts("tenants", ["*"]))
