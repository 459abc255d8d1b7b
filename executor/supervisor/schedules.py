"""Recurring schedules: what CONTROL says stands in LATER, sealed, and nothing else does.

Every executor compares the two when it hears of a schedule and when trust changed, and writes only
what differs, on condition that LATER still holds what it read: of several that write, one wins and
the others find its work as good as theirs. What is right already is left alone, so that intervals
keep their phase. Executors may not purge: what was removed is overwritten by a last firing that
every executor ignores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from executor.core import envelope, schedule, seal, subjects
from executor.core.envelope import Draft
from executor.core.schedule import Schedule
from executor.core.seal import NotAuthenticError
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Answer, Conflict, Outgoing, Refused, Stored, StoredMessage
from executor.supervisor.job import Job
from executor.supervisor.ports import Board, Outbox, Records, Trust
from executor.telemetry import Telemetry

Name = tuple[str, str, str]  # tenant, task, schedule id

_PUBLISH_S: Final = 30.0
# Between two tries while NATS does not answer.
_AGAIN_S: Final = 5.0
_HEADERS: Final = ("Nats-Schedule", "Nats-Schedule-Time-Zone", "Nats-Schedule-Target")


@dataclass
class Schedules:
    """See the module."""

    environment: str
    key: SecretKey
    trust: Trust
    outbox: Outbox
    records: Records
    board: Board
    telemetry: Telemetry
    now_ms: Callable[[], int]
    _known: dict[Name, Schedule] = field(default_factory=dict)
    _waiting: dict[Name, None] = field(default_factory=dict)
    _writer: asyncio.Task[None] | None = None

    def heard(self, name: Name, said: Schedule | None) -> None:
        """CONTROL has a schedule, or has it no longer (None)."""
        if said is None:
            self._known.pop(name, None)
        else:
            self._known[name] = said
        self._compare(name)

    def look_again(self) -> None:
        """Trust or tenants changed: what LATER holds may have to be sealed anew."""
        for name in self._known:
            self._compare(name)

    # What was fired.

    def has(self, job: Job) -> bool:
        """Whether the schedule that fired this exists, as far as was heard."""
        return job.firing is not None and job.firing.at > 0 and _name(job) in self._known

    async def look(self, job: Job) -> bool:
        """The same by CONTROL's own word, which may be newer. Errors  `transport.*`."""
        name, firing = _name(job), job.firing
        key = subjects.schedule_key(*name)
        there = await self.board.get(key)
        if there is not None and firing is not None and firing.at > 0:
            try:
                said = self.trust.opener().said(key, there.body, stored_at=there.stored_at_ms)
            except NotAuthenticError as error:
                self.telemetry.security_event(
                    "schedule-not-authentic", key=key, reason=error.reason
                )  # fmt: skip
            else:
                if said.fields is not None:
                    return True
        self.telemetry.log.event("schedule-gone", task="/".join(name[:2]), schedule=name[2])
        self._compare(name)
        return False

    # What stands in LATER.

    def _compare(self, name: Name) -> None:
        self._waiting[name] = None
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._waiting:
                name = next(iter(self._waiting))
                del self._waiting[name]
                try:
                    answer = await self._bring(name)
                except ExecutorError as error:
                    answer, why = None, error.code
                else:
                    why = answer.text if isinstance(answer, Refused) else ""
                if isinstance(answer, Refused):
                    self._event("schedule-refused", name, why=why)
                elif isinstance(answer, Conflict):
                    self._waiting[name] = None
                elif not isinstance(answer, Stored):
                    self._event("schedule-unwritten", name, why=why or "unconfirmed")
                    self._waiting[name] = None
                    await asyncio.sleep(_AGAIN_S)
        finally:
            self._writer = None

    async def _bring(self, name: Name) -> Answer:
        """Make LATER say what is known; whatever is right already counts as stored."""
        there = await self.records.recurring(*name)
        known = self._known.get(name)
        if self.trust.policy().tenant(name[0]) is None:
            return Stored(0)  # another executor's tenant, or nobody's
        wanted = self._outgoing(name, known, there)
        if wanted is None or not self._opens(name, wanted.body):
            return Stored(0)
        answer = await self._publish(wanted)
        if isinstance(answer, Stored):
            self._event("scheduled" if known else "unscheduled", name)
        return answer

    def _outgoing(
        self, name: Name, known: Schedule | None, there: StoredMessage | None
    ) -> Outgoing | None:
        """What has to be written, if anything."""
        subject, target = subjects.recurring(*name), subjects.due(*name[:2])
        last = there.sequence if there else 0
        if known is None:
            if there is None or self._holds(name, schedule.ENDED, there):
                return None
            return Outgoing(
                subject, self._sealed(name, schedule.ENDED), once=subject, expected_sequence=last,
                schedule_at_ms=self.now_ms(), schedule_target=target,
            )  # fmt: skip
        if there is not None and self._is_right(name, known, target, there):
            return None
        return Outgoing(
            subject, self._sealed(name, known), once=subject, expected_sequence=last,
            schedule=known.when, schedule_zone=known.zone, schedule_target=target,
        )  # fmt: skip

    def _is_right(self, name: Name, known: Schedule, target: str, there: StoredMessage) -> bool:
        wanted = (known.when, known.zone, target)
        if tuple(there.headers.get(header, "") for header in _HEADERS) != wanted:
            return False
        return self._holds(name, known, there)

    def _holds(self, name: Name, said: Schedule, there: StoredMessage) -> bool:
        return (
            self._opens(name, there.body)
            and envelope.decode_sealed(there.body).payload == said.payload()
        )

    def _opens(self, name: Name, body: bytes) -> bool:
        """Whether executors would believe a firing of this body now."""
        try:
            self.trust.opener().open(
                envelope.decode_sealed(body), typ="schedule", subject=subjects.task(*name[:2]),
                task_id=name[2], tenant=name[0], stored_at=self.now_ms(),
            )  # fmt: skip
        except (NotAuthenticError, ExecutorError):
            return False
        return True

    def _sealed(self, name: Name, said: Schedule) -> bytes:
        aud = subjects.audience(self.environment, subjects.task(*name[:2]))
        draft = Draft("schedule", aud, name[2], said.payload())
        (body,) = seal.seal(self.key, [draft], at=self.now_ms())
        return body

    async def _publish(self, outgoing: Outgoing) -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def on_answer(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.outbox.publish(outgoing, on_answer, _PUBLISH_S)
        return await answered

    def _event(self, what: str, name: Name, **facts: str) -> None:
        self.telemetry.log.event(what, task="/".join(name[:2]), schedule=name[2], **facts)

    def stop(self) -> None:
        """Write nothing any more."""
        self._waiting.clear()
        if self._writer is not None:
            self._writer.cancel()


def _name(job: Job) -> Name:
    assert job.firing is not None
    return job.request.tenant, job.request.task, job.firing.schedule
