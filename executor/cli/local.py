"""`executor run`: one attempt without NATS, for `run`, `build` and `doctor`.

Pipeline, jail, policy and settlement are those of `serve`; only the ports differ. Here they are
plain objects in memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from executor.config import Config
from executor.core import envelope, manifest, signature, subjects
from executor.core.access import Access, of_publisher, of_roles
from executor.core.envelope import Record
from executor.core.policy import Ceiling, Grant, Policy, Publisher, Tenant
from executor.core.scopes import EVERY
from executor.core.seal import ExecutorKey, Opener
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import (
    Answer,
    Delivery,
    Digest,
    Failure,
    Finished,
    KvScope,
    Outgoing,
    Release,
    Stored,
    StoredMessage,
    TaskId,
    TaskRequest,
)
from executor.supervisor.pipeline import Pipeline
from executor.supervisor.service import Ports, assemble, new_zygote
from executor.supervisor.zygote import Zygote, hide_memory
from executor.telemetry import AttemptFacts, Telemetry

TENANT: Final = "local"
_ALLOW: Final = re.compile(r"(log|clock|random|kv)(?:=([-/_=\w]*)(:read|:write)?)?\Z")


@dataclass(frozen=True, slots=True)
class Order:
    """What to run and what it may do."""

    module: bytes
    input: bytes
    content_type: str = ""
    allow: tuple[str, ...] = ("log",)
    kv: Mapping[str, bytes] | None = None
    lowered: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """How it went: the record that `serve` would have published, and what the bucket holds."""

    record: Record
    digest: str
    task: str
    version: str
    kv: dict[str, bytes]
    logs: tuple[tuple[int, str], ...] = ()  # level and text, of a result too
    transient: bool = False  # the guest asked for another attempt


class _Listener(Telemetry):
    """Keeps what a record leaves out: all log lines, and the guest's word on another attempt."""

    finished: Finished | None = None

    @property
    def listens(self) -> bool:
        """Always: the log lines of a run come from here."""
        return True

    def attempt(self, request: TaskRequest, finished: Finished, facts: AttemptFacts) -> None:
        """One attempt ended; its caller shows the lines, so nothing is logged here."""
        del request, facts
        self.finished = finished

    def logs(self) -> tuple[tuple[int, str], ...]:
        lines = self.finished.logs if self.finished else ()
        return tuple((line.level, line.text) for line in lines)

    def transient(self) -> bool:
        outcome = self.finished.outcome if self.finished else None
        return isinstance(outcome, Failure) and outcome.transient


def parse_allow(allow: Sequence[str], *, with_kv: bool) -> Grant:
    """`--allow` as the grant it stands for: `log`, `clock`, `random`, `kv[=PREFIX[:read]]`.

    Errors  `config.invalid`.
    """
    names, scope = set(), KvScope(write=EVERY) if with_kv else None
    for text in allow:
        match = _ALLOW.match(text)
        if match is None or (match[2] is not None and match[1] != "kv"):
            raise ExecutorError(
                "config.invalid", f"`--allow {text}` is no capability",
                hint="use log, clock, random or kv[=PREFIX[:read]]",
            )  # fmt: skip
        names.add(match[1])
        if match[1] == "kv":
            scope = KvScope(match[2] or "", write=() if match[3] == ":read" else EVERY)
    if scope is not None:
        names.add("kv")
    return Grant(TENANT, "*", "allowed on the command line", capabilities=frozenset(names),
                 kv=scope)  # fmt: skip


class _Trust:
    """Trusts the one key that this run made, for the one module it was given."""

    def __init__(self, policy: Policy, key: SecretKey, environment: str) -> None:
        self._policy = policy
        self._publisher = Publisher("local", key.public, (f"{TENANT}/*",))
        entry = ExecutorKey("local", key.public)
        self._opener = Opener(environment, {key.public.key_id.hex(): entry})

    def publishers(self, tenant: str, task: str) -> Sequence[Publisher]:
        del tenant, task
        return [self._publisher]

    def policy(self) -> Policy:
        return self._policy

    def opener(self) -> Opener:
        return self._opener

    def is_revoked(self, *names: str) -> bool:
        del names
        return False


@dataclass(frozen=True, slots=True)
class _Modules:
    module: bytes
    live: Release

    def release(self, tenant: str, task: str) -> Release | None:
        return self.live if (tenant, task) == (self.live.tenant, self.live.task) else None

    def releases(self) -> Sequence[Release]:
        return [self.live]

    async def get(self, digest: Digest, max_bytes: int) -> bytes | None:
        del digest, max_bytes
        return self.module

    async def provenance(self, digest: Digest, max_bytes: int) -> None:
        del digest, max_bytes  # the policy of one run asks for none


class Bucket(dict[str, bytes]):
    """A tenant's bucket in memory; `dict.get` is the guest's get but for the await."""

    def kv(self, tenant: str) -> _Kv:
        """The one bucket, whoever asks."""
        del tenant
        return _Kv(self)


@dataclass(frozen=True, slots=True)
class _Kv:
    bucket: Bucket

    async def get(self, key: str) -> bytes | None:
        return self.bucket.get(key)

    async def put(self, key: str, value: bytes) -> None:
        """Tell nobody of a breaker."""
        self.bucket[key] = value

    async def delete(self, key: str) -> None:
        """Tell nobody."""
        self.bucket.pop(key, None)


