"""Modules by digest, in the standard layout of a NATS object store, so that its tools read it.

Reading needs direct gets only. Nothing stored is believed: `get` counts what arrives against the
caller's bound, whatever the stored size says, and leaves it to the caller to compare the digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Final

from executor.core import subjects
from executor.errors import ExecutorError
from executor.transport import direct
from executor.transport.api import ApiError
from executor.transport.connection import Connection

_BUCKET: Final = subjects.MODULES_BUCKET
STREAM: Final = f"OBJ_{_BUCKET}"
_CHUNK: Final = 128 * 1024  # as the standard clients do
_CHUNKS_PER_BATCH: Final = 32
_META_MAX: Final = 64 * 1024


def _meta_subject(name: str) -> str:
    return f"$O.{_BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


class Objects:
    """The module store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, digest: str, max_bytes: int) -> bytes | None:
        """Return what is stored under a digest, unverified, or None.

        Errors  `module.too-complex` for more than `max_bytes`, found while reading;
                `module.digest-mismatch` for an entry that cannot be read at all.
        """
        meta = await direct.last(self._connection, STREAM, _meta_subject(digest))
        if meta is None:
            return None
        nuid = self._nuid(meta.body, digest)
        if nuid is None:
            return None
        data = bytearray()
        async for chunk in direct.scan(
            self._connection, STREAM, f"$O.{_BUCKET}.C.{nuid}", batch=_CHUNKS_PER_BATCH
        ):
            data += chunk.body
            if len(data) > max_bytes:
                raise ExecutorError(
                    "module.too-complex",
                    "the stored module is larger than allowed",
                    digest=digest,
                    max_bytes=max_bytes,
                )
        return bytes(data)

    @staticmethod
    def _nuid(body: bytes, digest: str) -> str | None:
        """Return the token of the chunks; None for a deleted object."""
        try:
            meta = json.loads(body) if len(body) <= _META_MAX else None
        except (ValueError, RecursionError):
            meta = None
        if isinstance(meta, dict):
            if meta.get("deleted"):
                return None
            nuid = meta.get("nuid")
            if isinstance(nuid, str) and subjects.is_token(nuid):
                return nuid
        raise ExecutorError("module.digest-mismatch", "its entry is damaged", digest=digest)

    async def put(self, digest: str, data: bytes) -> bool:
        """Store under the name `digest`; False if exactly these bytes are there already.

        The name is the caller's: whether it is the digest of `data` is not checked here.
        """
        try:
            if await self.get(digest, len(data)) == data:
                return False
        except ExecutorError as error:
            if error.row.stage != "module":
                raise
        nuid = secrets.token_hex(11)
        chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
        subject = f"$O.{_BUCKET}.C.{nuid}"
        # Chunks of one object are read in stream order: only the order of storing counts.
        for chunk in chunks:
            await self._store(subject, chunk)
        meta = {
            "name": digest,
            "bucket": _BUCKET,
            "nuid": nuid,
            "size": len(data),
            "chunks": len(chunks),
            "mtime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "digest": "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode(),
            "options": {"max_chunk_size": _CHUNK},
        }
        # No rollup of what stood there before, which the stream refuses: the last one counts.
        await self._store(_meta_subject(digest), json.dumps(meta).encode())
        return True

    async def _store(self, subject: str, body: bytes) -> None:
        try:
            await self._connection.store(subject, body)
        except ApiError as error:
            raise error.mapped(STREAM) from None
