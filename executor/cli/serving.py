"""`executor serve`: the supervisor's ports on NATS, its signals, its configuration's reload."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from executor import __version__
from executor.cli.documents import shadow_of
from executor.cli.heartbeat import Heartbeat
from executor.cli.intake import Intake
from executor.cli.modules import read_key
from executor.cli.trusting import Keeper
from executor.cli.usages import adopt_usage
from executor.config import Config
from executor.core import control, provenance, seal, subjects
from executor.core import usage as usages
from executor.core.policy import Tenant
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import MIB, Digest, Release, StoredMessage
from executor.supervisor import containment
from executor.supervisor.clock import ServerClock
from executor.supervisor.commands import Commands
from executor.supervisor.pipeline import Pipeline
from executor.supervisor.ports import KvStore
from executor.supervisor.service import Ports, assemble, new_zygote, share
from executor.supervisor.steering import Steering
from executor.supervisor.zygote import Zygote, hide_memory
from executor.telemetry import Telemetry
from executor.transport import records, streams
from executor.transport.board import Board
from executor.transport.connection import Connection
from executor.transport.control import Watch
from executor.transport.kv import TenantKv
from executor.transport.listening import Listening
from executor.transport.objects import Objects
from executor.transport.outbox import Outbox
from executor.transport.room import Room
from executor.transport.settings import PING_S, Settings, from_config
from executor.trust.file import FileTrust

if TYPE_CHECKING:
    from executor.trust.source import Verified

# Pings in the time of a lease: when the third in a row is due, half of it is left.
_PINGS: Final = 6
_PING_MIN_S: Final = 1.0  # a busy server may take a second to answer
# Values made and not yet gone, before anybody looks for cycles among them.
_GC_AFTER: Final = 20_000
# How long the last acks may take to leave after everything else has ended.
_FLUSH_S: Final = 5.0


def settings(config: Config, name: str, *logins: str, ping_s: float = PING_S) -> Settings:
    """How to reach NATS, as the first of `logins` that this host has; see `nats.logins`."""
    return from_config(config, name, logins, ping_s=ping_s)


def queue(tenant: Tenant) -> streams.TenantQueue:
    """A tenant as its streams need it."""
    return streams.TenantQueue(tenant.name, tenant.queue_max_messages, tenant.queue_max_mib * MIB)


def stream_options(config: Config) -> streams.Options:
    """The streams' common settings."""
    return streams.Options(
        replicas=config.number("nats.replicas"), ack_wait_ms=config.number("delivery.ack_wait_ms"),
        outcome_age_ms=config.number("delivery.outcomes_days") * 24 * 3600 * 1000,
        outcome_max_bytes=config.number("delivery.outcomes_max_mib") * MIB or -1,
    )  # fmt: skip


@dataclass
class _Modules:
    """Releases as CONTROL says, kept up to date, and module bytes by digest."""

    objects: Objects
    on_change: Callable[[Release], None]
    _live: dict[tuple[str, str], Release] = field(default_factory=dict)

    def replace(self, releases: Mapping[tuple[str, str], Release]) -> None:
        """All that is live now, as signed."""
        before, self._live = self._live, dict(releases)
        for name, release in releases.items():
            if before.get(name) != release:
                self.on_change(release)

    def said(self, name: tuple[str, str], live: Release | None) -> None:
        """What a task's name stands for from now on, as CONTROL says."""
        if live is None:
            self._live.pop(name, None)
        elif self._live.get(name) != live:
            self._live[name] = live
            self.on_change(live)

    def release(self, tenant: str, task: str) -> Release | None:
        """What the task name stands for now."""
        return self._live.get((tenant, task))

    def releases(self) -> Sequence[Release]:
        """All of them."""
        return list(self._live.values())

    async def get(self, digest: Digest, max_bytes: int) -> bytes | None:
        """The bytes stored under a digest."""
        return await self.objects.get(digest, max_bytes)

    async def provenance(self, digest: Digest, max_bytes: int) -> bytes | None:
        """The statement of who built it."""
        return await self.objects.get(provenance.object_name(digest), max_bytes)


@dataclass(frozen=True, slots=True)
class _Stores:
    connection: Connection
    _open: dict[str, TenantKv] = field(default_factory=dict)

    def kv(self, tenant: str) -> KvStore:
        """The tenant's bucket."""
        if tenant not in self._open:
            self._open[tenant] = TenantKv(self.connection, tenant)
        return self._open[tenant]


