"""The typed envelope of every message body, versions 1 to 3: bytes to values and back.

A message on NATS is one flat msgpack map. `typ` says what it is, `aud` binds it to an environment
and a subject, and unknown fields, duplicate keys and nesting are refused. A `task` envelope is the
submitter's; `retry`, `schedule`, `result` and `dead` carry an opaque payload under an executor's
signature (`core.seal` makes and checks it; payloads are decoded only afterwards). A message with a
`Task-Id` header is the raw form: its body is the input.

Version 2 adds what a record says of an attempt; version 3 is a task in a submitter's seal, and a
retry under another id than its message's. Readers take all; a message says the lowest version that
can hold it, so that an older host reads it or refuses it, and never looks past a signature.

Nothing here decodes a task's input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final

from executor.core import subjects
from executor.core.fields import (
    COUNT,
    DATA,
    FLAG,
    INT_MAX,
    ITEMS_MAX,
    LIST,
    TEXT,
    TEXT_MAX,
    TIME,
    Table,
    check,
    malformed,
    pack,
    rows,
    texts,
    unpack,
)
from executor.core.frames import LAST_CALLS_MAX
from executor.core.signature import Proof
from executor.errors import ExecutorError
from executor.model import (
    KIB,
    PAYLOAD_MAX,
    Delivery,
    PastAttempt,
    Receipt,
    TaskId,
    TaskRequest,
)
from executor.values import light_dataclass

VERSION: Final = 2  # the highest of a record
SIGNED: Final = 3
WITH_SESSION: Final = 2  # of `control`
VERSIONS: Final = (1, 2, 3)  # what is read
# The input cap plus room for the other fields. A retry adds its signature and history, a dead
# letter its report, and both still fit the 1 MiB that a NATS server accepts by default.
MESSAGE_MAX: Final = PAYLOAD_MAX + 16 * KIB
RETRY_MAX: Final = MESSAGE_MAX + 8 * KIB
# What is kept of a message above MESSAGE_MAX, beside its size and digest.
PREFIX_MAX: Final = 4 * KIB
HISTORY_MAX: Final = 16
TAIL_LINES_MAX: Final = 16
SIGNERS_MAX: Final = 16

TASK_ID: Final = "Task-Id"
CONTENT_TYPE: Final = "Content-Type"
TRACEPARENT: Final = "traceparent"
SCHEDULE_NEXT: Final = "Nats-Schedule-Next"  # the server's, on what a schedule fired
_KEPT_HEADERS: Final = (TASK_ID, CONTENT_TYPE, TRACEPARENT, SCHEDULE_NEXT)
_HEADER_MAX: Final = 256

# What arrives among the tasks and only an executor may say.
_EXECUTORS_OWN: Final = frozenset({"retry", "schedule"})
# An environment of 64 characters, `/`, and the longest subject: a kind and three tokens.
_AUDIENCE_MAX: Final = 320


@light_dataclass(frozen=True, slots=True)
class Sealed:
    """An authenticated envelope as it was read; nothing in it is proved yet."""

    typ: str
    aud: str
    id: str
    by: str
    iat: int
    payload: bytes
    proof: Proof
    version: int = 1
    session: bytes = b""  # of `control`: the certificate of the key that signed for `by`


@light_dataclass(frozen=True, slots=True)
class Draft:
    """What is to be sealed."""

    typ: str
    aud: str
    id: str
    payload: bytes
    version: int = 1


@light_dataclass(frozen=True, slots=True)
class Origin:
    """The submitter's message as it arrived: kept whole, or as size, digest and prefix."""

    subject: str
    data: bytes
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0
    sha256: str = ""

    @property
    def whole(self) -> bool:
        """Whether `data` is all of it."""
        return len(self.data) == self.size


@light_dataclass(frozen=True, slots=True)
class Record:
    """A terminal record: a result when `code` is empty, else a dead letter."""

    task: str
    attempt: int
    attempts_max: int
    submitted_at: int  # ms
    finished_at: int  # ms
    receipt: Receipt
    version: str = ""  # of the module
    trace: str = ""
    history: tuple[PastAttempt, ...] = ()
    output: bytes = b""
    content_type: str = ""
    degraded: bool = False
    code: str = ""
    message: str = ""
    hint: str = ""
    facts: tuple[tuple[str, str | int], ...] = ()
    logs: tuple[tuple[int, str], ...] = ()
    origin: Origin | None = None
    discarded_at: int = 0  # ms; set when an operator closed the dead letter
    # Version 2.
    limits: tuple[tuple[str, int], ...] = ()  # of the attempt that failed
    # Function and how it ended: 0, a number of `abi.ERRORS`, or `frames.UNRETURNED`.
    last_calls: tuple[tuple[str, int], ...] = ()
    signers: tuple[str, ...] = ()  # publishers whose signatures admitted the module
    cause: str = ""  # of a degraded result: the code that a fallback stood in for


