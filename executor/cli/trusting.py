"""A running executor under signed trust: refreshed on a hint and from time to time, never older.

What the store holds is judged in a thread; what does not hold changes nothing and is a security
event. When what is in force is over, the executor holds: it asks for nothing, and goes on when
newer metadata arrives. Times are this host's: whoever runs the store must not say what time it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Final

from executor.config import Config
from executor.errors import ExecutorError
from executor.telemetry import Telemetry
from executor.transport.connection import Connection
from executor.transport.trust import TrustBucket

if TYPE_CHECKING:
    from executor.trust.source import Verified

# Of one file; far beyond the deadline of the request itself.
_FILE_S: Final = 30.0
# Between two looks, however often the bucket is written to: a revocation still takes effect in a
# fraction of its two seconds, and a flood of hints costs a few percent of a core.
_GAP_S: Final = 0.1
# After a refusal, doubled each time up to `trust.refresh_s`: a copy of the bucket may lag.
_AGAIN_S: Final = 0.5


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def fetch_and_verify(config: Config, connection: Connection) -> Verified:
    """Refresh the local folder from TRUST, in a thread. Errors  `trust.*`, `transport.*`."""
    from executor.trust.source import Source  # only where the source is signed

    return await _refresh(Source.of(config).refresh, TrustBucket(connection))


async def _refresh(
    refresh: Callable[[Callable[[str], bytes | None]], Verified], bucket: TrustBucket
) -> Verified:
    loop = asyncio.get_running_loop()

    def fetch(key: str) -> bytes | None:
        asked = asyncio.run_coroutine_threadsafe(bucket.get(key), loop)
        try:
            return asked.result(_FILE_S)
        except (TimeoutError, CancelledError):
            asked.cancel()
            raise ExecutorError("transport.disconnected", "TRUST does not answer") from None

    return await asyncio.to_thread(refresh, fetch)


class Keeper:
    """See the module.

    `put` puts a state in force; `hold` is told why nothing may be judged, "" to go on. `put` may
    refuse a state that does not know this host: then the executor holds as well.
    """

    def __init__(
        self, config: Config, telemetry: Telemetry, put: Callable[[Verified], Awaitable[None]],
        hold: Callable[[str], Awaitable[None]],
    ) -> None:  # fmt: skip
        from executor.trust.source import Source  # only where the source is signed

        self._source = Source.of(config)
        self._refresh_s = config.number("trust.refresh_s")
        self._telemetry = telemetry
        self._put, self._hold = put, hold
        self._bucket: TrustBucket
        self._hint = asyncio.Event()
        self._end: Callable[[], Awaitable[None]] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._held = ""  # why
        self._failures = 0
        self._said = ""  # the last refusal: the same again is no news
        self._warned: set[tuple[str, int]] = set()
        self.state: Verified

    async def first(self, connection: Connection) -> Verified:
        """What to start with: the newest, or the last good state where the store has nothing.

        Errors  `trust.*` if neither is there and holds.
        """
        self._bucket = TrustBucket(connection)
        try:
            self.state = await _refresh(self._source.refresh, self._bucket)
        except ExecutorError as error:
            try:
                self.state = await asyncio.to_thread(self._source.load)
            except ExecutorError:
                raise error.again() from None
            self._refused(error)
        return self.state

    async def start(self) -> None:
        """Listen and look from now on."""
        self._end = await self._bucket.hints(self._hint.set)
        self._hint.set()  # for what was pushed since `first`
        self._looking = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """End; idempotent."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        end, self._end = self._end, None
        if end is not None:
            await end()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s()):
                    await self._hint.wait()
            self._hint.clear()
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is must not end the looking
                self._failures += 1
                self._telemetry.log.event("bug", what="trust", error=repr(error))
            await asyncio.sleep(_GAP_S)

    def _wait_s(self) -> float:
        waits = [float(self._refresh_s)]
        if self._failures:
            waits.append(_AGAIN_S * 2 ** min(self._failures, 10))
        if not self._held:
            # When there is something to say of a role's end, and when the first one ends.
            due = [at for name, at in self.state.warn_at.items() if not self._was_said(name)]
            waits.append(max((min([*due, self.state.expires_ms]) - _now_ms()) / 1000, 0.0))
        return min(waits)

    def _was_said(self, role: str) -> bool:
        return (role, self.state.roles[role].version) in self._warned

    async def _look(self) -> None:
        try:
            found = await _refresh(self._source.refresh, self._bucket)
        except ExecutorError as error:
            self._refused(error)
        except OSError as error:  # of this disk
            self._refused(ExecutorError("trust.missing", error.strerror or "unreadable"))
        else:
            self._failures, self._said = 0, ""
            if found != self.state:
                self.state = found
                await self._take()
        if self.state.expires_ms <= _now_ms():
            await self._say("trust expired")
        self._warn()

    async def _take(self) -> None:
        """Put the newest state in force; what runs under it goes on, or begins again."""
        try:
            await self._put(self.state)
        except ExecutorError as error:
            self._telemetry.security_event("trust-not-taken", code=error.code, reason=error.message)
            if not error.code.startswith("transport."):
                await self._say(error.message)
            return
        versions = [f"{name}.{role.version}" for name, role in self.state.roles.items()]
        self._telemetry.log.event(
            "trust", versions=",".join(versions), releases=len(self.state.releases)
        )
        await self._say("")

    async def _say(self, why: str) -> None:
        if why == self._held:
            return
        self._held = why
        self._telemetry.log.event("held" if why else "going-on", why=why or "trust is in force")
        await self._hold(why)

    def _refused(self, error: ExecutorError) -> None:
        self._failures += 1
        facts = {"code": error.code, "reason": error.message}
        if error.message == self._said:
            return
        self._said = error.message
        if error.code.startswith("transport."):
            self._telemetry.log.event("trust-not-refreshed", **facts)
        else:
            self._telemetry.security_event("trust-refused", **facts)

    def _warn(self) -> None:
        """Say once of each version that a third of its life is left."""
        now = _now_ms()
        for role, at in self.state.warn_at.items():
            if at <= now and not self._was_said(role):
                state = self.state.roles[role]
                self._warned.add((role, state.version))
                self._telemetry.log.event(
                    "trust-ends-soon", role=role, left_s=(state.expires_ms - now) // 1000,
                    hint="executor trust renew",
                )  # fmt: skip
