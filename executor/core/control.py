"""What is said in CONTROL and on `control.…`: typed values, each bound to its place.

A value is one flat msgpack map: `v`, `typ`, `aud` (environment and key or subject), and the fields
of its type below, no more and no fewer. It travels as the payload of a sealed envelope of typ
`control` (`seal.Opener.said`, `command`, `answer`); an empty payload takes back what was said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from executor.core import subjects
from executor.core.access import ANY
from executor.core.content import to_msgpack
from executor.core.fields import unpack
from executor.errors import ExecutorError
from executor.model import KIB

VERSION: Final = 1
_TIME_MAX: Final = 9_200_000_000_000  # 2261: beyond 2262 the server's clock overflows
_TEXT_MAX: Final = 8_192
BYTES_MAX: Final = 64 * KIB  # every executor reads all of CONTROL
# Around the largest field, a schedule's input: its other fields, the seal and the certificate of a
# session, each of some hundred bytes. What is larger nobody says, and nobody stores or believes.
_AROUND: Final = 4 * KIB
ENTRY_MAX: Final = BYTES_MAX + _AROUND

Value = str | int | bytes

# Type → its fields. A whole number is a time or a span in ms, or a count.
TYPES: Final[Mapping[str, Mapping[str, type]]] = {
    "release": {"digest": str, "version": str},
    "cancel": {"until": int},
    "pause": {"at": int, "why": str},
    "quarantine": {"at": int, "code": str, "task": str, "by": str},
    "breaker": {"until": int, "trips": int, "by": str},
    "status": {"at": int, "report": str},  # the report is JSON for people, nothing is decided by it
    "usage": {"at": int, "report": bytes},  # as `core.usage` writes it; the same
    "schedule": {
        "at": int, "when": str, "zone": str, "input": bytes, "ct": str, "expires_ms": int,
    },
    # On subjects, not in the bucket. `sequence` 0: whichever record there is; `exp` is a time.
    "command": {
        "verb": str, "tenant": str, "task": str, "id": str, "sequence": int, "exp": int,
    },
    "answer": {
        "tenant": str, "code": str, "detail": str, "task": str, "id": str, "sequence": int,
        "duplicate": int,
    },
    # Certificate of a session's key, in the envelopes that the key signed.
    "session": {"key": bytes, "exp": int},
    # What is to be broken open; whoever approves says its SHA-256; both approvals with it, sealed.
    "request": {
        "action": str, "tenant": str, "task": str, "who": str, "why": str, "exp": int,
    },
    "approval": {"request": bytes},
    "break-glass": {"request": bytes, "first": bytes, "second": bytes},
}  # fmt: skip
# Who may say an entry: a person with this action, or an executor for the tenants it serves.
ACTIONS: Final[Mapping[str, str]] = {
    "release": "release", "cancel": "cancel", "pause": "pause", "quarantine": "quarantine",
    "schedule": "submit",
}  # fmt: skip
EXECUTORS_OWN: Final = frozenset({"breaker", "status", "quarantine", "usage"})
# Type → where its keys name the tenant, and the task, behind the type.
_TENANT_AT: Final = {
    "release": 0, "cancel": 0, "pause": 0, "schedule": 0, "breaker": 1, "usage": 1,
    "quarantine": 1,
}  # fmt: skip
_TASK_AT: Final = {"release": 1, "cancel": 1, "pause": 1, "schedule": 1}


def about(key: str) -> tuple[str, str, str]:
    """(type, tenant, task) of an entry's key; "*" where it names none, or means all."""
    typ, *rest = key.split(".")

    def token(places: Mapping[str, int]) -> str:
        place = places.get(typ, len(rest))
        found = rest[place] if place < len(rest) else ANY
        return ANY if found == subjects.ANY_TASK else found

    return typ, token(_TENANT_AT), token(_TASK_AT)


def encode(typ: str, key: str, environment: str, /, **fields: Value) -> bytes:
    """The value of `typ` under `key`."""
    if fields.keys() != TYPES[typ].keys():
        raise ValueError(f"a {typ} has {', '.join(TYPES[typ])}")
    return to_msgpack(
        {"v": VERSION, "typ": typ, "aud": subjects.audience(environment, key), **fields}
    )


def decode(data: bytes, typ: str, key: str, environment: str) -> dict[str, Value]:
    """The fields of the value read from `key`. Errors  `message.*`."""
    found = unpack(data, lists=False)
    version = found.pop("v", 0)
    if type(version) is not int or version != VERSION:
        raise ExecutorError("message.version-unknown", f"this host reads version {VERSION}")
    if found.pop("typ", "") != typ or found.keys() - {"aud"} != TYPES[typ].keys():
        raise ExecutorError("message.malformed", f"not a {typ}")
    if found.pop("aud", "") != subjects.audience(environment, key):
        raise ExecutorError("message.audience-mismatch", f"read from `{key}`")
    fields: dict[str, Value] = {}
    for name, kind in TYPES[typ].items():
        value = found[name]
        # Not isinstance: true would pass for a number.
        if type(value) is not kind or not isinstance(value, Value) or not _fits(value):
            raise ExecutorError("message.malformed", f"not a {typ}: `{name}`")
        fields[name] = value
    return fields


def _fits(value: Value) -> bool:
    if isinstance(value, int):
        return 0 <= value <= _TIME_MAX
    return len(value) <= (_TEXT_MAX if isinstance(value, str) else BYTES_MAX)
