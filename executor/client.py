"""What a Python program uses: submit tasks, wait for outcomes, read records; async and plain.

Every outcome is verified against the executors' public keys before it is shown; what proves
nothing is dropped, as if it were not there. A random id says `fresh`; an id or key of your own
makes asking twice harmless: the second time gives the first outcome.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from executor import config as configs
from executor.config import Config
from executor.core import content, envelope, seal, subjects
from executor.core.envelope import Record
from executor.core.seal import ExecutorKey, NotAuthenticError, Opener, Signer
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import PAYLOAD_MAX, Receipt, StoredMessage, TaskId, TaskRequest
from executor.telemetry import producer_span
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.records import Tap, find, get, iterate, read_outcome
from executor.transport.settings import Settings, from_config
from executor.transport.speaking import Speaker
from executor.transport.submit import Submission, Submitter
from executor.transport.submit import Submitted as StreamAck
from executor.trust import believed

T = TypeVar("T")

# The live tap can miss a record across a reconnect; a waiting caller looks for itself this often.
_LOOK_S: Final = 2.0
# A cancellation is remembered for as long as a task may reasonably stay queued: a week.
CANCEL_MS: Final = 7 * 24 * 3600 * 1000
_ID_BYTES: Final = 13
# Random ids made ahead: asking the kernel for each costs more than all else of a request.
_ids: Final[list[str]] = []
os.register_at_fork(after_in_child=_ids.clear)  # a child must not give out its parent's


@dataclass(frozen=True, slots=True)
class Submitted:
    """A task that the queue has taken."""

    id: str
    tenant: str
    task: str
    sequence: int
    duplicate: bool  # the queue already held this id


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """A task's one terminal record, verified."""

    id: str
    tenant: str
    task: str
    sequence: int
    stored_at: int  # ms
    record: Record

    @property
    def ok(self) -> bool:
        """Whether it is a result."""
        return not self.record.code

    @property
    def code(self) -> str:
        """Why it failed; "" for a result."""
        return self.record.code

    @property
    def output(self) -> bytes:
        """The guest's bytes. Raises `TaskError` for a dead letter."""
        if self.record.code:
            raise TaskError(self)
        return self.record.output

    @property
    def receipt(self) -> Receipt:
        """What the last attempt used."""
        return self.record.receipt

    def text(self) -> str:
        """The output as UTF-8."""
        return self.output.decode("utf-8")

    def value(self) -> Any:
        """The output as its content type says: JSON, msgpack, text or bytes."""
        kind = self.record.content_type.partition(";")[0].strip()
        if kind == content.JSON:
            return json.loads(self.output)
        if kind == content.MSGPACK:
            return content.from_msgpack(self.output)
        return self.text() if kind.startswith("text/") else self.output


class TaskError(Exception):
    """A task ended as a dead letter; `outcome` has the whole of it."""

    def __init__(self, outcome: TaskOutcome) -> None:
        self.outcome = outcome
        message = f": {outcome.record.message}" if outcome.record.message else ""
        super().__init__(f"{outcome.code}{message}")


def _random_id() -> str:
    while True:
        try:
            return _ids.pop()
        except IndexError:  # once in 64 times, or another thread has taken the last
            many = secrets.token_hex(64 * _ID_BYTES)
            _ids.extend(many[i : i + 2 * _ID_BYTES] for i in range(0, len(many), 2 * _ID_BYTES))


def derived_id(tenant: str, task: str, key: str) -> str:
    """The id of an idempotency key: the same key is the same task."""
    data = f"{tenant}\0{task}\0{key}".encode()
    return "k" + hashlib.sha256(data).hexdigest()[:40]


def encode_input(value: object, content_type: str) -> tuple[bytes, str]:
    """(bytes, content type): bytes as they are, text as UTF-8, anything else as JSON."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), content_type or content.RAW
    if isinstance(value, str):
        return value.encode(), content_type or content.TEXT
    if content_type == content.MSGPACK:
        return content.to_msgpack(value), content_type
    return json.dumps(value, ensure_ascii=False).encode(), content_type or content.JSON


def make_opener(environment: str, executors: Iterable[str | PublicKey]) -> Opener:
    """Checks outcomes against these executors' public keys."""
    keys = [k if isinstance(k, PublicKey) else PublicKey.parse(k) for k in executors]
    entries: Mapping[str, ExecutorKey] = {
        key.key_id.hex(): ExecutorKey(key.key_id.hex(), key) for key in keys
    }
    return Opener(environment, entries)


