"""What must hold, checked while a history happens and once more at its end.

A violation is remembered with its time; the history goes on, so that its trace shows what follows.

The look-up rule, precisely. An attempt may start although its id has an authentic record only if
the record was not in what the executor looked at: a direct get of the id that was served after the
message was handed over and whose snapshot is older than the record. For a fresh id's first
hand-over, which skips the read, the hand-over itself is the look.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from executor.core import envelope
from executor.core.envelope import Record
from executor.core.seal import NotAuthenticError
from executor.core.settlement import CRASHES_MAX, Rules, attempts_max, must_look_up
from executor.errors import ExecutorError
from executor.model import PAYLOAD_MAX, StoredMessage
from executor.supervisor.job import Job
from tests.sim import stubs
from tests.sim.wire import LATER, OUTCOMES, START_MS, TASKS, TENANT, Spy

_TRANSIENT = ("transient", "asked", "slow", "hang")
_GRACE_S = 0.2  # from a cancellation to the death of what ran


@dataclass(slots=True)
class Chain:
    """How a queued message came about: failures and crashes since its submission."""

    task_id: str
    failures: int = 0
    crashes: int = 0


@dataclass(slots=True)
class Held:
    """What one executor knows of one delivery."""

    sequence: int
    task_id: str
    until: float  # its own view of the lease


@dataclass
class Checks(Spy):
    """See the module."""

    rules: Rules
    ack_wait_s: float
    tracing: bool = False
    trace: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    authentic: dict[str, list[tuple[float, Record]]] = field(default_factory=dict)
    expected: dict[str, None] = field(default_factory=dict)  # every id that was accepted
    cancelled: dict[str, float] = field(default_factory=dict)
    told: dict[tuple[str, str], float] = field(default_factory=dict)  # executor, id
    skew_ms: dict[str, int] = field(default_factory=dict)  # by executor
    _accepting: str = ""
    _chains: dict[int, Chain] = field(default_factory=dict)
    _next: dict[int, Chain] = field(default_factory=dict)  # of a schedule, by its place
    _scheduled_from: dict[int, None] = field(default_factory=dict)  # queued messages with one
    _fired: dict[int, Chain] = field(default_factory=dict)
    _runs_of: dict[int, int] = field(default_factory=dict)
    _ended: dict[tuple[str, int], str] = field(default_factory=dict)
    _retries: dict[bytes, str] = field(default_factory=dict)  # what each came of
    _reads: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    _held: dict[str, dict[str, Held]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def say(self, what: str, *facts: object) -> None:
        """A line for the trace; how often what happened is counted in any case."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.tracing:
            told = " ".join(map(str, facts))
            self.trace.append(f"{self.loop.time():10.4f}  {what:<14} {told}")

    def violate(self, text: str) -> None:
        """A promise was broken."""
        self.violations.append(text)
        self.say("VIOLATION", text)

    # What the server stores.

    def accept(self, task_id: str) -> None:
        """The next message in TASKS is a submission under this id; "" for its own place."""
        self._accepting = task_id

    def stored(self, stream: str, message: StoredMessage, by: str) -> None:
        """A stream took a message."""
        self.say("stored", message.subject, f"#{message.sequence}", "by", by)
        if stream == TASKS:
            chain = self._fired.get(message.sequence)
            if chain is None:
                task_id = self._accepting or f"_{message.sequence}"
                chain = Chain(task_id)
                self.expected[task_id] = None
            self._chains[message.sequence] = chain
        elif stream == LATER:
            self._scheduled(message)
        elif stream == OUTCOMES:
            self._recorded(message, by)

    def repeated(self, stream: str, subject: str, by: str) -> None:
        """A duplicate: what is stored stands."""
        self.say("duplicate", stream, subject, "by", by)

    def _scheduled(self, message: StoredMessage) -> None:
        number = int(message.subject.rpartition(".")[2])
        chain = self._chains[number]
        kind = self._retries.get(message.body, "")
        if f".{stubs.LATENT}." in message.subject:
            # A module that is not there yet counts as the task's failure although nothing ran:
            # of that only the retry itself tells.
            kind = _told(message, chain.failures + chain.crashes)
        self._scheduled_from[number] = None
        self._next[message.sequence] = Chain(
            chain.task_id, chain.failures + (kind in _TRANSIENT), chain.crashes + (kind == "crash")
        )
        if kind == "permanent":
            self.violate(f"{chain.task_id}: a retry of a permanent failure")

    def fired(self, schedule: StoredMessage, sequence: int) -> None:
        """A schedule becomes a task's message."""
        self.say("fires", schedule.subject, "as", sequence)
        self._fired[sequence] = self._next[schedule.sequence]

    def _recorded(self, message: StoredMessage, by: str) -> None:
        record = _authentic(message)
        task_id = message.subject.rpartition(".")[2]
        if record is None:
            return
        records = self.authentic.setdefault(task_id, [])
        records.append((self.loop.time(), record))
        if len(records) > 1:
            self.violate(f"{task_id}: a second authentic record, by {by}")

    def read(self, subject: str, by: str, snapshot: float) -> None:
        """An executor looked."""
        task_id = subject.rpartition(".")[2]
        self._reads.setdefault((by, task_id), []).append((self.loop.time(), snapshot))

    # What executors do.

    def handed(self, by: str, sequence: int, lease: str) -> None:
        """An executor gets a delivery."""
        task_id = self._chains[sequence].task_id
        until = self.loop.time() + self.ack_wait_s
        self._held.setdefault(by, {})[lease] = Held(sequence, task_id, until)

    def sends(self, by: str, subject: str, body: bytes, *, connected: bool) -> None:
        """An executor sends something."""
        if subject.startswith("$JS.ACK."):
            held = self._held.get(by, {}).get(subject)
            if held is None:
                if not body.startswith(b"-NAK"):  # a pull that stops gives back what it never told
                    self.violate(f"{by} settles under a lease it never had")
            elif body == b"+WPI":
                if connected:
                    held.until = self.loop.time() + self.ack_wait_s
            elif not body:
                self._acks(by, held)
        elif subject.partition(".")[0] in {"result", "dead"}:
            self._records(by, subject, body)

    def _acks(self, by: str, held: Held) -> None:
        place = f"_{held.sequence}"
        done = held.task_id in self.authentic or place in self.authentic
        self.say("ack", by, held.sequence, held.task_id)
        if not done and held.sequence not in self._scheduled_from:
            self.violate(f"{by} acks {held.task_id} before its record or schedule is stored")

    def _records(self, by: str, subject: str, body: bytes) -> None:
        """An outcome leaves an executor, for the first time or again."""
        kind, _, _, task_id = subject.split(".")
        self.say("publish", by, subject)
        record = envelope.decode_record(kind, envelope.decode_sealed(body).payload)
        now = self.loop.time()
        finished = (record.finished_at - START_MS - self.skew_ms[by]) / 1000
        told = self.told.get((by, task_id))
        if told is not None:
            late = finished > told + _GRACE_S
            if late and record.code != "task.cancelled":
                self.violate(f"{by} ends {task_id} as {record.code or 'ok'} after its cancellation")
            return  # a schedule that waits is ended without a lease
        leases = [held.until for held in self._held.get(by, {}).values() if held.task_id == task_id]
        if task_id.startswith("_"):
            return
        # A lapsed lease is noticed at the next renewal; a supersession may follow a look.
        if not leases or finished > max(leases) + self.ack_wait_s / 3 + 0.01:
            self.violate(f"{by} publishes {task_id} at {now:.3f} without a lease")

    def starts(self, by: str, job: Job) -> None:
        """An attempt begins."""
        request, delivery = job.request, job.delivery
        task_id, chain = str(request.id), self._chains[delivery.sequence]
        self.runs[task_id] = self.runs.get(task_id, 0) + 1
        self.say("start", by, task_id, f"#{delivery.sequence}", f"attempt {request.attempt}")
        if (request.attempt, request.crashes) != (chain.failures + 1, chain.crashes):
            self.violate(
                f"{task_id}: attempt {request.attempt}, crashes {request.crashes} "
                f"after {chain.failures} failures and {chain.crashes} crashes"
            )
        if request.attempt > attempts_max(request, self.rules) or request.crashes >= CRASHES_MAX:
            self.violate(f"{task_id}: attempt {request.attempt}, crashes {request.crashes} run")
        runs = self._runs_of[delivery.sequence] = self._runs_of.get(delivery.sequence, 0) + 1
        if runs > self.rules.deliveries_max:
            self.violate(f"{task_id}: run {runs} times of {self.rules.deliveries_max} hand-overs")
        if (by, task_id) in self.told:
            self.violate(f"{by} starts {task_id} after its cancellation")
        handed = (job.received_at - START_MS - self.skew_ms[by]) / 1000
        for at, _ in self.authentic.get(task_id, [])[:1]:
            looks = [
                snapshot
                for served, snapshot in self._reads.get((by, task_id), [])
                if served >= handed - 0.001
            ]
            if not must_look_up(request, delivered=1):
                looks.append(handed)
            if not any(snapshot <= at for snapshot in looks):
                self.violate(f"{by} runs {task_id} although a look would have found its record")

    def asks_again(self, by: str, subject: str, body: bytes) -> None:
        """A retry is handed to the outbox, which may store it long after the next hand-over."""
        self._retries[body] = self._ended.get((by, int(subject.rpartition(".")[2])), "")

    def ends(self, by: str, job: Job, kind: str) -> None:
        """An attempt ended."""
        self.say("end", by, job.request.id, f"#{job.delivery.sequence}", kind)
        if not job.settled:
            self._ended[by, job.delivery.sequence] = kind

    # At the end.

    def at_rest(self) -> None:
        """Faults have ceased and time has run on: what every accepted id must have come to."""
        for task_id in self.expected:
            records = self.authentic.get(task_id, [])
            if len(records) != 1:
                self.violate(f"{task_id}: {len(records)} authentic records")


def _told(message: StoredMessage, before: int) -> str:
    """The kind of the failure that a retry adds to its history, if it adds one."""
    sealed = envelope.decode_sealed(message.body)
    request, _ = envelope.decode_retry(
        sealed, TENANT, stubs.LATENT, environment=stubs.ENVIRONMENT, input_max=PAYLOAD_MAX
    )
    if len(request.history) <= before:
        return ""
    return "crash" if request.history[-1].code == "sandbox.crashed" else "transient"


def _authentic(message: StoredMessage) -> Record | None:
    try:
        return stubs.OPENER.record(
            message.subject, message.body, stored_at=message.stored_at_ms
        )  # fmt: skip
    except (NotAuthenticError, ExecutorError):
        return None