class Wire:
    """Outbox, records and intake of one delivery: what is published is the answer."""

    def __init__(self) -> None:
        self.published: asyncio.Future[Outgoing] = asyncio.get_running_loop().create_future()
        self.settled = asyncio.Event()

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        """Keep the first; it is stored at once."""
        del deadline_s
        if not self.published.done():
            self.published.set_result(outgoing)
        on_answer(Stored(1))

    def push(self) -> None:
        """Nothing waits here."""

    def ack(self, lease: str) -> None:
        """Nobody waits for it."""
        del lease

    def nak(self, lease: str, delay_ms: int = 0) -> None:
        """Nobody delivers it again."""
        del lease, delay_ms

    def progress(self, lease: str) -> None:
        """No lease runs out."""
        del lease

    async def read(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """Nothing is stored."""
        del tenant, task, task_id
        return []

    waiting = read

    def completed(self, tenant: str) -> None:
        """The delivery is over."""
        del tenant
        self.settled.set()

    def put(self, key: str, value: bytes) -> None:
        """Nobody else is there to hear of a breaker."""
        del key, value

    def delete(self, key: str) -> None:
        """Nobody is."""
        del key

    async def get(self, key: str) -> None:
        """Nothing is kept."""
        del key

    async def recurring(self, tenant: str, task: str, schedule_id: str) -> None:
        """There is no schedule."""
        del tenant, task, schedule_id


def _own_signature(module: bytes, key: SecretKey) -> tuple[bytes, manifest.Manifest]:
    """The module signed by this run's key, over whatever signatures it has, and its manifest.

    The file on this command line is the user's own choice; everything else about it is checked
    as for any other module.
    """
    signed = signature.sign_module(module, key)
    return signed, manifest.read(signed)


async def run(config: Config, order: Order, telemetry: Telemetry) -> Ran:
    """Run a module once. Errors  whatever refuses it before it could run."""
    zygote = new_zygote(config)
    hide_memory()
    zygote.launch()  # before there is a key
    try:
        return await _run(config, order, telemetry, zygote)
    finally:
        await zygote.close()


@dataclass(frozen=True, slots=True)
class Assembled:
    """A pipeline round one module, and what its deliveries need."""

    pipeline: Pipeline
    opener: Opener
    release: Release
    environment: str

    def deliver(self, order: Order, task_id: str, sequence: int = 1) -> None:
        """Hand over one task."""
        task = self.release.task
        request = TaskRequest(
            TENANT, task, TaskId(task_id), order.input, order.content_type, fresh=True,
            attempts_max=1,
        )  # fmt: skip
        self.pipeline.receive(Delivery(
            data=envelope.encode_task(request, self.environment),
            subject=subjects.task(TENANT, task), tenant=TENANT, headers={}, sequence=sequence,
            delivered=1, stored_at=self.pipeline.now_ms(), lease="",
        ))  # fmt: skip


def put_together(
    config: Config, order: Order, telemetry: Telemetry, zygote: Zygote, wire: Wire, bucket: Bucket
) -> Assembled:
    """The pipeline of `serve` between ports in memory; nothing is started.

    Errors  `policy.limit-too-high`, and what is wrong with the module or with `--allow`.
    """
    key = SecretKey.generate()
    module, described = _own_signature(order.module, key)
    grant = parse_allow(order.allow, with_kv=order.kv is not None)
    for name, value in order.lowered:
        most = getattr(config.policy.limits, name)
        if value > most:
            raise ExecutorError(
                "policy.limit-too-high", f"{name} {value}, the host allows {most}",
                hint=f"ask for less, or raise it under [limits] in {config.folder}/executor.toml",
            )  # fmt: skip
    everything = Ceiling(frozenset({"log", "clock", "random", "kv"}))
    policy = Policy(
        limits=config.policy.limits.lowered(dict(order.lowered)),
        tenants=(Tenant(TENANT, everything),), grants=(grant,), attempts_max=1,
        access=Access(bindings=(*of_publisher(key.public, [f"{TENANT}/*"]),
                                *of_roles(TENANT, ["submitter"]))),
    )  # fmt: skip
    environment = config.text("host.environment")
    trust = _Trust(policy, key, environment)
    release = Release(TENANT, described.task, signature.digest(module), described.version)
    # The module is signed by a key of this run: nobody would find it in the cache again.
    quick = config.with_values(delivery__attempts_max=1, host__cache_key_file="")
    ports = Ports(trust, _Modules(module, release), bucket, wire, wire, wire, wire)
    pipeline = assemble(quick, ports, key=key, telemetry=telemetry, zygote=zygote)
    # One life: a task that may come back later would wait for nobody here.
    pipeline.rules = replace(pipeline.rules, attempts_max=1)
    return Assembled(pipeline, trust.opener(), release, environment)


async def _run(config: Config, order: Order, telemetry: Telemetry, zygote: Zygote) -> Ran:
    listener = _Listener(telemetry.log)
    wire, bucket = Wire(), Bucket(order.kv or {})
    alone = config.with_values(sandbox__count=1)
    made = put_together(alone, order, listener, zygote, wire, bucket)
    try:
        made.deliver(order, "run")
        outgoing = await wire.published
    finally:
        await made.pipeline.stop()
    record = _record(outgoing, made.opener, made.pipeline.now_ms(), listener.finished)
    release = made.release
    return Ran(record, signature.digest(order.module), release.task, release.version,
               dict(bucket), listener.logs(), listener.transient())  # fmt: skip


def _record(
    outgoing: Outgoing, opener: Opener, now_ms: int, finished: Finished | None
) -> Record:  # fmt: skip
    if outgoing.schedule_at_ms:
        # A systemic failure or a dead sandbox: `serve` would try again later, there is no later.
        if finished is None or not isinstance(finished.outcome, Failure):
            raise RuntimeError("put off without a failure")
        why = finished.outcome
        raise ExecutorError(why.code, why.message, hint=why.hint, **dict(why.facts))
    return opener.record(outgoing.subject, outgoing.body, stored_at=now_ms)
