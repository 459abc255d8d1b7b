"""What a simulated executor has in place of sandboxes, registry and Ed25519.

The pool ends attempts at times and in ways that the history's dice choose. The key is a keyed hash
behind the interface of the real one: envelope, leaf, tree and every rule of opening are the real
ones, a signature costs 1 µs instead of 150.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, cast

from executor.core import policy as policies
from executor.core.access import Access, of_roles
from executor.core.manifest import Manifest
from executor.core.seal import ExecutorKey, Opener
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import Authority, Digest, Failure, Finished, Limits, Receipt, Release, Result
from executor.supervisor.job import Admitted, Artifact, Job
from executor.supervisor.pool import PoolOwner
from tests.sim.wire import TENANT

ENVIRONMENT: Final = "sim"
TASK: Final = "work"
REFUSED: Final = "refused"  # a task that policy refuses, for ever
LATENT: Final = "latent"  # one whose module is found at the second look
DIGEST: Final = Digest("sha256:" + "0" * 64)


class _Public(PublicKey):
    @property
    def key_id(self) -> bytes:
        return self.raw[:12]

    @property
    def is_weak(self) -> bool:
        return False

    def verify(self, signature: bytes, message: bytes) -> bool:
        return hmac.compare_digest(signature, _mac(self.raw, message))


def _mac(raw: bytes, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=raw, digest_size=64).digest()


class Key(SecretKey):
    """A stand-in for a pair of keys: whoever has either half can sign."""

    __slots__ = ()

    def __init__(self, seed: bytes) -> None:
        self.public = _Public(hashlib.blake2b(seed, digest_size=32).digest())

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return _mac(self.public.raw, message)


HOST: Final = Key(b"host")
STRANGER: Final = Key(b"stranger")  # whom nobody trusts
OPENER: Final = Opener(
    ENVIRONMENT, {HOST.public.key_id.hex(): ExecutorKey("host", HOST.public)}
)  # fmt: skip
_ADMITTED: Final = Admitted(
    Release(TENANT, TASK, DIGEST, "1.0.0"), cast("Manifest", None),
    Authority(limits=Limits()), cast("Artifact", None), (),
)  # fmt: skip


class Trust:
    """The port: one tenant, one trusted key."""

    _policy = policies.Policy(
        tenants=(policies.Tenant(TENANT),),
        access=Access(bindings=(*of_roles(TENANT, ["submitter"]),)),
    )

    def publishers(self, tenant: str, task: str) -> Sequence[policies.Publisher]:
        """Nobody signs: the stub registry looks at no signature."""
        del tenant, task
        return ()

    def policy(self) -> policies.Policy:
        """One tenant."""
        return self._policy

    def opener(self) -> Opener:
        """What checks the host's key."""
        return OPENER

    def is_revoked(self, *names: str) -> bool:
        """None is."""
        del names
        return False


class Board:
    """The port: breakers of others are not modelled, what is said here nobody hears."""

    async def get(self, key: str) -> None:
        """Nothing is said."""
        del key

    def put(self, key: str, value: bytes) -> None:
        """Say something."""

    def delete(self, key: str) -> None:
        """Take it back."""


@dataclass
class Registry:
    """In place of `supervisor.registry.Registry`, as far as the pipeline uses it."""

    rng: Random
    cold: float  # how often a decision is not known yet
    pause: Callable[[float], asyncio.Future[None]]

    def now(self, tenant: str, task: str) -> Admitted | ExecutorError | None:
        """The decision, or None: then `admit`."""
        del tenant
        if task == REFUSED:
            return ExecutorError("policy.capability-denied", "scripted")
        if self.rng.random() < self.cold or task == LATENT:
            return None
        return _ADMITTED

    async def admit(self, tenant: str, task: str) -> Admitted:
        """Takes a while, and may fail in a way that passes."""
        del tenant
        await self.pause(self.rng.random() * 2)
        if task == LATENT and self.rng.random() < 0.5:
            raise ExecutorError("module.not-found", "scripted")
        return _ADMITTED

    def revoked(self) -> set[Digest]:
        """None."""
        return set()

    def forget(self) -> None:
        """Nothing is known anyway."""


