"""`executor.toml` to one frozen Config, checked whole before anything starts.

Flag > `EXECUTOR_<SECTION>_<KEY>` > file > default. Every error is reported at once; an unknown key
comes with a suggestion. Secrets are files, never values: a key that looks like one is refused.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from executor import config_document
from executor.config_document import TABLES, Document
from executor.config_tables import LIMIT_NAMES, Key, Reader, Value
from executor.core.glass import Glass
from executor.core.policy import Policy, Publisher
from executor.core.seal import ExecutorKey, Opener, by_id
from executor.core.settlement import RETRY_AFTER_MAX_MS, Rules
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Limits

FILE: Final = "executor.toml"


# Section → key → Key. `config show`, the environment and the documentation derive from this.
KEYS: Final[dict[str, dict[str, Key]]] = {
    "host": {
        "mode": Key("development", "production: only what is signed grants anything",
                    choices=("development", "production")),
        "environment": Key("dev", "part of every audience: dev, stage and prod never mix",
                           token=True),
        "name": Key("local", "this executor's name in NATS and in logs", token=True),
        "key_file": Key("", "signs outcomes; made by `executor init`"),
        "health_file": Key("", "rewritten every 5 s for `executor health`; unset: none"),
        "cache_key_file": Key("", "authenticates compiled modules on this disk; unset: no cache"),
    },
    "trust": {
        "source": Key("file", "what grants stands here, or is signed: for a team, and production",
                      choices=("file", "tuf")),
        "root_file": Key("trust/root.json", "the pinned root: whom all trust comes from"),
        "folder": Key("trusted", "the last good state, written after each refresh"),
        "repository": Key("trust", "where signers keep metadata; an executor needs none"),
        "keys_folder": Key("keys/trust", "the signers' keys, if any are here; serve reads none"),
        "refresh_s": Key(60, "a push is heard at once; this is for what was missed", 1, 86_400),
    },
    "keys": {
        "operator_file": Key("", "signs what you tell executors: pause, cancel, publish, retry …"),
        "submitter_file": Key("", "signs your requests, where set; made by `executor keygen`"),
        "session_folder": Key("session", "of `executor session start`: its key signs in place of "
                              "the operator's, for hours"),
    },
    "nats": {
        "url": Key("nats://127.0.0.1:4222", "nats-server's own default"),
        "creds_file": Key("", "a credentials file, mode 0600; read anew at each reconnect"),
        "nkey_file": Key("", "the seed of a NATS key, mode 0600"),
        "login": Key("", "ROLE_NAME whose key that is: names the inbox, and what the mint gives"),
        "logins": Key("", "a folder of logins, by ROLE_NAME: each verb takes that of its role"),
        "mint": Key("", "unix:PATH or tls://HOST:PORT of `executor nats mint`: JWTs of minutes"),
        "ca_file": Key("", "who signs the server's certificate; set, TLS 1.3 is demanded"),
        "cert_file": Key("", "this host's own certificate"),
        "key_file": Key("", "and its key, mode 0600"),
        "parser": Key("fast", "messages without nats-py's queues; plain is nats-py's own way",
                      choices=("fast", "plain")),
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
        "window_shared": Key(24, "the same while several tenants have work: a flood of 256 in hand "
                             "put 10 ms before a neighbour's task, of 16 some 2", 1, 4096),
        "outcomes_days": Key(7, "once-only holds as long as outcomes are kept", 1, 3650),
        "outcomes_max_mib": Key(1_024, "reserved on disk for each tenant, like its queue; about a "
                                "million outcomes, then the oldest go and may run again; 0: by "
                                "age alone", 0, 1_048_576),
        "envelope_version": Key(2, "1 while executors that read no 2 share the work: what it adds "
                                "to records is left out", 1, 2),
    },
    "policy": {
        "shadow_file": Key("", "another policy: what it would deny is counted; unset: none"),
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
        "reserve": Key(0, "slots kept for tenants that have none: no flood makes them wait; with "
                       "several tenants, 1 beyond one a core", 0, 255),
        "attempts_per_sandbox_max": Key(50_000, "a respawn costs what 1000 attempts cost", 1),
        "containment": Key(
            "required", "refuse to start rather than run weaker",
            choices=("required", "best-effort"),
        ),
        "memory": Key("pooled", "a fresh instance costs 20 µs less than on-demand",
                      choices=("pooled", "on-demand")),
        "engine_path": Key("auto", "raw, five times as fast, where it passed its test at start",
                           choices=("auto", "raw", "public")),
        "cache_folder": Key("cache", "compiled modules; may be deleted at any time"),
        "cache_max_mib": Key(512, "a module of 1 MB makes 5.5 MB", 1, 1_048_576),
        "compile_deadline_ms": Key(10_000, "of CPU; 1 MB takes 2.5 s", 100, 600_000),
    },
}  # fmt: skip

_REVOKED: Final = "revoked"  # of [trust]: what counts no more
_USER_INFO: Final = re.compile(r"//[^/]*@")  # of a URL: a user's name, mostly with a password


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration. `values` and `sources` are keyed "section.key"."""

    values: Mapping[str, Value]
    sources: Mapping[str, str]  # "default", "environment NAME", "FILE:LINE", "flag"
    policy: Policy
    document: Document = field(default_factory=Document)
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
    def signed(self) -> bool:
        """Whether what grants comes from signed metadata."""
        return self.text("trust.source") == "tuf"

    @property
    def publishers(self) -> tuple[Publisher, ...]:
        """Whose modules run, and for which tasks."""
        return self.document.publishers

    @property
    def executors(self) -> tuple[ExecutorKey, ...]:
        """Whose outcomes are believed."""
        return self.document.executors

    @property
    def revoked(self) -> frozenset[str]:
        """Digests and key ids that count no more."""
        return self.document.revoked

    def opener(self, glass: Glass | None = None) -> Opener:
        """Checks what is signed, by these keys and this policy, and what is broken open."""
        document = self.document
        return Opener(
            self.text("host.environment"),
            {entry.key.key_id.hex(): entry for entry in document.executors}, document.revoked,
            by_id(document.operators), by_id(document.submitters), document.access,
            glass or Glass(),
        )  # fmt: skip

    def secret(self, name: str) -> SecretKey | None:
        """The key in the file that a setting names; None when unset. Errors  `config.*`."""
        path = self.path(name)
        if path is None:
            return None
        try:
            mode = path.stat().st_mode
            data = path.read_bytes() if stat.S_ISREG(mode) else b""
        except (OSError, ValueError):
            raise ExecutorError("config.missing", f"`{name}` names no file") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ExecutorError(
                "config.invalid", f"others can use the key in `{name}`", hint=f"chmod 600 {path}"
            )
        try:
            return SecretKey.parse(data)
        except (ExecutorError, ValueError):
            raise ExecutorError("config.invalid", f"`{name}` names no Ed25519 secret key",
                                hint="make one with `executor keygen NAME`") from None  # fmt: skip

    def granting(self, document: Document) -> Config:
        """The same host under another statement of who may do what."""
        policy = replace(
            self.policy, tenants=document.tenants, grants=document.grants,
            access=document.access, requirements=document.requirements,
            builders=document.builders,
        )  # fmt: skip
        return replace(self, policy=policy, document=document)

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
    reader = Reader(text, name, folder)
    for section in sorted(document.keys() - KEYS.keys() - set(TABLES)):
        reader.unknown("", section, [*KEYS, *TABLES], reader.where(section))
    values, sources = _scalars(reader, document, environ)
    config = Config(values=values, sources=sources, policy=Policy(), folder=folder)
    _check_source(reader, config, document)
    trust = document.pop("trust", None)  # its settings are read, the list in it grants
    if isinstance(trust, dict) and _REVOKED in trust:
        document["trust"] = {_REVOKED: trust[_REVOKED]}
    granting = config_document.read(reader, document)
    _check_files(reader, config)
    reader.finish()
    limits = Limits(**{
        field_name: int(values[f"limits.{key}"]) * unit  # type: ignore[arg-type]  # checked ints
        for key, (field_name, unit) in LIMIT_NAMES.items()
    })  # fmt: skip
    config = replace(config, policy=Policy(limits=limits, attempts_max=config.rules.attempts_max))
    return config.granting(granting)


