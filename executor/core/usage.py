"""What tasks used of what they were granted: kept by each executor, bounded, read by people.

Of a tenant: its tasks, each with its runs, the functions its module imports and which it called
and when, the keys it read and wrote as patterns below its prefix, and the most it used; and since
when each grant was seen. Nothing is decided by it: a sandbox says itself which of its own
functions a guest called, and CONTROL carries the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from executor.core import abi, scopes
from executor.core.policy import Grant
from executor.core.scopes import Patterns
from executor.errors import ExecutorError
from executor.model import KIB, KvScope

VERSION: Final = 1
# Of one tenant in CONTROL, which every executor reads whole; a task takes some 500 bytes.
BYTES_MAX: Final = 32 * KIB
TASKS_MAX: Final = 64  # beyond, those that ran longest ago are dropped
KEYS_MAX: Final = 16  # patterns of keys of one task; beyond, folders
_GRANTS_MAX: Final = 256
_DENIED_MAX: Final = 32
# Of what is read, which any executor may have written: counts that stay counts however many are
# added, and lists that are as short as those that are kept.
_NUMBER_MAX: Final = 2**53
_ITEMS_MAX: Final = 4 * KEYS_MAX


@dataclass(slots=True)
class TaskUse:
    """One task's; times in ms."""

    since: int
    last: int = 0
    runs: int = 0
    digest: str = ""
    imports: tuple[str, ...] = ()
    signers: tuple[str, ...] = ()  # publishers, by name
    used: dict[str, tuple[int, int]] = field(default_factory=dict)  # function → runs, last
    prefix: str = ""
    read: Patterns = ()
    write: Patterns = ()
    most: dict[str, int] = field(default_factory=dict)  # limit → the most that a run used
    denied: dict[str, int] = field(default_factory=dict)  # by the shadow: what → how often

    def called(self, function: str, runs: int, at: int) -> None:
        """Note that a function was called."""
        before, last = self.used.get(function, (0, 0))
        self.used[function] = (min(before + runs, _NUMBER_MAX), max(last, at))

    def key(self, prefix: str, function: str, key: str) -> None:
        """Note a key that was let through; with another prefix, all keys are learned anew."""
        if prefix != self.prefix:
            self.prefix, self.read, self.write = prefix, (), ()
        if function == "kv_get":
            self.read = scopes.widened(self.read, key, KEYS_MAX)
        else:
            self.write = scopes.widened(self.write, key, KEYS_MAX)

    def deny(self, what: str, runs: int = 1) -> bool:
        """Note that the shadow would deny it; whether that is new."""
        new = what not in self.denied
        if not new or len(self.denied) < _DENIED_MAX:
            self.denied[what] = min(self.denied.get(what, 0) + runs, _NUMBER_MAX)
        return new

    def add(self, other: TaskUse) -> None:
        """Count what another executor, or an earlier life of this one, saw."""
        newer = other.last > self.last
        if newer:
            self.digest, self.imports, self.signers = other.digest, other.imports, other.signers
        self.since, self.last = min(self.since, other.since), max(self.last, other.last)
        self.runs = min(self.runs + other.runs, _NUMBER_MAX)
        for function, (runs, at) in other.used.items():
            self.called(function, runs, at)
        if newer or other.prefix == self.prefix:
            for function, patterns in (("kv_get", other.read), ("kv_put", other.write)):
                for pattern in patterns:
                    self.key(other.prefix, function, pattern)
        for name, value in other.most.items():
            self.most[name] = max(value, self.most.get(name, 0))
        for what, runs in other.denied.items():
            self.deny(what, runs)


@dataclass(slots=True)
class Usage:
    """One tenant's."""

    tasks: dict[str, TaskUse] = field(default_factory=dict)
    grants: dict[str, int] = field(default_factory=dict)  # `name_of` → first seen
    shadow: str = ""  # which document was evaluated beside

    def add(self, other: Usage) -> None:
        """Count what was seen elsewhere, or before."""
        for name, use in other.tasks.items():
            if name in self.tasks:
                self.tasks[name].add(use)
            else:
                self.tasks[name] = use
        for name, at in other.grants.items():
            self.grants[name] = min(at, self.grants.get(name, at))
        self.shadow = self.shadow or other.shadow

    def see(self, grants: Iterable[Grant], at: int) -> None:
        """Remember since when these grants are in force, and forget those that are not."""
        names = [name_of(grant) for grant in grants][:_GRANTS_MAX]
        self.grants = {name: self.grants.get(name, at) for name in names}


