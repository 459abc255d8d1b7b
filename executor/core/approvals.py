"""Breaking glass: what is asked for, the approvals of two others, and when they count.

A request names one action, one task (or all of a tenant's), who gets it and until when. Two others
whom policy gives `approve` there sign its SHA-256; who gets it says the whole in CONTROL, under
`break-glass.<id>`. Keys of one name are one person.

An approval counts by the time that it says itself; the end that it approves is near that, so that a
key which was struck off, or a session that ended, approves nothing later than an hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from executor.core import control, glass, seal, subjects
from executor.core.access import ANY, Party, of_key
from executor.core.glass import Opening
from executor.core.seal import FRESH_MS, NotAuthenticError, Opener, Said, Signer
from executor.errors import ExecutorError

NEEDED: Final = 2


def request(environment: str, wanted: Opening) -> bytes:
    """The bytes that are approved. Errors  `policy.action-denied` for what never opens."""
    if why := _never(wanted):
        raise ExecutorError("policy.action-denied", why, hint="`executor break-glass request -h` "
                            "says what may be broken open")  # fmt: skip
    return control.encode(
        "request", subjects.glass_key(wanted.id), environment, action=wanted.action,
        tenant=wanted.tenant, task=wanted.task, who=wanted.who, why=wanted.why, exp=wanted.exp,
    )  # fmt: skip


def read(data: bytes, request_id: str, environment: str) -> Opening:
    """What `data` asks for. Errors  `message.*`, `policy.action-denied`."""
    fields = control.decode(data, "request", subjects.glass_key(request_id), environment)
    who, action, tenant, task, why = (
        str(fields[name]) for name in ("who", "action", "tenant", "task", "why")
    )
    wanted = Opening(request_id, who, action, tenant, task, why, int(fields["exp"]))
    if why := _never(wanted):
        raise ExecutorError("policy.action-denied", why)
    return wanted


def _never(wanted: Opening) -> str:
    if wanted.action not in glass.BREAKABLE:
        return f"`{wanted.action[:64]}` is never broken open"
    if not wanted.why.strip():
        return "every authority has a reason"
    everything = (wanted.tenant, wanted.task) == (ANY, ANY)
    if wanted.action in glass.WHOLE:
        return "" if everything else f"`{wanted.action}` names no tenant: it is of `*/*`"
    named = subjects.is_token(wanted.tenant)
    named &= wanted.task == ANY or subjects.is_token(wanted.task)
    return "" if named else f"`{wanted.action}` is of TENANT/TASK or TENANT/*"


def approve(key: Signer, environment: str, request_id: str, data: bytes, *, at: int) -> bytes:
    """The approval of a request, whose bytes the approver has read."""
    place = _place(request_id)
    payload = control.encode("approval", place, environment, request=_digest(data))
    return seal.say(key, environment, place, payload, at=at)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _place(request_id: str) -> str:
    return f"approval.{request_id}"


def approvers(
    opener: Opener, wanted: Opening, data: bytes, approvals: Sequence[bytes], *, at: int
) -> tuple[Party, ...]:
    """Who approved; each may, no two are one, and none gets it. Raises `NotAuthenticError`."""
    found: list[Party] = []
    receiver = opener.operators.get(wanted.who)
    for one in approvals:
        party, when, digest = opener.approval(one, _place(wanted.id), at=at)
        if digest != _digest(data):
            raise NotAuthenticError(f"`{party.name}` approved something else")
        if not when - FRESH_MS <= wanted.exp <= when + glass.MOST_MS + FRESH_MS:
            raise NotAuthenticError(f"`{party.name}` approved another time than this")
        may = opener.access.may(of_key(party.key), "approve", wanted.tenant, wanted.task)
        if not may.allowed:
            raise NotAuthenticError(f"`{party.name}` may not approve: {may.why}")
        for other in (*found, *([receiver] if receiver else [])):
            if party.name == other.name or party.key == other.key:
                what = "approves what it gets" if other is receiver else "approved twice"
                raise NotAuthenticError(f"`{party.name}` {what}")
        found.append(party)
    return tuple(found)


def opening(opener: Opener, key: str, said: Said, *, at: int) -> Opening:
    """What an entry of CONTROL opens, stored `at`. Raises `NotAuthenticError`."""
    fields = said.fields or {}
    data, request_id = fields.get("request"), key.rpartition(".")[2]
    given = [value for name in ("first", "second") if isinstance(value := fields.get(name), bytes)]
    if not isinstance(data, bytes) or len(given) != NEEDED:
        raise NotAuthenticError("nothing that was approved")
    try:
        wanted = read(data, request_id, opener.environment)
    except ExecutorError as error:
        raise NotAuthenticError(error.message) from error
    if wanted.who != said.by:
        raise NotAuthenticError("approved for somebody else")
    if not at <= wanted.exp <= at + glass.MOST_MS:
        raise NotAuthenticError("over, or for too long")
    by = approvers(opener, wanted, data, given, at=at)
    return replace(wanted, by=tuple(party.name for party in by))
