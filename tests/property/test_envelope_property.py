"""Envelopes, seals, releases and contents over inputs nobody thought of; seeds are fixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import content, envelope, release, seal, subjects
from executor.core.envelope import Draft, Origin, Record, Sealed
from executor.core.seal import ExecutorKey, NotAuthenticError, Opener
from executor.core.signature import Proof, SecretKey
from executor.errors import ExecutorError
from executor.model import Digest, PastAttempt, Receipt, Release, TaskId, TaskRequest

KEY: Final = SecretKey(bytes([1]) * 32)
OPENER: Final = Opener("dev", {KEY.public.key_id.hex(): ExecutorKey("one", KEY.public)})
SUBJECT: Final = "result.acme.resize.1"
MESSAGE: Final = (
    "message.malformed", "message.too-large", "message.version-unknown",
    "message.audience-mismatch",
)  # fmt: skip

fixed = settings(
    derandomize=True, deadline=None, max_examples=150, database=None, print_blob=True
)  # fmt: skip


@contextmanager
def only(*codes: str) -> Iterator[None]:
    """Pass over the errors that are promised; any other is the test's failure."""
    try:
        yield
    except ExecutorError as error:
        if error.code not in codes:
            raise


text = st.text(st.characters(codec="utf-8"), max_size=40)
token = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
task_id = token.filter(subjects.is_id)
number = st.integers(0, 2**53 - 1)
time = st.integers(0, 9_200_000_000_000)
# The names of fields and the values that a hostile submitter would try.
names = st.sampled_from(
    ["v", "typ", "aud", "id", "input", "ct", "fresh", "expires_at", "attempts_max", "trace",
     "fuel", "by", "iat", "payload", "count", "index", "path", "sig", "attempt", "history",
     "origin", "origin_subject", "origin_headers", "code", "output", "logs", "facts"]
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text
    | st.binary(max_size=40)
    | st.sampled_from(["task", "retry", "result", "dead", "dev/task.acme.resize", "1", 1])
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
maps = st.dictionaries(names | text, values, max_size=12).map(
    lambda found: {"v": 1, "typ": "task", "aud": "dev/task.acme.resize", "id": "1"} | found
)
# A task as it should be but for one field, which may still be right.
nearly = st.tuples(names, scalars).map(
    lambda found: {
        "v": 1, "typ": "task", "aud": "dev/task.acme.resize", "id": "1", "input": b"",
        found[0]: found[1],
    }
)  # fmt: skip
bodies: st.SearchStrategy[bytes] = (
    st.binary(max_size=200) | maps.map(msgpack.packb) | values.map(msgpack.packb)
    | nearly.map(msgpack.packb)
)  # fmt: skip

histories = st.lists(st.builds(PastAttempt, number, text, number), max_size=16).map(tuple)
requests = st.builds(
    TaskRequest,
    tenant=token, task=token, id=task_id.map(TaskId), input=st.binary(max_size=100),
    content_type=text, fresh=st.booleans(), expires_at=time, not_before=time,
    attempts_max=number, trace=text,
    limits=st.sets(st.sampled_from(["fuel", "memory_bytes", "deadline_ms"])).flatmap(
        lambda chosen: st.tuples(*(
            st.tuples(st.just(name), st.integers(1, 2**53 - 1))
            for name in ("fuel", "memory_bytes", "deadline_ms") if name in chosen
        ))
    ),
)  # fmt: skip
receipts = st.builds(
    Receipt, text, number, number, number, number, number, number, number, number, number, text,
    text,
)  # fmt: skip
headers = st.lists(st.tuples(text, text), max_size=3).map(tuple)
origins = st.builds(
    Origin, text.filter(bool), st.binary(max_size=100), headers, number, text
)  # fmt: skip
plain = st.builds(
    Record, task=token, attempt=number, attempts_max=number, submitted_at=number,
    finished_at=number, receipt=receipts, version=text, trace=text, history=histories,
)  # fmt: skip
outputs = st.tuples(plain, st.binary(max_size=100), text, st.booleans()).map(
    lambda t: replace(t[0], output=t[1], content_type=t[2], degraded=t[3])
)
facts = st.lists(st.tuples(text, text | st.integers(-(2**63), 2**64 - 1)), max_size=8).map(tuple)
logs = st.lists(st.tuples(st.integers(0, 3), text), max_size=16).map(tuple)
letters = st.tuples(plain, text.filter(bool), text, facts, logs, st.none() | origins, number).map(
    lambda t: replace(
        t[0], code=t[1], message=t[2], facts=t[3], logs=t[4], origin=t[5], discarded_at=t[6]
    )
)
pairs = st.lists(st.tuples(text, st.integers(-16, 2**53)), max_size=8).map(tuple)
signers = st.lists(text, max_size=16).map(tuple)
newer = st.tuples(outputs | letters, pairs, pairs, signers, text).map(
    lambda t: replace(t[0], limits=t[1], last_calls=t[2], signers=t[3], cause=t[4])
)


def decode(data: bytes, of: TaskRequest, *, raw: dict[str, str] | None = None) -> object:
    """`data` as it arrives on the subject of a request."""
    return envelope.decode_task(
        data, raw or {}, of.tenant, of.task,
        environment="dev", raw_allowed=True, input_max=1_000,
    )  # fmt: skip


ASK: Final = TaskRequest("acme", "resize", TaskId("1"), b"")


@fixed
@given(data=bodies, id_=st.none() | text, raw=st.booleans())
def test_any_bytes_are_a_request_or_refused(data: bytes, id_: str | None, *, raw: bool) -> None:
    """No body, with or without a `Task-Id`, raises anything but the codes of step 2."""
    with only(*MESSAGE, "policy.raw-body-refused"):
        found = envelope.decode_task(
            data, {} if id_ is None else {"Task-Id": id_}, "acme", "resize",
            environment="dev", raw_allowed=raw, input_max=100,
        )  # fmt: skip
        assert isinstance(found, TaskRequest | Sealed)
        if isinstance(found, TaskRequest):
            assert subjects.is_id(found.id)
            assert (found.tenant, found.task, found.attempt) == ("acme", "resize", 1)
            assert len(found.input) <= 100
            if id_ is None:
                assert msgpack.unpackb(data)["aud"] == "dev/task.acme.resize"


@fixed
@given(bodies, st.sampled_from(["result", "dead"]))
def test_any_bytes_are_a_record_or_refused(data: bytes, typ: str) -> None:
    """No payload, believed or not, raises anything but the codes of messages."""
    with only(*MESSAGE):
        envelope.decode_sealed(data)
    with only("message.malformed"):
        assert bool(envelope.decode_record(typ, data).code) is (typ == "dead")
    with only(*MESSAGE):
        release.decode(data, "acme", "resize", environment="dev")
    with only(*MESSAGE):
        sealed = Sealed("retry", "", "1", "", 0, data, Proof(1, 0, b"", b""))
        envelope.decode_retry(sealed, "acme", "resize", environment="dev", input_max=100)


@fixed
@given(bodies)
def test_any_bytes_can_be_shown_or_refused(data: bytes) -> None:
    """No output raises anything but its code when a person wants to look inside."""
    with only("message.malformed"):
        content.from_msgpack(data)


@fixed
@given(requests)
def test_requests_read_back(request: TaskRequest) -> None:
    """Every request is read as it was sent."""
    assert decode(envelope.encode_task(request, "dev"), request) == request


@fixed
@given(requests, number, number, number, histories)
def test_retries_read_back(
    request: TaskRequest, crashes: int, not_before: int, submitted_at: int,
    history: tuple[PastAttempt, ...],
) -> None:  # fmt: skip
    """Every retry is read as it was written, with the submitter's message as it was."""
    again = replace(
        request, attempt=1 + crashes % 16, crashes=crashes, not_before=not_before, fresh=False,
        submitted_at=submitted_at, history=history,
    )  # fmt: skip
    body = envelope.encode_task(request, "dev")
    origin = Origin(subjects.task(request.tenant, request.task), body, (), len(body))
    payload = envelope.encode_retry(again, origin)
    sealed = Sealed("retry", "", request.id, "", 0, payload, Proof(1, 0, b"", b""))
    assert envelope.decode_retry(
        sealed, request.tenant, request.task, environment="dev", input_max=100
    ) == (again, origin)


@fixed
@given(outputs | letters)
def test_records_read_back(record: Record) -> None:
    """Every terminal record is read as it was written."""
    typ = "dead" if record.code else "result"
    assert envelope.decode_record(typ, envelope.encode_record(record)) == record


@fixed
@given(outputs | letters, newer)
def test_either_version_reads_back(older: Record, record: Record) -> None:
    """Version 1 holds all but the fields that came with 2; the lowest that holds all is told."""
    for made in (older, record):
        typ, version = "dead" if made.code else "result", envelope.record_version(made)
        payload = envelope.encode_record(made, version)
        assert envelope.decode_record(typ, payload, version) == made
        rest = replace(made, limits=(), last_calls=(), signers=(), cause="")
        assert envelope.decode_record(typ, envelope.encode_record(made, 1), 1) == rest
        assert (made == rest) == (version == 1)


@fixed
@given(token, token, token, text)
def test_releases_read_back(tenant: str, task: str, environment: str, version: str) -> None:
    """Every release is read as it was written."""
    live = Release(tenant, task, Digest("sha256:" + "ab" * 32), version)
    assert release.decode(
        release.encode(live, environment), tenant, task, environment=environment
    ) == live  # fmt: skip


@fixed
@given(
    st.builds(
        Sealed,
        text,
        text,
        text,
        text,
        number,
        st.binary(max_size=99),
        st.builds(Proof, number, number, st.binary(max_size=99), st.binary(max_size=99)),
    )
)
def test_seals_read_back(sealed: Sealed) -> None:
    """Every authenticated envelope is read as it was written, or its type is too long."""
    body = envelope.encode_sealed(sealed)
    if len(sealed.typ) > 16:
        with only("message.malformed"):
            envelope.decode_sealed(body)
    else:
        assert envelope.decode_sealed(body) == sealed


@fixed
@given(bodies)
def test_any_bytes_prove_nothing(data: bytes) -> None:
    """No invented message on a terminal subject is ever a record."""
    with pytest.raises(NotAuthenticError):
        OPENER.record(SUBJECT, data, stored_at=0)


@fixed
@given(outputs.map(lambda record: replace(record, task="resize")), st.data())
def test_changed_bytes_never_change_the_meaning(record: Record, data: st.DataObject) -> None:
    """A sealed result with bytes changed, added or cut is refused or says the same."""
    draft = Draft("result", f"dev/{SUBJECT}", "1", envelope.encode_record(record))
    body = bytearray(seal.seal(KEY, [draft], at=1)[0])
    place = data.draw(st.integers(0, len(body) - 1))
    cut = data.draw(st.integers(0, 3))
    body[place : place + cut] = data.draw(st.binary(max_size=3))
    with suppress(NotAuthenticError):
        assert OPENER.record(SUBJECT, bytes(body), stored_at=1) == record