_OPTIONAL: Final = ("ct", "fresh", "expires_at", "not_before", "attempts_max", "trace")
_optional_values: Final = attrgetter("content_type", *_OPTIONAL[1:])


def encode_task(request: TaskRequest, environment: str) -> bytes:
    """The body that asks for `request`, bound to its subject in `environment`."""
    subject = subjects.task(request.tenant, request.task)
    optional = zip(_OPTIONAL, _optional_values(request), strict=True)
    body: bytes = pack({
        "v": 1, "typ": "task", "aud": subjects.audience(environment, subject), "id": request.id,
        "input": request.input, **{name: value for name, value in optional if value},
        **{name: value for name, value in request.limits if value},
    })  # fmt: skip
    return body


def _check_head(values: dict[str, Any]) -> tuple[str, int]:
    version, typ = values.get("v"), values.get("typ")
    if type(version) is not int or not 0 <= version < INT_MAX:
        raise malformed("`v` is missing or no whole number from 0")
    if version not in VERSIONS:
        known = f"this host reads versions {VERSIONS[0]} to {VERSIONS[-1]}"
        raise ExecutorError("message.version-unknown", known)
    if not isinstance(typ, str) or len(typ) > 16:  # noqa: PLR2004
        raise malformed("`typ` is missing or no text of at most 16 characters")
    if version == SIGNED and typ not in ("task", "retry"):
        raise ExecutorError("message.version-unknown", f"there is no {typ} of version {version}")
    return typ, version


_LIMITS: Final = ("fuel", "memory_bytes", "deadline_ms")
_TASK: Final[Table] = {
    "v": COUNT, "typ": (str, 16), "aud": (str, _AUDIENCE_MAX), "id": (str, 64), "input": DATA,
    "ct": TEXT, "fresh": FLAG, "expires_at": TIME, "not_before": TIME, "attempts_max": COUNT,
    "trace": TEXT, **dict.fromkeys(_LIMITS, COUNT),
}  # fmt: skip
_TASK_NEEDED: Final = ("aud", "id", "input")


def _task(
    values: dict[str, Any], tenant: str, name: str, aud: str, input_max: int, submitted_at: int
) -> TaskRequest:
    claimed = values.get("aud")
    if isinstance(claimed, str) and claimed != aud and len(claimed) <= _AUDIENCE_MAX:
        raise ExecutorError(
            "message.audience-mismatch", f"made for `{claimed[:128]}`, received on `{aud}`"
        )
    check(values, _TASK, _TASK_NEEDED)
    task_id, get = values["id"], values.get
    if not subjects.is_id(task_id):
        raise malformed("`id` is not of [A-Za-z0-9_-]{1,64} or begins with `_`")
    limits = () if values.keys().isdisjoint(_LIMITS) else _LIMITS
    request = TaskRequest(
        tenant, name, TaskId(task_id), values["input"], get("ct", ""), fresh=get("fresh", False),
        submitted_at=submitted_at, expires_at=get("expires_at", 0),
        not_before=get("not_before", 0), attempts_max=get("attempts_max", 0),
        limits=tuple([(n, v) for n in limits if (v := get(n, 0))]), trace=get("trace", ""),
    )  # fmt: skip
    return _bounded(request, input_max)


def _raw(
    headers: Mapping[str, str], body: bytes, tenant: str, name: str, input_max: int,
    submitted_at: int,
) -> TaskRequest:  # fmt: skip
    task_id = headers[TASK_ID]
    if not subjects.is_id(task_id):
        raise malformed(f"`{TASK_ID}` is not of [A-Za-z0-9_-]{{1,64}} or begins with `_`")
    content_type, trace = headers.get(CONTENT_TYPE, ""), headers.get(TRACEPARENT, "")
    for header, value in ((CONTENT_TYPE, content_type), (TRACEPARENT, trace)):
        if len(value) > _HEADER_MAX or not value.isascii() or not value.isprintable():
            raise malformed(f"`{header}` is no printable text of at most {_HEADER_MAX} characters")
    request = TaskRequest(
        tenant=tenant, task=name, id=TaskId(task_id), input=body, content_type=content_type,
        trace=trace, raw=True, submitted_at=submitted_at,
    )  # fmt: skip
    return _bounded(request, input_max)


