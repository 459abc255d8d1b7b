"""The tables of `executor.toml` that grant: tenants, grants, publishers, executors; and the reader
that keeps every error of a file until it is read to its end.
"""  # noqa: D205

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from executor.core import subjects
from executor.core.abi import SHORT_NAMES
from executor.core.access import ACTIONS, Binding, Party
from executor.core.policy import NO_LIMIT, Ceiling, Grant, Publisher, Requirement, Tenant
from executor.core.scopes import reduced
from executor.core.seal import ExecutorKey
from executor.core.signature import PublicKey
from executor.errors import TABLE, Class, ExecutorError
from executor.model import KIB, MIB, PAYLOAD_MAX, Fallback, KvScope

LIMIT_NAMES: Final = {
    "fuel": ("fuel", 1), "memory_max_mib": ("memory_bytes", MIB),
    "table_elements": ("table_elements", 1), "deadline_ms": ("deadline_ms", 1),
    "input_max_kib": ("input_bytes", KIB), "output_max_kib": ("output_bytes", KIB),
    "log_max_kib": ("log_bytes", KIB), "log_lines_max": ("log_lines", 1),
    "calls_max": ("calls", 1), "mediated_calls_max": ("mediated_calls", 1),
    "call_max_mib": ("call_bytes", MIB), "host_max_ms": ("host_ms", 1),
}  # fmt: skip
_SECRET: Final = re.compile(r"(password|passwd|secret|token|seed|private)", re.IGNORECASE)
_PREFIX: Final = re.compile(r"[A-Za-z0-9/_=-]*")  # what NATS allows in a key, without the dot
# Below a prefix: one key, a folder's, or all.
_KEYS: Final = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9/_=.-]{0,511}(?<!/)(/\*)?|\*")
_KEYS_MAX: Final = 64
_REVOKED: Final = re.compile(r"sha256:[0-9a-f]{64}|[0-9a-f]{24}")  # a digest, or a key id
# What a fallback may stand in for: not what is never settled, nor a sign of attack.
_FALLBACK_CODES: Final = frozenset(
    code for code, row in TABLE.items()
    if row.klass not in {Class.SECURITY, Class.SILENT, Class.NONE} and code != "task.cancelled"
)  # fmt: skip
_FALLBACK_FORMS: Final = frozenset({"result", "result_file", "task"})
_QUOTA_MAX: Final = 2**30  # of MiB: below the server's 63 bits of bytes

_KINDS: Final[dict[type, str]] = {
    int: "a whole number", str: "a text", bool: "true or false", list: "a list", dict: "a table",
}  # fmt: skip

Value = str | int | bool | tuple[int, ...]


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


class Reader:
    """One reading of one file: collects every error before it raises."""

    def __init__(self, text: str, name: str, folder: Path | None) -> None:
        self.name = name
        self.folder = folder
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
        """Keep an error of the file."""
        self.errors.append((code, message))

    def unknown(self, what: str, name: str, known: list[str], where: str) -> None:
        """Keep an error about a key nobody knows, with the nearest that is known."""
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean `{near[0]}`" if near else f"; known: {', '.join(known)}"
        if _SECRET.search(name):
            self.fail("config.secret-inline", f"`{what}{name}` at {where}")
        else:
            self.fail("config.key-unknown", f"unknown key `{what}{name}` at {where}{hint}")

    def scalar(self, name: str, key: Key, value: object, where: str) -> Value:
        """The value of a setting if it is one, else its default and an error."""
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
        """Raise what was kept. Errors  `config.*`."""
        if not self.errors:
            return
        code = self.errors[0][0]
        raise ExecutorError(code, "; ".join(message for _, message in self.errors))


