"""Recurring schedules: their rules, the id of a firing, and what a firing asks for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from executor.core import content, control, envelope, schedule, subjects
from executor.core.envelope import Origin, Sealed
from executor.core.schedule import Firing, Schedule
from executor.core.signature import Proof
from executor.errors import ExecutorError
from executor.model import TaskRequest

KEY: Final = subjects.schedule_key("acme", "report", "nightly")
SAID: Final = Schedule("0 30 9 * * *", "Europe/Berlin", b"\0\xff", "text/plain", 60_000, at=7)
NEXT: Final = "2026-11-24T22:54:26Z"


def sealed(payload: bytes) -> Sealed:
    """A firing whose seal was checked."""
    aud = "dev/task.acme.report"
    return Sealed("schedule", aud, "nightly", "ab" * 12, 5, payload, Proof(1, 0, b"", b"s" * 64))


def read(payload: bytes, *, after: str = NEXT, stored_at: int = 1_000,
         input_max: int = 1_024) -> tuple[TaskRequest, Firing]:  # fmt: skip
    """What a firing with this payload and this header asks for."""
    headers = ((envelope.SCHEDULE_NEXT, after),) if after else ()
    origin = Origin("task.acme.report", b"", headers)
    return schedule.read(
        sealed(payload), origin, "acme", "report", stored_at=stored_at, input_max=input_max
    )


# In CONTROL.


def test_an_entry_reads_back() -> None:
    """Every field of a schedule survives CONTROL, its input's bytes as they are."""
    value = control.encode("schedule", KEY, "dev", **SAID.fields())
    assert schedule.from_fields(control.decode(value, "schedule", KEY, "dev")) == SAID


@pytest.mark.parametrize("size", [control.BYTES_MAX, control.BYTES_MAX + 1])
def test_an_input_in_control_is_bounded(size: int) -> None:
    """64 KiB are taken, a byte more is not."""
    value = control.encode("schedule", KEY, "dev", **replace(SAID, input=bytes(size)).fields())
    if size <= control.BYTES_MAX:
        assert control.decode(value, "schedule", KEY, "dev")["input"] == bytes(size)
        return
    with pytest.raises(ExecutorError) as caught:
        control.decode(value, "schedule", KEY, "dev")
    assert caught.value.code == "message.malformed"


@pytest.mark.parametrize(
    "changes",
    [{"when": "@every 1s\r\nNats-TTL: 1s"}, {"zone": "Europe/\nBerlin"}, {"when": "é"},
     {"zone": "a" * 257}],
    ids=str,
)  # fmt: skip
def test_an_entry_adds_no_headers(changes: dict[str, str]) -> None:
    """What becomes a header is one short printable line."""
    with pytest.raises(ExecutorError) as caught:
        schedule.from_fields(SAID.fields() | changes)
    assert caught.value.code == "message.malformed"


# A firing.


def test_a_firing_is_a_task() -> None:
    """It asks for the schedule's input, expires when that says, and looks before it runs."""
    request, firing = read(SAID.payload())
    assert firing == Firing("nightly", 7)
    assert request == TaskRequest(
        "acme", "report", schedule.firing_id("nightly", 7, NEXT), b"\0\xff",
        content_type="text/plain", expires_at=61_000, submitted_at=1_000,
    )  # fmt: skip
    assert not request.fresh
    assert subjects.is_id(request.id)


def test_a_firing_that_is_repeated_is_the_same_task() -> None:
    """The id follows from schedule, version and firing, not from when it was stored."""
    ids = {read(SAID.payload(), stored_at=at)[0].id for at in (1_000, 2_000)}
    assert len(ids) == 1
    ids.add(read(SAID.payload(), after="2026-11-24T22:54:27Z")[0].id)
    ids.add(read(replace(SAID, at=8).payload())[0].id)
    assert len(ids) == 3


@pytest.mark.parametrize("after", ["", "purge", "x" * 41, NEXT + " " * 40])
def test_a_firing_without_a_time_goes_by_when_it_was_stored(after: str) -> None:
    """Where the server's header is missing or no time, the stream's time tells firings apart."""
    expected = schedule.firing_id("nightly", 7, "1000")
    assert read(SAID.payload(), after=after)[0].id == expected


def test_a_firing_of_no_expiry() -> None:
    """0 is for ever."""
    assert read(replace(SAID, expires_ms=0).payload())[0].expires_at == 0


def test_what_has_ended_says_so() -> None:
    """The last firing of a removed schedule is of version 0, which no schedule has."""
    assert read(schedule.ENDED.payload())[1].at == 0


@pytest.mark.covers("message.malformed")
@pytest.mark.parametrize(
    "changes", [{"at": "7"}, {"input": "x"}, {"at": ...}, {"more": 1}], ids=str
)
def test_every_field_of_a_firing_is_checked(changes: dict[str, object]) -> None:
    """A field that is missing, unknown or of another type makes it none."""
    fields: dict[str, object] = {"at": 7, "input": b"", "ct": "", "expires_ms": 0}
    fields = {name: value for name, value in (fields | changes).items() if value is not ...}
    with pytest.raises(ExecutorError) as caught:
        read(content.to_msgpack(fields))
    assert caught.value.code == "message.malformed"