def _bounded(request: TaskRequest, input_max: int) -> TaskRequest:
    if len(request.input) > input_max:
        raise ExecutorError(
            "message.too-large", f"{len(request.input)} bytes of input, at most {input_max}"
        )
    return request


def decode_task(
    data: bytes, headers: Mapping[str, str], tenant: str, name: str, *,
    environment: str, raw_allowed: bool, input_max: int, submitted_at: int = 0,
) -> TaskRequest | Sealed:  # fmt: skip
    """What a message on `task.<tenant>.<name>` asks for; what is signed comes back sealed.

    `submitted_at` is when it was stored.

    Errors  `message.malformed`, `message.too-large`, `message.version-unknown`,
            `message.audience-mismatch`, `policy.raw-body-refused`.
    """
    if TASK_ID in headers:
        if not raw_allowed:
            raise ExecutorError("policy.raw-body-refused")
        _check_size(len(data), MESSAGE_MAX)
        return _raw(headers, data, tenant, name, input_max, submitted_at)
    _check_size(len(data), RETRY_MAX)
    values = unpack(data, lists=False)
    typ, version = _check_head(values)
    if typ in _EXECUTORS_OWN:
        return _sealed(values, typ, version)
    if typ != "task":
        raise malformed(f"`typ` is `{typ}` on a task subject")
    _check_size(len(data), MESSAGE_MAX)
    if version == SIGNED:
        return _sealed(values, typ, version)
    aud = subjects.audience(environment, subjects.task(tenant, name))
    return _task(values, tenant, name, aud, input_max, submitted_at)


def decode_signed(
    sealed: Sealed, tenant: str, name: str, *, environment: str, input_max: int,
    submitted_at: int = 0,
) -> TaskRequest:  # fmt: skip
    """The request in a submitter's seal that was checked. Errors  `message.*`.

    Never `fresh`: who repeats its bytes would have it run again.
    """
    values = unpack(sealed.payload, lists=False)
    typ, version = _check_head(values)
    if typ != "task" or version == SIGNED:
        raise malformed("a signed task that holds none")
    aud = subjects.audience(environment, subjects.task(tenant, name))
    request = _task(values, tenant, name, aud, input_max, submitted_at)
    if request.id != sealed.id:
        raise malformed("a signed task of another id")
    return replace(request, fresh=False, by=sealed.by)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ExecutorError("message.too-large", f"{size} bytes, at most {most}")


def encode_sealed(sealed: Sealed) -> bytes:
    """The body of an authenticated envelope."""
    proof, session = sealed.proof, {"session": sealed.session} if sealed.session else {}
    body: bytes = pack({
        "v": sealed.version, "typ": sealed.typ, "aud": sealed.aud, "id": sealed.id, "by": sealed.by,
        "iat": sealed.iat, "payload": sealed.payload, "count": proof.count, "index": proof.index,
        "path": proof.path, "sig": proof.signature, **session,
    })  # fmt: skip
    return body


_SEALED: Final[Table] = {
    "v": COUNT, "typ": (str, 16), "aud": (str, _AUDIENCE_MAX), "id": (str, 64), "by": (str, 64),
    "iat": COUNT, "payload": DATA, "count": COUNT, "index": COUNT, "path": DATA, "sig": DATA,
}  # fmt: skip
_IN_SESSION: Final = _SEALED | {"session": DATA}  # type: ignore[operator]


def _sealed(values: dict[str, Any], typ: str, version: int) -> Sealed:
    held = typ == "control" and version == WITH_SESSION
    check(values, _IN_SESSION if held else _SEALED, _SEALED)
    proof = Proof(values["count"], values["index"], values["path"], values["sig"])
    return Sealed(
        typ, values["aud"], values["id"], values["by"], values["iat"], values["payload"], proof,
        version, values.get("session", b""),
    )  # fmt: skip


def decode_sealed(data: bytes) -> Sealed:
    """The authenticated envelope in `data`, unproved. Errors  `message.*`."""
    values = unpack(data, lists=False)
    return _sealed(values, *_check_head(values))


def origin_of(delivery: Delivery) -> Origin:
    """What is kept of a delivered message: of one above MESSAGE_MAX, how it begins."""
    # Headers are the submitter's bytes: what is no text must not keep its own report from being
    # written.
    headers = tuple(
        (name, delivery.headers[name][:256].encode("utf-8", "backslashreplace").decode())
        for name in _KEPT_HEADERS
        if name in delivery.headers
    )
    size = len(delivery.data)
    subject = delivery.subject[:256]  # what its record can hold: a longer one is no task's anyway
    if size > MESSAGE_MAX:
        sha256 = hashlib.sha256(delivery.data).hexdigest()
        return Origin(subject, delivery.data[:PREFIX_MAX], headers, size, sha256)
    return Origin(subject, delivery.data, headers, size)


