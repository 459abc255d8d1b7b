"""A tenant's KV bucket, as the kv capability uses it: bounded keys, one deadline, our codes."""

from __future__ import annotations

from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport import control, direct
from executor.transport.api import ApiError
from executor.transport.connection import Connection


class TenantKv:
    """One tenant's bucket.

    Errors  `capability.bad-argument` (key, or value too large), `capability.deadline-exceeded`,
            `capability.unavailable`.
    """

    def __init__(self, connection: Connection, tenant: str) -> None:
        bucket = subjects.tenant_bucket(tenant)
        self._connection = connection
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."

    def _subject(self, key: str) -> str:
        try:
            return self._prefix + control.check_key(key)
        except ValueError as error:
            raise ExecutorError("capability.bad-argument", str(error)) from None

    async def get(self, key: str, *, timeout_s: float = 2.0) -> bytes | None:
        """Return the value, or None."""
        subject = self._subject(key)
        try:
            stored = await direct.last(self._connection, self._stream, subject, timeout_s)
        except ExecutorError as error:
            raise self._mapped(error) from None
        return control.value_of(stored) if stored else None

    async def put(self, key: str, value: bytes, *, timeout_s: float = 2.0) -> None:
        """Write; confirmed by the server on return."""
        await self._store(self._subject(key), value, None, timeout_s)

    async def delete(self, key: str, *, timeout_s: float = 2.0) -> None:
        """Delete, whether it exists or not; confirmed on return."""
        await self._store(self._subject(key), b"", {"KV-Operation": "DEL"}, timeout_s)

    async def _store(
        self, subject: str, value: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> None:
        try:
            await self._connection.store(subject, value, headers, timeout_s)
        except ApiError as error:
            raise self._mapped(error.mapped(self._stream)) from None
        except ExecutorError as error:
            raise self._mapped(error) from None

    def _mapped(self, error: ExecutorError) -> ExecutorError:
        if error.code == "message.too-large":
            return ExecutorError("capability.bad-argument", "the value is too large")
        if error.code == "transport.disconnected" and self._connection.connected:
            return ExecutorError("capability.deadline-exceeded", "kv")
        return ExecutorError("capability.unavailable", "kv", cause=error.code)