@pytest.mark.covers("message.too-large")
def test_a_firing_above_the_hosts_bound() -> None:
    """A host may take smaller inputs than schedules can have."""
    with pytest.raises(ExecutorError) as caught:
        read(replace(SAID, input=bytes(11)).payload(), input_max=10)
    assert caught.value.code == "message.too-large"


def test_a_retry_repeats_a_firing_only_where_that_is_opened() -> None:
    """A retry of a firing is the firing's task again, by the caller's word; else it is none."""
    body = envelope.encode_sealed(sealed(SAID.payload()))
    origin = Origin("task.acme.report", body, ((envelope.SCHEDULE_NEXT, NEXT),), len(body))
    first, _ = read(SAID.payload())
    payload = envelope.encode_retry(replace(first, attempt=2), origin)
    again = replace(sealed(payload), typ="retry", id=first.id)

    def firing(inner: Sealed, kept: Origin, stored_at: int) -> TaskRequest:
        return schedule.read(
            inner, kept, "acme", "report", stored_at=stored_at, input_max=1_024
        )[0]  # fmt: skip

    request, kept = envelope.decode_retry(
        again, "acme", "report", environment="dev", input_max=1_024, opened=firing
    )
    assert (request, kept) == (replace(first, attempt=2), origin)
    with pytest.raises(ExecutorError) as caught:
        envelope.decode_retry(again, "acme", "report", environment="dev", input_max=1_024)
    assert caught.value.code == "message.malformed"


# Rules.

# What nats-server 2.15.1 takes, each of them tried there, and what it refuses.
TAKEN: Final = [
    "*/2 * * * * *", "0 0 9 * * MON-FRI", "0 0 9 ? * MON", "0 0 9 * JAN 1-5", "@daily", "@midnight",
    "@yearly", "0 0 9 1,15 * *", "1/3 * * * * *", "0 0 0 1 * MON", "0 0 9 * * sun",
    "1-5/2 * * * * *", "*/70 * * * * *", "0-9,20-29/3 * * * * *", "0 0 0 29 2 *",
]  # fmt: skip
REFUSED: Final = [
    "* * * * *", "0 0 0 31 2 *", "*/0 * * * * *", "0 0 9 * * 7", "60 * * * * *", "5-1 * * * * *",
    "0 0 0 L * *", "@reboot", "TZ=UTC 0 0 9 * * *", "a b c d e f", "0 0 9 * * 0-7", "", "@every 1s",
    "-1 * * * * *", "1- * * * * *", "0 0 0 0 * *", "* * * * * *\n*", "0 0 0 * mon *",
]  # fmt: skip


@pytest.mark.parametrize("when", TAKEN)
def test_a_rule_that_the_server_takes(when: str) -> None:
    """It is taken here, and fires some day."""
    assert schedule.next_firing(when, 0, 1_767_225_600_000) > 1_767_225_600_000


@pytest.mark.parametrize("when", REFUSED)
def test_a_rule_that_the_server_refuses(when: str) -> None:
    """It is refused here first, in words."""
    with pytest.raises(ValueError, match=r"."):
        schedule.cron(when)
    assert schedule.next_firing(when.replace("@every", "@never"), 0, 1_767_225_600_000) == 0


@pytest.mark.parametrize(
    ("when", "zone", "now", "expected"),
    [
        ("*/2 * * * * *", "UTC", "2026-01-01T00:00:00", "2026-01-01T00:00:02"),
        ("0 30 9 * * *", "UTC", "2026-01-01T09:30:00", "2026-01-02T09:30:00"),
        ("0 30 9 * * *", "Europe/Berlin", "2026-01-01T00:00:00", "2026-01-01T08:30:00"),
        ("0 30 9 * * *", "Europe/Berlin", "2026-07-01T00:00:00", "2026-07-01T07:30:00"),
        ("0 0 0 * * MON", "UTC", "2026-01-01T00:00:00", "2026-01-05T00:00:00"),
        ("0 0 0 * * SUN", "UTC", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("0 0 0 1 * MON", "UTC", "2026-01-27T00:00:00", "2026-02-01T00:00:00"),
        ("0 0 0 13 * FRI", "UTC", "2026-01-01T00:00:00", "2026-01-02T00:00:00"),
        ("0 0 0 29 2 *", "UTC", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("@monthly", "UTC", "2026-12-15T00:00:00", "2027-01-01T00:00:00"),
        ("50-59/4 59 23 31 DEC ?", "UTC", "2026-01-01T00:00:00", "2026-12-31T23:59:50"),
    ],
)
def test_when_a_rule_fires_next(when: str, zone: str, now: str, expected: str) -> None:
    """In its own zone's time; both kinds of day count, either where both are given."""
    at = int(datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp() * 1000)
    found = schedule.next_firing(when, 0, at, ZoneInfo(zone))
    assert datetime.fromtimestamp(found / 1000, UTC).isoformat()[:19] == expected


def test_an_interval() -> None:
    """Whole seconds from one on, counted from when the server took it."""
    assert schedule.every(90_000) == "@every 90s"
    assert schedule.interval_ms("@every 90s") == 90_000
    assert schedule.next_firing("@every 90s", 10_500, 50_000) == 100_000
    assert schedule.next_firing("@every 90s", 10_500, 100_000) == 190_000
    assert schedule.next_firing("@every 90s", 0, 50_000) == 0
    for ms in (0, 999, 1_500):
        with pytest.raises(ValueError, match="whole seconds"):
            schedule.every(ms)
