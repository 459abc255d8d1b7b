"""What an operator, or anybody, says in CONTROL: signed as executors demand it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from executor.core import approvals, control, glass, seal, subjects, usage
from executor.core.glass import Opening
from executor.core.schedule import Schedule
from executor.core.session import MOST_MS, Session
from executor.core.signature import SecretKey
from executor.transport.control import Control
from tests.support import guests

# Whom the worlds of the tests let steer.
TABLES = f"""
[[operator]]
name = "boss"
key = "{guests.OPERATOR.public.text}"
[[binding]]
role = "operator"
who = ["boss"]
why = "for tests"
[[binding]]
role = "releaser"
who = ["boss"]
why = "for tests"
[[binding]]
role = "submitter"
who = ["boss"]
why = "for tests"
"""


def now_ms() -> int:
    """As this host has it."""
    return time.time_ns() // 1_000_000


def value(
    typ: str, key: str, fields: Mapping[str, control.Value] | None = None, *,
    signer: SecretKey = guests.OPERATOR, at: int = 0, environment: str = "test",
) -> bytes:  # fmt: skip
    """An entry of CONTROL; without fields it takes back what was said."""
    payload = control.encode(typ, key, environment, **fields) if fields else b""
    return seal.say(signer, environment, key, payload, at=at or now_ms())


async def put(
    bucket: Control, typ: str, key: str, fields: Mapping[str, control.Value] | None = None, *,
    signer: SecretKey = guests.OPERATOR,
) -> None:  # fmt: skip
    """Say it, or without fields take it back."""
    await bucket.put(key, value(typ, key, fields, signer=signer))


def largest() -> dict[str, bytes]:
    """The largest entry of each kind: longest names and texts, in a session, one of a batch.

    By key; the environment is as long, too.
    """
    long, wide, most = "n" * 64, "\U0001f525", 8_192
    now, digest = now_ms(), "ab" * 32
    life = subjects.life("n" * 48, 4_194_304)
    environment = "e" * 64
    holder, fresh = guests.OPERATOR, guests.FORGER
    certificate = seal.certify(holder, environment, fresh.public, at=now, exp=now + MOST_MS)
    session = Session(fresh, holder.public.key_id.hex(), certificate)
    wanted = Opening(long, session.holder, "pause", long, long, wide * most, now + glass.MOST_MS)
    request = approvals.request(environment, wanted)
    given = approvals.approve(session, environment, long, request, at=now)
    every = Schedule("@" * 256, "z" * 256, bytes(control.BYTES_MAX), wide * 256, now, now)
    said: dict[str, Mapping[str, control.Value]] = {
        subjects.release_key(long, long): {"digest": f"sha256:{digest}", "version": wide * 256},
        subjects.cancel_key(long, long, long): {"until": now},
        subjects.pause_key(long, long): {"at": now, "why": wide * most},
        subjects.quarantine_key(f"sha256:{digest}", long): {
            "at": now, "code": long, "task": long, "by": long,
        },
        subjects.breaker_key("module", long, digest): {"until": now, "trips": 2**31, "by": long},
        subjects.status_key(life): {"at": now, "report": wide * most},
        subjects.usage_key(life, long): {"at": now, "report": bytes(usage.BYTES_MAX)},
        subjects.schedule_key(long, long, long): every.fields(),
        subjects.glass_key(long): {"request": request, "first": given, "second": given},
    }  # fmt: skip
    assert {key.partition(".")[0] for key in said} == {*control.ACTIONS, *control.EXECUTORS_OWN,
                                                       "break-glass"}  # fmt: skip

    def entry(key: str, fields: Mapping[str, control.Value]) -> bytes:
        payload = control.encode(key.partition(".")[0], key, environment, **fields)
        draft = seal.statement(environment, key, payload)
        return seal.seal(session, [draft] * seal.BATCH_MAX, at=now)[0]

    return {key: entry(key, fields) for key, fields in said.items()}
