"""Versions of the envelope: what was written in one stays readable, and is still written so."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from executor.core import content, control, envelope, release, seal
from executor.core.envelope import Origin, Record, Sealed
from executor.core.seal import ExecutorKey, NotAuthenticError, Opener
from executor.errors import ExecutorError
from executor.model import TaskRequest
from tests.support import golden

OPENER: Final = Opener(
    "dev", {golden.KEY.public.key_id.hex(): ExecutorKey("test", golden.KEY.public)}
)
TASK: Final = (golden.FOLDER / "task-full-1.bin").read_bytes()
AGAIN: Final = replace(
    golden.FULL, attempt=3, crashes=1, submitted_at=golden.NOW, history=golden.HISTORY
)
ORIGIN: Final = Origin("task.acme.hello", TASK, (), len(TASK))
RECORDS: Final = {"result": golden.RESULT, "dead": golden.DEAD, "dead-cut": golden.CUT}
# What each of the batches that were sealed together held, in their order.
BATCHES: Final = {
    1: {"retry": envelope.encode_retry(AGAIN, ORIGIN)}
    | {name: envelope.encode_record(record, 1) for name, record in RECORDS.items()},
    2: {
        "result": envelope.encode_record(golden.RESULT_2),
        "dead": envelope.encode_record(golden.DEAD_2),
    },
}


def kept(name: str, version: int = 1) -> bytes:
    """The bytes that were written once and for all."""
    return (golden.FOLDER / f"{name}-{version}.bin").read_bytes()


def opened(name: str, body: bytes) -> Record:
    """The record in a message, its seal checked."""
    return OPENER.record(golden.SEALED[name][1], body, stored_at=golden.NOW)


def read_task(data: bytes) -> TaskRequest | Sealed:
    """What arrives on the subject of the task."""
    return envelope.decode_task(
        data, {}, "acme", "hello", environment="dev", raw_allowed=True, input_max=100
    )


@pytest.mark.parametrize("request_", [golden.PLAIN, golden.FULL], ids=["task", "task-full"])
def test_a_kept_task_is_read_and_written(request_: TaskRequest) -> None:
    """A task of version 1 says the same as ever, and is still sent in the same bytes."""
    name = "task" if request_ is golden.PLAIN else "task-full"
    assert read_task(kept(name)) == request_
    assert envelope.encode_task(request_, "dev") == kept(name)


def test_a_kept_retry_is_read() -> None:
    """Counters, history and the submitter's message come out of a retry of version 1."""
    sealed = read_task(kept("retry"))
    assert isinstance(sealed, Sealed)
    OPENER.open(sealed, typ="retry", subject="task.acme.hello", task_id=sealed.id,
                tenant="acme", stored_at=golden.NOW)  # fmt: skip
    found = envelope.decode_retry(sealed, "acme", "hello", environment="dev", input_max=100)
    assert found == (AGAIN, ORIGIN)


@pytest.mark.parametrize("name", list(RECORDS))
def test_a_kept_record_is_read(name: str) -> None:
    """Results and dead letters of version 1 verify and say the same as ever."""
    assert opened(name, kept(name)) == RECORDS[name]


def test_kept_records_of_version_2_are_read() -> None:
    """Limits, last calls, signers and the cause of a degraded result come out of version 2."""
    assert opened("dead", kept("dead", 2)) == golden.DEAD_2
    assert opened("result", kept("result", 2)) == golden.RESULT_2


@pytest.mark.parametrize("version", list(BATCHES))
def test_sealed_messages_are_written_as_ever(version: int) -> None:
    """The same values under the same key are the same bytes, seal and all."""
    drafts = [replace(golden.draft(name, payload), version=version)
              for name, payload in BATCHES[version].items()]  # fmt: skip
    bodies = seal.seal(golden.KEY, drafts, at=golden.NOW)
    assert bodies == [kept(name, version) for name in BATCHES[version]]


def test_kept_values_of_control_are_read_and_written() -> None:
    """Releases, cancellations, pauses, quarantines and breakers keep their bytes."""
    assert release.decode(kept("release"), "acme", "hello", environment="dev") == golden.RELEASE
    assert release.encode(golden.RELEASE, "dev") == kept("release")
    for typ, (key, fields) in golden.CONTROL.items():
        assert control.decode(kept(typ), typ, key, "dev") == fields
        assert control.encode(typ, key, "dev", **fields) == kept(typ)


def test_every_kept_file_is_read_by_these_tests() -> None:
    """No file lies in the folder that no test looks at."""
    names = {"task-1", "task-full-1", "release-1", *(f"{typ}-1" for typ in golden.CONTROL)}
    names |= {f"{name}-{version}" for version, batch in BATCHES.items() for name in batch}
    assert {path.stem for path in golden.FOLDER.glob("*.bin")} == names


@pytest.mark.parametrize(
    "change",
    [{"limits": (("fuel", 1),)}, {"last_calls": (("take", 0),)}, {"signers": ("author",)},
     {"cause": "guest.trap"}],
    ids=str,
)  # fmt: skip
def test_a_record_says_the_lowest_version_that_holds_it(change: dict[str, object]) -> None:
    """Each new field alone makes a record one of version 2; version 1 leaves it out."""
    record = golden.RESULT if "cause" in change else golden.DEAD
    newer = replace(record, **change)  # type: ignore[arg-type]  # the names are the record's
    assert envelope.record_version(record) == 1
    assert envelope.record_version(newer) == 2
    assert envelope.encode_record(newer, 1) == envelope.encode_record(record, 1)
    assert envelope.encode_record(newer, 2) != envelope.encode_record(record, 2)


def test_version_1_has_no_field_of_version_2() -> None:
    """A message that says 1 and holds more is refused: its version is part of its meaning."""
    payload = envelope.encode_record(golden.DEAD_2)
    with pytest.raises(ExecutorError, match="unknown field"):
        envelope.decode_record("dead", payload, 1)
    (body,) = seal.seal(golden.KEY, [golden.draft("dead", payload)], at=golden.NOW)
    with pytest.raises(NotAuthenticError):
        opened("dead", body)


@pytest.mark.covers("message.version-unknown")
@pytest.mark.parametrize("version", [0, 4, 2**53 - 1])
def test_another_version_is_named_as_such(version: int) -> None:
    """A newer task, retry, outcome or value is `message.version-unknown`, never half read."""
    newer = replace(envelope.decode_sealed(kept("dead")), version=version)
    for body in (envelope.encode_sealed(newer),
                 envelope.encode_sealed(replace(newer, typ="retry"))):  # fmt: skip
        with pytest.raises(ExecutorError) as caught:
            envelope.decode_sealed(body)
        assert caught.value.code == "message.version-unknown"
        assert "versions 1 to 3" in caught.value.detail
    with pytest.raises(ExecutorError) as caught:
        read_task(content.to_msgpack({"v": version, "typ": "task", "more": 1}))
    assert caught.value.code == "message.version-unknown"


def test_either_version_of_a_task_is_read() -> None:
    """A submitter that says 2 is understood; what it may say is the same."""
    fields = {"typ": "task", "aud": "dev/task.acme.hello", "id": "a", "input": b"x"}
    first, second = (read_task(content.to_msgpack({"v": v, **fields})) for v in (1, 2))
    assert first == second
