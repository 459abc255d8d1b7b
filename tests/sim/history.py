"""One history: a seed becomes a site, its weather and its mishaps; then it calms down and must end.

Every number is drawn from one generator in the order of the events, so a seed is a history. Which
faults may happen at all is drawn first (a swarm): histories with few kinds of faults go deeper
than those with all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from executor.core import envelope, subjects
from executor.core.envelope import Draft
from executor.core.seal import seal
from executor.core.settlement import Rules
from executor.model import TaskId, TaskRequest
from tests.sim import loop as virtual
from tests.sim import stubs
from tests.sim.checks import Checks
from tests.sim.executors import Executor, Host
from tests.sim.jetstream import Server, ServerRules
from tests.sim.link import Weather
from tests.sim.wire import MESSAGE_ID, START_MS, TENANT

_REST_S: Final = 4_000.0  # all must have ended by then
_LEAVE_S: Final = 300.0  # all must have left by then
_POLL_S: Final = 1.0


@dataclass
class Report:
    """What became of a history."""

    seed: int
    violations: list[str]
    trace: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """Bugs that a test puts into the product's surroundings; see `planted.py` for the others."""

    forgets_to_drop: bool = False


class History:
    """See the module."""

    def __init__(self, seed: int, *, tracing: bool, planted: Planted) -> None:
        self.loop = asyncio.get_running_loop()
        rng = self.rng = Random(seed)
        self.done: asyncio.Future[None] = self.loop.create_future()
        ack_wait_s = rng.choice((2.0, 5.0, 30.0))
        rules = Rules(
            attempts_max=rng.choice((1, 2, 3, 3)), deliveries_max=rng.choice((3, 5, 10)),
            backoff_ms=rng.choice(((100,), (1_000, 5_000), (1_000, 5_000, 30_000))),
        )  # fmt: skip
        self.checks = Checks(rules, ack_wait_s, tracing)
        self.host = Host(
            rules=rules, ack_wait_ms=int(ack_wait_s * 1000), window=rng.choice((1, 2, 4, 16)),
            slots=rng.choice((1, 2, 4)), sweep_s=rng.choice((0.5, 5.0)),
            publish_s=rng.choice((4.0, 30.0)), cold=rng.choice((0.0, 0.0, 0.3)),
            forgets_to_drop=planted.forgets_to_drop,
        )  # fmt: skip
        self.server = Server(ServerRules(
            ack_wait_s=ack_wait_s, max_ack_pending=rng.choice((2, 1_000)),
            duplicate_window_s=rng.choice((5.0, 120.0)), source_s=rng.choice((0.001, 0.5)),
            rest_s=rng.choice((0.0, 10.0)), stale_s=rng.choice((0.0, 0.0, 0.0, 0.2)),
        ), self.checks)  # fmt: skip
        self.weather = Weather(
            delay_s=rng.choice((0.002, 0.05, 1.0)), loss=rng.choice((0.0, 0.0, 0.05, 0.3)),
            double=rng.choice((0.0, 0.0, 0.1)),
        )  # fmt: skip
        self.dice = stubs.Dice(
            rng, self._weights(), run_s=rng.choice((0.01, 1.0, ack_wait_s * 1.5)),
            hang_s=ack_wait_s * 3,
        )  # fmt: skip
        self.skew_ms = rng.choice((0, 0, 0, 500))
        self.executors: list[Executor] = []
        self.count = rng.choice((1, 2, 3))
        self.until = rng.choice((5.0, 20.0, 60.0)) + ack_wait_s
        self.calm = False
        self._born = 0
        self._sent: dict[str, float] = {}  # by message id, when first
        self.ids: list[str] = []

    def _weights(self) -> dict[str, float]:
        rng = self.rng
        weights = {"result": 3.0}
        for kind in stubs.OUTCOMES:
            if kind != "result" and rng.random() < 0.5:
                weights[kind] = rng.choice((0.2, 1.0))
        return weights

    # What happens, and when.

    def at(self, when: float, what: Callable[..., Any], *args: Any) -> None:
        """Plan a step, while the faults last."""
        self.loop.call_at(when, what, *args)

    def _some(self, most: int) -> list[float]:
        """Up to so many moments before the calm."""
        return [self.rng.random() * self.until for _ in range(self.rng.randint(0, most))]

    def plan(self) -> None:
        """Draw everything that does not depend on what happens."""
        rng = self.rng
        for _ in range(self.count):
            self._new_executor()
        for _ in range(rng.randint(1, 7)):
            # Many at once, early: mishaps need something to happen to.
            when = rng.random() * self.until * rng.choice((0.1, 0.9))
            self._plan_submission(when)
        mishaps: list[tuple[Callable[[], None], int]] = [
            (self._cut, 6), (self._kill, 3), (self._drain, 2), (self._restart_server, 2),
            (self._cancel, 2), (self._forge, 2), (self._reload, 1), (self._full, 1),
        ]  # fmt: skip
        for mishap, most in mishaps:
            if rng.random() < 0.4:
                for when in self._some(most):
                    self.at(when, mishap)
        self.at(self.until, self._calm_down)

    def _plan_submission(self, when: float) -> None:
        rng = self.rng
        task_id = f"t{len(self.ids)}"
        kind = rng.choices(
            ("fresh", "chosen", "raw", "twice", "garbage", "forged"), (4, 3, 1, 2, 0.5, 0.5)
        )[0]
        at_ms = START_MS + int(when * 1000)
        request = TaskRequest(
            TENANT, rng.choices((stubs.TASK, stubs.LATENT, stubs.REFUSED), (8, 1, 0.5))[0],
            TaskId(task_id), b"input", fresh=kind == "fresh",
            expires_at=at_ms + int(rng.random() * 20_000) if rng.random() < 0.15 else 0,
            not_before=at_ms + int(rng.random() * 10_000) if rng.random() < 0.15 else 0,
            attempts_max=rng.choice((0, 0, 0, 1, 2)),
        )  # fmt: skip
        headers: dict[str, str] = {MESSAGE_ID: f"m{len(self.ids)}"}
        body = envelope.encode_task(request, stubs.ENVIRONMENT)
        if kind == "raw":
            headers["Task-Id"] = task_id
            body = b"raw input"
        elif kind == "garbage":
            task_id, body = "", rng.choice((b"", b"\xc1", b"\x81\xa1v\x02", body[:-1]))
        elif kind == "forged":
            aud = subjects.audience(stubs.ENVIRONMENT, subjects.task(TENANT, request.task))
            task_id, body = "", seal(stubs.STRANGER, [Draft("retry", aud, "x", body)], at=at_ms)[0]
        self.ids.append(task_id)
        self.at(when, self._submit, task_id, request.task, body, headers)
        if rng.random() < 0.3:  # the client repeats what it thinks was lost
            self.at(when + rng.random() * 4, self._submit, task_id, request.task, body, headers)
        if kind == "twice":  # another message under the same id
            again = {**headers, MESSAGE_ID: f"again{len(self.ids)}"}
            late = when + rng.random() * self.until
            self.at(late, self._submit, task_id, request.task, body, again)

    def _submit(self, task_id: str, task: str, body: bytes, headers: dict[str, str]) -> None:
        if not self.server.up:
            self.at(self.loop.time() + 1, self._submit, task_id, task, body, headers)
            return
        now = self.loop.time()
        first = self._sent.setdefault(headers[MESSAGE_ID], now)
        if now - first > self.server.rules.duplicate_window_s * 0.9:
            return  # a client gives up before its repeat would be a new message
        self.checks.accept(task_id)
        self.server.publish(subjects.task(TENANT, task), body, headers, by="submitter")

    def _new_executor(self) -> None:
        if sum(executor.alive for executor in self.executors) >= self.count:
            return
        if not self.server.up:
            self.at(self.loop.time() + 0.5, self._new_executor)
            return
        self._born += 1
        skew = self.rng.randint(-self.skew_ms, self.skew_ms) if self.skew_ms else 0
        executor = Executor(
            f"e{self._born}", self.host, self.server, self.weather, self.checks, self.dice,
            self.rng, skew,
        )  # fmt: skip
        self.executors.append(executor)
        executor.start()

    def _one(self) -> Executor | None:
        alive = [executor for executor in self.executors if executor.alive]
        return self.rng.choice(alive) if alive else None

    # Mishaps.

    def _cut(self) -> None:
        busy = [e for e in self.executors if e.alive and e.pipeline.held]
        executor = self.rng.choice(busy) if busy else self._one()
        if executor is not None:
            executor.link.cut()
            # Long enough to lose every lease, every other time.
            longer = self.rng.random() < 0.5
            away = self.rng.random() + self.checks.ack_wait_s * 1.4 * longer
            self.at(self.loop.time() + away, executor.link.mend)

    def _kill(self) -> None:
        executor = self._one()
        if executor is not None:
            executor.kill()
            self.at(self.loop.time() + self.rng.random() * 5, self._new_executor)

    def _drain(self) -> None:
        executor = self._one()
        if executor is not None:
            executor.drain(self.rng.choice((0.0, 1.0, 20.0)))
            self.at(self.loop.time() + self.rng.random() * 5, self._new_executor)

    def _restart_server(self) -> None:
        if not self.server.up:
            return
        self.checks.say("SERVER DOWN")
        crashed = self.rng.random() < 0.5
        self.server.stop()
        for executor in self.executors:
            executor.link.cut()
        self.at(self.loop.time() + self.rng.random() * 5, self._server_back, crashed)

    def _server_back(self, crashed: bool) -> None:  # noqa: FBT001 - an argument of a timer
        self.checks.say("SERVER UP")
        self.server.start(fires_twice=5.0 if crashed else 0.0)
        for executor in self.executors:
            self.at(self.loop.time() + self.rng.random(), executor.link.mend)

    def _cancel(self) -> None:
        task_id = self.rng.choice(self.ids)
        if not task_id:
            return
        self.checks.say("cancel", task_id)
        self.checks.cancelled.setdefault(task_id, self.loop.time())
        for executor in self.executors:
            if executor.alive:
                self.at(self.loop.time() + self.rng.random() * 2, executor.cancel, task_id)

    def _forge(self) -> None:
        """Somebody puts bytes where an outcome is to be, or over one that is there."""
        task_id = self.rng.choice(self.ids)
        if not task_id or not self.server.up:
            return
        kind = self.rng.choice(("result", "dead"))
        subject = f"{kind}.{TENANT}.{stubs.TASK}.{task_id}"
        aud = subjects.audience(stubs.ENVIRONMENT, subject)
        forged = seal(stubs.STRANGER, [Draft(kind, aud, task_id, b"\x80")], at=self.server.now_ms())
        body = self.rng.choice((b"garbage", b"", forged[0]))
        self.server.publish(subject, body, {}, by="forger")

    def _reload(self) -> None:
        executor = self._one()
        if executor is not None:
            executor.pipeline.decide_again()

    def _full(self) -> None:
        self.server.refuses = True
        self.at(self.loop.time() + self.rng.random() * 10, self._room)

    def _room(self) -> None:
        self.server.refuses = False

    # The end.

    def _calm_down(self) -> None:
        self.checks.say("CALM")
        self.calm = self.dice.calm = True
        self.weather.loss = self.weather.double = 0.0
        self.weather.delay_s = min(self.weather.delay_s, 0.05)
        self._poll()

    def _poll(self) -> None:
        now = self.loop.time()
        if self.done.done():
            return
        alive = [executor for executor in self.executors if executor.alive]
        quiet = (
            alive and self.server.up and self.server.idle() and len(alive) == self.count
            and all(executor.at_rest() for executor in alive)
        )  # fmt: skip
        if quiet:
            self.done.set_result(None)
        elif now > self.until + _REST_S:
            self.checks.violate(
                f"no rest: {sorted(self.server.tasks)} queued, {list(self.server.schedules)} wait, "
                f"held {[e.pipeline.held for e in alive]}, alive {len(alive)}"
            )
            self.done.set_result(None)
        else:
            self.loop.call_later(_POLL_S, self._poll)