RESULT: Final = Result(b"done")
OUTCOMES: Final[dict[str, Result | Failure]] = {
    "result": RESULT,
    "permanent": Failure("guest.trap", "scripted"),
    "transient": Failure("guest.failed", "scripted", transient=True),
    "asked": Failure("guest.failed", "scripted", transient=True, retry_after_ms=2_500),
    "slow": Failure("limit.deadline-exceeded", "scripted"),
    "systemic": Failure("capability.unavailable", "scripted"),
    "crash": Failure("sandbox.crashed", "scripted"),
    "hang": Failure("limit.deadline-exceeded", "scripted"),
}
CANCELLED: Final = Failure("task.cancelled", "cancelled")


@dataclass
class Dice:
    """How attempts end: what, and after how long; `calm` leaves out what puts off for ever."""

    rng: Random
    weights: dict[str, float]
    run_s: float
    hang_s: float
    calm: bool = False

    def throw(self) -> tuple[str, float]:
        """The end of one attempt."""
        kinds = list(self.weights)
        kind = self.rng.choices(kinds, list(self.weights.values()))[0]
        if self.calm and kind in {"systemic", "hang"}:
            kind = "result"
        return kind, self.hang_s if kind == "hang" else self.rng.random() * self.run_s


@dataclass(slots=True)
class _Running:
    job: Job
    kind: str
    timer: asyncio.TimerHandle
    killed: bool = False


@dataclass
class Pool:
    """In place of `supervisor.pool.Pool`: so many attempts at a time, the rest in line."""

    owner: PoolOwner
    count: int
    dice: Dice
    on_start: Callable[[Job], None]
    on_end: Callable[[Job, str], None]
    forgets_to_drop: bool = False  # a planted bug
    _queue: deque[Job] = field(default_factory=deque)
    _running: list[_Running] = field(default_factory=list)
    _closing: bool = False

    def dispatch(self, job: Job) -> None:
        """Run it as soon as there is room."""
        self._queue.append(job)
        asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and len(self._running) < self.count and not self._closing:
            job = self._queue.popleft()
            kind, after = self.dice.throw()
            self.on_start(job)
            timer = loop.call_later(after, self._end, job)
            self._running.append(_Running(job, kind, timer))

    def _find(self, job: Job) -> _Running | None:
        return next((running for running in self._running if running.job is job), None)

    def _end(self, job: Job) -> None:
        running = self._find(job)
        if running is None:
            return
        self._running.remove(running)
        self._finish(job, running.kind, OUTCOMES[running.kind])
        if running.kind == "crash":
            # What lay behind it in the same sandbox never ran.
            behind = self.take_waiting() if self.dice.rng.random() < 0.5 else []
            for other in behind:
                self.owner.on_again(other)
        self._pump()

    def _finish(self, job: Job, kind: str, outcome: Result | Failure) -> None:
        self.on_end(job, kind)
        self.owner.on_finished(job, Finished(outcome, Receipt(digest=DIGEST)))

    def take_waiting(self) -> list[Job]:
        """Remove and return what was not started."""
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def take_unstarted(self) -> list[Job]:
        """The same: nothing lies in a sandbox here but what runs."""
        return self.take_waiting()

    def drop(self, job: Job) -> None:
        """Its lease was lost: unqueue or end it, without a word."""
        if self.forgets_to_drop:
            return
        self._unqueue(job)
        running = self._find(job)
        if running is not None:
            running.timer.cancel()
            self._running.remove(running)
            asyncio.get_running_loop().call_soon(self._pump)

    def _unqueue(self, job: Job) -> None:
        if job in self._queue:
            self._queue.remove(job)

    def cancel(self, job: Job) -> bool:
        """True when it runs: its sandbox dies a moment later, unless it ended by then."""
        self._unqueue(job)
        running = self._find(job)
        if running is None:
            return False
        if not running.killed:
            running.killed = True
            loop = asyncio.get_running_loop()
            loop.call_later(self.dice.rng.random() * 0.05, self._cancelled, running)
        return True

    def _cancelled(self, running: _Running) -> None:
        if any(running is other for other in self._running):
            running.timer.cancel()
            self._running.remove(running)
            self._finish(running.job, "cancelled", CANCELLED)
            self._pump()

    def warm(self, tenant: str) -> None:
        """Nothing is started ahead."""

    def retire_all(self) -> None:
        """What runs may end."""

    def retire_module(self, digest: str) -> None:
        """None is held."""

    def statistics(self) -> dict[str, int]:
        """Levels."""
        return {"running": len(self._running), "waiting": len(self._queue)}

    async def close(self) -> None:
        """End all at once."""
        self._closing = True
        for running in self._running:
            running.timer.cancel()
        self._running.clear()