def name_of(grant: Grant) -> str:
    """A grant, by what it gives to whom: another reason or limit does not make it new."""
    kv = grant.kv and [grant.kv.prefix, grant.kv.read, grant.kv.write]
    what = [grant.tenant, grant.task, grant.signer, sorted(grant.capabilities), kv]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def encode(usage: Usage) -> bytes:
    """As JSON of at most `BYTES_MAX`: what ran longest ago is left out first."""
    tasks = sorted(usage.tasks.items(), key=lambda item: -item[1].last)[:TASKS_MAX]
    while True:
        value = {
            "v": VERSION, "grants": usage.grants, "shadow": usage.shadow,
            "tasks": {name: asdict(use) for name, use in tasks},
        }  # fmt: skip
        data = json.dumps(value, separators=(",", ":")).encode()
        if len(data) <= BYTES_MAX or not tasks:
            return data
        tasks = tasks[: len(tasks) * 3 // 4]


def decode(data: bytes) -> Usage:
    """What `encode` wrote. Errors  `message.malformed`, `message.version-unknown`."""
    try:
        value = json.loads(data[: 2 * BYTES_MAX])
        version = _number(value["v"])
        tasks = {_text(name): _task(found) for name, found in value["tasks"].items()}
        usage = Usage(tasks, _numbers(value["grants"]), _text(value["shadow"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ExecutorError("message.malformed", "not a usage") from None
    if version != VERSION:
        raise ExecutorError("message.version-unknown", f"this host reads version {VERSION}")
    return usage


def _task(found: Mapping[str, Any]) -> TaskUse:
    return TaskUse(
        since=_number(found["since"]), last=_number(found["last"]), runs=_number(found["runs"]),
        digest=_text(found["digest"]), imports=_texts(found["imports"]),
        signers=_texts(found["signers"]),
        used={_text(n): (_number(runs), _number(at)) for n, (runs, at) in found["used"].items()},
        prefix=_text(found["prefix"]), read=_texts(found["read"]), write=_texts(found["write"]),
        most=_numbers(found["most"]), denied=_numbers(found["denied"]),
    )  # fmt: skip


def _texts(found: object) -> tuple[str, ...]:
    if type(found) is not list or len(found) > _ITEMS_MAX:
        raise ValueError
    return tuple(_text(value) for value in found)


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        raise ValueError
    return value


def _numbers(found: Mapping[object, object]) -> dict[str, int]:
    return {_text(name): _number(value) for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """One capability of one grant, and how it was used since it was first seen."""

    grant: Grant
    capability: str
    since: int  # ms; 0: no executor has seen it yet
    last: int  # ms; 0: never
    runs: int  # of tasks that it covers
    imported: bool  # by one of their modules

    def unused_ms(self, now: int) -> int:
        """How long it was of no use."""
        start = max(self.last, self.since)
        return now - start if start else 0


def review(grants: Sequence[Grant], usages: Mapping[str, Usage]) -> list[Found]:
    """Every capability of every grant, with its use by the tasks that it covers."""
    found = []
    for grant in grants:
        usage = usages.get(grant.tenant, Usage())
        uses = [use for task, use in usage.tasks.items()
                if grant.covers(grant.tenant, task, use.signers)]  # fmt: skip
        for capability in sorted(grant.capabilities):
            functions = abi.CAPABILITIES[abi.SHORT_NAMES[capability]]
            lasts = [
                use.used[name][1] for use in uses for name in functions
                if name in use.used and grant.gives(name) and _meets(grant.kv, name, use)
            ]  # fmt: skip
            found.append(Found(
                grant, capability, usage.grants.get(name_of(grant), 0), max(lasts, default=0),
                sum(use.runs for use in uses),
                any(name in use.imports for use in uses for name in functions),
            ))  # fmt: skip
    return found


def _meets(scope: KvScope | None, function: str, use: TaskUse) -> bool:
    """Whether keys that were used are among a grant's; functions without keys always."""
    if function not in abi.CAPABILITIES[abi.KV] or scope is None:
        return True
    keys, given = (use.read, scope.read) if function == "kv_get" else (use.write, scope.write)
    mine = scopes.stored(use.prefix, keys)
    return any(
        scopes.hold((one,), (other,)) or scopes.hold((other,), (one,))
        for one in mine for other in scopes.stored(scope.prefix, given)
    )  # fmt: skip


def smallest(tenant: str, task: str, use: TaskUse, why: str) -> str:
    """The least that has to be granted for the runs that were seen to pass again.

    What a module imports must be there for it to start, called or not; keys are those of the runs.
    """
    capabilities = {abi.FUNCTIONS[name].module for name in use.imports} - {abi.TASK}
    short = {name for name, module in abi.SHORT_NAMES.items() if module in capabilities}
    called = {abi.FUNCTIONS[name].module for name in use.used}
    head = ["[[grant]]", f"tenant = {_toml(tenant)}", f"task = {_toml(task)}"]
    if len(use.signers) == 1:
        head.append(f"signer = {_toml(use.signers[0])}")
    head.append(f"why = {_toml(why)}")
    lines, beside = list(head), list[str]()
    for name in sorted(short):
        never = "" if abi.SHORT_NAMES[name] in called else "  # imported, never called"
        if name != "kv":
            lines.append(f"{name} = true{never}")
        elif not {"kv_put", "kv_delete"} & set(use.imports):
            lines.append(_kv(use.prefix, "read", use.read) + never)
        else:
            lines.append(_kv(use.prefix, "write", use.write) + never)
            if not scopes.hold(use.write, use.read):
                beside = ["", *head, _kv(use.prefix, "read", use.read)]
    return "\n".join([*lines, *beside, ""])


def _kv(prefix: str, mode: str, keys: Patterns) -> str:
    listed = ", ".join(map(_toml, keys))
    return f'kv = {{ prefix = {_toml(prefix)}, mode = "{mode}", keys = [{listed}] }}'


def _toml(text: str) -> str:
    """A text as TOML spells it: JSON's spelling is one of its own."""
    return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f")
