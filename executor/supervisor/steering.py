"""What CONTROL says to an executor, entry by entry: what holds tasks up, ends or repeats them.

An entry that is not valid changes nothing and is a security event. Releases are the registry's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from executor.core import control, schedule, subjects
from executor.errors import ExecutorError
from executor.model import Digest
from executor.supervisor.cancelling import Cancelling
from executor.supervisor.guards import Guards
from executor.supervisor.schedules import Schedules
from executor.telemetry import Telemetry

_Fields = dict[str, control.Value]
# How many tokens follow the type in a key.
_TOKENS: Final = {"cancel": 3, "pause": 2, "quarantine": 1, "breaker": 3, "schedule": 3}


@dataclass
class Steering:
    """See the module."""

    environment: str
    guards: Guards
    cancelling: Cancelling
    schedules: Schedules
    telemetry: Telemetry
    now_ms: Callable[[], int]
    on_held_up: Callable[[], None] = lambda: None

    def entry(self, key: str, value: bytes | None) -> bool:
        """Take one entry, None when it was removed; False: it is of a type not known here."""
        typ, *rest = key.split(".")
        take = {
            "cancel": self._cancel, "pause": self._pause, "quarantine": self._quarantine,
            "breaker": self._breaker, "schedule": self._schedule,
        }.get(typ)  # fmt: skip
        if take is None:
            return False
        if len(rest) != _TOKENS[typ]:
            return True  # nobody's key
        fields: _Fields | None = None
        if value is not None:
            try:
                fields = control.decode(value, typ, key, self.environment)
            except ExecutorError as error:
                self.telemetry.security_event(f"{typ}-not-valid", key=key, reason=error.message)
                return True
        take(rest, fields)
        return True

    def _cancel(self, rest: list[str], fields: _Fields | None) -> None:
        tenant, task, task_id = rest
        if fields is None:
            self.cancelling.withdraw(tenant, task, task_id)
        elif int(fields["until"]) > self.now_ms():
            self.cancelling.cancel(tenant, task, task_id, int(fields["until"]))

    def _pause(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1])
        if fields is None:
            known = self.guards.paused.pop(name, None) is not None
        else:
            known = True
            self.guards.paused[name] = str(fields["why"])
            self.on_held_up()
        if known:
            self.telemetry.log.event(
                "paused" if fields else "resumed", task="/".join(name),
                why=self.guards.paused.get(name, ""),
            )  # fmt: skip

    def _quarantine(self, rest: list[str], fields: _Fields | None) -> None:
        digest = Digest(f"sha256:{rest[0]}")
        if fields is None:
            self.guards.quarantined.pop(digest, None)
            self.telemetry.log.event("quarantine-lifted", digest=digest)
        else:
            self.guards.quarantined[digest] = str(fields["code"])
            self.on_held_up()

    def _breaker(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1], rest[2])
        if fields is None:
            self.guards.breakers.withdrawn(name)
        else:
            self.guards.breakers.heard(name, int(fields["until"]), int(fields["trips"]))

    def _schedule(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1], rest[2])
        try:
            self.schedules.heard(name, schedule.from_fields(fields) if fields else None)
        except ExecutorError as error:
            self.telemetry.security_event(
                "schedule-not-valid", key=subjects.schedule_key(*name), reason=error.message
            )  # fmt: skip
