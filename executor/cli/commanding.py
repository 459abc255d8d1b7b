"""Telling executors what to do on `control.…`, and their answers."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from executor.cli import output
from executor.core import control, seal, subjects
from executor.core.seal import COMMAND_MS, NotAuthenticError, Opener, Signer
from executor.errors import ExecutorError
from executor.transport.connection import Connection, Message, Subscription

_ANSWER_S: Final = 5.0
# An executor may end between hearing and answering: the same is asked of another one.
_TRIES: Final = 3

_Fields = dict[str, control.Value]


@dataclass
class Commander:
    """`async with Commander(connection, opener, key) as commander: await commander.ask(…)`."""

    connection: Connection
    opener: Opener
    key: Signer
    _waiting: dict[str, tuple[str, asyncio.Future[_Fields]]] = field(default_factory=dict)
    _subscription: Subscription | None = None

    async def __aenter__(self) -> Self:
        """Listen for answers."""
        self._subscription = await self.connection.subscribe("control.status.*", self._heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Listen no more."""
        if self._subscription is not None:
            await self.connection.unsubscribe(self._subscription)

    def _heard(self, message: Message) -> None:
        for nonce, (tenant, future) in list(self._waiting.items()):
            try:
                fields = self.opener.answer(
                    message.subject, message.data, nonce=nonce, tenant=tenant, now=output.now_ms()
                )
            except NotAuthenticError:
                continue  # whoever it is from, it is no answer
            if fields is not None and not future.done():
                future.set_result(fields)

    async def ask(
        self, verb: str, tenant: str, task_id: str, *, task: str = subjects.ANY_TASK,
        sequence: int = 0, executor: str = "",
    ) -> _Fields:  # fmt: skip
        """Have one of the tenant's executors do it, or the one of that name; its answer.

        Errors  `transport.unanswered`, `policy.action-denied`, and what the executor answers.
        """
        subject = subjects.commands(executor) if executor else subjects.commands_of(tenant)
        fields: _Fields = {
            "verb": verb, "tenant": tenant, "task": task, "id": task_id, "sequence": sequence,
        }  # fmt: skip
        for _ in range(_TRIES):
            answer = await self._once(subject, fields)
            if answer is None:
                continue
            if answer["code"]:
                raise ExecutorError(str(answer["code"]), str(answer["detail"]))
            return answer
        raise ExecutorError("transport.unanswered", waited_ms=int(_TRIES * _ANSWER_S * 1000))

    async def _once(self, subject: str, fields: _Fields) -> _Fields | None:
        nonce, now, environment = secrets.token_hex(16), output.now_ms(), self.opener.environment
        payload = control.encode("command", subject, environment, **fields, exp=now + COMMAND_MS)
        body = seal.tell(self.key, environment, subject, payload, nonce=nonce, at=now)
        future: asyncio.Future[_Fields] = asyncio.get_running_loop().create_future()

        def nobody(_message: object) -> None:
            if not future.done():
                future.set_exception(ExecutorError("transport.unanswered", "none listens"))

        def refused(error: ExecutorError) -> None:
            if not future.done():
                future.set_exception(error)

        self._waiting[nonce] = (str(fields["tenant"]), future)
        # Nobody answers there but the server, when nobody listens.
        reply = self.connection.expect(subject, nobody, refused)
        try:
            self.connection.send(subject, body, reply)
            async with asyncio.timeout(_ANSWER_S):
                return await future
        except TimeoutError:
            return None
        finally:
            self.connection.forget(reply)
            del self._waiting[nonce]
