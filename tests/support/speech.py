"""What an operator, or anybody, says in CONTROL: signed as executors demand it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from executor.core import control, seal
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
