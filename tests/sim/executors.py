"""One simulated executor: the real pipeline, settler, outbox and pull on a modelled connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import cast

from executor.core import subjects
from executor.core.settlement import Rules
from executor.errors import ExecutorError
from executor.model import Answer, Delivery, Outgoing, StoredMessage
from executor.supervisor.breakers import Breakers, Budgets
from executor.supervisor.guards import Guards
from executor.supervisor.mediator import Mediator
from executor.supervisor.pipeline import Pipeline
from executor.supervisor.pool import Pool
from executor.supervisor.registry import Registry
from executor.supervisor.settling import Settler
from executor.telemetry import Log, Telemetry
from executor.transport import records
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from tests.sim import stubs
from tests.sim.checks import Checks
from tests.sim.jetstream import Server
from tests.sim.link import ModelConnection, Weather
from tests.sim.wire import START_MS, TENANT

# A bug of our own shows as an event or an exception, whatever it leads to.
_BUGS = frozenset({"bug"})


@dataclass(frozen=True, slots=True)
class Host:
    """What all executors of a history have in common."""

    rules: Rules
    ack_wait_ms: int
    window: int
    slots: int
    sweep_s: float
    publish_s: float
    cold: float  # how often a module is not known yet
    forgets_to_drop: bool = False  # a planted bug


class _Journal(Log):
    """The executor's log, as lines of the trace."""

    def __init__(self, name: str, checks: Checks) -> None:
        super().__init__(quiet=True)
        self._name = name
        self._checks = checks

    def event(self, name: str, **facts: str | int) -> None:
        """Keep it; a bug is a violation."""
        if name == "attempt":
            code = str(facts["code"])
            self._checks.counts[code] = self._checks.counts.get(code, 0) + 1
        told = [f"{k}={v}" for k, v in facts.items()] if self._checks.tracing else ()
        self._checks.say(str(facts.get("kind", name)), self._name, *told)
        if name in _BUGS:
            self._checks.violate(f"{self._name}: {facts}")


class _Outbox(Outbox):
    """The real one; the checks hear of a retry when it is decided, not when it leaves."""

    checks: Checks
    name: str

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        if outgoing.schedule_target:
            self.checks.asks_again(self.name, outgoing.subject, outgoing.body)
        super().publish(outgoing, on_answer, deadline_s)


@dataclass(frozen=True, slots=True)
class _Records:
    connection: ModelConnection

    async def read(self, tenant: str, task: str, task_id: str) -> list[StoredMessage]:
        believes = stubs.OPENER.believes
        return await records.read_outcome(self.connection, tenant, task, task_id, believes)

    async def waiting(self, tenant: str, task: str, task_id: str) -> list[StoredMessage]:
        return await records.read_waiting(self.connection, tenant, task, task_id)

    async def recurring(self, tenant: str, task: str, schedule_id: str) -> StoredMessage | None:
        return await records.read_recurring(self.connection, tenant, task, schedule_id)


@dataclass
class _Intake:
    pull: Pull | None = None

    def completed(self, tenant: str) -> None:
        assert tenant == TENANT
        if self.pull is not None:
            self.pull.completed()