class _Table:
    """One [[table]] of the file, taken apart key by key."""

    def __init__(self, reader: Reader, section: str, index: int, table: dict[str, Any]) -> None:
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

    def tokens(self, key: str, default: list[str] | None = None) -> frozenset[str]:
        """A set of names, or of "*"."""
        found = self.texts(key, default)
        for name in found:
            if name != "*" and not subjects.is_token(name):
                self.fail(f'`{key}` has `{name}`, which is neither "*" nor a name')
        return frozenset(found)

    def patterns(self, key: str) -> tuple[str, ...]:
        """A list of TENANT/TASK, either part may be "*"."""
        found = self.texts(key)
        for pattern in found:
            parts = pattern.split("/")
            if len(parts) != 2 or not all(p == "*" or subjects.is_token(p) for p in parts):  # noqa: PLR2004
                self.fail(f"`{key}` has `{pattern}`, which is not TENANT/TASK")
        return found

    def date(self, key: str) -> int:
        """A day, or a time with its zone, in ms; 0 when unset."""
        self._known.append(key)
        value = self._table.pop(key, None)
        if value is None:
            return 0
        if type(value) is dt.date:
            value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
        if not isinstance(value, dt.datetime) or value.tzinfo is None:
            self.fail(f"`{key}` is neither a day, 2030-01-31, nor a time with its zone")
            return 0
        return int(value.timestamp() * 1000)

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
            if key not in LIMIT_NAMES:
                self._reader.unknown("limits.", key, list(LIMIT_NAMES), self.where)
            elif type(value) is not int or value < 1:
                self.fail(f"limit `{key}` is no whole number from 1")
            else:
                name, unit = LIMIT_NAMES[key]
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
        keys = scope.pop("keys", ["*"])
        if (
            scope
            or empty
            or mode not in ("read", "write")
            or not (isinstance(prefix, str) and _PREFIX.fullmatch(prefix))
            or not (isinstance(keys, list) and len(keys) <= _KEYS_MAX)
            or not all(isinstance(name, str) and _KEYS.fullmatch(name) for name in keys)
        ):
            self.fail(
                f'`{key}` is {{ prefix = TEXT, mode = "read" or "write", keys = ["a", "b/*"] }}'
            )
            return None
        # None at all: the functions are there, and every call of them is denied.
        patterns = reduced(keys) or ("",)
        return KvScope(prefix, patterns, patterns if mode == "write" else ())

    def fallback(self, key: str) -> Fallback | None:
        given = key in self._table
        table = self.take(key, dict, {})
        if not given:
            return None
        on, form = table.pop("on", []), sorted(table.keys() & _FALLBACK_FORMS)
        content_type = table.pop("content_type", "")
        if not isinstance(on, list) or not on or not set(map(str, on)) <= _FALLBACK_CODES:
            self.fail(f"`{key}.on` is no list of codes that a fallback may stand in for")
        if len(form) != 1 or len(table) != 1 or not isinstance(content_type, str):
            self.fail(f"`{key}` is {{ on = [CODES], one of result, result_file, task }}")
            return None
        value = table[form[0]]
        if not isinstance(value, str) or (form[0] == "task" and not subjects.is_token(value)):
            self.fail(f"`{key}.{form[0]}` is no {'task' if form[0] == 'task' else 'text'}")
            return None
        codes = frozenset(map(str, on))
        if form[0] == "task":
            return Fallback(codes, task=value)
        data = self._content(f"{key}.result_file", value) if form[0] != "result" else value.encode()
        if len(data) > PAYLOAD_MAX:
            self.fail(f"`{key}` gives {len(data)} bytes, at most {PAYLOAD_MAX}")
        return Fallback(codes, data, content_type)

    def _content(self, what: str, name: str) -> bytes:
        if self._reader.folder is None:
            # Its signers see no file of a host, and must not be able to ask for one.
            self.fail(f"`{what}` cannot stand in a signed policy: write `result` instead")
            return b""
        try:
            with (self._reader.folder / name).open("rb") as file:
                return file.read(PAYLOAD_MAX + 1)
        except (OSError, ValueError):
            self.fail(f"`{what}` names no readable file")
            return b""

    def finish(self) -> None:
        for key in self._table:
            self._reader.unknown(f"{self._section}.", key, self._known, self.where)


def tables(
    reader: Reader, document: dict[str, Any], section: str, build: Callable[[_Table], Any]
) -> list[Any]:
    """Every [[section]] of the document, built; what is wrong is kept by the reader."""
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


