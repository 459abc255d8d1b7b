"""Recurring schedules: when they fire, and what each firing asks for.

An operator writes a schedule into CONTROL; an executor puts it into LATER as a sealed `schedule`
envelope, which the server repeats on the task's subject, a firing at a time. A firing is one task:
its id follows from the schedule and from the time that the server gives each firing and keeps
through every repeat of it, so that a firing that is stored or delivered twice runs once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from executor.core.content import to_msgpack
from executor.core.control import Value
from executor.core.envelope import SCHEDULE_NEXT, Origin, Sealed
from executor.core.fields import unpack
from executor.errors import ExecutorError
from executor.model import TaskId, TaskRequest

_FIELDS: Final[Mapping[str, type]] = {"at": int, "input": bytes, "ct": str, "expires_ms": int}
# What an interval is a multiple of: the server refuses less, and rounds what is between (1.5 s
# fires after 2 s or 3 s).
_STEP_MS: Final = 1_000
_NEXT_MAX: Final = 40
_HEADER_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """What CONTROL says of one; `at` tells its versions apart and is 0 for one that has ended."""

    when: str
    zone: str = ""
    input: bytes = b""
    content_type: str = ""
    expires_ms: int = 0  # how long after it fired a task may start; 0: for ever
    at: int = 0  # ms; when it was written

    def fields(self) -> dict[str, Value]:
        """The fields of its entry in CONTROL."""
        return {"when": self.when, "zone": self.zone, **self._fired()}

    def payload(self) -> bytes:
        """What is sealed and fired."""
        return to_msgpack(self._fired())

    def _fired(self) -> dict[str, Value]:
        return {
            "at": self.at, "input": self.input, "ct": self.content_type,
            "expires_ms": self.expires_ms,
        }  # fmt: skip


ENDED: Final = Schedule("")


@dataclass(frozen=True, slots=True)
class Firing:
    """Which schedule, and version of it, a delivery comes from."""

    schedule: str
    at: int


def from_fields(fields: Mapping[str, Value]) -> Schedule:
    """The schedule in a decoded entry of CONTROL. Errors  `message.malformed`."""
    when, zone, data = str(fields["when"]), str(fields["zone"]), fields["input"]
    kind = str(fields["ct"])
    assert isinstance(data, bytes)
    # Both become headers: a line break would add others.
    for text in (when, zone):
        if len(text) > _HEADER_MAX or not text.isascii() or (text and not text.isprintable()):
            raise ExecutorError("message.malformed", "not a schedule's rule or time zone")
    if len(kind) > _HEADER_MAX:
        raise ExecutorError("message.malformed", "not a content type")
    return Schedule(when, zone, data, kind, int(fields["expires_ms"]), int(fields["at"]))


def read(
    sealed: Sealed, origin: Origin, tenant: str, name: str, *, stored_at: int, input_max: int
) -> tuple[TaskRequest, Firing]:
    """What a firing asks for; its seal was checked. `stored_at` in ms. Errors  `message.*`."""
    fields = unpack(sealed.payload, lists=False)
    if fields.keys() != _FIELDS.keys() or any(
        type(fields[field]) is not kind for field, kind in _FIELDS.items()
    ):
        raise ExecutorError("message.malformed", "not a firing of a schedule")
    schedule = from_fields({"when": "", "zone": "", **fields})
    if len(schedule.input) > input_max:
        raise ExecutorError(
            "message.too-large", f"{len(schedule.input)} bytes of input, at most {input_max}"
        )
    expires_at = stored_at + schedule.expires_ms if schedule.expires_ms else 0
    fired = _fired_at(dict(origin.headers)) or str(stored_at)
    request = TaskRequest(
        tenant, name, firing_id(sealed.id, schedule.at, fired), schedule.input,
        content_type=schedule.content_type, expires_at=expires_at, submitted_at=stored_at,
    )  # fmt: skip
    return request, Firing(sealed.id, schedule.at)


def firing_id(schedule_id: str, at: int, fired: str) -> TaskId:
    """H(schedule, its version, the firing's time): one firing is one task.

    The version, because the time is that of the firing after this one, which two versions of a
    schedule may have in common.
    """
    data = f"{schedule_id}\0{at}\0{fired}".encode()
    return TaskId("s" + hashlib.sha256(data).hexdigest()[:40])


def _fired_at(headers: Mapping[str, str]) -> str:
    """The server's time of the firing after this one: no two firings share it; "" if it is none."""
    text = headers.get(SCHEDULE_NEXT, "")
    try:
        return text if len(text) <= _NEXT_MAX and datetime.fromisoformat(text) else ""
    except ValueError:
        return ""


# When it fires: what the server takes (measured on 2.15.1), refused before it is asked.

_NAMED: Final = {
    "@yearly": "0 0 0 1 1 *", "@annually": "0 0 0 1 1 *", "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0", "@daily": "0 0 0 * * *", "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}  # fmt: skip
_MONTHS: Final = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9,
    "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
_DAYS: Final = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
# name, least, most, words
_PLACES: Final[tuple[tuple[str, int, int, Mapping[str, int]], ...]] = (
    ("second", 0, 59, {}), ("minute", 0, 59, {}), ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}), ("month", 1, 12, _MONTHS), ("day of the week", 0, 6, _DAYS),
)  # fmt: skip
_PART: Final = re.compile(
    r"(?P<any>[*?])(?:/(?P<any_step>\d{1,4}))?\Z"
    r"|(?P<first>\w{1,3})(?:-(?P<last>\w{1,3}))?(?:/(?P<step>\d{1,4}))?\Z",
    re.ASCII,
)
_EVERY: Final = re.compile(r"@every (\d{1,12})s\Z", re.ASCII)
_DAYS_AHEAD: Final = 5 * 366  # what only exists in leap years is found


