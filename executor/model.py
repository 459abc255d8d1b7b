"""The values that travel through the house: frozen, slotted, without behaviour.

Sizes are in bytes, durations in the unit of the name, times in milliseconds since 1970 (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, NewType

from executor.sizes import KIB as KIB  # noqa: PLC0414 - told on to whoever needs values as well
from executor.sizes import MIB as MIB  # noqa: PLC0414
from executor.sizes import PAYLOAD_MAX as PAYLOAD_MAX  # noqa: PLC0414
from executor.values import light_dataclass

Digest = NewType("Digest", str)  # "sha256:" and 64 hex digits, over the whole file
TaskId = NewType("TaskId", str)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an attempt may use; all caps are inclusive and always on."""

    fuel: int = 1_000_000_000
    memory_bytes: int = 64 * MIB
    table_elements: int = 20_000
    deadline_ms: int = 2_000
    input_bytes: int = PAYLOAD_MAX
    output_bytes: int = PAYLOAD_MAX
    log_bytes: int = 64 * KIB
    log_lines: int = 256
    calls: int = 10_000
    mediated_calls: int = 64
    call_bytes: int = 64 * MIB  # copied between guest and host by all calls
    host_ms: int = 10_000  # spent in host calls, the waiting included

    def lowered(self, caps: dict[str, int]) -> Limits:
        """The minimum of these limits and `caps`; names that are no limit are ignored."""
        lower = {
            name: min(value, getattr(self, name)) for name, value in caps.items() if name in FIELDS
        }
        return replace(self, **lower)


FIELDS: Final = frozenset(Limits.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class KvScope:
    """The part of a tenant's bucket a task may use: what stands in front of its keys, and which.

    A pattern is one key, or ends in `*`: whatever goes on from there. "" is no key at all.
    """

    prefix: str = ""
    read: tuple[str, ...] = ("*",)
    write: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fallback:
    """What stands in for a failure with one of these codes: a value, or another task's module."""

    on: frozenset[str]
    output: bytes = b""
    content_type: str = ""
    task: str = ""  # of the same tenant; "" means the value


@dataclass(frozen=True, slots=True)
class Authority:
    """Request ∩ grant ∩ ceiling, fixed before the attempt: function names and their scopes."""

    functions: frozenset[str] = frozenset()
    kv: KvScope | None = None
    limits: Limits = field(default_factory=Limits)
    attempts_max: int = 3
    not_after: int = 0  # ms, when one of its grants ends and it is decided anew; 0: never


@light_dataclass(frozen=True, slots=True)
class Delivery:
    """One hand-over of a message by the transport. `lease` is the transport's own handle."""

    data: bytes
    subject: str
    tenant: str
    headers: dict[str, str]
    sequence: int  # in the tenant's stream
    delivered: int  # 1 for the first hand-over
    stored_at: int  # ms, by the server's clock
    lease: str


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """One line of a task's history."""

    attempt: int
    code: str
    at: int  # ms


@light_dataclass(frozen=True, slots=True)
class TaskRequest:
    """The decoded message that asks for one task."""

    tenant: str
    task: str
    id: TaskId
    input: bytes
    content_type: str = ""
    attempt: int = 1
    crashes: int = 0
    fresh: bool = False  # the submitter vouches that the id is random and new
    submitted_at: int = 0  # ms
    expires_at: int = 0  # ms; 0: never
    not_before: int = 0  # ms; 0: at once
    attempts_max: int = 0  # 0: as policy says; else only lowers it
    limits: tuple[tuple[str, int], ...] = ()  # only lower the host's
    trace: str = ""  # W3C traceparent
    history: tuple[PastAttempt, ...] = ()
    raw: bool = False
    by: str = ""  # key id of the submitter that signed it
    of: str = ""  # the id its message has, where a dead letter is asked for again under a new one


@dataclass(frozen=True, slots=True)
class Release:
    """What a task name stands for now."""

    tenant: str
    task: str
    digest: Digest
    version: str


@light_dataclass(frozen=True, slots=True)
class Receipt:
    """What an attempt used; part of every terminal record."""

    digest: str = ""
    fuel_used: int = 0
    memory_peak_bytes: int = 0
    guest_us: int = 0
    host_us: int = 0
    host_calls: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    log_lines: int = 0
    log_dropped: int = 0
    engine: str = ""
    containment: str = ""


@light_dataclass(frozen=True, slots=True)
class LogLine:
    """One line a guest logged; `text` is the guest's and is escaped before it is shown."""

    level: int  # 0 debug, 1 info, 2 warn, 3 error
    text: str


@light_dataclass(frozen=True, slots=True)
class Result:
    """A task's success."""

    output: bytes
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task's expected failure: a value, not an exception."""

    code: str
    message: str = ""
    hint: str = ""
    facts: tuple[tuple[str, str | int], ...] = ()
    transient: bool = False  # the guest's word, where the code's class leaves it to the guest
    retry_after_ms: int = -1  # -1: the host's back-off


Outcome = Result | Failure


@light_dataclass(frozen=True, slots=True)
class Finished:
    """How an attempt ended and what it used."""

    outcome: Outcome
    receipt: Receipt
    logs: tuple[LogLine, ...] = ()
    limits: Limits | None = None  # of the attempt, where one was begun
    last_calls: tuple[tuple[str, int], ...] = ()  # as in `frames.Done`
    used: int = 0  # as in `frames.Done`


@light_dataclass(frozen=True, slots=True)
class Outgoing:
    """One message for a stream.

    `once`               a filter; the publish counts only if the last sequence of all subjects
                         that match it is `expected_sequence` (0: there is none yet).
    `schedule_at_ms`     with `schedule_target`: the server publishes the body there at that time,
    `schedule`           or again and again as this says, in the time zone of that name.
    """

    subject: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    once: str = ""
    expected_sequence: int = 0
    schedule_at_ms: int = 0
    schedule_target: str = ""
    schedule: str = ""
    schedule_zone: str = ""


@light_dataclass(frozen=True, slots=True)
class Stored:
    """The stream has it; `duplicate` if it already had a message with this `Nats-Msg-Id`."""

    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """`once` did not hold (10071, in replica races 10164): read what is there."""


# The tenant puts off as much as it may.
NO_ROOM: Final = 507


@dataclass(frozen=True, slots=True)
class Refused:
    """The server, or the size check before it, would not take it."""

    code: int  # the API's error code, such as 10077; 403, 413, 503 and NO_ROOM are ours
    text: str
    temporary: bool = False  # it could not, rather than would not


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """No answer until the deadline: it may be stored or not."""


Answer = Stored | Conflict | Refused | Unconfirmed


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One message read back from a stream."""

    subject: str
    sequence: int
    body: bytes
    headers: dict[str, str]
    stored_at_ms: int  # by the server's clock