def trust(table: _Table) -> frozenset[str]:
    """What [trust] revokes."""
    revoked = table.texts("revoked", [])
    for name in revoked:
        if not _REVOKED.fullmatch(name):
            table.fail(f"`revoked` has `{name}`, which is neither a digest nor a key id in hex")
    return frozenset(revoked)


def tenant(table: _Table) -> Tenant:
    """One [[tenant]]."""
    return Tenant(
        name=table.token("name"), ceiling=table.ceiling("ceiling") or Ceiling(),
        raw_bodies=table.take("raw_bodies", bool, default=True),
        signed_requests=table.take("signed_requests", bool, default=False),
        queue_max_messages=table.count("queue_max_messages", 1_000_000, high=2**53 - 1),
        queue_max_mib=table.count("queue_max_mib", 1_024, high=_QUOTA_MAX),
        weight=table.count("weight", 1, high=1_000),
        sandboxes_max=table.count("sandboxes_max", NO_LIMIT, high=NO_LIMIT),
        tasks_per_s=table.count("tasks_per_s", NO_LIMIT, high=NO_LIMIT),
        roles=table.texts("roles", ["submitter", "reader"]),
    )  # fmt: skip


def grant(table: _Table) -> Grant:
    """One [[grant]]."""
    capabilities = {
        name for name in ("log", "clock", "random") if table.take(name, bool, default=False)
    }
    kv = table.kv("kv")
    if kv is not None:
        capabilities.add("kv")
    why = table.take("why", str)
    if not why.strip():
        table.fail("`why` is empty: every authority has a reason")
    limits = table.limits(table.take("limits", dict, {}))
    if limits and not capabilities:
        # They would bound nobody: those of a grant hold for what uses what it gives.
        table.fail("`limits` without a capability; what bounds every attempt is a [[requirement]]")
    return Grant(
        tenant=table.token("tenant"), task=table.token("task", wildcard=True, default="*"),
        why=why, signer=table.take("signer", str, "*"), capabilities=frozenset(capabilities),
        kv=kv, limits=limits, fallback=table.fallback("fallback"),
        not_after=table.date("not_after"),
    )  # fmt: skip


def publisher(table: _Table) -> Publisher:
    """One [[publisher]]."""
    return Publisher(
        table.token("name"), table.key("key"), table.patterns("tasks"), table.ceiling("ceiling"),
        large=table.take("large", bool, default=False),
        not_before=table.date("not_before"), not_after=table.date("not_after"),
    )  # fmt: skip


def executor(table: _Table) -> ExecutorKey:
    """One [[executor]]: outcomes stored until its `not_after` stay believed."""
    return ExecutorKey(
        table.token("name"),
        table.key("key"),
        table.texts("tenants", ["*"]),
        not_after=table.date("not_after"),
        not_before=table.date("not_before"),
    )


def party(table: _Table) -> Party:
    """One [[submitter]] or [[builder]]."""
    return Party(
        table.token("name"), table.key("key"), table.date("not_before"), table.date("not_after")
    )


submitter = builder = party


def operator(table: _Table) -> Party:
    """One [[operator]]: from `sessions_from` on its key signs nothing but sessions."""
    return replace(party(table), sessions_from=table.date("sessions_from"))


def role(table: _Table) -> tuple[str, frozenset[str]]:
    """One [[role]]: its name and actions."""
    actions = table.texts("actions")
    for action in actions:
        if action not in ACTIONS:
            table.fail(f"`actions` has `{action}`, which is none of {', '.join(ACTIONS)}")
    return table.token("name"), frozenset(actions)


def binding(table: _Table) -> Binding:
    """One [[binding]]; `who` has names still, which become principals when all are read."""
    why = table.take("why", str)
    if not why.strip():
        table.fail("`why` is empty: every authority has a reason")
    return Binding(
        table.token("role"), frozenset(table.texts("who")), table.tokens("tenants", ["*"]),
        table.tokens("tasks", ["*"]), table.take("deny", bool, default=False), why,
    )  # fmt: skip


def requirement(table: _Table) -> Requirement:
    """One [[requirement]]."""
    return Requirement(
        table.patterns("tasks"), table.count("signatures", 1, high=16),
        table.texts("builders", []), table.limits(table.take("limits", dict, {})),
    )  # fmt: skip