def pause(seconds: float) -> asyncio.Future[None]:
    """A future that is done after so much virtual time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def over() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_later(seconds, over)
    return future


@dataclass
class Executor:
    """See the module."""

    name: str
    host: Host
    server: Server
    weather: Weather
    checks: Checks
    dice: stubs.Dice
    rng: Random
    skew_ms: int = 0
    alive: bool = True
    ended: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        checks, name = self.checks, self.name
        checks.skew_ms[name] = self.skew_ms
        loop = asyncio.get_running_loop()
        link = self.link = ModelConnection(self.server, name, self.weather, self.rng)
        link.on_send = lambda subject, body, _: checks.sends(
            name, subject, body, connected=link.connected
        )
        self.outbox = _Outbox(link, sweep_s=self.host.sweep_s)
        self.outbox.checks, self.outbox.name = checks, name
        self.intake = _Intake()
        telemetry = Telemetry(_Journal(name, checks))
        store, trust = _Records(link), stubs.Trust()
        settler = Settler(
            environment=stubs.ENVIRONMENT, key=stubs.HOST, rules=self.host.rules, trust=trust,
            outbox=self.outbox, records=store, telemetry=telemetry,
            now_ms=lambda: self.pipeline.now_ms(),  # noqa: PLW0108 - it is made after this
            publish_s=self.host.publish_s,
        )  # fmt: skip
        breakers = Breakers(
            stubs.Board(), stubs.ENVIRONMENT, name, now_ms=lambda: self.pipeline.now_ms(),  # noqa: PLW0108
            jitter=self.rng.random, on_event=telemetry.log.event,
        )  # fmt: skip
        budgets = Budgets(lambda: self.pipeline.now_ms())  # noqa: PLW0108
        self.pipeline = Pipeline(
            environment=stubs.ENVIRONMENT, rules=self.host.rules,
            ack_wait_ms=self.host.ack_wait_ms, trust=trust,
            registry=cast("Registry", stubs.Registry(self.rng, self.host.cold, pause)),
            mediator=cast("Mediator", None), settler=settler, outbox=self.outbox, records=store,
            intake=self.intake, telemetry=telemetry, guards=Guards(breakers, budgets),
            now_ms=lambda: START_MS + int(loop.time() * 1000) + self.skew_ms,
            jitter=self.rng.random,
        )  # fmt: skip
        self.pool = stubs.Pool(
            self.pipeline, self.host.slots, self.dice,
            on_start=lambda job: checks.starts(name, job),
            on_end=lambda job, kind: checks.ends(name, job, kind),
            forgets_to_drop=self.host.forgets_to_drop,
        )  # fmt: skip
        self.pipeline.pool = cast("Pool", self.pool)
        self.pull = Pull(
            link, TENANT, window=self.host.window, on_delivery=self._receive,
            on_event=lambda event, facts: checks.say(event, name, facts),
            expires_ms=20_000, heartbeat_ms=8_000,
        )  # fmt: skip
        self.pull._backoff._random = self.rng  # type: ignore[assignment]  # dice that repeat
        self.intake.pull = self.pull
        link.listen("disconnected", lambda: self._connected(now=False))
        link.listen("reconnected", lambda: self._connected(now=True))

    def _connected(self, *, now: bool) -> None:
        self.pipeline.leases.connected = now
        self.checks.say("connected" if now else "disconnected", self.name)

    def _receive(self, delivery: Delivery) -> None:
        self.checks.handed(self.name, delivery.sequence, delivery.lease)
        self.pipeline.receive(delivery)

    def spawn(self, steps: Callable[[], object]) -> None:
        """Run a coroutine of this executor; an exception of it is a violation."""

        async def guarded() -> None:
            try:
                await steps()  # type: ignore[misc]
            except ExecutorError as error:
                self.checks.say("error", self.name, error.code)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                self.checks.violate(f"{self.name}: {error!r}")

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start(self) -> None:
        """Begin to serve, as `serve` does: outbox, known cancellations, leases, pull."""
        self.checks.say("starts", self.name)
        self.spawn(self._start)

    async def _start(self) -> None:
        try:
            await self.outbox.start()
            for task_id in self.checks.cancelled:
                self.cancel(task_id)
            self.pipeline.start()
            await self.pull.start()
        except ExecutorError:
            self.kill()  # no server: its supervisor starts another
            raise

    def cancel(self, task_id: str) -> None:
        """The announcement in CONTROL arrives here."""
        if self.alive:
            self.checks.say("told", self.name, "cancel", task_id)
            self.checks.told.setdefault((self.name, task_id), asyncio.get_running_loop().time())
            self.pipeline.cancelling.cancel(TENANT, subjects.ANY_TASK, task_id)

    def kill(self) -> None:
        """Gone, with everything in memory; what had left its socket may still arrive."""
        if not self.alive:
            return
        self.checks.say("KILLED", self.name)
        self.alive = False
        self.link.kill()
        self.spawn(self._bury)

    async def _bury(self) -> None:
        # Nobody hears it any more; this only ends its timers.
        await self.pull.stop()
        await self.pipeline.stop()
        await self.outbox.stop()
        self.ended = True

    def drain(self, seconds: float) -> None:
        """Leave in good order, as `serve` does at SIGTERM."""
        if self.alive:
            self.checks.say("drains", self.name, f"{seconds:.1f} s")
            self.alive = False
            self.spawn(lambda: self._leave(seconds))

    async def _leave(self, seconds: float) -> None:
        await self.pull.stop()
        if seconds:
            await self.pipeline.drain(seconds)
        else:
            await self.pipeline.stop()
        try:
            await self.outbox.drain(2)
        finally:
            await self.outbox.stop()
            await self.link.close()
            self.ended = True
        if self.pipeline.held or self.pull.statistics()["held"]:
            self.checks.violate(f"{self.name} left with {self.pull.statistics()}")

    def at_rest(self) -> bool:
        """Whether it has nothing in hand and nothing to say."""
        return not self.pipeline.held and not self.outbox.pending
