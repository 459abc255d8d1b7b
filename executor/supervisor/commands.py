"""What operators tell executors to do on `control.…`: carried out once, answered under a seal.

A command is believed if an operator's key signed it for this subject within the last minutes; its
nonce is remembered until it has expired, so that a recording of it does nothing. What it may do is
asked when it is known to which task. Dead letters are asked for again and closed here, since the
record and the key are here: who commands need not see a payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import again, control, envelope, seal, subjects
from executor.core.access import ANY
from executor.core.envelope import Draft, Record
from executor.core.seal import Command, NotAuthenticError
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Answer, Outgoing, Refused, Stored, StoredMessage
from executor.supervisor.ports import Outbox, Trust
from executor.telemetry import Telemetry

# Of each key, 100 bytes each; beyond, nothing of it is believed until some have expired. Another
# operator's flood is not one's own. A batch of commands is some hundreds a second for a minute.
NONCES_MAX: Final = 50_000
# Carried out at once; an operator's batch has 16 under way.
_RUNNING_MAX: Final = 64
_PUBLISH_S: Final = 10.0
_FULL: Final = frozenset({10002, 10023, 10047, 10077, 10122})

_Fields = dict[str, control.Value]
# Tenant, task or `ANY_TASK`, id → its terminal records.
Find = Callable[[str, str, str], Awaitable[Sequence[StoredMessage]]]


@dataclass
class Commands:
    """See the module. `send` publishes an answer, `on_drain` ends this executor's work."""

    environment: str
    executor: str
    key: SecretKey
    trust: Trust
    outbox: Outbox
    find: Find
    telemetry: Telemetry
    now_ms: Callable[[], int]
    send: Callable[[str, bytes], None]
    on_drain: Callable[[], None] = lambda: None
    _nonces: dict[str, dict[str, int]] = field(default_factory=dict)  # key id → nonce → exp
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    def receive(self, subject: str, data: bytes) -> None:
        """Take what arrived on a subject where this executor listens."""
        now = self.now_ms()
        try:
            command = self.trust.opener().command(subject, data, now=now)
            self._remember(command, now)
        except NotAuthenticError as error:
            self.telemetry.security_event(
                "command-not-authentic", subject=subject, reason=error.reason
            )
            return
        if len(self._running) >= _RUNNING_MAX:
            self.telemetry.log.event("command-dropped", why="too many at once")
            return  # whoever asked asks again
        running = asyncio.get_running_loop().create_task(self._carry_out(command))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    def _remember(self, command: Command, now: int) -> None:
        """Errors  `NotAuthenticError` for a command that came before."""
        by, nonce = command.party.key.key_id.hex(), command.nonce
        known = self._nonces.setdefault(by, {})
        if len(known) >= NONCES_MAX:
            known = self._nonces[by] = {n: exp for n, exp in known.items() if exp >= now}
        if nonce in known:
            raise NotAuthenticError("a command that came before")
        if len(known) >= NONCES_MAX:
            raise NotAuthenticError("more commands than can be remembered")
        known[nonce] = int(command.fields["exp"])

    async def _carry_out(self, command: Command) -> None:
        said = command.fields
        verb, tenant = str(said["verb"]), str(said["tenant"])
        done: _Fields = {}
        verbs: dict[str, Callable[[Command], Awaitable[_Fields]]] = {
            "retry": self._retry, "discard": self._discard, "drain": self._drain,
        }  # fmt: skip
        code, detail = "message.malformed", f"there is no command `{verb[:16]}`"
        try:
            if verb in verbs:
                done = await verbs[verb](command)
                code = detail = ""
        except NotAuthenticError as error:
            code, detail = "policy.action-denied", error.reason
        except ExecutorError as error:
            code, detail = error.code, error.detail
        self.telemetry.log.event(
            "command", verb=verb, by=command.party.name, tenant=tenant, id=str(said["id"]),
            code=code or "ok",
        )  # fmt: skip
        fields: _Fields = {
            "tenant": tenant, "code": code, "detail": detail[:500], "task": str(said["task"]),
            "id": str(said["id"]), "sequence": 0, "duplicate": 0, **done,
        }  # fmt: skip
        subject = subjects.answers(self.executor)
        payload = control.encode("answer", subject, self.environment, **fields)
        self.send(subject, seal.tell(self.key, self.environment, subject, payload,
                                     nonce=command.nonce, at=self.now_ms()))  # fmt: skip

    def _check(self, command: Command, tenant: str, task: str) -> None:
        """Errors  `NotAuthenticError` unless policy lets it, or what is broken open."""
        verb, party = str(command.fields["verb"]), command.party
        opening = self.trust.opener().check(party, verb, tenant, task, at=self.now_ms())
        if opening:
            self.telemetry.security_event(
                "break-glass-used", id=opening, by=party.name, action=verb, task=f"{tenant}/{task}"
            )

    async def _letter(self, command: Command) -> tuple[int, Record]:
        """The dead letter that is meant, open and unchanged, and that it may be dealt with."""
        said = command.fields
        tenant, task, task_id = str(said["tenant"]), str(said["task"]), str(said["id"])
        tokens = all(map(subjects.is_token, (task, task_id)))
        if self.trust.policy().tenant(tenant) is None or not tokens:
            raise ExecutorError("policy.task-unknown", "no tenant, task or id of that name")
        opener, found = self.trust.opener(), list[tuple[int, Record]]()
        for message in await self.find(tenant, task, task_id):
            try:
                record = opener.record(
                    message.subject, message.body, stored_at=message.stored_at_ms
                )
            except NotAuthenticError:
                continue
            found.append((message.sequence, record))
        sequence, letter = max(found, key=lambda one: one[0], default=(0, None))
        self._check(command, tenant, letter.task if letter else ANY)
        wanted = int(said["sequence"])
        if letter is None:
            raise ExecutorError("transport.outcome-pending", f"`{task_id}`")
        if not letter.code:
            raise ExecutorError("message.malformed", f"`{task_id}` is no dead letter")
        if letter.discarded_at or (wanted and wanted != sequence):
            raise ExecutorError("transport.publish-unconfirmed", f"`{task_id}` changed meanwhile")
        return sequence, letter

    async def _retry(self, command: Command) -> _Fields:
        sequence, letter = await self._letter(command)
        tenant, task_id = str(command.fields["tenant"]), str(command.fields["id"])
        request = again.retry_of(letter, tenant, task_id, sequence, self.environment)
        party = self.trust.policy().tenant(tenant)
        scheduled = letter.origin is not None and _is_firing(letter.origin.data)
        if party is not None and party.signed_requests and not request.by and not scheduled:
            raise ExecutorError("policy.submitter-denied", "the request was not signed")
        assert letter.origin is not None
        aud = subjects.audience(self.environment, subjects.task(tenant, letter.task))
        draft = Draft("retry", aud, request.id, envelope.encode_retry(request, letter.origin),
                      envelope.retry_version(request))  # fmt: skip
        stored = await self._store(Outgoing(
            subjects.later(tenant, letter.task, request.id, sequence), self._sealed(draft),
            headers={"Nats-Msg-Id": f"{tenant}.{request.id}"},
            schedule_at_ms=self.now_ms(), schedule_target=subjects.due(tenant, letter.task),
        ))  # fmt: skip
        return {"task": letter.task, "id": request.id, "sequence": stored.sequence,
                "duplicate": int(stored.duplicate)}  # fmt: skip

    async def _discard(self, command: Command) -> _Fields:
        sequence, letter = await self._letter(command)
        tenant, task_id = str(command.fields["tenant"]), str(command.fields["id"])
        record = replace(letter, discarded_at=self.now_ms())
        subject = subjects.dead(tenant, letter.task, task_id)
        # A letter that was written in version 2 stays one: what could read it still can.
        version = envelope.record_version(record)
        draft = Draft("dead", subjects.audience(self.environment, subject), task_id,
                      envelope.encode_record(record, version), version)  # fmt: skip
        stored = await self._store(Outgoing(
            subject, self._sealed(draft), once=subjects.either(tenant, letter.task, task_id),
            expected_sequence=sequence,
        ))  # fmt: skip
        return {"task": letter.task, "sequence": stored.sequence}

    async def _drain(self, command: Command) -> _Fields:
        self._check(command, ANY, ANY)
        self.on_drain()
        return {}

    def _sealed(self, draft: Draft) -> bytes:
        (body,) = seal.seal(self.key, [draft], at=self.now_ms())
        return body

    async def _store(self, outgoing: Outgoing) -> Stored:
        """Errors  `transport.publish-unconfirmed`, `transport.stream-full`."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.outbox.publish(outgoing, answered.set_result, _PUBLISH_S)
        answer = await answered
        if isinstance(answer, Stored):
            return answer
        if isinstance(answer, Refused):
            full = answer.code in _FULL
            code = "transport.stream-full" if full else "transport.publish-unconfirmed"
            raise ExecutorError(code, answer.text)
        raise ExecutorError("transport.publish-unconfirmed", type(answer).__name__.lower())

    def stop(self) -> None:
        """Carry out nothing more."""
        for running in self._running:
            running.cancel()


def _is_firing(data: bytes) -> bool:
    try:
        return envelope.decode_sealed(data).typ == "schedule"
    except ExecutorError:
        return False
