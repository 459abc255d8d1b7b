"""What a person says in CONTROL: checked against policy, signed, stored, and read back.

What executors would not believe is refused here, with the reason: they answer nobody. What policy
does not let, an opening may: it is looked for, and what stands by it goes when its time has come.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from executor.core import approvals, control, seal
from executor.core.seal import NotAuthenticError, Opener, Said, Signer
from executor.core.session import Session
from executor.errors import ExecutorError
from executor.model import StoredMessage
from executor.transport.control import REMOVED_S, Control


async def look_for_openings(bucket: Control, opener: Opener) -> dict[str, str]:
    """Open for `opener` what is broken open; what stands there and counts for nothing, and why."""
    refused = {}
    for key, stored in (await bucket.entries("break-glass")).items():
        try:
            said = opener.said(key, stored.body, stored_at=stored.stored_at_ms)
            if said.fields is None:
                continue
            why = opener.glass.add(approvals.opening(opener, key, said, at=stored.stored_at_ms))
        except NotAuthenticError as error:
            why = error.reason
        if why:
            refused[key.partition(".")[2]] = why
    opener.glass.sweep(_now_ms())
    return refused


@dataclass(frozen=True, slots=True)
class Speaker:
    """See the module. An opener that lists nobody leaves the judgement to the executors."""

    bucket: Control
    opener: Opener
    key: Signer

    async def say(
        self, typ: str, key: str, fields: Mapping[str, control.Value], *, ttl_s: int = 0
    ) -> None:
        """Say an entry; after `ttl_s` seconds it is gone, 0: it stands.

        Errors  `policy.action-denied`, `transport.*`.
        """
        await self._put(key, control.encode(typ, key, self.opener.environment, **fields), ttl_s)

    async def take_back(self, key: str) -> bool:
        """Take an entry back; whether it stood. Errors  as `say`."""
        await self._may(key, removes=True)
        found = self._read(key, await self.bucket.get(key))
        if found is None or found.fields is None:
            return False
        await self._put(key, b"", REMOVED_S)
        return True

    async def forget_tenant(self, tenant: str) -> int:
        """Take back, or delete where that is not ours to say, all that is said of a tenant."""
        count = 0
        for key, stored in (await self.bucket.entries()).items():
            said = self._read(key, stored)
            if control.about(key)[1] != tenant or (said is not None and said.fields is None):
                continue
            count += 1
            try:
                if said is not None and await self.take_back(key):
                    continue
            except ExecutorError as error:
                if error.code != "policy.action-denied":
                    raise
            await self.bucket.delete(key)
        return count

    async def _may(self, key: str, *, removes: bool) -> int:
        """Until when it may say that, by what is broken open; 0 where policy lets it.

        Errors  `policy.action-denied`.
        """
        if not (self.opener.operators or self.opener.submitters):
            return 0
        by = seal.speaks_for(self.key)
        for last in (by not in self.opener.operators, True):
            try:
                _, opening = self.opener.speaker(
                    key, by, _now_ms(), removes=removes,
                    session_id=self.key.id if isinstance(self.key, Session) else "",
                )  # fmt: skip
            except NotAuthenticError as error:
                if last:
                    raise ExecutorError("policy.action-denied", error.reason) from None
                await look_for_openings(self.bucket, self.opener)
            else:
                break
        return self.opener.glass.openings[opening].exp if opening else 0

    def _read(self, key: str, stored: StoredMessage | None) -> Said | None:
        if stored is None:
            return None
        try:
            return self.opener.said(key, stored.body, stored_at=stored.stored_at_ms)
        except NotAuthenticError:
            return None

    async def _put(self, key: str, payload: bytes, ttl_s: int) -> None:
        if until := await self._may(key, removes=not payload):
            left = max(1, (until - _now_ms()) // 1000)
            ttl_s = min(ttl_s or left, left)
        before = self._read(key, await self.bucket.get(key))
        # The newer word counts, by the speaker's clock: an earlier speaker's may run ahead of ours.
        at = max(_now_ms(), before.iat + 1 if before else 0)
        value = seal.say(self.key, self.opener.environment, key, payload, at=at)
        revision = await self.bucket.put(key, value, ttl_s=ttl_s)
        if not (self.opener.operators or self.opener.submitters):
            return
        stored = await self.bucket.get(key)
        if stored is None or stored.sequence != revision:
            return
        try:
            self.opener.said(key, stored.body, stored_at=stored.stored_at_ms)
        except NotAuthenticError as error:
            raise ExecutorError(
                "policy.action-denied", f"no executor believes it: {error.reason}",
                hint="look at the clock of this machine",
            ) from None  # fmt: skip


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