async def _live(seed: int, *, tracing: bool, planted: Planted) -> Report:
    history = History(seed, tracing=tracing, planted=planted)
    checks = history.checks
    history.loop.set_exception_handler(
        lambda _, context: checks.violate(f"{context['message']}: {context.get('exception')!r}")
    )
    history.plan()
    await history.done
    checks.at_rest()
    for executor in history.executors:
        executor.drain(1.0)
    finished: asyncio.Future[None] = history.loop.create_future()

    give_up = history.loop.time() + _LEAVE_S

    def left() -> None:
        late = [executor.name for executor in history.executors if not executor.ended]
        if not late:
            finished.set_result(None)
        elif history.loop.time() > give_up:
            checks.violate(f"{', '.join(late)} did not leave")
            finished.set_result(None)
        else:
            history.loop.call_later(_POLL_S, left)

    left()
    await finished
    facts = {
        **checks.counts, "tasks": len(checks.expected), "runs": sum(checks.runs.values()),
        "executors": len(history.executors), "seconds": int(history.loop.time()),
    }  # fmt: skip
    return Report(seed, checks.violations, checks.trace, facts)


def live(seed: int, *, tracing: bool = False, planted: Planted | None = None) -> Report:
    """Live through the history of a seed."""
    return virtual.run(_live(seed, tracing=tracing, planted=planted or Planted()))


def retold(seed: int, planted: Planted | None = None) -> Report:
    """The same history once more, with its trace."""
    return live(seed, tracing=True, planted=planted)
