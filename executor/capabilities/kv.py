"""Capability kv: a tenant's key-value bucket, served by the mediator.

The key prefix comes from the grant, never from the guest; keys hold the characters that NATS keys
allow. Nothing here trusts the sandbox: every argument is checked again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Final, Protocol

from executor.core import abi
from executor.core.scopes import allows
from executor.errors import ExecutorError
from executor.model import PAYLOAD_MAX, KvScope

_KEY: Final = re.compile(rb"[-/_=.a-zA-Z0-9]{1,512}\Z")
# NATS stores a key as a subject: the prefix and the guest's part share this length.
VALUE_MAX: Final = PAYLOAD_MAX


class Bucket(Protocol):
    """One tenant's bucket; errors are `capability.unavailable` and `.deadline-exceeded`."""

    def get(self, key: str) -> Awaitable[bytes | None]:
        """The value, or None."""

    def put(self, key: str, value: bytes) -> Awaitable[None]:
        """Set it."""

    def delete(self, key: str) -> Awaitable[None]:
        """Remove it."""


def is_key(key: bytes) -> bool:
    """Whether NATS allows these bytes as a key."""
    return (
        _KEY.match(key) is not None
        and not key.startswith(b".") and not key.endswith(b".") and b".." not in key
    )  # fmt: skip


async def serve(
    bucket: Bucket, scope: KvScope | None, function: str, key: bytes, value: bytes
) -> tuple[int, bytes]:
    """(status, data) of one call, as guest_sdk/abi defines them."""
    if not is_key(key):
        return abi.BAD_ARGUMENT, b"the key has characters that are not allowed"
    text = key.decode("ascii")
    if scope is None or not allows(scope, function, text):
        return abi.DENIED, b"no grant covers this call"
    if len(scope.prefix) + len(text) > abi.KV_KEY_MAX:
        return abi.BAD_ARGUMENT, b"the key is too long"
    if len(value) > VALUE_MAX:
        return abi.TOO_LARGE, b"the value is too large"
    try:
        return await _act(bucket, function, scope.prefix + text, value)
    except ExecutorError as error:
        if error.code == "capability.deadline-exceeded":
            return abi.DEADLINE, b"the call's deadline passed"
        if error.code == "capability.bad-argument":
            return abi.BAD_ARGUMENT, b"the bucket takes no such key"
        return abi.UNAVAILABLE, b"the bucket is unavailable"


async def _act(bucket: Bucket, function: str, key: str, value: bytes) -> tuple[int, bytes]:
    if function == "kv_get":
        found = await bucket.get(key)
        if found is None:
            return abi.NOT_FOUND, b"no such key"
        if len(found) > VALUE_MAX:
            return abi.TOO_LARGE, b"the value is too large"
        return len(found), found
    if function == "kv_put":
        await bucket.put(key, value)
    else:
        await bucket.delete(key)
    return 0, b""