class Client:
    """Submits to one tenant and reads its outcomes.

    async with await Client.open(tenant="acme", executors=["ed25519:…"]) as client:
        outcome = await client.run("wordcount", "one two")
    """

    def __init__(
        self, connection: Connection, tenant: str, environment: str, opener: Opener,
        traced: Callable[[str, str, str], str] | None = None, signer: SecretKey | None = None,
        operator: Callable[[], Signer | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.tenant = tenant
        self.environment = environment
        self.connection = connection  # for those who need more than this class offers
        self._opener = opener
        self._signer = signer
        self._operator = operator
        self._traced = traced or producer_span
        self._submitter = Submitter(connection)
        self._tap: Tap | None = None
        self._waiting: dict[str, list[tuple[str | None, asyncio.Future[TaskOutcome]]]] = {}

    @classmethod
    async def open(
        cls, url: str = "nats://127.0.0.1:4222", *, tenant: str,
        executors: Iterable[str | PublicKey] = (), opener: Opener | None = None,
        environment: str = "dev", creds_file: str = "", settings: Settings | None = None,
        traced: Callable[[str, str, str], str] | None = None, signer: SecretKey | None = None,
        operator: Callable[[], Signer | None] = lambda: None,
    ) -> Self:  # fmt: skip
        """Connect. `executors` are the public keys whose outcomes are believed.

        `settings`  say more than `url` and `creds_file`: a key, certificates, a mint, an inbox.
        `signer`    signs every request, and cancellations.
        `operator`  gives the key that signs cancellations instead.

        Errors  `transport.disconnected`; `trust.missing` without any key.
        """
        opener = opener or make_opener(environment, executors)
        if not opener.executors:
            raise ExecutorError(
                "trust.missing", "no executor's key to verify outcomes with",
                hint="pass executors=[…]: the `key` of each [[executor]] in executor.toml",
            )  # fmt: skip
        settings = settings or Settings(url, creds_file=creds_file, name="executor-client")
        connection = await Connection.open(settings, lambda _name, _facts: None)
        self = cls(connection, tenant, environment, opener, traced, signer, operator)
        try:
            await self._submitter.start()
        except BaseException:
            await connection.close()
            raise
        return self

    @classmethod
    async def from_config(
        cls, config: Config | Path | str = configs.FILE, tenant: str | None = None,
        traced: Callable[[str, str, str], str] | None = None,
        operator: Callable[[], Signer | None] | None = None,
    ) -> Self:  # fmt: skip
        """Connect as `executor.toml` says; without `tenant`, to its first one.

        `operator` gives the key that signs cancellations, if not the file that is configured.

        Errors  `config.*`, `trust.*`, `transport.disconnected`.
        """
        if not isinstance(config, Config):
            config = configs.load(Path(config), required=True)
        config = believed(config)
        names = [party.name for party in config.policy.tenants]
        if tenant is None and not names:
            raise ExecutorError("config.missing", "no [[tenant]]")
        of = tenant or names[0]
        logins = [f"{role}_{of}" for role in ("client", "submitter", "reader")]
        return await cls.open(
            tenant=of, opener=config.opener(), environment=config.text("host.environment"),
            settings=from_config(config, "executor-client", logins), traced=traced,
            signer=config.secret("keys.submitter_file"),
            operator=operator or (lambda: config.secret("keys.operator_file")),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the connection; whoever waits is told."""
        for futures in self._waiting.values():
            for _, future in futures:
                if not future.done():
                    future.set_exception(ExecutorError(
                        "transport.disconnected", "the client was closed while it waited"
                    ))  # fmt: skip
        if self._tap is not None:
            await self._tap.stop()
        await self._submitter.stop()
        await self.connection.close()

    async def __aenter__(self) -> Self:
        """Nothing: `open` has connected."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close."""
        await self.close()

    def request(
        self, task: str, value: object = b"", *, id: str | None = None,
        key: str | None = None, content_type: str = "", expires_at: int = 0,
        not_before: int = 0, attempts_max: int = 0, deadline_ms: int = 0, fuel: int = 0,
        memory_bytes: int = 0,
    ) -> TaskRequest:  # fmt: skip
        """The request that `submit` sends. `id` or `key` make it repeatable; times in ms.

        Errors  `message.too-large`; `ValueError` for what can be no id.
        """
        if id is not None and key is not None:
            raise ValueError("an id or a key, not both")
        data, content_type = encode_input(value, content_type)
        if len(data) > PAYLOAD_MAX:
            raise ExecutorError("message.too-large", f"{len(data)} bytes of input")
        own = derived_id(self.tenant, task, key) if key is not None else id
        if own is not None and not subjects.is_id(own):
            raise ValueError("an id is of [A-Za-z0-9_-]{1,64} and does not begin with _")
        task_id = TaskId(own if own is not None else _random_id())
        asked = (("fuel", fuel), ("memory_bytes", memory_bytes), ("deadline_ms", deadline_ms))
        return TaskRequest(
            tenant=self.tenant, task=task, id=task_id, input=data, content_type=content_type,
            fresh=own is None, expires_at=expires_at, not_before=not_before,
            attempts_max=attempts_max, limits=tuple((n, v) for n, v in asked if v),
            trace=self._traced(self.tenant, task, task_id),
        )  # fmt: skip

    async def submit(self, task: str, value: object = b"", **options: Any) -> Submitted:
        """Ask for a task and return when the queue has it; options as `request`.

        Errors  `transport.*`, `message.too-large`.
        """
        request = self.request(task, value, **options)
        stored = await self._send(request)
        return Submitted(request.id, self.tenant, task, stored.sequence, stored.duplicate)

    async def _send(self, request: TaskRequest) -> StreamAck:
        submission = self._submission(request)
        return await self._submitter.submit(submission.subject, submission.body, submission.headers)

    async def submit_many(self, requests: Iterable[TaskRequest]) -> int:
        """Ask for many, a window at a time; returns how many the queue has taken.

        Errors  those of `submit`, for the first request that failed.
        """
        answers = await self._submitter.submit_many(map(self._submission, requests))
        for answer in answers:
            if isinstance(answer, ExecutorError):
                raise answer
        return len(answers)

    async def submit_bytes(
        self,
        task: str,
        body: bytes,
        *,
        id: str = "",
        content_type: str = "",
    ) -> Submitted:
        """Publish a body as any NATS client would: with an `id` it is the raw form of a task.

        Errors  as `submit`.
        """
        headers = {envelope.TASK_ID: id} if id else {}
        if content_type:
            headers[envelope.CONTENT_TYPE] = content_type
        subject = subjects.task(self.tenant, task)
        stored = await self._submitter.submit(subject, body, headers)
        return Submitted(id, self.tenant, task, stored.sequence, stored.duplicate)

    def _submission(self, request: TaskRequest) -> Submission:
        subject = subjects.task(request.tenant, request.task)
        if self._signer is None:
            body = envelope.encode_task(request, self.environment)
        else:
            draft = seal.signed_draft(request, self.environment)
            (body,) = seal.seal(self._signer, [draft], at=time.time_ns() // 1_000_000)
        # Within the duplicate window the queue drops the second of two equal ones. An id that is
        # not random another task may have, too, which must not be dropped: then of all of it.
        message_id: str = request.id
        if not request.fresh:
            message_id = hashlib.sha256(subject.encode() + b"\0" + body).hexdigest()[:32]
        return Submission(subject, body, {"Nats-Msg-Id": message_id})

    async def run(
        self, task: str, value: object = b"", *, timeout_s: float | None = None, **options: Any
    ) -> TaskOutcome:
        """Submit and wait. Errors  as `submit`; `transport.outcome-pending` after `timeout_s`."""
        request = self.request(task, value, **options)
        waiting = await self._await(request.id, task)
        try:
            await self._send(request)
            return await self._outcome(waiting, task, request.id, timeout_s, look=not request.fresh)
        finally:
            self._forget(request.id, waiting)

    async def wait(
        self, task_id: str, *, task: str | None = None, timeout_s: float | None = None
    ) -> TaskOutcome:
        """The outcome of a task, now or later; naming the `task` makes the look cheaper.

        Errors  `transport.outcome-pending` after `timeout_s` seconds.
        """
        waiting = await self._await(task_id, task)
        try:
            return await self._outcome(waiting, task, task_id, timeout_s, look=True)
        finally:
            self._forget(task_id, waiting)

    async def cancel(self, task_id: str, *, task: str | None = None) -> TaskOutcome | None:
        """Announce that a task must not run any more; its outcome, if it ended before.

        It ends as `task.cancelled`: running or waiting for a retry at once, queued when its turn
        comes. Nothing is undone that it did.

        Errors  `transport.*`, `policy.action-denied`, `config.missing` without a key; `ValueError`
                for what can be no id.
        """
        if not subjects.is_id(task_id):
            raise ValueError("an id is of [A-Za-z0-9_-]{1,64} and does not begin with _")
        ended = await self.outcome(task_id, task=task)
        if ended is not None:
            return ended
        signer = self._operator() or self._signer
        if signer is None:
            raise ExecutorError(
                "config.missing", "no key to sign the cancellation with",
                hint='set operator_file = "keys/operator.key" under [keys], or pass signer=…',
            )  # fmt: skip
        key = subjects.cancel_key(self.tenant, task or subjects.ANY_TASK, task_id)
        speaker = Speaker(Control(self.connection), self._opener, signer)
        until = time.time_ns() // 1_000_000 + CANCEL_MS
        await speaker.say("cancel", key, {"until": until}, ttl_s=CANCEL_MS // 1000)
        return None

    async def outcome(self, task_id: str, *, task: str | None = None) -> TaskOutcome | None:
        """The outcome of a task if there is one now."""
        if task is not None:
            stored = await read_outcome(
                self.connection, self.tenant, task, task_id, self._opener.believes
            )
        else:
            stored = await find(self.connection, self.tenant, task_id)
        outcomes = [found for message in stored if (found := self._verified(message))]
        return max(outcomes, key=lambda o: o.sequence, default=None)

    async def outcomes(
        self, task: str = "*", *, kind: str = "*", start_sequence: int = 1
    ) -> AsyncGenerator[TaskOutcome, None]:
        """All verified records that are stored now, oldest first; `kind` result, dead or "*".

        A discarded dead letter is there twice: as it was, and marked.
        """
        pattern = f"{kind}.{self.tenant}.{task}.*"
        async for message in iterate(
            self.connection, self.tenant, pattern, start_sequence=start_sequence
        ):
            outcome = self._verified(message)
            if outcome is not None:
                yield outcome

    async def dead_letters(self, task: str = "*") -> AsyncGenerator[TaskOutcome, None]:
        """The dead letters that nobody has discarded, oldest first.

        Reads twice: a discard is a later record beside the letter, and no letter is kept meanwhile.
        """
        closed = {
            (outcome.task, outcome.id)
            async for outcome in self.outcomes(task, kind="dead")
            if outcome.record.discarded_at
        }
        async for outcome in self.outcomes(task, kind="dead"):
            if (outcome.task, outcome.id) not in closed:
                yield outcome

    async def at(self, sequence: int) -> TaskOutcome | None:
        """The verified record with a sequence."""
        message = await get(self.connection, self.tenant, sequence)
        return self._verified(message) if message else None

    # Waiting.

    async def _await(self, task_id: str, task: str | None) -> asyncio.Future[TaskOutcome]:
        future: asyncio.Future[TaskOutcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(task_id, []).append((task, future))
        if self._tap is None:
            self._tap = Tap(self.connection, self._heard)
            await self._tap.start(self.tenant)
        return future

    def _forget(self, task_id: str, future: asyncio.Future[TaskOutcome]) -> None:
        left = [entry for entry in self._waiting.get(task_id, []) if entry[1] is not future]
        if left:
            self._waiting[task_id] = left
        else:
            self._waiting.pop(task_id, None)

    def _heard(self, message: StoredMessage) -> None:
        parsed = subjects.parse_terminal(message.subject)
        futures = self._waiting.get(parsed[3], []) if parsed else []
        if not futures:
            return
        outcome = self._verified(message)
        for task, future in futures:
            if outcome is not None and task in {None, outcome.task} and not future.done():
                future.set_result(outcome)

    async def _outcome(
        self, future: asyncio.Future[TaskOutcome], task: str | None, task_id: str,
        timeout_s: float | None, *, look: bool,
    ) -> TaskOutcome:  # fmt: skip
        end = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while True:
            if look and (found := await self.outcome(task_id, task=task)) is not None:
                return found
            left = min(_LOOK_S, end - time.monotonic())
            done, _ = await asyncio.wait([future], timeout=max(left, 0))
            if done:
                return future.result()
            if time.monotonic() >= end:
                raise ExecutorError(
                    "transport.outcome-pending", f"`{task_id}`",
                    hint=f"ask again later: executor result {task_id} --wait",
                )  # fmt: skip
            look = True

    def _verified(self, message: StoredMessage) -> TaskOutcome | None:
        parsed = subjects.parse_terminal(message.subject)
        if parsed is None:
            return None
        try:
            record = self._opener.record(
                message.subject, message.body, stored_at=message.stored_at_ms
            )
        except NotAuthenticError:
            return None
        _, tenant, task, task_id = parsed
        return TaskOutcome(task_id, tenant, task, message.sequence, message.stored_at_ms, record)


class SyncClient:
    """The same for plain code: each method waits. Use it as a context manager.

    with SyncClient.open(tenant="acme", executors=["ed25519:…"]) as client:
        print(client.run("wordcount", "one two").text())
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._client = self._call(make())
        except BaseException:
            self._end()
            raise

    @classmethod
    def open(cls, url: str = "nats://127.0.0.1:4222", **options: Any) -> Self:
        """As `Client.open`."""
        return cls(lambda: Client.open(url, **options))

    @classmethod
    def from_config(cls, config: Path | str = configs.FILE, tenant: str | None = None) -> Self:
        """As `Client.from_config`."""
        return cls(lambda: Client.from_config(config, tenant))

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close(self) -> None:
        """Close the connection and end the thread behind it."""
        if self._loop.is_closed():
            return
        try:
            self._call(self._client.close())
        finally:
            self._end()

    def __enter__(self) -> Self:
        """Nothing: `open` has connected."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Close."""
        self.close()

    def submit(self, task: str, value: object = b"", **options: Any) -> Submitted:
        """As `Client.submit`."""
        return self._call(self._client.submit(task, value, **options))

    def run(self, task: str, value: object = b"", **options: Any) -> TaskOutcome:
        """As `Client.run`."""
        return self._call(self._client.run(task, value, **options))

    def wait(self, task_id: str, **options: Any) -> TaskOutcome:
        """As `Client.wait`."""
        return self._call(self._client.wait(task_id, **options))

    def cancel(self, task_id: str, *, task: str | None = None) -> TaskOutcome | None:
        """As `Client.cancel`."""
        return self._call(self._client.cancel(task_id, task=task))

    def outcome(self, task_id: str, *, task: str | None = None) -> TaskOutcome | None:
        """As `Client.outcome`."""
        return self._call(self._client.outcome(task_id, task=task))

    def outcomes(self, task: str = "*", *, kind: str = "*") -> Iterator[TaskOutcome]:
        """As `Client.outcomes`."""
        return self._each(self._client.outcomes(task, kind=kind))

    def dead_letters(self, task: str = "*") -> Iterator[TaskOutcome]:
        """As `Client.dead_letters`."""
        return self._each(self._client.dead_letters(task))

    def _each(self, stream: AsyncGenerator[TaskOutcome, None]) -> Iterator[TaskOutcome]:
        async def step() -> TaskOutcome | None:
            return await anext(stream, None)

        try:
            while (outcome := self._call(step())) is not None:
                yield outcome
        finally:
            if not self._loop.is_closed():
                self._call(stream.aclose())