def _scalars(
    reader: Reader, document: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Value], dict[str, str]]:
    values: dict[str, Value] = {}
    sources: dict[str, str] = {}
    for section, keys in KEYS.items():
        table = document.get(section, {})
        if not isinstance(table, dict):
            reader.fail("config.invalid", f"`{section}` is not a section")
            table = {}
        grants = {_REVOKED} if section == "trust" else set()
        for key in sorted(table.keys() - keys.keys() - grants):
            known = [*keys, *sorted(grants)]
            reader.unknown(f"{section}.", key, known, reader.where(section, key))
        prefix = f"EXECUTOR_{section.upper()}_"
        variables = [f"{prefix}{key.upper()}" for key in keys]
        for variable in sorted(environ):
            if variable.startswith(prefix) and variable not in variables:
                reader.unknown("", variable, variables, "the environment")
        for key, spec in keys.items():
            name, variable = f"{section}.{key}", f"{prefix}{key.upper()}"
            values[name], sources[name] = spec.default, "default"
            if key in table:
                sources[name] = reader.where(section, key)
                values[name] = reader.scalar(name, spec, table[key], sources[name])
                if isinstance(table[key], str) and _USER_INFO.search(table[key]):
                    reader.fail("config.secret-inline", f"a login in `{name}` at {sources[name]}")
            if variable in environ:
                kept, sources[name] = values[name], f"environment {variable}"
                parsed = _from_environment(spec, environ[variable])
                values[name] = reader.scalar(name, spec, parsed, sources[name])
                if name == "host.mode" and kept == "production" != values[name]:
                    reader.fail("config.invalid", f"{variable} lowers `host.mode`: it may raise it")
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


def _check_source(reader: Reader, config: Config, document: dict[str, Any]) -> None:
    """One place that grants: this file, or what is signed; in production never this file."""
    production = config.text("host.mode") == "production"
    if not config.signed:
        if production:
            reader.fail(
                "config.invalid",
                '`host.mode = "production"` needs `trust.source = '
                '"tuf"`: whoever can write this file must not grant anything',
            )
        return
    trust = document.get("trust")
    revokes = isinstance(trust, dict) and _REVOKED in trust
    found = [f"[[{name}]] at {reader.where(name)}" for name in TABLES if name in document]
    found += [f"`trust.revoked` at {reader.where('trust', _REVOKED)}"] if revokes else []
    if found:
        why = "in production" if production else 'with `trust.source = "tuf"`'
        reader.fail(
            "config.invalid",
            f"{', '.join(found)}: {why} what grants or revokes stands in "
            "the signed policy alone; sign it there: executor trust sign policy.toml",
        )


def _check_files(reader: Reader, config: Config) -> None:
    for name in ("nats.creds_file", "nats.nkey_file", "nats.key_file", "host.key_file"):
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
