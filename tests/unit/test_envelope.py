"""Envelopes: every field there and back, and one bad case for each rule of decoding."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Final

import msgpack
import pytest

from executor.core import envelope
from executor.core.envelope import MESSAGE_MAX, RETRY_MAX, Origin, Record, Sealed
from executor.core.seal import seal
from executor.core.signature import Proof, SecretKey
from executor.errors import ExecutorError
from executor.model import FIELDS as LIMITS
from executor.model import (
    KIB,
    MIB,
    PAYLOAD_MAX,
    Delivery,
    PastAttempt,
    Receipt,
    TaskId,
    TaskRequest,
)

AUD: Final = "dev/task.acme.resize"
KEY: Final = SecretKey(bytes([1]) * 32)
# What a NATS server takes by default, less what a client's headers may need.
WIRE_MAX: Final = MIB - 4 * KIB

FULL: Final = TaskRequest(
    tenant="acme", task="resize", id=TaskId("01JQ-x_7"), input=b"\0\xff\xc1",
    content_type="image/png", fresh=True, expires_at=2_000, not_before=1_000, attempts_max=2,
    limits=(("fuel", 7), ("memory_bytes", 8), ("deadline_ms", 9)), trace="00-ab-cd-01",
)  # fmt: skip


def fields(**changes: object) -> dict[str, Any]:
    """The fields of the smallest task with some changed; ... leaves one out."""
    base: dict[str, object] = {"v": 1, "typ": "task", "aud": AUD, "id": "1", "input": b""}
    return {name: value for name, value in (base | changes).items() if value is not ...}


def odd(name: object) -> dict[object, object]:
    """The fields of the smallest task and one with a name that is no text."""
    return dict(fields()) | {name: "a"}


def pack(value: object) -> bytes:
    """`value` as msgpack, whatever it is."""
    body: bytes = msgpack.packb(value)
    return body


def decode(
    data: bytes, headers: dict[str, str] | None = None, *, raw_allowed: bool = True,
    input_max: int = PAYLOAD_MAX, environment: str = "dev",
) -> TaskRequest | Sealed:  # fmt: skip
    """`data` as it arrives for acme/resize."""
    return envelope.decode_task(
        data, headers or {}, "acme", "resize",
        environment=environment, raw_allowed=raw_allowed, input_max=input_max,
    )  # fmt: skip


def refusal(
    data: bytes, headers: dict[str, str] | None = None, *, raw_allowed: bool = True,
    input_max: int = PAYLOAD_MAX, environment: str = "dev",
) -> str:  # fmt: skip
    """The code with which `data` is refused."""
    with pytest.raises(ExecutorError) as caught:
        decode(data, headers, raw_allowed=raw_allowed, input_max=input_max, environment=environment)
    return caught.value.code


# A task.


@pytest.mark.parametrize(
    "request_",
    [
        FULL,
        TaskRequest("acme", "resize", TaskId("1"), b""),
        replace(FULL, id=TaskId("a" * 64), input=bytes(PAYLOAD_MAX), content_type="é" * 256),
        replace(FULL, expires_at=9_200_000_000_000, trace="t" * 256, limits=(("deadline_ms", 1),)),
    ],
    ids=["every field", "smallest", "largest", "extremes"],
)
def test_a_task_reads_back(request_: TaskRequest) -> None:
    """Every field a submitter may set arrives as it was sent."""
    assert decode(envelope.encode_task(request_, "dev")) == request_


def test_the_smallest_task_has_one_known_spelling() -> None:
    """The bytes are wire format: fields that say nothing are not written."""
    request = TaskRequest("acme", "resize", TaskId("1"), b"")
    assert msgpack.unpackb(envelope.encode_task(request, "dev")) == fields()


@pytest.mark.covers("message.malformed")
@pytest.mark.parametrize(
    "changes",
    [
        {"v": ...}, {"v": "1"}, {"v": True}, {"v": 1.0}, {"v": -1}, {"v": 2**53},
        {"typ": ...}, {"typ": 1}, {"typ": b"task"}, {"typ": "t" * 17}, {"typ": "result"},
        {"typ": "dead"}, {"typ": "release"}, {"typ": ""},
        {"aud": ...}, {"aud": 1}, {"aud": "a" * 321}, {"aud": AUD.encode()},
        {"id": ...}, {"id": 1}, {"id": ""}, {"id": "a" * 65}, {"id": "a.b"}, {"id": "_1"},
        {"id": "1\n"}, {"id": b"1"}, {"id": None},
        {"input": ...}, {"input": "text"}, {"input": None}, {"input": 1}, {"input": [1]},
        {"ct": 1}, {"ct": b"x"}, {"ct": "a" * 257}, {"ct": None},
        {"fresh": 1}, {"fresh": "yes"}, {"fresh": None},
        {"expires_at": -1}, {"expires_at": 1.5}, {"expires_at": True}, {"expires_at": 2**53},
        {"expires_at": 2**64 - 1}, {"expires_at": "1"},
        {"not_before": -1}, {"not_before": 0.0}, {"not_before": 2**53}, {"not_before": None},
        {"attempts_max": -1}, {"attempts_max": False}, {"attempts_max": 2**63},
        {"trace": 1}, {"trace": "a" * 257},
        {"fuel": -1}, {"fuel": 1.0}, {"fuel": 2**53}, {"memory_bytes": "64"},
        {"deadline_ms": [1]}, {"deadline_ms": float("nan")},
        {"attempt": 2}, {"crashes": 0}, {"history": b""}, {"unheard": 1}, {"": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_is_checked(changes: dict[str, object]) -> None:
    """A field that is missing, unknown, or of another type or range makes it no task."""
    assert refusal(pack(fields(**changes))) == "message.malformed"


@pytest.mark.covers("message.malformed")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(None),
        pack([]),
        pack("text"),
        pack(1),
        pack(fields())[:-1],
        pack(fields()) + b"\0",
        pack(fields()) * 2,
        b"\x86" + pack(fields())[1:] + b"\xa1v\x01",
        b"\x86" + pack(fields())[1:] + b"\xa2id\xa12",
        pack(fields(ct={})),
        pack(fields(ct={"a": 1})),
        pack(fields(input=[[]])),
        pack(fields(input=msgpack.ExtType(1, b"x"))),
        pack(fields(input=msgpack.ExtType(1, b""))),
        pack(fields(expires_at=msgpack.Timestamp(1, 0))),
        pack(odd(b"ct")),
        pack(odd(1)),
        pack({**fields(), **{f"f{n}": 0 for n in range(60)}}),
        pack(fields()).replace(b"\xa4task", b"\xa4\xff\xfe\xfd\xfc"),
        b"\x85" + b"\xa1v" * 10,
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1v\xc6\xff\xff\xff\xff",
        b"\x81\xa1v\xdb\xff\xff\xff\xff",
        b"\x81\xa1v\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1v" * 100_000,
        b"\x81\xa1v" + b"\x90" * 3,
        pack(fields(ct="a" * 40_000)),
    ],
    ids=[
        "empty", "never used byte", "nil", "list", "text", "number", "cut short",
        "trailing byte", "twice", "key twice, equal", "key twice, other", "empty map inside",
        "map inside", "list inside", "ext type", "empty ext type", "timestamp", "binary key",
        "number as key", "65 fields", "not UTF-8", "fields without values",
        "4 G fields", "4 GB of bytes", "4 GB of text", "4 G items", "deep lists", "deep maps",
        "list as value", "40 000 characters",
    ],
)  # fmt: skip
def test_bytes_that_are_no_flat_map(data: bytes) -> None:
    """Nesting, duplicates, ext types, trailing bytes and lies about length are refused."""
    assert refusal(data) == "message.malformed"


@pytest.mark.covers("message.version-unknown")
@pytest.mark.parametrize("v", [0, 4, 7])
def test_other_versions_are_named_as_such(v: int) -> None:
    """A version that this host does not read is told apart from damage, before any other field."""
    assert refusal(pack({"v": v, "unheard": []})) == "message.version-unknown"


@pytest.mark.covers("message.audience-mismatch")
@pytest.mark.parametrize(
    "aud",
    ["", "task.acme.resize", "prod/task.acme.resize", "dev/task.other.resize", AUD + "x",
     "dev/task.acme.other", "dev/result.acme.resize.1", AUD.upper()],
)  # fmt: skip
def test_an_envelope_holds_on_its_own_subject_alone(aud: str) -> None:
    """A task that was made for another subject, tenant or environment does not run here."""
    assert refusal(pack(fields(aud=aud))) == "message.audience-mismatch"


def test_the_longest_audience_is_read() -> None:
    """The longest environment with the longest subject still fits the field."""
    name = "a" * 64
    request = TaskRequest(name, name, TaskId(name), b"")
    body = envelope.encode_task(request, name)
    assert envelope.decode_task(
        body, {}, name, name, environment=name, raw_allowed=False, input_max=1
    ) == request  # fmt: skip
    aud = f"{name}/result.{name}.{name}.{name}"
    sealed = Sealed("result", aud, name, name, 1, b"", Proof(1, 0, b"", b""))
    assert envelope.decode_sealed(envelope.encode_sealed(sealed)) == sealed


# Sizes.


@pytest.mark.covers("message.too-large")
def test_the_input_is_bounded() -> None:
    """Input at the cap passes, one byte above it does not, in both forms."""
    for size, most in ((10, 10), (PAYLOAD_MAX, PAYLOAD_MAX)):
        request = replace(FULL, input=bytes(size))
        assert decode(envelope.encode_task(request, "dev"), input_max=most) == request
        assert decode(bytes(size), {"Task-Id": "1"}, input_max=most)
        above = replace(FULL, input=bytes(size + 1))
        assert refusal(envelope.encode_task(above, "dev"), input_max=most) == "message.too-large"
        assert refusal(bytes(size + 1), {"Task-Id": "1"}, input_max=most) == "message.too-large"


@pytest.mark.covers("message.too-large")
def test_messages_are_bounded_before_they_are_decoded() -> None:
    """Above RETRY_MAX nothing is looked at; above MESSAGE_MAX only a retry may be."""
    assert refusal(b"\xc1" * RETRY_MAX) == "message.malformed"
    assert refusal(b"\xc1" * (RETRY_MAX + 1)) == "message.too-large"
    room = MESSAGE_MAX - len(pack(fields(input=bytes(MESSAGE_MAX - 100)))) + MESSAGE_MAX - 100
    at = pack(fields(input=bytes(room)))
    above = pack(fields(input=bytes(room + 1)))
    assert (len(at), len(above)) == (MESSAGE_MAX, MESSAGE_MAX + 1)
    assert decode(at, input_max=MIB)
    assert refusal(above, input_max=MIB) == "message.too-large"
    assert decode(bytes(MESSAGE_MAX), {"Task-Id": "1"}, input_max=MIB)
    assert refusal(bytes(MESSAGE_MAX + 1), {"Task-Id": "1"}, input_max=MIB) == "message.too-large"


# The raw form.


def test_a_raw_body_is_the_input() -> None:
    """With a `Task-Id` the body is taken as it is, even if it looks like an envelope."""
    body = envelope.encode_task(FULL, "dev")
    headers = {"Task-Id": "my-1", "Content-Type": "text/plain", "traceparent": "00-a-b-01", "X": ""}
    assert decode(body, headers) == TaskRequest(
        "acme", "resize", TaskId("my-1"), body, content_type="text/plain", trace="00-a-b-01",
        raw=True,
    )  # fmt: skip


def test_raw_headers_are_bounded() -> None:
    """Content type and traceparent of a raw message are at most 256 printable characters."""
    at = {"Task-Id": "1", "Content-Type": "c" * 256, "traceparent": "t" * 256}
    assert isinstance(decode(b"", at), TaskRequest)
    for name in ("Content-Type", "traceparent"):
        for value in ("c" * 257, "é", "a\nb", "\x1b[2J", "\udcff"):
            assert refusal(b"", at | {name: value}) == "message.malformed"


@pytest.mark.covers("message.malformed")
@pytest.mark.parametrize("task_id", ["", "_1", "a.b", "a b", "a" * 65, "é", "1\n", "*"])
def test_a_raw_id_is_an_id(task_id: str) -> None:
    """A `Task-Id` that cannot be a subject token, or is ours, is refused."""
    assert refusal(b"", {"Task-Id": task_id}) == "message.malformed"


@pytest.mark.covers("policy.raw-body-refused")
def test_raw_bodies_are_policy() -> None:
    """A tenant that takes no raw bodies refuses them whatever they hold, and takes envelopes."""
    for body in (b"", bytes(MESSAGE_MAX + 1), envelope.encode_task(FULL, "dev")):
        assert refusal(body, {"Task-Id": "_"}, raw_allowed=False) == "policy.raw-body-refused"
    assert decode(envelope.encode_task(FULL, "dev"), raw_allowed=False) == FULL


# Sealed envelopes.


SEALED: Final = Sealed(
    "retry", AUD, "1", "ab" * 12, 5, b"payload", Proof(64, 63, b"p" * 192, b"s" * 64)
)


def sealed_fields(**changes: object) -> dict[str, Any]:
    """The fields of a sealed retry with some changed; ... leaves one out."""
    base: dict[str, Any] = msgpack.unpackb(envelope.encode_sealed(SEALED))
    return {name: value for name, value in (base | changes).items() if value is not ...}


def test_a_sealed_envelope_reads_back() -> None:
    """Every field of the seal arrives, from either entrance."""
    body = envelope.encode_sealed(SEALED)
    assert decode(body) == envelope.decode_sealed(body) == SEALED


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ...}, {"aud": 1}, {"aud": "a" * 321}, {"id": ...}, {"id": "a" * 65}, {"id": 1},
        {"by": ...}, {"by": b"k"}, {"by": "a" * 65}, {"iat": ...}, {"iat": -1}, {"iat": 1.0},
        {"iat": 2**53}, {"payload": ...}, {"payload": "text"}, {"count": ...}, {"count": -1},
        {"count": True}, {"index": ...}, {"index": -1}, {"index": 2**64 - 1}, {"path": ...},
        {"path": "p"}, {"sig": ...}, {"sig": []}, {"input": b""}, {"typ": ...}, {"typ": "r" * 17},
        {"v": ...},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_of_a_seal_is_checked(changes: dict[str, object]) -> None:
    """A seal with a field missing, unknown, or of another type or range is none."""
    data = pack(sealed_fields(**changes))
    assert refusal(data) == "message.malformed"
    with pytest.raises(ExecutorError, match=r"message\.malformed"):
        envelope.decode_sealed(data)


def test_types_are_not_confused() -> None:
    """An outcome is no task, and a submitter's task is no authenticated envelope."""
    for typ in ("result", "dead", "control", "audit"):
        assert refusal(pack(sealed_fields(typ=typ))) == "message.malformed"
    with pytest.raises(ExecutorError, match=r"message\.malformed"):
        envelope.decode_sealed(envelope.encode_task(FULL, "dev"))
    with pytest.raises(ExecutorError, match=r"message\.version-unknown"):
        envelope.decode_sealed(pack(sealed_fields(v=4)))