@dataclass(frozen=True, slots=True)
class Cron:
    """Six fields as sets: the days count both if one of them is free, else either."""

    places: tuple[frozenset[int], ...]
    day_free: bool
    weekday_free: bool

    def _on(self, day: datetime) -> bool:
        _, _, _, days, months, weekdays = self.places
        in_month, in_week = day.day in days, (day.weekday() + 1) % 7 in weekdays
        either = self.day_free or self.weekday_free
        return day.month in months and ((in_month and in_week) if either else (in_month or in_week))

    def after(self, now: datetime) -> datetime | None:
        """The first time after `now` (naive, of the schedule's zone); None if there is none."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        seconds, minutes, hours = (sorted(place) for place in self.places[:3])
        for ahead in range(_DAYS_AHEAD):
            day = midnight + timedelta(days=ahead)
            if not self._on(day):
                continue
            for hour in hours:
                for minute in minutes:
                    for second in seconds:
                        at = day.replace(hour=hour, minute=minute, second=second)
                        if at > now:
                            return at
        return None


def every(ms: int) -> str:
    """The rule of an interval. Raises `ValueError` for what is not whole seconds."""
    if ms < _STEP_MS or ms % _STEP_MS:
        raise ValueError("an interval is whole seconds, at least one")
    return f"@every {ms // _STEP_MS}s"


def interval_ms(when: str) -> int:
    """The interval of a rule that `every` made, else 0."""
    match = _EVERY.match(when)
    return int(match[1]) * _STEP_MS if match else 0


def cron(when: str) -> Cron:
    """A cron rule taken apart. Raises `ValueError` with what is wrong with it."""
    words = _NAMED.get(when, when).split()
    if when.startswith("@") and when not in _NAMED:
        raise ValueError(f"there is no {when[:32]}: use {', '.join(_NAMED)}")
    if len(words) != len(_PLACES):
        raise ValueError(
            f"it has {len(words)} fields and needs 6: second, minute, hour, day of the month, "
            "month, day of the week"
        )
    made = Cron(
        tuple(_place(word, *place) for word, place in zip(words, _PLACES, strict=True)),
        day_free=words[3] in {"*", "?"}, weekday_free=words[5] in {"*", "?"},
    )  # fmt: skip
    if made.after(datetime(2000, 1, 1)) is None:  # noqa: DTZ001 - any year: is there such a day?
        raise ValueError("it never fires")
    return made


def _place(word: str, name: str, least: int, most: int, words: Mapping[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for part in word.split(","):
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"`{part[:32]}` is no {name}")
        if match["any"]:
            first, last = least, most
        else:
            first = _number(match["first"], name, words)
            ends_at_most = match["step"] and not match["last"]
            last = most if ends_at_most else _number(match["last"] or match["first"], name, words)
        step = int(match["any_step"] or match["step"] or 1)
        if not least <= first <= last <= most or step == 0:
            raise ValueError(f"`{part[:32]}` is no {name}: it is from {least} to {most}")
        values |= set(range(first, last + 1, step))
    return frozenset(values)


def _number(text: str, name: str, words: Mapping[str, int]) -> int:
    if text.isdigit():
        return int(text)
    if text.lower() in words:
        return words[text.lower()]
    raise ValueError(f"`{text}` is no {name}")


def next_firing(when: str, written_at: int, now: int, zone: tzinfo = UTC) -> int:
    """When a rule fires next after `now` (ms), as far as can be told here; 0: not known.

    `written_at`  when LATER took it (ms): an interval counts from there.
    """
    if gap := interval_ms(when):
        begin = written_at // _STEP_MS * _STEP_MS
        return begin + ((now - begin) // gap + 1) * gap if begin else 0
    try:
        rule = cron(when)
    except ValueError:
        return 0
    local = datetime.fromtimestamp(now / 1000, zone).replace(tzinfo=None)
    found = rule.after(local)
    return int(found.replace(tzinfo=zone).timestamp() * 1000) if found else 0
