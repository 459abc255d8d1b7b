"""A cancellation in CONTROL: an id that must not run any more, bound to its key, until a time.

Announced for every executor, since nobody knows where a task is: queued, waiting for a retry,
running. The record is typed and bound, not yet signed: it can end a task and nothing else.
"""

from __future__ import annotations

from typing import Final

from executor.core import subjects
from executor.core.envelope import to_msgpack, unpack
from executor.errors import ExecutorError

VERSION: Final = 1
_FIELDS: Final = {"v", "typ", "aud", "until"}
_TIME_MAX: Final = 9_200_000_000_000


def encode(tenant: str, task: str, task_id: str, *, until: int, environment: str) -> bytes:
    """The value under `subjects.cancel_key`; `until` in ms."""
    key = subjects.cancel_key(tenant, task, task_id)
    return to_msgpack({
        "v": VERSION, "typ": "cancel", "aud": subjects.audience(environment, key), "until": until,
    })  # fmt: skip


def decode(data: bytes, key: str, *, environment: str) -> int:
    """Until when the cancellation read from `key` holds, in ms. Errors  `message.*`."""
    fields = unpack(data, lists=False)
    if fields.get("v") != VERSION:
        raise ExecutorError("message.version-unknown", f"this host reads version {VERSION}")
    if fields.get("typ") != "cancel" or fields.keys() != _FIELDS:
        raise ExecutorError("message.malformed", "not a cancellation")
    if fields["aud"] != subjects.audience(environment, key):
        raise ExecutorError("message.audience-mismatch", f"read from `{key}`")
    until = fields["until"]
    if type(until) is not int or not 0 <= until <= _TIME_MAX:
        raise ExecutorError("message.malformed", "not a cancellation")
    return until
