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
# Between two looks at the clock: a host that sleeps must not sleep through the end of trust.
_END_S: Final = 1.0
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
    refuse a state that does not know this host: then the executor holds as well. What could not be
    put in force is tried again with each look.
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
        self._tasks: list[asyncio.Task[None]] = []
        self._held = ""  # why
        self._refusal = ""  # why the newest state was not taken
        self._saying = asyncio.Lock()
        self._failures = 0
        self._said = ""  # the last refusal: the same again is no news
        self._warned: set[tuple[str, int]] = set()
        self.state: Verified  # the newest that was verified
        self._good: Verified  # what is in force

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
        self._good = self.state
        return self.state

    async def start(self) -> None:
        """Listen and look from now on."""
        self._end = await self._bucket.hints(self._hint.set)
        self._hint.set()  # for what was pushed since `first`
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep()), loop.create_task(self._watch_the_end())]

    async def stop(self) -> None:
        """End; idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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

    async def _watch_the_end(self) -> None:
        """Hold when what is in force is over, whatever becomes of the looks.

        A store decides how long a look takes, by answering late, and must not decide this.
        """
        while True:
            try:
                await self._say()
            except Exception as error:  # noqa: BLE001 - it is tried again
                self._telemetry.log.event("bug", what="trust", error=repr(error))
            left_s = (self._good.expires_ms - _now_ms()) / 1000
            await asyncio.sleep(min(max(left_s, _GAP_S), _END_S))

    def _wait_s(self) -> float:
        waits = [float(self._refresh_s)]
        if self._failures:
            waits.append(_AGAIN_S * 2 ** min(self._failures, 10))
        if not self._held:
            # When there is something to say of a role's end.
            due = [at for name, at in self.state.warn_at.items() if not self._was_said(name)]
            waits += [max((at - _now_ms()) / 1000, 0.0) for at in due]
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
            self.state = found
            if found != self._good:
                await self._take()
        await self._say()
        self._warn()

    async def _take(self) -> None:
        """Put the newest state in force; what runs under it goes on, or begins again."""
        try:
            await self._put(self.state)
        except ExecutorError as error:
            self._failures += 1
            passing = error.code.startswith("transport.")
            if error.message != self._refusal:
                self._telemetry.security_event(
                    "trust-not-taken", code=error.code, reason=error.message
                )
            self._refusal = "" if passing else error.message
            return
        self._good, self._refusal = self.state, ""
        versions = [f"{name}.{role.version}" for name, role in self.state.roles.items()]
        self._telemetry.log.event(
            "trust", versions=",".join(versions), releases=len(self.state.releases)
        )

    async def _say(self) -> None:
        """Hold or go on, as things stand."""
        async with self._saying:
            over = self._good.expires_ms <= _now_ms()
            why = "trust expired" if over else self._refusal
            if why == self._held:
                return
            self._telemetry.log.event("held" if why else "going-on", why=why or "trust is in force")
            await self._hold(why)
            self._held = why

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
