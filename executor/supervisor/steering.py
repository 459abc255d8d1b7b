"""What CONTROL says to an executor, entry by entry: what runs, and what holds it up or ends it.

An entry counts if whoever may say it signed it, and said nothing newer of the same key. Anything
else changes nothing and is a security event: a removal that nobody signed, too.

What is broken open is here while it lasts, and whatever stands by it alone ends with it. Each
opening, use and end is a security event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import approvals, control, glass, release, schedule, subjects
from executor.core.access import ANY
from executor.core.seal import FRESH_MS, NotAuthenticError, Said
from executor.errors import ExecutorError
from executor.model import Digest, Release
from executor.supervisor.cancelling import Cancelling
from executor.supervisor.guards import Guards
from executor.supervisor.ports import Trust
from executor.supervisor.schedules import Schedules
from executor.telemetry import Telemetry

_Fields = dict[str, control.Value]
# How many tokens follow the type in a key.
_TOKENS: Final = {
    "release": {2}, "cancel": {3}, "pause": {2}, "quarantine": {1, 2}, "breaker": {3},
    "schedule": {3}, "break-glass": {1},
}  # fmt: skip
# What is for a while is not judged again when trust changes, nor remembered for longer than it
# could be repeated.
_PASSING: Final = frozenset({"cancel", "breaker", "break-glass"})
_HEARD_MAX: Final = 10_000


@dataclass
class Steering:
    """See the module. `on_release` takes what a task's name stands for now."""

    environment: str
    trust: Trust
    guards: Guards
    cancelling: Cancelling
    schedules: Schedules
    telemetry: Telemetry
    now_ms: Callable[[], int]
    on_held_up: Callable[[], None] = lambda: None
    on_release: Callable[[tuple[str, str], Release | None], None] = lambda _name, _live: None
    _heard: dict[str, Said] = field(default_factory=dict)  # without their fields
    _open: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # openings as they came
    _room: int = _HEARD_MAX  # beyond, what may be forgotten is

    def entry(self, key: str, value: bytes | None, stored_at: int) -> None:
        """Take one entry, None when it is gone and nobody signed that."""
        typ, *rest = key.split(".")
        if len(rest) not in _TOKENS.get(typ, ()):
            return  # nobody's key
        known = self._heard.get(key)
        if value is None and (known is None or known.fields is None):
            return  # it says nothing as it is
        self.look_at_clock()
        try:
            said = self._believed(key, value, stored_at, known)
            if typ == "break-glass":
                self._glass(rest[0], said, value or b"", stored_at)
            else:
                self._take(typ, rest, said.fields)
        except (NotAuthenticError, ExecutorError) as error:
            reason = error.reason if isinstance(error, NotAuthenticError) else error.message
            self.telemetry.security_event(f"{typ}-not-authentic", key=key, reason=reason)
            return
        if said.glass:
            self.telemetry.security_event("break-glass-used", id=said.glass, by=said.by, key=key)
        # Of what it says only that it says something is kept.
        self._heard[key] = replace(said, fields=None if said.fields is None else {})
        if len(self._heard) > self._room:
            self._forget()

    def _believed(self, key: str, value: bytes | None, stored_at: int, known: Said | None) -> Said:
        if value is None:
            raise NotAuthenticError("removed by nobody")
        said = self.trust.opener().said(key, value, stored_at=stored_at)
        if known is not None and said.iat < known.iat:
            raise NotAuthenticError("older than what was said already")
        return said

    def _take(self, typ: str, rest: list[str], fields: _Fields | None) -> None:
        take = {
            "cancel": self._cancel, "pause": self._pause, "quarantine": self._quarantine,
            "breaker": self._breaker, "schedule": self._schedule, "release": self._release,
        }[typ]  # fmt: skip
        take(rest, fields)

    def _forget(self) -> None:
        """Drop what an older copy could not take the place of any more, for it would be stale."""
        then = self.now_ms() - 3 * FRESH_MS
        self._heard = {
            key: said for key, said in self._heard.items()
            if said.iat > then or (said.fields is not None and key.split(".")[0] not in _PASSING)
        }  # fmt: skip
        self._room = max(_HEARD_MAX, 2 * len(self._heard))

    def judge_again(self) -> None:
        """Trust changed: what was said by whom must not say it any more is taken back here."""
        opener = self.trust.opener()
        for opening_id, (value, stored_at) in list(self._open.items()):
            key = subjects.glass_key(opening_id)
            try:
                said = opener.said(key, value, stored_at=stored_at)
                approvals.opening(opener, key, said, at=stored_at)
            except NotAuthenticError as error:
                self._closed(opening_id, error.reason)
        for key, said in list(self._heard.items()):
            typ, *rest = key.split(".")
            if typ in _PASSING or said.fields is None:
                continue
            try:
                opener.speaker(key, said.by, said.iat, session_id=said.session)
            except NotAuthenticError as error:
                del self._heard[key]
                self.telemetry.log.event("no-longer-said", key=key, reason=error.reason)
                self._take(typ, rest, None)

    def look_at_clock(self) -> None:
        """End what was broken open and is over; to be called now and then."""
        over = self.trust.opener().glass.sweep(self.now_ms())
        for opening in over:
            self._open.pop(opening.id, None)
            self.telemetry.security_event("break-glass-expired", id=opening.id, by=opening.who)
        if over:
            self.judge_again()

    def _glass(self, opening_id: str, said: Said, value: bytes, stored_at: int) -> None:
        if said.fields is None:
            self._closed(opening_id, f"by {said.by}")
            return
        opener, now = self.trust.opener(), self.now_ms()
        opening = approvals.opening(opener, subjects.glass_key(opening_id), said, at=stored_at)
        if opening.exp < now:
            return
        if why := opener.glass.add(opening):
            raise NotAuthenticError(why)
        if opening_id not in self._open:
            self.telemetry.security_event(
                "break-glass-opened", id=opening_id, by=opening.who, action=opening.action,
                task=f"{opening.tenant}/{opening.task}", why=opening.why,
                approved=",".join(opening.by), minutes=(opening.exp - now) // 60_000,
            )  # fmt: skip
        self._open[opening_id] = (value, stored_at)

    def _closed(self, opening_id: str, why: str) -> None:
        self._open.pop(opening_id, None)
        shut = self.trust.opener().glass.close(opening_id, self.now_ms() + glass.MOST_MS)
        if shut is not None:
            self.telemetry.security_event("break-glass-closed", id=opening_id, why=why)
            self.judge_again()

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
            known = name not in self.guards.paused
            self.guards.paused[name] = str(fields["why"])
            self.on_held_up()
        if known:
            self.telemetry.log.event(
                "paused" if fields else "resumed", task="/".join(name),
                why=self.guards.paused.get(name, ""),
            )  # fmt: skip

    def _quarantine(self, rest: list[str], fields: _Fields | None) -> None:
        digest, tenant = Digest(f"sha256:{rest[0]}"), "".join(rest[1:]) or ANY
        if fields is None:
            self.guards.quarantined.pop((digest, tenant), None)
            self.telemetry.log.event("quarantine-lifted", digest=digest, tenant=tenant)
        else:
            self.guards.quarantined[digest, tenant] = str(fields["code"])
            self.on_held_up()

    def _breaker(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1], rest[2])
        if fields is None:
            self.guards.breakers.withdrawn(name)
        else:
            self.guards.breakers.heard(name, int(fields["until"]), int(fields["trips"]))

    def _schedule(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1], rest[2])
        self.schedules.heard(name, schedule.from_fields(fields) if fields else None)

    def _release(self, rest: list[str], fields: _Fields | None) -> None:
        name = (rest[0], rest[1])
        self.on_release(name, release.from_fields(fields, *name) if fields else None)