@dataclass(frozen=True, slots=True)
class _Records:
    connection: Connection
    trust: FileTrust

    async def read(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """What is stored of a task id; a record that was written over is among it."""
        believes = self.trust.opener().believes
        return await records.read_outcome(self.connection, tenant, task, task_id, believes)

    async def find(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """The same of whichever task has the id."""
        if task != subjects.ANY_TASK:
            return await self.read(tenant, task, task_id)
        return await records.find(self.connection, tenant, task_id)

    async def waiting(self, tenant: str, task: str, task_id: str) -> Sequence[StoredMessage]:
        """What waits in LATER under a task id."""
        return await records.read_waiting(self.connection, tenant, task, task_id)

    async def recurring(self, tenant: str, task: str, schedule_id: str) -> StoredMessage | None:
        """A recurring schedule as LATER has it."""
        return await records.read_recurring(self.connection, tenant, task, schedule_id)


def _settle_down() -> None:
    """Look for garbage less often, and never among what exists now."""
    # What exists now lives as long as the process; what a task leaves behind has no cycles, and
    # looking for some among a few thousand values of messages in hand took 3 % of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_AFTER)


class Host:
    """A running executor: connection, pulls, pipeline."""

    def __init__(
        self, config: Config, telemetry: Telemetry, *, key: SecretKey | None = None,
        zygote: Zygote | None = None,
    ) -> None:  # fmt: skip
        # First of all, before any key is read, so that what it forks has none.
        hide_memory()
        self._zygote = zygote or new_zygote(config)
        self._zygote.launch()
        self.config = config
        self.telemetry = telemetry
        self._key = key or _outcome_key(config)
        self._trust = FileTrust(config)
        self._shadow = shadow_of(config)
        self._keeper: Keeper | None = None
        self._over = ""  # why nobody can be judged now
        if config.signed:
            self._keeper = Keeper(config, telemetry, self._put_in_force, self._hold)
        else:
            self._check_trust(config)
        self._environment = config.text("host.environment")
        self.on_drain: Callable[[], None] = lambda: None
        self._clock = ServerClock()
        self._draining = False
        self._changing = asyncio.Lock()  # one statement of who may do what after the other
        self._warm: set[asyncio.Task[None]] = set()
        self.pipeline: Pipeline

    def _check_trust(self, config: Config) -> None:
        """Fail closed: without trust nothing can be judged, so nothing starts or is reloaded."""
        by = self._key.public.key_id.hex()
        if not config.policy.tenants:
            raise ExecutorError("config.missing", "no [[tenant]]",
                                hint="add one, or run `executor init`")  # fmt: skip
        if not config.publishers:
            raise ExecutorError("trust.missing", "no [[publisher]]")
        name = config.text("host.name")
        names = [entry.name for entry in config.executors if entry.key.key_id.hex() == by]
        if not names:
            raise ExecutorError(
                "trust.missing", f"no [[executor]] has this host's key `{by}`",
                hint=f'add to executor.toml: [[executor]] name = "{name}" '
                f'key = "{self._key.public.text}"',
            )  # fmt: skip
        if name not in names:
            raise ExecutorError(
                "config.invalid", f"`host.name` is `{name}`, but its key is `{names[0]}`'s",
                hint="give the host the name of its [[executor]], or it a key of its own",
            )  # fmt: skip
        if by in config.revoked:
            raise ExecutorError("trust.missing", f"this host's key `{by}` is revoked",
                                hint="make another: executor keygen")  # fmt: skip

    async def start(self) -> None:
        """Connect, check the streams, admit what is released, begin to pull.

        Errors  `transport.*`, `trust.missing`.
        """
        config = self.config
        name = f"executor-{config.text('host.name')}"
        # What goes into a half-open connection renews no lease: it must end before one lapses.
        ping_s = max(_PING_MIN_S, config.number("delivery.ack_wait_ms") / 1000 / _PINGS)
        login = f"executor_{config.text('host.name')}"
        how = settings(config, name, login, ping_s=min(ping_s, PING_S))
        self.connection = await Connection.open(how, self._on_transport)
        try:
            await self._start()
        except BaseException:
            await self.connection.close()
            await self._zygote.close()
            raise

    async def _start(self) -> None:
        if self._keeper is not None:
            state = await self._keeper.first(self.connection)
            self.config = self.config.granting(state.document)
            self._check_trust(self.config)
            self._trust.replace(self.config)
        await self._check_containment()
        queues = [queue(tenant) for tenant in self.config.policy.tenants]
        await streams.check(self.connection, queues, stream_options(self.config))
        self._room = Room(self.connection)
        self._room.replace(queues)
        self._outbox = Outbox(self.connection, room=self._room)
        await self._outbox.start()
        self._modules = _Modules(Objects(self.connection), self._released)
        self._board = Board(self.connection, self._sign)
        self._intake = Intake(
            self.connection, alone=self.config.number("delivery.window"),
            shared=self.config.number("delivery.window_shared"),
            slots=self.config.number("sandbox.count"),
            on_event=self._on_transport, mean_s=lambda name: self.pipeline.pool.mean_s(name),  # noqa: PLW0108
        )  # fmt: skip
        ports = Ports(
            self._trust, self._modules, _Stores(self.connection), self._outbox,
            _Records(self.connection, self._trust), self._intake, self._board,
        )  # fmt: skip
        self.pipeline = assemble(
            self.config, ports, key=self._key, telemetry=self.telemetry, zygote=self._zygote,
            now_ms=self._clock.now_ms,
        )  # fmt: skip
        self._intake.on_delivery = self.pipeline.receive
        self.pipeline.usage.under(self.config.policy, self._shadow)
        self._heartbeat = Heartbeat(
            self.connection, self.config.text("host.name"), self._environment, self._sign,
            self._clock, self.telemetry, self._report, self._unready,
            self.config.path("host.health_file"), self._each_beat,
        )  # fmt: skip
        await adopt_usage(
            self.connection, self._board, self._heartbeat.life, self.config, self.pipeline.usage
        )
        await self._heartbeat.start()
        await self._listen()
        if self._keeper is not None:
            self._modules.replace(self._keeper.state.releases)
        # Admit before the first task: a sandbox is born with what is known by then. Compilers take
        # turns, so one tenant's bombs could hold up the start of all: what is not admitted in the
        # time of one compilation is admitted while others work.
        known = asyncio.gather(*self._warm, return_exceptions=True)
        await asyncio.wait(
            {known}, timeout=self.config.number("sandbox.compile_deadline_ms") / 1000
        )
        tenants = self.config.policy.tenants
        for slot in range(self.config.number("sandbox.count")):
            self.pipeline.pool.warm(tenants[slot % len(tenants)].name)
        self.pipeline.start()
        for tenant in self.config.policy.tenants:
            await self._intake.add(tenant)
        if self._keeper is not None:
            await self._keeper.start()
        await self._listening.start(self.config.policy.tenants)
        await self._heartbeat.beat()
        self.telemetry.observe(self._levels)
        _settle_down()
        self.telemetry.log.event(
            "serving", url=self.connection.settings.public_url(),
            tenants=",".join(t.name for t in self.config.policy.tenants),
            sandboxes=self.config.number("sandbox.count"),
            releases=len(self._modules.releases()),
        )  # fmt: skip

    async def _listen(self) -> None:
        """Hear what is told and what CONTROL says."""
        self._commands = Commands(
            self._environment, self.config.text("host.name"), self._key, self._trust, self._outbox,
            _Records(self.connection, self._trust).find, self.telemetry, self._clock.now_ms,
            self.connection.send, self.on_drain,
        )  # fmt: skip
        self._listening = Listening(
            self.connection, self.config.text("host.name"), self._commands.receive
        )
        self._steering = Steering(
            self._environment, self._trust, self.pipeline.guards, self.pipeline.cancelling,
            self.pipeline.schedules, self.telemetry, self.pipeline.now_ms,
            self.pipeline.look_again, self._release_said,
        )  # fmt: skip
        self._watch = Watch(self.connection, self._steering.entry)
        await self._watch.start()

    async def _check_containment(self) -> None:
        """Before anything is taken: the jail is there, or it is known and accepted that it is not.

        Errors  `sandbox.containment-missing`, `sandbox.start-failed`.
        """
        found = await containment.examine(self._zygote)
        if not self._zygote.best_effort:
            found.check()
        self.telemetry.log.event(
            "contained", layers=",".join(found.layers), missing=",".join(found.missing) or "-",
            possible=",".join(found.escaped) or "-", path=found.path,
        )  # fmt: skip

    def _release_said(self, name: tuple[str, str], live: Release | None) -> None:
        if not self.config.signed:
            self._modules.said(name, live)
        elif live is not None:
            # Where releases are signed metadata, an entry counts for nothing.
            self.telemetry.security_event("release-not-signed", task="/".join(name))

    def _sign(self, key: str, payload: bytes) -> bytes:
        """The value that says `payload` under a key of CONTROL."""
        return seal.say(self._key, self._environment, key, payload, at=self._clock.now_ms())

    def _each_beat(self) -> None:
        if hasattr(self, "_steering"):  # the first beat tells the clock, before all else
            self._steering.look_at_clock()
        self._say_usage()

    def _say_usage(self) -> None:
        """What tasks used since the last time, for `executor grant report`."""
        environment, now = self.config.text("host.environment"), self._clock.now_ms()
        for tenant, usage in self.pipeline.usage.changed().items():
            key = subjects.usage_key(self._heartbeat.life, tenant)
            report = usages.encode(usage)
            self._board.put(key, control.encode("usage", key, environment, at=now, report=report))

    def _levels(self) -> dict[str, int]:
        """What is measured from time to time."""
        pool = self.pipeline.pool.statistics()
        return {
            "sandboxes": pool["sandboxes"], "running": pool["running"],
            "waiting": pool["waiting"], "held": self.pipeline.held,
            "open_breakers": len(self.pipeline.guards.breakers.open()),
        }  # fmt: skip

    def _report(self) -> dict[str, Any]:
        """What the heartbeat says."""
        guards = self.pipeline.guards
        return {
            "version": __version__, "ready": self._unready() or "ready",
            "levels": self._levels(), "settled": self.pipeline.settled,
            "windows": self._intake.windows(),
            "breakers": ["/".join(name) for name in list(guards.breakers.open())[:20]],
            "clock_offset_ms": self._clock.offset_ms,
        }  # fmt: skip

    def _unready(self) -> str:
        """Why this executor takes no tasks now; "" if it does."""
        if self._draining:
            return "draining"
        if not self.connection.connected:
            return "not connected to NATS"
        if self._over:
            return self._over
        return "" if self._intake.windows() else "starting"

    def _released(self, release: Release) -> None:
        if self.config.policy.tenant(release.tenant) is None:
            return  # not served here: its modules are neither fetched nor compiled
        task = asyncio.get_running_loop().create_task(self._admit(release))
        self._warm.add(task)
        task.add_done_callback(self._warm.discard)

    async def _admit(self, release: Release) -> None:
        facts = {"task": f"{release.tenant}/{release.task}", "digest": release.digest}
        try:
            await self.pipeline.registry.admit(release.tenant, release.task)
        except ExecutorError as error:
            self.telemetry.log.event("release-refused", **facts, code=error.code,
                                     reason=error.message)  # fmt: skip
        else:
            self.telemetry.log.event("release-admitted", **facts, version=release.version)

    def _on_transport(self, name: str, facts: dict[str, str | int]) -> None:
        if hasattr(self, "pipeline") and name in {"disconnected", "reconnected"}:
            self.pipeline.leases.connected = name == "reconnected"
        if name in {"permission-violation", "login-refused"}:
            self.telemetry.security_event(name, **facts)
        else:
            self.telemetry.log.event(f"nats.{name}", **facts)

    async def reload(self, config: Config) -> None:
        """Put another configuration in force without losing a task.

        Limits, and what this file grants, change now; host, trust, NATS, delivery and sandbox
        settings need a new start, which is said. Where what grants is signed, this file grants
        nothing, whatever it says now.

        Errors  `config.missing`, `trust.missing`: what was in force stays in force; `transport.*`:
                only new tenants are not served.
        """
        async with self._changing:
            # Said of the running host by nobody: its source of trust, its environment.
            fixed = [
                name for name, value in config.values.items()
                if not name.startswith(("limits.", "policy.")) and value != self.config.values[name]
            ]  # fmt: skip
            kept = {name: self.config.values[name] for name in fixed}
            config = replace(config, values={**config.values, **kept})
            if self._keeper is not None:
                config = config.granting(self._keeper.state.document)
            self._check_trust(config)
            self._shadow = shadow_of(config)
            await self._replace(config, needs_restart=",".join(fixed) or "-")

    async def _replace(self, config: Config, **facts: str) -> None:
        after = {tenant.name for tenant in config.policy.tenants}
        leaving = await self._leave(self._intake.windows().keys() - after)
        # A revocation must not wait for the queue of a tenant, be it old or new.
        self.config = config
        self._trust.replace(config)
        self._room.replace(map(queue, config.policy.tenants))
        self.pipeline.usage.under(config.policy, self._shadow)
        self.pipeline.decide_again()
        self._steering.judge_again()
        self._watch.look_again()
        for release in self._modules.releases():
            self._released(release)
        share(self.pipeline.pool.slots, config)
        await asyncio.gather(*leaving)
        await self._serve()
        self.telemetry.log.event("reloaded", tenants=",".join(sorted(after)), **facts)

    async def _leave(self, names: Iterable[str]) -> list[asyncio.Task[None]]:
        """From now on these queues give us nothing; what is awaited is only the server's part."""
        loop = asyncio.get_running_loop()
        leaving = [loop.create_task(self._intake.remove(name)) for name in sorted(names)]
        await asyncio.sleep(0)  # each runs as far as it need not wait
        return leaving

    async def _serve(self) -> None:
        """Pull and listen for the tenants there are. Errors  `transport.*`."""
        tenants = self.config.policy.tenants
        await self._serve_tenants()
        self._intake.replace(tenants)
        await self._listening.start(tenants)

    async def _serve_tenants(self) -> None:
        """Pull whoever is not pulled yet. Errors  `transport.*`."""
        known = self._intake.windows()
        new = [t for t in self.config.policy.tenants if t.name not in known]
        if not new or self._over:
            return
        await streams.apply(self.connection, map(queue, new), stream_options(self.config))
        for tenant in new:
            await self._intake.add(tenant)

    async def _put_in_force(self, state: Verified) -> None:
        """Another state of signed trust: releases first, so that all is admitted once."""
        async with self._changing:
            self._modules.replace(state.releases)
            if state.document == self.config.document:
                await self._serve()  # in case it was cut off before
                return
            config = self.config.granting(state.document)
            self._check_trust(config)
            await self._replace(config)

    async def _hold(self, why: str) -> None:
        """Ask for nothing while nobody can be judged; "": go on."""
        self._over = why
        if why:
            leaving = await self._leave(self._intake.windows())
            self.pipeline.hold()
            self._heartbeat.write_health()
            await asyncio.gather(*leaving)
        else:
            self.pipeline.go_on()
            await self._serve_tenants()
        self._heartbeat.write_health()

    async def close(self, *, drain_ms: int) -> None:
        """Ask for nothing more, end or give back what is in hand, and leave."""
        self._draining = True
        self._heartbeat.write_health()
        if self._keeper is not None:
            await self._keeper.stop()
        await self._listening.stop()
        self._commands.stop()
        await self._intake.stop()
        if drain_ms:
            await self.pipeline.drain(drain_ms / 1000)
        else:
            await self.pipeline.stop()
        await self._watch.stop()
        self._say_usage()
        await self._board.flush(_FLUSH_S if drain_ms else 0.0)
        await self._heartbeat.stop()
        await self._board.stop()
        for task in list(self._warm):
            task.cancel()
        await self._outbox.drain(_FLUSH_S)
        await self._outbox.stop()
        self._room.stop()
        self.pipeline.registry.close()
        await self._zygote.close()
        await self.connection.close()
        self.telemetry.log.event("stopped", **{k or "given_back": v
                                 for k, v in self.pipeline.settled.items()})  # fmt: skip


def _outcome_key(config: Config) -> SecretKey:
    path = config.path("host.key_file")
    if path is None:
        raise ExecutorError(
            "config.missing",
            "`host.key_file` is not set",
            hint="run `executor init`, or executor keygen keys/executor",
        )
    return read_key(path)


async def serve(
    host: Host, reload: Callable[[], Config], *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT: the first drains, the second stops now; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, asked.put_nowait, number)
    host.on_drain = lambda: asked.put_nowait(signal.SIGTERM)
    await host.start()
    ready()
    while (number := await asked.get()) is signal.SIGHUP:
        try:
            await host.reload(reload())
        except ExecutorError as error:
            # What was in force stays in force: a broken file must not stop the work.
            host.telemetry.log.event("reload-refused", code=error.code, reason=error.message)
    host.telemetry.log.event("draining", drain_ms=host.config.number("delivery.drain_ms"))
    draining = loop.create_task(host.close(drain_ms=host.config.number("delivery.drain_ms")))
    again = loop.create_task(_second(asked))
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    draining.cancel()
    await asyncio.wait({draining})
    if draining.cancelled():
        await host.close(drain_ms=0)
    else:  # it was at its end, which the second signal did not stop
        draining.result()


async def _second(asked: asyncio.Queue[signal.Signals]) -> None:
    while await asked.get() is signal.SIGHUP:
        pass
