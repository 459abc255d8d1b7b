"""Bugs to plant into the product, each of which the simulation must find.

Names are patched wherever the supervisor has imported them, so that a plant survives a move of the
code; one that finds nowhere to be planted is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

from executor.core import settlement as rules
from executor.core.settlement import Action, Settlement
from executor.model import Finished, Outgoing, Result, StoredMessage
from executor.supervisor.cancels import Cancels
from executor.supervisor.job import Job
from executor.supervisor.pipeline import Pipeline
from executor.supervisor.settling import Settler
from executor.transport import records
from executor.transport.connection import Connection
from tests.sim import history
from tests.sim.history import Planted, Report


@contextmanager
def _everywhere(name: str, value: object) -> Iterator[None]:
    with ExitStack() as stack:
        modules = [
            module for place, module in sorted(sys.modules.items())
            if place.startswith("executor.supervisor.") and hasattr(module, name)
        ]  # fmt: skip
        assert modules, f"nobody uses `{name}` any more: plant this bug elsewhere"
        for module in modules:
            stack.enter_context(patch.object(module, name, value))
        yield


def _ack_before_publish() -> AbstractContextManager[Any]:
    original = Settler.settle

    def settle(self: Settler, job: Job, decided: Settlement, finished: Finished) -> None:
        if job.delivery.lease:
            self.outbox.ack(job.delivery.lease)
        original(self, job, decided, finished)

    return patch.object(Settler, "settle", settle)


def _no_look_up() -> AbstractContextManager[Any]:
    return _everywhere("must_look_up", lambda _request, *, delivered: delivered < 0)


def _once_off() -> AbstractContextManager[Any]:
    def outgoing(subject: str, body: bytes, **fields: Any) -> Outgoing:
        return Outgoing(subject, body, **{**fields, "once": ""})

    return _everywhere("Outgoing", outgoing)


def _retry_uncounted() -> AbstractContextManager[Any]:
    def settle(*args: Any, **named: Any) -> Settlement:
        decided = rules.settle(*args, **named)
        if decided.action is Action.RETRY:
            again = replace(decided.request, attempt=args[1].attempt)
            return replace(decided, request=again)
        return decided

    return _everywhere("settle", settle)


def _lost_lease_publishes() -> AbstractContextManager[Any]:
    original = Pipeline.on_finished

    def on_finished(self: Pipeline, job: Job, finished: Finished) -> None:
        if job.settled and isinstance(finished.outcome, Result):
            # No lease, so nothing is acked: the record alone must give it away.
            late = replace(job.delivery, sequence=0, lease="")
            job = replace(job, settled=False, ended=False, delivery=late)
        original(self, job, finished)

    return patch.object(Pipeline, "on_finished", on_finished)


def _last_records_only() -> AbstractContextManager[Any]:
    original = records.read_outcome

    async def read(
        connection: Connection, tenant: str, task: str, task_id: str, _: object = None
    ) -> list[StoredMessage]:
        return await original(connection, tenant, task, task_id)

    return patch.object(records, "read_outcome", read)


def _forged_believed() -> AbstractContextManager[Any]:
    return patch.object(Settler, "authentic", lambda _self, stored: bool(stored))


def _cancel_unheard() -> AbstractContextManager[Any]:
    return patch.object(Cancels, "has", lambda _self, _request, _now: False)


def _credit_twice() -> AbstractContextManager[Any]:
    original = Pipeline.receive

    def receive(self: Pipeline, delivery: Any) -> None:
        held = self.held
        original(self, delivery)
        if self.held == held:  # it came back under a new lease: say that it is done twice
            self.intake.completed(delivery.tenant)

    return patch.object(Pipeline, "receive", receive)


PLANTS: Final[dict[str, tuple[Callable[[], AbstractContextManager[Any]], Planted]]] = {
    "ack before publish": (_ack_before_publish, Planted()),
    "no look-up before a redelivery": (_no_look_up, Planted()),
    "once rule off": (_once_off, Planted()),
    "a retry that does not count": (_retry_uncounted, Planted()),
    "a lost lease still publishes": (_lost_lease_publishes, Planted(forgets_to_drop=True)),
    "only the last records are read": (_last_records_only, Planted()),
    "a forged record is believed": (_forged_believed, Planted()),
    "a cancellation is not heard": (_cancel_unheard, Planted()),
    "credit given back twice": (_credit_twice, Planted()),
}


def hunt(name: str, runs: int, seed: int = 0) -> tuple[int, Report | None]:
    """Live histories with a planted bug until one shows it: how many that took, and which."""
    plant, surroundings = PLANTS[name]
    with plant():
        for count in range(1, runs + 1):
            report = history.live(seed + count - 1, planted=surroundings)
            if report.violations:
                return count, report
    return runs, None