# Retries.


def origin(data: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> Origin:
    """A whole message of a submitter."""
    return Origin("task.acme.resize", data, headers, len(data))


AGAIN: Final = replace(
    FULL, attempt=3, crashes=1, fresh=False, submitted_at=77, not_before=0,
    history=(PastAttempt(1, "guest.failed", 5), PastAttempt(2, "limit.deadline-exceeded", 6)),
)  # fmt: skip


def open_retry(payload: bytes, **changes: str) -> tuple[TaskRequest, Origin]:
    """The retry in a payload, as if its seal had been checked."""
    sealed = replace(SEALED, payload=payload, id=changes.get("id", FULL.id))
    return envelope.decode_retry(
        sealed, "acme", "resize",
        environment=changes.get("environment", "dev"), input_max=PAYLOAD_MAX,
    )  # fmt: skip


def retry_refusal(payload: bytes, **changes: str) -> str:
    """The code with which a retry is refused."""
    with pytest.raises(ExecutorError) as caught:
        open_retry(payload, **changes)
    return caught.value.code


@pytest.mark.parametrize("not_before", [0, 10**12])
def test_a_retry_reads_back(not_before: int) -> None:
    """Counters and history come from the retry, everything else from the submitter's own bytes."""
    again = replace(AGAIN, not_before=not_before)
    kept = origin(envelope.encode_task(FULL, "dev"))
    assert open_retry(envelope.encode_retry(again, kept)) == (again, kept)


def test_a_retry_of_a_raw_body_reads_back() -> None:
    """A raw task keeps its body and headers through a retry, also when policy refuses raw now."""
    headers = (("Task-Id", "my-1"), ("Content-Type", "text/plain"), ("traceparent", "00-a"))
    again = TaskRequest(
        "acme", "resize", TaskId("my-1"), b"body", "text/plain", attempt=2, trace="00-a", raw=True
    )
    kept = origin(b"body", headers)
    assert open_retry(envelope.encode_retry(again, kept), id="my-1") == (again, kept)


def test_a_retry_is_never_fresh() -> None:
    """An id that ran before is always looked up, whatever its submitter vouched for."""
    kept = origin(envelope.encode_task(replace(FULL, fresh=True), "dev"))
    request, _ = open_retry(envelope.encode_retry(replace(AGAIN, fresh=True), kept))
    assert not request.fresh


def test_a_retry_counts_from_one() -> None:
    """Attempt 0 does not exist."""
    kept = origin(envelope.encode_task(FULL, "dev"))
    request, _ = open_retry(envelope.encode_retry(replace(AGAIN, attempt=0), kept))
    assert request.attempt == 1


@pytest.mark.covers("message.audience-mismatch")
def test_a_retry_is_of_the_task_it_names() -> None:
    """A retry whose message has another id, or was made for another place, is refused."""
    payload = envelope.encode_retry(AGAIN, origin(envelope.encode_task(FULL, "dev")))
    assert retry_refusal(payload, id="other") == "message.audience-mismatch"
    assert retry_refusal(payload, environment="prod") == "message.audience-mismatch"


def test_a_retry_of_a_retry_is_none() -> None:
    """A retry repeats a submitter's message, never another retry."""
    payload = envelope.encode_retry(AGAIN, origin(envelope.encode_sealed(SEALED)))
    assert retry_refusal(payload) == "message.malformed"


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": ...}, {"attempt": -1}, {"attempt": 1.0}, {"crashes": ...}, {"crashes": "1"},
        {"not_before": ...}, {"not_before": 2**53}, {"submitted_at": ...}, {"submitted_at": None},
        {"history": 1}, {"history": {}}, {"history": [1]}, {"history": [[1, "a"]]},
        {"history": [["1", "a", 1]]}, {"history": [[True, "a", 1]]}, {"history": [[1, "a", 1.5]]},
        {"history": [[1, "a", 1]] * 65}, {"origin": "text"}, {"origin_subject": ""},
        {"origin_subject": ...}, {"origin_subject": 1}, {"origin_headers": [["Task-Id"]]},
        {"origin_headers": [["Task-Id", 1]]}, {"origin_size": -1}, {"origin_sha256": 1},
        {"unheard": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_of_a_retry_is_checked(changes: dict[str, object]) -> None:
    """A retry with a field missing, unknown, or of another type or range is none."""
    payload = envelope.encode_retry(AGAIN, origin(envelope.encode_task(FULL, "dev")))
    values = msgpack.unpackb(payload) | changes
    payload = pack({name: value for name, value in values.items() if value is not ...})
    assert retry_refusal(payload) == "message.malformed"


# Records.

RECEIPT: Final = Receipt("sha256:ab", 1, 2, 3, 4, 5, 6, 7, 8, 9, "wasmtime 50", "full")
HISTORY: Final = tuple(PastAttempt(n, "guest.failed", n) for n in range(1, 17))
RESULT: Final = Record(
    "resize", 2, 3, 10, 20, RECEIPT, "1.4.0", "00-a", HISTORY, b"\xff out", "image/png",
    degraded=True,
)  # fmt: skip
DEAD: Final = Record(
    "resize", 3, 3, 10, 20, RECEIPT, "1.4.0", "00-a", HISTORY, code="guest.trap",
    message="unreachable", hint="look", facts=(("trap", "unreachable"), ("fuel", -7)),
    logs=tuple((n % 4, f"line {n}") for n in range(16)), discarded_at=30,
    origin=Origin("task.acme.resize", b"prefix", (("Task-Id", "1"),), 700_000, "cd" * 32),
)  # fmt: skip


@pytest.mark.parametrize(
    ("typ", "record"),
    [
        ("result", RESULT),
        ("dead", DEAD),
        ("result", Record("resize", 0, 0, 0, 0, Receipt())),
        ("dead", Record("resize", 1, 3, 0, 0, Receipt(), code="task.cancelled")),
    ],
    ids=["result", "dead letter", "smallest result", "smallest dead letter"],
)
def test_a_record_reads_back(typ: str, record: Record) -> None:
    """Every field of a terminal record arrives as it was written."""
    assert envelope.decode_record(typ, envelope.encode_record(record)) == record


def test_what_is_too_much_for_a_record_is_left_out() -> None:
    """The newest log lines and attempts, and the first facts, stay; the rest goes."""
    facts = tuple((f"f{n}", n) for n in range(70))
    logs = tuple((1, f"line {n}") for n in range(20))
    history = tuple(PastAttempt(n, "a", n) for n in range(1, 20))
    payload = envelope.encode_record(replace(DEAD, facts=facts, logs=logs, history=history))
    record = envelope.decode_record("dead", payload)
    assert (record.facts, record.logs, record.history) == (facts[:64], logs[4:], history[3:])


def test_values_of_another_kind_are_shown_as_text() -> None:
    """A fact is a number or a text, and a log level is one of four."""
    values = msgpack.unpackb(envelope.encode_record(DEAD))
    values |= {"facts": [["a", 1.5], ["b", None]], "logs": [[9, "x"], [-1, "y"], [3, "z"]]}
    record = envelope.decode_record("dead", pack(values))
    assert record.facts == (("a", "1.5"), ("b", "None"))
    assert record.logs == ((1, "x"), (1, "y"), (3, "z"))


@pytest.mark.parametrize(
    "changes",
    [
        {"task": ...}, {"task": "t" * 65}, {"attempt": -1}, {"attempts_max": 1.5},
        {"submitted_at": True}, {"finished_at": 2**53}, {"version": 1}, {"trace": "t" * 257},
        {"history": [[]]}, {"history": [[1, 2, 3]]}, {"digest": 1}, {"fuel_used": -1},
        {"engine": b""}, {"code": 1}, {"message": b"m"}, {"message": "m" * 32_769}, {"hint": 1},
        {"facts": [["a"]]}, {"facts": [[1, 1]]}, {"logs": [["1", "x"]]}, {"logs": [[1, b"x"]]},
        {"logs": [[True, "x"]]}, {"discarded_at": "x"}, {"origin": 1}, {"origin_headers": "x"},
        {"output": "text"}, {"ct": 1}, {"degraded": 1}, {"unheard": 1}, {"limits": 1},
        {"limits": [["fuel"]]}, {"limits": [[1, 1]]}, {"limits": [["fuel", True]]},
        {"last_calls": "x"}, {"last_calls": [["kv_get", "x"]]}, {"signers": "x"},
        {"signers": [1]}, {"signers": [["x"]]}, {"cause": 1}, {"cause": "c" * 65},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_of_a_record_is_checked(changes: dict[str, object]) -> None:
    """A record with a field missing, unknown, or of another type or range is none."""
    values = msgpack.unpackb(envelope.encode_record(DEAD)) | changes
    payload = pack({name: value for name, value in values.items() if value is not ...})
    with pytest.raises(ExecutorError, match=r"message\.malformed"):
        envelope.decode_record("dead", payload)


def test_a_record_is_what_its_type_says() -> None:
    """A result with an error code, and a dead letter without one, are neither."""
    for typ, record in (("result", DEAD), ("dead", RESULT)):
        with pytest.raises(ExecutorError, match="that is none"):
            envelope.decode_record(typ, envelope.encode_record(record))


def test_the_longest_message_of_a_guest_reads_back() -> None:
    """A guest's 8 Ki characters, of four bytes each, do not make its dead letter unreadable."""
    record = replace(DEAD, message="😀" * (8 * KIB), hint="�" * 1_000)
    assert envelope.decode_record("dead", envelope.encode_record(record)) == record


# What is kept of a message, and that it fits.


def delivery(data: bytes, headers: dict[str, str]) -> Delivery:
    """A message as the transport hands it over."""
    return Delivery(data, "task.acme.resize", "acme", headers, 1, 1, 1, "lease")


def test_messages_are_kept_whole_up_to_the_cap() -> None:
    """Above MESSAGE_MAX a message is kept as size, digest and prefix; headers of ours are kept."""
    headers = {"Task-Id": "1", "Content-Type": "c" * 300, "Nats-Msg-Id": "x"}
    kept = (("Task-Id", "1"), ("Content-Type", "c" * 256))
    whole = envelope.origin_of(delivery(bytes(MESSAGE_MAX), headers))
    assert (whole.size, whole.headers, whole.sha256) == (MESSAGE_MAX, kept, "")
    assert whole.whole
    cut = envelope.origin_of(delivery(bytes(MESSAGE_MAX + 1), headers))
    sha256 = hashlib.sha256(bytes(MESSAGE_MAX + 1)).hexdigest()
    assert (cut.size, len(cut.data), cut.sha256) == (MESSAGE_MAX + 1, envelope.PREFIX_MAX, sha256)
    assert not cut.whole


def test_headers_that_are_no_text_are_kept_escaped() -> None:
    """Bytes that are not UTF-8 in a header do not keep the dead letter from being written."""
    kept = envelope.origin_of(delivery(b"", {"Task-Id": "\udcff" * 300}))
    assert kept.headers == (("Task-Id", "\\udcff" * 256),)
    record = replace(DEAD, origin=kept)
    assert envelope.decode_record("dead", envelope.encode_record(record)) == record


def test_the_largest_task_fits_its_retry_and_its_dead_letter() -> None:
    """512 KiB of input with everything else at its longest stay below the server's 1 MiB."""
    name = "n" * 64
    headers = {"Task-Id": name, "Content-Type": "c" * 256, "traceparent": "t" * 256}
    request = TaskRequest(
        name, name, TaskId(name), bytes(PAYLOAD_MAX), "😀" * 256, attempt=16, crashes=1,
        submitted_at=2**53 - 1, expires_at=9_200_000_000_000, not_before=1, trace="😀" * 256,
        history=tuple(PastAttempt(16, "c" * 64, 2**53 - 1) for _ in range(16)),
        limits=(("fuel", 2**53 - 1), ("memory_bytes", 2**53 - 1), ("deadline_ms", 2**53 - 1)),
    )  # fmt: skip
    enveloped = delivery(envelope.encode_task(request, name), {})
    for message in (enveloped, delivery(request.input, headers)):
        kept = envelope.origin_of(message)
        assert kept.whole
        record = Record(
            name, 16, 16, 2**53 - 1, 2**53 - 1, replace(RECEIPT, fuel_used=2**53 - 1), "v" * 64,
            request.trace, request.history, code="guest.failed", message="😀" * (8 * KIB),
            hint="h" * 4096, facts=tuple(("f" * 64, "😀" * 512) for _ in range(32)),
            logs=tuple((3, "😀" * 512) for _ in range(16)), origin=kept,
            limits=tuple((n, 2**53 - 1) for n in sorted(LIMITS)), signers=(name,) * 16,
            last_calls=(("clock_now_ns", -16),) * 8,
        )  # fmt: skip
        payloads = [envelope.encode_retry(request, kept), envelope.encode_record(record)]
        drafts = [
            envelope.Draft(typ, f"{name}/{typ}.{name}.{name}.{name}", name, payload, 2)
            for typ, payload in zip(("retry", "dead"), payloads, strict=True)
        ]
        retry, dead, *_ = seal(KEY, drafts * 32, at=2**53 - 1)
        assert len(retry) <= RETRY_MAX
        assert len(dead) <= WIRE_MAX
        assert envelope.decode_sealed(retry).payload == payloads[0]
        assert envelope.decode_record("dead", envelope.decode_sealed(dead).payload) == record


@pytest.mark.parametrize("name", ["not_before", "expires_at"])
def test_times_that_cannot_be_written(name: str) -> None:
    """A time that the server cannot keep is refused before it becomes a schedule."""
    body = {"v": 1, "typ": "task", "aud": "dev/task.acme.work", "id": "a", "input": b""}

    def decode(value: int) -> object:
        return envelope.decode_task(
            msgpack.packb({**body, name: value}), {}, "acme", "work", environment="dev",
            raw_allowed=True, input_max=1,
        )  # fmt: skip

    decode(9_200_000_000_000)
    with pytest.raises(ExecutorError, match="before the year 2261"):
        decode(9_200_000_000_001)
