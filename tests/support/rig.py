"""A whole supervisor with real sandboxes, between scripted ports: `async with Rig() as rig`.

At its end a rig checks what must hold after every test: no sandbox is left, every delivery gave
its credit back once, no message is still in hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from executor import config as configs
from executor.core import envelope, signature, subjects
from executor.core.envelope import Origin, Record
from executor.core.seal import seal
from executor.core.signature import SecretKey
from executor.model import Delivery, Outgoing, Receipt, Release, TaskId, TaskRequest
from executor.supervisor.clock import host_ms
from executor.supervisor.compiling import Product
from executor.supervisor.process import SandboxProcess
from executor.supervisor.service import Ports, assemble, new_zygote
from executor.supervisor.zygote import Zygote
from executor.telemetry import Telemetry
from executor.trust.file import FileTrust
from tests.support import guests, speech
from tests.support.ports import Buckets, Changes, Journal, Notices, Shelf, Wire

TENANT = "acme"
OTHER = "zebra"

_CONFIG = """
[host]
environment = "test"
[delivery]
backoff_ms = [1000]
ack_wait_ms = 60_000
[limits]
deadline_ms = 60_000
host_max_ms = 60_000
fuel = 1_000_000_000_000
[sandbox]
count = 1
[trust]
revoked = []
[[publisher]]
name = "author"
key = "{author}"
tasks = ["*/*"]
[[executor]]
name = "test"
key = "{host}"
"""
_TENANT = """
[[tenant]]
name = "{name}"
ceiling = {{ capabilities = ["log", "clock", "random", "kv"] }}
[[grant]]
tenant = "{name}"
task = "*"
why = "for tests"
log = true
clock = true
random = true
kv = {{ prefix = "own/", mode = "write" }}
"""

# A module is compiled once for all tests; what is compiled is the same each time.
_products: dict[str, Product] = {}
# One fork server a kind for all tests: each start would cost a tenth of a second.
_zygotes: dict[tuple[bool, bool, str], Zygote] = {}


def shared_zygote(config: configs.Config) -> Zygote:
    """The fork server for this configuration; whoever took it gives it back with `detach`."""
    made = new_zygote(config)
    return _zygotes.setdefault((made.pooled, made.best_effort, made.path), made)


def make_config(
    *, tenants: Iterable[str] = (TENANT, OTHER), replaced: Iterable[tuple[str, str]] = (),
    **values: Any,
) -> configs.Config:  # fmt: skip
    """The configuration of a rig; `replaced` edits its text, `values` are as `with_values`."""
    text = _CONFIG.format(author=guests.AUTHOR.public.text, host=guests.HOST.public.text)
    text += speech.TABLES
    text += "".join(_TENANT.format(name=name) for name in tenants)
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new)
    environ = {
        f"EXECUTOR_{name.replace('__', '_').upper()}": str(value) for name, value in values.items()
    }
    return configs.parse(text, folder=Path(), name="test.toml", environ=environ)


class Rig:
    """See the module."""

    def __init__(self, config: configs.Config | None = None, **values: Any) -> None:
        self.config = config or make_config(**values)
        self.changes = Changes()
        self.wire = Wire(self.changes)
        self.shelf = Shelf()
        self.board = Notices(self.changes)
        self.buckets = Buckets(self.changes)
        self.journal = Journal(self.changes)
        self.trust = FileTrust(self.config)
        self.now_ms = host_ms  # a test may set it
        self.delivered = 0
        self._sequence = 0
        ports = Ports(
            self.trust, self.shelf, self.buckets, self.wire, self.wire, self.wire, self.board
        )
        self.pipeline = assemble(
            self.config, ports, key=guests.HOST, telemetry=Telemetry(self.journal),
            zygote=shared_zygote(self.config), now_ms=lambda: self.now_ms(),  # noqa: PLW0108
        )  # fmt: skip
        self.pipeline.jitter = lambda: 0.5
        self.guards = self.pipeline.guards
        self.pool = self.pipeline.pool
        self.registry = self.pipeline.registry
        self.registry._products.update(_products)
        self._seen_pids: set[int] = set()

    async def __aenter__(self) -> Self:
        self.pipeline.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        _products.update(self.registry._products)
        self._seen_pids |= {int(facts["pid"]) for facts in self.journal.of("sandbox.started")}
        self.buckets.gate.set()
        await self.pipeline.stop()
        self.registry.close()
        self.pool.zygote.detach()
        if error is None:
            assert self.alive() == []
            assert self.pipeline.held == 0
            assert self.wire.completed_count == self.delivered

    # What a test puts in.

    def publish(
        self, task: str, body: str, *, tenant: str = TENANT, version: str = "1.0.0",
        key: SecretKey = guests.AUTHOR,
    ) -> Release:  # fmt: skip
        """Sign, store and release a guest."""
        return self.store(guests.signed(body, task, version=version, key=key), task,
                          tenant=tenant, version=version)  # fmt: skip

    def store(
        self, module: bytes, task: str, *, tenant: str = TENANT, version: str = "1.0.0"
    ) -> Release:
        """Store and release bytes, whatever they are."""
        digest = signature.digest(module)
        release = Release(tenant, task, digest, version)
        self.shelf.stored[digest] = module
        self.shelf.live[tenant, task] = release
        return release

    async def admit_all(self) -> None:
        """Admit what is released, as `serve` does before its first task."""
        for release in self.shelf.releases():
            await self.registry.admit(release.tenant, release.task)

    def request(
        self, task: str, data: bytes = b"", *, tenant: str = TENANT, id: str = "", **fields: Any
    ) -> TaskRequest:
        """A task request; its id is new unless given."""
        self._sequence += 1
        fields.setdefault("fresh", not id)
        task_id = TaskId(id or f"t{self._sequence}")
        return TaskRequest(tenant=tenant, task=task, id=task_id, input=data, **fields)

    def deliver(self, request: TaskRequest, *, delivered: int = 1, sequence: int = 0) -> Delivery:
        """Hand over a task's message."""
        body = envelope.encode_task(request, "test")
        return self.hand_over(
            body, subjects.task(request.tenant, request.task), id=request.id,
            delivered=delivered, sequence=sequence,
        )  # fmt: skip

    def hand_over(
        self, body: bytes, subject: str, *, id: str = "", headers: dict[str, str] | None = None,
        delivered: int = 1, sequence: int = 0, tenant: str = "",
    ) -> Delivery:  # fmt: skip
        """Hand over any message; `id` is what its record will stand under."""
        self.delivered += 1
        number = sequence or 1000 + self.delivered
        lease = f"lease-{number}.{delivered}.{self.delivered}"
        self.wire.lease_of[lease] = id or f"_{number}"
        delivery = Delivery(
            data=body, subject=subject, tenant=tenant or subject.split(".")[1],
            headers=headers or {}, sequence=number, delivered=delivered,
            stored_at=self.pipeline.now_ms(), lease=lease,
        )  # fmt: skip
        self.pipeline.receive(delivery)
        return delivery

    def ask(self, task: str, data: bytes = b"", **fields: Any) -> TaskRequest:
        """Deliver a new task; returns its request."""
        request = self.request(task, data, **fields)
        self.deliver(request)
        return request

    def retry(self, outgoing: Outgoing) -> Delivery:
        """Hand over what a schedule put back into the queue."""
        tenant, task, task_id = outgoing.subject.split(".")[1:4]
        assert outgoing.schedule_target == subjects.due(tenant, task)
        return self.hand_over(outgoing.body, subjects.task(tenant, task), id=task_id)

    # What it gets out.

    def open(self, outgoing: Outgoing) -> Record:
        """The record in a publication, its seal checked with the host's key."""
        return self.trust.opener().record(
            outgoing.subject, outgoing.body, stored_at=self.pipeline.now_ms()
        )

    def open_retry(self, outgoing: Outgoing) -> tuple[TaskRequest, Origin]:
        """The request in a scheduled retry, its seal checked."""
        tenant, task, task_id = outgoing.subject.split(".")[1:4]
        sealed = envelope.decode_sealed(outgoing.body)
        self.trust.opener().open(
            sealed, typ="retry", subject=subjects.task(tenant, task), task_id=task_id,
            tenant=tenant, stored_at=self.pipeline.now_ms(),
        )  # fmt: skip
        return envelope.decode_retry(sealed, tenant, task, environment="test", input_max=2**19)

    def forge(self, kind: str, request: TaskRequest, *, key: SecretKey = guests.FORGER) -> bytes:
        """A record of the right shape under a key that is nobody's."""
        subject = (subjects.result if kind == "result" else subjects.dead)(
            request.tenant, request.task, request.id
        )
        record = Record(
            task=request.task, attempt=1, attempts_max=3, submitted_at=1, finished_at=2,
            receipt=Receipt(), output=b"forged", code="" if kind == "result" else
            "guest.trap",
        )  # fmt: skip
        draft = envelope.Draft(kind, f"test/{subject}", request.id, envelope.encode_record(record))
        return seal(key, [draft], at=1)[0]

    def records(self) -> dict[str, Record]:
        """Task id → record, of all that were published."""
        return {
            outgoing.subject.split(".")[3]: self.open(outgoing)
            for outgoing in self.wire.published() if not outgoing.schedule_target
        }  # fmt: skip

    async def record(self, request: TaskRequest) -> Record:
        """The record of a task, once it is stored and acked."""
        await self.changes.until(lambda: request.id in self.acked(), request.id)
        return self.records()[request.id]

    async def put_off(self, count: int = 1) -> TaskRequest:
        """The request in the newest of `count` schedules, once all of them are acked."""
        await self.changes.until(lambda: len(self.wire.published("later")) >= count, "a retry")
        newest = self.wire.published("later")[-1]
        await self.changes.until(lambda: newest.subject.split(".")[3] in self.acked())
        return self.open_retry(newest)[0]

    def acked(self) -> list[str]:
        """The task ids whose deliveries were acked, in order."""
        return [self.wire.lease_of[lease] for lease in self.wire.all("ack")]

    async def until(self, holds: Any, what: object = "") -> None:
        """Wait for a condition on anything a script keeps."""
        await self.changes.until(holds, what)

    async def settle_down(self) -> None:
        """Wait until no message is in hand."""
        await self.changes.until(lambda: self.pipeline.held == 0, "an empty hand")

    # Sandboxes.

    def sandboxes(self) -> list[SandboxProcess]:
        """Those that live."""
        return list(self.pool._sandboxes)

    def alive(self) -> list[int]:
        """Which of the sandboxes ever started still exist as processes."""
        started = {int(facts["pid"]) for facts in self.journal.of("sandbox.started")}
        return [pid for pid in sorted(started) if Path(f"/proc/{pid}").exists()]

    async def running(self) -> tuple[SandboxProcess, int]:
        """The sandbox whose status page names an attempt, and the attempt."""
        async with asyncio.timeout(30):
            while True:
                for sandbox in self.sandboxes():
                    if (seq := int(sandbox._status[0])) in sandbox._jobs:
                        return sandbox, seq
                await asyncio.sleep(0)

    async def kill(self, number: int) -> int:
        """Send a signal to the one sandbox until it is gone; returns its pid."""
        sandbox = self.sandboxes()[0]
        before = self.pool.died
        async with asyncio.timeout(30):
            while self.pool.died == before:
                # An engine takes the first SIGSEGV for its own and hands the second to the system.
                if sandbox in self.pool._sandboxes and sandbox.pid and not sandbox._child.ended:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(sandbox.pid, number)
                await asyncio.sleep(0)
        return sandbox.pid
