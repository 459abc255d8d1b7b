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
from typing import Final

import msgpack

from executor.core import subjects
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

_INT_MAX: Final = 2**53
_TIME_MAX: Final = 9_200_000_000_000  # 2261: beyond 2262 the server's clock overflows
# What arrives among the tasks and only an executor may say.
_EXECUTORS_OWN: Final = frozenset({"retry", "schedule"})
_ITEMS_MAX: Final = 64
# Holds a guest's message of 8 Ki characters, each of which may take four bytes.
_TEXT_MAX: Final = 32 * KIB
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


def _malformed(detail: str) -> ExecutorError:
    return ExecutorError("message.malformed", detail)


class _OneMap:
    """Hook for msgpack: builds one map, and stops the decoder at a second one."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        if self._seen:
            raise _malformed("nested maps")
        self._seen = True
        result = dict(pairs)
        if len(result) != len(pairs):
            raise _malformed("a duplicate key")
        return result


def unpack(data: bytes, *, lists: bool) -> dict[str, object]:
    """The flat map in `data`; with `lists`, values may be lists of scalars or of short lists.

    Errors  `message.malformed`. Bounds: limits are given to the decoder, so that
    hostile bytes are refused before they become objects.
    """
    try:
        value: object = msgpack.unpackb(
            data, raw=False, use_list=True, strict_map_key=True, object_pairs_hook=_OneMap(),
            max_str_len=_TEXT_MAX, max_bin_len=max(len(data), 1), max_map_len=_ITEMS_MAX,
            max_array_len=_ITEMS_MAX if lists else 0, max_ext_len=0,
        )  # fmt: skip
    except ExecutorError:
        raise
    except Exception as error:  # the library raises a dozen types; all mean the same here
        raise _malformed("the body is not a msgpack map") from error
    if not isinstance(value, dict):
        raise _malformed("the body is not a msgpack map")
    return value


class _Fields:
    """Typed access to a decoded map; `done` refuses what nobody asked for."""

    def __init__(self, values: dict[str, object]) -> None:
        self._values = values  # taken apart

    @property
    def taken(self) -> bool:
        """Whether nothing is left."""
        return not self._values

    def text(self, name: str, *, most: int = 256, default: str | None = None) -> str:
        value = self._values.pop(name, default)
        if not isinstance(value, str) or len(value) > most:
            raise _malformed(f"`{name}` is missing or no text of at most {most} characters")
        return value

    def data(self, name: str, default: bytes | None = None) -> bytes:
        value = self._values.pop(name, default)
        if not isinstance(value, bytes):
            raise _malformed(f"`{name}` is missing or not binary")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        value = self._values.pop(name, default)
        if type(value) is not int or not 0 <= value < _INT_MAX:
            raise _malformed(f"`{name}` is missing or no whole number from 0")
        return value

    def time(self, name: str) -> int:
        value = self.count(name, 0)
        if value > _TIME_MAX:
            raise _malformed(f"`{name}` is no time in ms since 1970 before the year 2261")
        return value

    def flag(self, name: str) -> bool:
        value = self._values.pop(name, False)
        if not isinstance(value, bool):
            raise _malformed(f"`{name}` is neither true nor false")
        return value

    def rows(self, name: str, *types: type) -> tuple[tuple[object, ...], ...]:
        value = self._values.pop(name, [])
        if not isinstance(value, list):
            raise _malformed(f"`{name}` is not a list")
        for row in value:
            if not isinstance(row, list) or len(row) != len(types):
                raise _malformed(f"`{name}` has a row of another shape")
            # Not isinstance: true would pass for a number.
            if not all(kind in {type(c), object} for c, kind in zip(row, types, strict=True)):
                raise _malformed(f"`{name}` has a row of another type")
        return tuple(map(tuple, value))

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._values.pop(name, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise _malformed(f"`{name}` is no list of texts")
        return tuple(value)

    def done(self) -> None:
        if self._values:
            raise _malformed(f"unknown field `{min(map(str, self._values))[:64]}`")


_LIMITS: Final = ("fuel", "memory_bytes", "deadline_ms")


def encode_task(request: TaskRequest, environment: str) -> bytes:
    """The body that asks for `request`, bound to its subject in `environment`."""
    subject = subjects.task(request.tenant, request.task)
    optional = {
        "ct": request.content_type, "fresh": request.fresh, "expires_at": request.expires_at,
        "not_before": request.not_before, "attempts_max": request.attempts_max,
        "trace": request.trace, **dict(request.limits),
    }  # fmt: skip
    body: bytes = msgpack.packb(
        {
            "v": 1, "typ": "task", "aud": subjects.audience(environment, subject),
            "id": request.id, "input": request.input,
            **{name: value for name, value in optional.items() if value},
        }
    )  # fmt: skip
    return body


def _check_head(fields: _Fields) -> tuple[str, int]:
    version = fields.count("v")
    known = f"this host reads versions {VERSIONS[0]} to {VERSIONS[-1]}"
    if version not in VERSIONS:
        raise ExecutorError("message.version-unknown", known)
    typ = fields.text("typ", most=16)
    if version == SIGNED and typ not in ("task", "retry"):
        raise ExecutorError("message.version-unknown", f"there is no {typ} of version {version}")
    return typ, version


def _task(
    fields: _Fields, tenant: str, name: str, aud: str, input_max: int, submitted_at: int
) -> TaskRequest:
    claimed = fields.text("aud", most=_AUDIENCE_MAX)
    if claimed != aud:
        raise ExecutorError(
            "message.audience-mismatch", f"made for `{claimed[:128]}`, received on `{aud}`"
        )
    task_id = fields.text("id", most=64)
    if not subjects.is_id(task_id):
        raise _malformed("`id` is not of [A-Za-z0-9_-]{1,64} or begins with `_`")
    data, content_type = fields.data("input"), fields.text("ct", default="")
    fresh = fields.flag("fresh")
    if fields.taken:  # as most are
        request = TaskRequest(
            tenant, name, TaskId(task_id), data, content_type, fresh=fresh,
            submitted_at=submitted_at,
        )  # fmt: skip
        return _bounded(request, input_max)
    request = TaskRequest(
        tenant=tenant, task=name, id=TaskId(task_id), input=data,
        content_type=content_type, fresh=fresh,
        expires_at=fields.time("expires_at"), not_before=fields.time("not_before"),
        attempts_max=fields.count("attempts_max", 0), trace=fields.text("trace", default=""),
        limits=tuple((n, v) for n in _LIMITS if (v := fields.count(n, 0))),
        submitted_at=submitted_at,
    )  # fmt: skip
    fields.done()
    return _bounded(request, input_max)


def _raw(
    headers: Mapping[str, str], body: bytes, tenant: str, name: str, input_max: int,
    submitted_at: int,
) -> TaskRequest:  # fmt: skip
    task_id = headers[TASK_ID]
    if not subjects.is_id(task_id):
        raise _malformed(f"`{TASK_ID}` is not of [A-Za-z0-9_-]{{1,64}} or begins with `_`")
    content_type, trace = headers.get(CONTENT_TYPE, ""), headers.get(TRACEPARENT, "")
    for header, value in ((CONTENT_TYPE, content_type), (TRACEPARENT, trace)):
        if len(value) > _HEADER_MAX or not value.isascii() or not value.isprintable():
            raise _malformed(f"`{header}` is no printable text of at most {_HEADER_MAX} characters")
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
    fields = _Fields(unpack(data, lists=False))
    typ, version = _check_head(fields)
    if typ in _EXECUTORS_OWN:
        return _sealed(fields, typ, version)
    if typ != "task":
        raise _malformed(f"`typ` is `{typ}` on a task subject")
    _check_size(len(data), MESSAGE_MAX)
    if version == SIGNED:
        return _sealed(fields, typ, version)
    aud = subjects.audience(environment, subjects.task(tenant, name))
    return _task(fields, tenant, name, aud, input_max, submitted_at)


def decode_signed(
    sealed: Sealed, tenant: str, name: str, *, environment: str, input_max: int,
    submitted_at: int = 0,
) -> TaskRequest:  # fmt: skip
    """The request in a submitter's seal that was checked. Errors  `message.*`.

    Never `fresh`: who repeats its bytes would have it run again.
    """
    fields = _Fields(unpack(sealed.payload, lists=False))
    typ, version = _check_head(fields)
    if typ != "task" or version == SIGNED:
        raise _malformed("a signed task that holds none")
    aud = subjects.audience(environment, subjects.task(tenant, name))
    request = _task(fields, tenant, name, aud, input_max, submitted_at)
    if request.id != sealed.id:
        raise _malformed("a signed task of another id")
    return replace(request, fresh=False, by=sealed.by)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ExecutorError("message.too-large", f"{size} bytes, at most {most}")


def encode_sealed(sealed: Sealed) -> bytes:
    """The body of an authenticated envelope."""
    proof, session = sealed.proof, {"session": sealed.session} if sealed.session else {}
    body: bytes = msgpack.packb({
        "v": sealed.version, "typ": sealed.typ, "aud": sealed.aud, "id": sealed.id, "by": sealed.by,
        "iat": sealed.iat, "payload": sealed.payload, "count": proof.count, "index": proof.index,
        "path": proof.path, "sig": proof.signature, **session,
    })  # fmt: skip
    return body


def _sealed(fields: _Fields, typ: str, version: int) -> Sealed:
    held = typ == "control" and version == WITH_SESSION
    sealed = Sealed(
        typ=typ, aud=fields.text("aud", most=_AUDIENCE_MAX), id=fields.text("id", most=64),
        by=fields.text("by", most=64), iat=fields.count("iat"), payload=fields.data("payload"),
        proof=Proof(
            count=fields.count("count"), index=fields.count("index"),
            path=fields.data("path"), signature=fields.data("sig"),
        ),
        version=version,
        session=fields.data("session", b"") if held else b"",
    )  # fmt: skip
    fields.done()
    return sealed


def decode_sealed(data: bytes) -> Sealed:
    """The authenticated envelope in `data`, unproved. Errors  `message.*`."""
    fields = _Fields(unpack(data, lists=False))
    return _sealed(fields, *_check_head(fields))


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
    payload: bytes = msgpack.packb({
        "attempt": request.attempt, "crashes": request.crashes, "not_before": request.not_before,
        "submitted_at": request.submitted_at, "history": _history(request.history),
        **({"of": request.of} if request.of else {}), **_origin_fields(origin),
    })  # fmt: skip
    return payload


def decode_retry(
    sealed: Sealed, tenant: str, name: str, *, environment: str, input_max: int,
    opened: Callable[[Sealed, Origin, int], TaskRequest] | None = None,
) -> tuple[TaskRequest, Origin]:  # fmt: skip
    """The request in a retry whose seal was checked. Errors  `message.*`.

    `opened`  opens what a schedule fired or a submitter signed, from its message and when that was
              stored.
    """
    fields = _Fields(unpack(sealed.payload, lists=True))
    attempt, crashes = fields.count("attempt"), fields.count("crashes")
    not_before, submitted_at = fields.count("not_before"), fields.count("submitted_at")
    history, origin = _read_history(fields), _read_origin(fields)
    of = fields.text("of", most=64) if sealed.version >= SIGNED else ""
    fields.done()
    if origin is None:
        raise _malformed("a retry without the message it repeats")
    # Raw bodies were allowed when the task was first accepted; that decision stands.
    request = decode_task(
        origin.data, dict(origin.headers), tenant, name,
        environment=environment, raw_allowed=True, input_max=input_max,
    )  # fmt: skip
    if isinstance(request, Sealed):
        if request.typ == "retry" or opened is None:
            raise _malformed("a retry of a retry")
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
_receipt_values: Final = attrgetter(*_RECEIPT)


def record_version(record: Record) -> int:
    """The lowest version that can hold `record`."""
    return 2 if record.limits or record.last_calls or record.signers or record.cause else 1


def encode_record(record: Record, version: int = VERSION) -> bytes:
    """The payload of a `result` or `dead` envelope; what `version` cannot hold is left out."""
    values: dict[str, object] = {
        "task": record.task, "attempt": record.attempt, "attempts_max": record.attempts_max,
        "submitted_at": record.submitted_at, "finished_at": record.finished_at,
        "version": record.version, "trace": record.trace, "history": _history(record.history),
    }  # fmt: skip
    values |= zip(_RECEIPT, _receipt_values(record.receipt), strict=True)
    if record.code:
        values |= {
            "code": record.code, "message": record.message, "hint": record.hint,
            "facts": record.facts[:_ITEMS_MAX], "logs": record.logs[-TAIL_LINES_MAX:],
            "discarded_at": record.discarded_at,
        }  # fmt: skip
        if record.origin is not None:
            values |= _origin_fields(record.origin)
    else:
        values |= {"output": record.output, "ct": record.content_type, "degraded": record.degraded}
    if version > 1:
        values |= {
            "limits": record.limits[:_ITEMS_MAX], "last_calls": record.last_calls[-LAST_CALLS_MAX:],
            "signers": record.signers[:SIGNERS_MAX], "cause": record.cause,
        }  # fmt: skip
    # Empty values are left out: a record of the common case is a third of the size.
    payload: bytes = msgpack.packb({name: value for name, value in values.items() if value})
    return payload


def decode_record(typ: str, payload: bytes, version: int = VERSION) -> Record:
    """The record in a payload whose seal was checked. Errors  `message.malformed`."""
    fields = _Fields(unpack(payload, lists=True))
    receipt = Receipt(**{
        name: fields.text(name, default="") if name in {"digest", "engine", "containment"}
        else fields.count(name, 0)
        for name in _RECEIPT
    })  # type: ignore[arg-type]  # the names are the dataclass's own  # fmt: skip
    facts = fields.rows("facts", str, object)
    record = Record(
        task=fields.text("task", most=64), attempt=fields.count("attempt", 0),
        attempts_max=fields.count("attempts_max", 0),
        submitted_at=fields.count("submitted_at", 0), finished_at=fields.count("finished_at", 0),
        receipt=receipt, version=fields.text("version", default=""),
        trace=fields.text("trace", default=""), history=_read_history(fields),
        output=fields.data("output", b""), content_type=fields.text("ct", default=""),
        degraded=fields.flag("degraded"), code=fields.text("code", most=64, default=""),
        message=fields.text("message", most=_TEXT_MAX, default=""),
        hint=fields.text("hint", most=_TEXT_MAX, default=""),
        facts=tuple((str(n), v if isinstance(v, int) else str(v)) for n, v in facts),
        logs=tuple((_level(n), str(t)) for n, t in fields.rows("logs", int, str)),
        origin=_read_origin(fields), discarded_at=fields.count("discarded_at", 0),
    )  # fmt: skip
    if version > 1:
        record = replace(
            record, limits=_pairs(fields, "limits"), last_calls=_pairs(fields, "last_calls"),
            signers=fields.texts("signers"), cause=fields.text("cause", most=64, default=""),
        )  # fmt: skip
    fields.done()
    if (typ == "dead") != bool(record.code):
        raise _malformed(f"a `{typ}` that is none")
    return record


def _pairs(fields: _Fields, name: str) -> tuple[tuple[str, int], ...]:
    rows = fields.rows(name, str, int)
    return tuple((str(key), value) for key, value in rows if isinstance(value, int))


def _level(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= 3 else 1  # noqa: PLR2004


def _history(history: Sequence[PastAttempt]) -> list[list[str | int]]:
    return [[past.attempt, past.code, past.at] for past in history[-HISTORY_MAX:]]


def _read_history(fields: _Fields) -> tuple[PastAttempt, ...]:
    rows = fields.rows("history", int, str, int)
    return tuple(PastAttempt(*row) for row in rows)  # type: ignore[arg-type]  # rows checked them


def _origin_fields(origin: Origin) -> dict[str, object]:
    return {
        "origin": origin.data, "origin_subject": origin.subject, "origin_headers": origin.headers,
        "origin_size": origin.size, "origin_sha256": origin.sha256,
    }  # fmt: skip


def _read_origin(fields: _Fields) -> Origin | None:
    subject = fields.text("origin_subject", default="")
    headers = fields.rows("origin_headers", str, str)
    origin = Origin(
        subject=subject, data=fields.data("origin", b""),
        headers=tuple((str(name), str(value)) for name, value in headers),
        size=fields.count("origin_size", 0), sha256=fields.text("origin_sha256", default=""),
    )  # fmt: skip
    return origin if subject else None
