"""A model of JetStream, as far as delivery rests on it: one tenant's TASKS and OUTCOMES, and LATER.

It speaks the wire: subjects, headers, `$JS.ACK` leases and JSON answers, so that the real outbox,
pull and records stand on it. What it promises, `test_sim_conformance.py` asks of the real server.

    TASKS     work queue; one durable consumer; leases of `ack_wait_s`; redelivery first
    LATER     schedules; the last write of a subject wins; what fires goes to TASKS as a new message
    OUTCOMES  once-only by expected sequence over a filter; direct reads of the last message
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from executor.model import StoredMessage
from executor.transport.streams import CONSUMER
from tests.sim.wire import LATER, MESSAGE_ID, OUTCOMES, START_MS, TASKS, TENANT, Headers, Peer, Spy

_DIRECT: Final = "$JS.API.DIRECT.GET."
_NEXT: Final = f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.{CONSUMER}"
_INFO: Final = f"$JS.API.STREAM.INFO.{TASKS}"
_NS: Final = 1_000_000_000
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


@dataclass(frozen=True, slots=True)
class ServerRules:
    """How the streams are configured, and what this server is like."""

    ack_wait_s: float = 30.0
    max_ack_pending: int = 1_000
    duplicate_window_s: float = 120.0
    source_s: float = 0.01  # from LATER to TASKS
    rest_s: float = 0.0  # after a restart sources rest for so long
    stale_s: float = 0.0  # direct reads may be as old as this: a replica answers


@dataclass(slots=True)
class _Pending:
    deadline: float
    dseq: int


@dataclass(slots=True)
class _Ask:
    peer: Peer
    inbox: str
    left: int
    heartbeat_s: float


@dataclass(slots=True)
class _Schedule:
    message: StoredMessage
    at: float
    target: str


@dataclass
class Server:
    """See the module."""

    rules: ServerRules = field(default_factory=ServerRules)
    spy: Spy = field(default_factory=Spy)
    up: bool = True
    refuses: bool = False  # no room: every publish of an executor gets 503
    tasks: dict[int, StoredMessage] = field(default_factory=dict)
    schedules: dict[str, _Schedule] = field(default_factory=dict)
    outcomes: list[StoredMessage] = field(default_factory=list)
    delivered: dict[int, int] = field(default_factory=dict)
    _of_id: dict[str, list[tuple[float, StoredMessage]]] = field(default_factory=dict)
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _new: deque[int] = field(default_factory=deque)
    _again: list[int] = field(default_factory=list)
    _asks: deque[_Ask] = field(default_factory=deque)
    _seen: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    _sequence: dict[str, int] = field(default_factory=dict)
    _dseq: int = 0
    _fired: list[tuple[float, str, _Schedule]] = field(default_factory=list)
    _underway: int = 0
    _sources_from: float = 0.0

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def now_ms(self) -> int:
        """The server's wall clock."""
        return START_MS + int(self.loop.time() * 1000)

    def idle(self) -> bool:
        """Whether no task is queued, waiting or on its way."""
        return not self.tasks and not self.schedules and not self._underway

    # The wire.

    def handle(self, peer: Peer, subject: str, body: bytes, headers: Headers, reply: str) -> None:
        """One message of a client."""
        if not self.up:
            return
        if subject.startswith("$JS.ACK."):
            self._on_ack(int(subject.split(".")[5]), body)
        elif subject == _NEXT:
            self._on_next(peer, json.loads(body), reply)
        elif subject.startswith(_DIRECT):
            self._on_direct(peer, subject.removeprefix(_DIRECT), body, reply)
        elif subject == _INFO:
            answer = json.dumps({"state": {"messages": len(self.tasks)}})
            peer.receive(reply, answer.encode(), {}, "")
        else:
            self._answer(peer, self.publish(subject, body, headers, by=peer.name), reply)

    def _answer(self, peer: Peer, answer: dict[str, Any] | None, reply: str) -> None:
        if reply and answer is None:
            peer.receive(reply, b"", {"Status": "503"}, "")
        elif reply:
            peer.receive(reply, json.dumps(answer).encode(), {}, "")

    def publish(
        self, subject: str, body: bytes, headers: Headers, *, by: str
    ) -> dict[str, Any] | None:
        """Store a message; the PubAck, or None if no stream takes its subject."""
        kind = subject.partition(".")[0]
        stream = {"task": TASKS, "later": LATER, "result": OUTCOMES, "dead": OUTCOMES}
        name = stream.get(kind)
        if name is None or subject.split(".")[1] != TENANT:
            return None
        if self.refuses and kind != "task":
            return _error(503, 10077, "maximum messages exceeded")
        message_id = headers.get(MESSAGE_ID)
        if message_id is not None:
            seen = self._seen.get((name, message_id))
            if seen is not None and self.loop.time() - seen[0] < self.rules.duplicate_window_s:
                self.spy.repeated(name, subject, by)
                return {"stream": name, "seq": seen[1], "duplicate": True}
        expected = headers.get(_EXPECTED)
        if expected is not None:
            suffix = headers[f"{_EXPECTED}-Subject"].removeprefix("*.")
            held = self._of_id.get(suffix)
            if int(expected) != (held[-1][1].sequence if held else 0):
                self.spy.say("conflict", subject, "by", by)
                return _error(400, 10071, "wrong last sequence")
        message = self._store(name, subject, body, headers, by)
        if message_id is not None:
            self._seen[name, message_id] = (self.loop.time(), message.sequence)
        return {"stream": name, "seq": message.sequence}

    def _store(
        self, stream: str, subject: str, body: bytes, headers: Headers, by: str
    ) -> StoredMessage:
        sequence = self._sequence.get(stream, 0) + 1
        self._sequence[stream] = sequence
        message = StoredMessage(subject, sequence, body, headers, self.now_ms())
        if stream == OUTCOMES:
            self.outcomes.append(message)
            suffix = subject.partition(".")[2]
            self._of_id.setdefault(suffix, []).append((self.loop.time(), message))
        self.spy.stored(stream, message, by)
        if stream == TASKS:
            self.tasks[sequence] = message
            self._new.append(sequence)
            self.loop.call_soon(self._pump)
        elif stream == LATER:
            self._schedule(message)
        return message

    # LATER.

    def _schedule(self, message: StoredMessage) -> None:
        text = message.headers["Nats-Schedule"].removeprefix("@at ")
        at = datetime.fromisoformat(text).timestamp() - START_MS / 1000
        schedule = _Schedule(message, at, message.headers["Nats-Schedule-Target"])
        self.schedules[message.subject] = schedule
        self.loop.call_at(max(at, self.loop.time()), self._due, schedule)

    def _due(self, schedule: _Schedule) -> None:
        subject = schedule.message.subject
        if not self.up or self.schedules.get(subject) is not schedule:
            return  # written over, or fired by `start` when the server is back
        del self.schedules[subject]
        self._fired.append((self.loop.time(), subject, schedule))
        self._fire(schedule)

    def _fire(self, schedule: _Schedule) -> None:
        self._underway += 1
        rest_s = max(0.0, self._sources_from - self.loop.time())
        # What is due is a message of LATER itself until it is sourced.
        self._sequence[LATER] = self._sequence.get(LATER, 0) + 1
        self.loop.call_later(rest_s + self.rules.source_s, self._source, schedule)

    def _source(self, schedule: _Schedule) -> None:
        self._underway -= 1
        target = "task." + schedule.target.removeprefix("due.")
        # What the source is to store has its sequence before the spy hears of the message.
        self.spy.fired(schedule.message, self._sequence.get(TASKS, 0) + 1)
        self._store(TASKS, target, schedule.message.body, {}, LATER)

    # The consumer.

    def _on_next(self, peer: Peer, asked: dict[str, int], inbox: str) -> None:
        ask = _Ask(peer, inbox, asked["batch"], asked["idle_heartbeat"] / _NS)
        self._asks.append(ask)
        self.loop.call_later(asked["expires"] / _NS, self._expire, ask)
        self.loop.call_later(ask.heartbeat_s, self._heartbeat, ask)
        self._pump()

    def _waits(self, ask: _Ask) -> bool:
        return any(ask is other for other in self._asks)

    def _expire(self, ask: _Ask) -> None:
        if self.up and self._waits(ask):
            self._asks.remove(ask)
            status = {"Status": "408", "Nats-Pending-Messages": str(ask.left)}
            ask.peer.receive(ask.inbox, b"", status, "")

    def _heartbeat(self, ask: _Ask) -> None:
        if self.up and self._waits(ask):
            ask.peer.receive(ask.inbox, b"", {"Status": "100"}, "")
            self.loop.call_later(ask.heartbeat_s, self._heartbeat, ask)

    def _pump(self) -> None:
        while self.up and self._asks:
            ask = self._asks[0]
            if not ask.peer.listens(ask.inbox):
                self._asks.popleft()
                continue
            sequence = self._take()
            if sequence is None:
                return
            self._asks.popleft()
            ask.left -= 1
            if ask.left:
                self._asks.append(ask)
            self._deliver(ask, sequence)

    def _take(self) -> int | None:
        if self._again:
            return self._again.pop(0)
        if self._new and len(self._pending) < self.rules.max_ack_pending:
            return self._new.popleft()
        return None

    def _deliver(self, ask: _Ask, sequence: int) -> None:
        message = self.tasks[sequence]
        count = self.delivered[sequence] = self.delivered.get(sequence, 0) + 1
        self._dseq += 1
        deadline = self.loop.time() + self.rules.ack_wait_s
        pending = self._pending.get(sequence)
        if pending is None:
            self._pending[sequence] = _Pending(deadline, self._dseq)
            self.loop.call_at(deadline, self._lapse, sequence)
        else:
            pending.deadline = deadline
        lease = (
            f"$JS.ACK.{TASKS}.{CONSUMER}.{count}.{sequence}.{self._dseq}"
            f".{message.stored_at_ms * 1_000_000}.{len(self._new)}"
        )
        self.spy.say("deliver" if count == 1 else "redeliver", ask.peer.name, sequence, count)
        ask.peer.receive(message.subject, message.body, message.headers, f"{lease} {ask.inbox}")

    def _lapse(self, sequence: int) -> None:
        pending = self._pending.get(sequence)
        if pending is None:
            return
        now = self.loop.time()
        if pending.deadline > now:
            self.loop.call_at(pending.deadline, self._lapse, sequence)
            return
        self._redeliver(sequence)
        self.loop.call_at(now + self.rules.ack_wait_s, self._lapse, sequence)

    def _redeliver(self, sequence: int) -> None:
        if sequence not in self._again:
            self._again.append(sequence)
            self._pump()

    def _on_ack(self, sequence: int, body: bytes) -> None:
        # As the server has it: what is said under an older lease counts for the pending delivery.
        pending = self._pending.get(sequence)
        if pending is None:
            return
        now = self.loop.time()
        if body.startswith(b"+WPI"):
            pending.deadline = now + self.rules.ack_wait_s
        elif body.startswith(b"-NAK "):
            pending.deadline = now + json.loads(body[5:])["delay"] / _NS
            self.loop.call_at(pending.deadline, self._lapse, sequence)
        elif body.startswith(b"-NAK"):
            self.spy.say("nak", sequence)
            self._redeliver(sequence)
        else:
            self.spy.say("acked", sequence)
            del self._pending[sequence], self.tasks[sequence]
            if sequence in self._again:
                self._again.remove(sequence)
            self._pump()

    # Reading.

    def _on_direct(self, peer: Peer, rest: str, body: bytes, reply: str) -> None:
        stream, _, subject = rest.partition(".")
        snapshot = self.loop.time() - self.rules.stale_s
        if not subject:
            asked = json.loads(body)
            self._scan(peer, self._stored(stream, asked["next_by_subj"], snapshot), asked, reply)
            return
        self.spy.read(subject, peer.name, snapshot)
        found = [m for m in self._stored(stream, subject, snapshot) if m.subject == subject]
        if found:
            peer.receive(reply, found[-1].body, _of(found[-1]), "")
        else:
            peer.receive(reply, b"", {"Status": "404"}, "")

    def _stored(self, stream: str, subject: str, snapshot: float) -> list[StoredMessage]:
        """What a filter matches: all of an id's schedules, or of its outcomes."""
        if stream == OUTCOMES:
            held = self._of_id.get(subject.partition(".")[2], [])
            return [message for at, message in held if at <= snapshot]
        wanted = subject.split(".")
        return sorted(
            (schedule.message for schedule in self.schedules.values()
             if all(w in {"*", t}
                    for w, t in zip(wanted, schedule.message.subject.split("."), strict=True))),
            key=lambda message: message.sequence,
        )  # fmt: skip

    @staticmethod
    def _scan(peer: Peer, found: list[StoredMessage], asked: dict[str, Any], reply: str) -> None:
        rest = [message for message in found if message.sequence >= asked["seq"]]
        for message in rest[: asked["batch"]]:
            # Within one answer nothing is lost before its end is.
            peer.receive(reply, message.body, _of(message), "", sure=True)
        peer.receive(reply, b"", {"Status": "204" if rest else "404"}, "")

    # Its life.

    def gone(self, peer: Peer) -> None:
        """A connection broke: what it asked for is forgotten."""
        self._asks = deque(ask for ask in self._asks if ask.peer is not peer)

    def stop(self) -> None:
        """Nobody is served; what is stored stays, what was asked for does not."""
        self.up = False
        self._asks.clear()

    def start(self, fires_twice: float = 0.0) -> None:
        """Serve again. After a crash what fired in the last `fires_twice` s fires once more."""
        self.up = True
        now = self.loop.time()
        self._sources_from = now + self.rules.rest_s
        for at, subject, schedule in self._fired:
            if now - at <= fires_twice and subject not in self.schedules:
                self.spy.say("fires twice", subject)
                self._fire(schedule)
        self._fired.clear()
        for schedule in list(self.schedules.values()):
            if schedule.at <= now:
                self._due(schedule)
        self._pump()


def _error(code: int, err_code: int, text: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": text}}


def _of(message: StoredMessage) -> Headers:
    stamp = datetime.fromtimestamp(message.stored_at_ms / 1000, UTC)
    return {
        **message.headers, "Nats-Subject": message.subject,
        "Nats-Sequence": str(message.sequence), "Nats-Time-Stamp": stamp.isoformat(),
    }  # fmt: skip