def retry_version(request: TaskRequest) -> int:
    """The lowest version that can hold a retry of `request`."""
    return 3 if request.of else 1


def encode_retry(request: TaskRequest, origin: Origin) -> bytes:
    """The payload that asks for `request` again, with its counters and the submitter's message."""
    payload: bytes = pack({
        "attempt": request.attempt, "crashes": request.crashes, "not_before": request.not_before,
        "submitted_at": request.submitted_at, "history": _history(request.history),
        **({"of": request.of} if request.of else {}), **_origin_fields(origin),
    })  # fmt: skip
    return payload


_RETRY: Final[Table] = {
    "attempt": COUNT, "crashes": COUNT, "not_before": COUNT, "submitted_at": COUNT,
    "history": LIST, "origin": DATA, "origin_subject": TEXT, "origin_headers": LIST,
    "origin_size": COUNT, "origin_sha256": TEXT,
}  # fmt: skip
_RETRY_3: Final[Table] = {**_RETRY, "of": (str, 64)}
_RETRY_NEEDED: Final = ("attempt", "crashes", "not_before", "submitted_at")
_RETRY_3_NEEDED: Final = (*_RETRY_NEEDED, "of")  # else version 1 would pass for 3


def decode_retry(
    sealed: Sealed, tenant: str, name: str, *, environment: str, input_max: int,
    opened: Callable[[Sealed, Origin, int], TaskRequest] | None = None,
) -> tuple[TaskRequest, Origin]:  # fmt: skip
    """The request in a retry whose seal was checked. Errors  `message.*`.

    `opened`  opens what a schedule fired or a submitter signed, from its message and when that was
              stored.
    """
    values = unpack(sealed.payload, lists=True)
    if sealed.version >= SIGNED:
        check(values, _RETRY_3, _RETRY_3_NEEDED)
    else:
        check(values, _RETRY, _RETRY_NEEDED)
    attempt, crashes, submitted_at = values["attempt"], values["crashes"], values["submitted_at"]
    not_before, of = values["not_before"], values.get("of", "")
    history, origin = _read_history(values.get("history")), _read_origin(values)
    if origin is None:
        raise malformed("a retry without the message it repeats")
    # Raw bodies were allowed when the task was first accepted; that decision stands.
    request = decode_task(
        origin.data, dict(origin.headers), tenant, name,
        environment=environment, raw_allowed=True, input_max=input_max,
    )  # fmt: skip
    if isinstance(request, Sealed):
        if request.typ == "retry" or opened is None:
            raise malformed("a retry of a retry")
        request = opened(request, origin, submitted_at)
    if request.id != (of or sealed.id):
        raise ExecutorError("message.audience-mismatch", "the retry is of another task id")
    if of:  # when its dead letter was written it had expired, or need not wait any more
        request = replace(request, id=TaskId(sealed.id), of=of, expires_at=0)
    return replace(
        request, attempt=max(attempt, 1), crashes=crashes, fresh=False, not_before=not_before,
        submitted_at=submitted_at, history=history,
    ), origin  # fmt: skip


_RECEIPT: Final = tuple(Receipt.__dataclass_fields__)
# The fields of both kinds of record as they are written, and where a record has them.
_HEAD: Final = (
    "task", "attempt", "attempts_max", "submitted_at", "finished_at", "version", "trace", "history",
)  # fmt: skip
_RESULT_NAMES: Final = (*_HEAD, *_RECEIPT, "output", "ct", "degraded")
_DEAD_NAMES: Final = (
    *_HEAD, *_RECEIPT, "code", "message", "hint", "facts", "logs", "discarded_at",
)  # fmt: skip
_PLACES: Final = {"ct": "content_type", **{name: f"receipt.{name}" for name in _RECEIPT}}
_result_values: Final = attrgetter(*(_PLACES.get(name, name) for name in _RESULT_NAMES))
_dead_values: Final = attrgetter(*(_PLACES.get(name, name) for name in _DEAD_NAMES))


def record_version(record: Record) -> int:
    """The lowest version that can hold `record`."""
    return 2 if record.limits or record.last_calls or record.signers or record.cause else 1


def encode_record(record: Record, version: int = VERSION) -> bytes:
    """The payload of a `result` or `dead` envelope; what `version` cannot hold is left out."""
    # Empty values are left out: a record of the common case is a third of the size.
    if record.code:
        plain = zip(_DEAD_NAMES, _dead_values(record), strict=True)
    else:
        plain = zip(_RESULT_NAMES, _result_values(record), strict=True)
    values = {name: value for name, value in plain if value}
    if record.history:
        values["history"] = _history(record.history)
    if record.code:
        values |= _filled(facts=record.facts[:ITEMS_MAX], logs=record.logs[-TAIL_LINES_MAX:])
        values |= _filled(**_origin_fields(record.origin)) if record.origin else {}
    if version > 1:
        values |= _filled(
            limits=record.limits[:ITEMS_MAX], last_calls=record.last_calls[-LAST_CALLS_MAX:],
            signers=record.signers[:SIGNERS_MAX], cause=record.cause,
        )  # fmt: skip
    payload: bytes = pack(values)
    return payload


def _filled(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value}


_RECEIPT_TEXTS: Final = ("digest", "engine", "containment")
_RECEIPT_EMPTY: Final = tuple("" if name in _RECEIPT_TEXTS else 0 for name in _RECEIPT)
_RECORD: Final[Table] = {
    **dict.fromkeys(_RECEIPT, COUNT), **dict.fromkeys(_RECEIPT_TEXTS, TEXT),
    "task": (str, 64), "attempt": COUNT, "attempts_max": COUNT, "submitted_at": COUNT,
    "finished_at": COUNT, "version": TEXT, "trace": TEXT, "history": LIST, "output": DATA,
    "ct": TEXT, "degraded": FLAG, "code": (str, 64), "message": (str, TEXT_MAX),
    "hint": (str, TEXT_MAX), "facts": LIST, "logs": LIST, "discarded_at": COUNT, "origin": DATA,
    "origin_subject": TEXT, "origin_headers": LIST, "origin_size": COUNT, "origin_sha256": TEXT,
}  # fmt: skip
_RECORD_2: Final[Table] = {
    **_RECORD, "limits": LIST, "last_calls": LIST, "signers": LIST, "cause": (str, 64),
}  # fmt: skip
_RECORD_NEEDED: Final = ("task",)


def decode_record(typ: str, payload: bytes, version: int = VERSION) -> Record:
    """The record in a payload whose seal was checked. Errors  `message.malformed`."""
    values = unpack(payload, lists=True)
    check(values, _RECORD_2 if version > 1 else _RECORD, _RECORD_NEEDED)
    get = values.get
    code = get("code", "")
    if (typ == "dead") != bool(code):
        raise malformed(f"a `{typ}` that is none")
    facts = rows(get("facts"), "facts", str, object)
    logs = rows(get("logs"), "logs", int, str)
    return Record(
        values["task"], get("attempt", 0), get("attempts_max", 0), get("submitted_at", 0),
        get("finished_at", 0), Receipt(*map(get, _RECEIPT, _RECEIPT_EMPTY)), get("version", ""),
        get("trace", ""), _read_history(get("history")), get("output", b""), get("ct", ""),
        get("degraded", False), code, get("message", ""), get("hint", ""),
        tuple([(name, v if isinstance(v, int) else str(v)) for name, v in facts]),
        tuple([(_level(level), text) for level, text in logs]), _read_origin(values),
        get("discarded_at", 0), rows(get("limits"), "limits", str, int),
        rows(get("last_calls"), "last_calls", str, int), texts(get("signers", ()), "signers"),
        get("cause", ""),
    )  # fmt: skip


def _level(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= 3 else 1  # noqa: PLR2004


def _history(history: Sequence[PastAttempt]) -> list[list[str | int]]:
    return [[past.attempt, past.code, past.at] for past in history[-HISTORY_MAX:]]


def _read_history(value: Any) -> tuple[PastAttempt, ...]:
    return tuple(PastAttempt(*row) for row in rows(value, "history", int, str, int))


def _origin_fields(origin: Origin) -> dict[str, object]:
    return {
        "origin": origin.data, "origin_subject": origin.subject, "origin_headers": origin.headers,
        "origin_size": origin.size, "origin_sha256": origin.sha256,
    }  # fmt: skip


def _read_origin(values: dict[str, Any]) -> Origin | None:
    get = values.get
    headers = rows(get("origin_headers"), "origin_headers", str, str)
    if not (subject := get("origin_subject", "")):
        return None
    return Origin(
        subject, get("origin", b""), headers, get("origin_size", 0), get("origin_sha256", "")
    )
