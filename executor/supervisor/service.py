"""Puts the supervisor together from its ports; `serve` and `run` differ in those alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from executor.config import Config
from executor.core.signature import SecretKey
from executor.model import MIB
from executor.supervisor.artifacts import ArtifactCache, check_folder, read_key
from executor.supervisor.breakers import Breakers, Budgets
from executor.supervisor.clock import host_ms
from executor.supervisor.compiling import Budget, Compiler
from executor.supervisor.guards import Guards
from executor.supervisor.mediator import Mediator
from executor.supervisor.pipeline import Pipeline
from executor.supervisor.pool import Pool
from executor.supervisor.ports import Board, Intake, Modules, Outbox, Records, Stores, Trust
from executor.supervisor.registry import Registry
from executor.supervisor.settling import Settler
from executor.supervisor.slots import Slots
from executor.supervisor.usage import Usages
from executor.supervisor.zygote import Zygote
from executor.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside the supervisor."""

    trust: Trust
    modules: Modules
    stores: Stores
    outbox: Outbox
    records: Records
    intake: Intake
    board: Board


def new_zygote(config: Config) -> Zygote:
    """The fork server that this configuration asks for; not launched yet."""
    return Zygote(
        pooled=config.text("sandbox.memory") == "pooled",
        best_effort=config.text("sandbox.containment") == "best-effort",
        path=config.text("sandbox.engine_path"),
    )


def new_compiler(config: Config, zygote: Zygote) -> Compiler:
    """Compilers with the configured deadline."""
    return Compiler(zygote, Budget(deadline_ms=config.number("sandbox.compile_deadline_ms")))


def _cache(config: Config, telemetry: Telemetry) -> ArtifactCache | None:
    """The artifact cache, where this host has a key for it. Errors  `config.*`."""
    key_file = config.path("host.cache_key_file")
    folder = config.path("sandbox.cache_folder")
    if key_file is None or folder is None:
        return None
    check_folder(folder)
    return ArtifactCache(
        folder, read_key(key_file), config.number("sandbox.cache_max_mib") * MIB,
        lambda name: telemetry.security_event("artifact-not-authentic", file=name),
    )  # fmt: skip


def assemble(
    config: Config, ports: Ports, *, key: SecretKey, telemetry: Telemetry, zygote: Zygote,
    now_ms: Callable[[], int] = host_ms,
) -> Pipeline:  # fmt: skip
    """A pipeline with its pool, registry, mediator and settler; nothing is started yet."""
    compiler = new_compiler(config, zygote)
    compiler.on_violation = lambda kind: telemetry.security_event(kind, process="compiler")
    registry = Registry(ports.modules, ports.trust, compiler, _cache(config, telemetry), now_ms)
    settler = Settler(
        environment=config.text("host.environment"), key=key, rules=config.rules,
        trust=ports.trust, outbox=ports.outbox, records=ports.records, telemetry=telemetry,
        now_ms=now_ms,
        version=config.number("delivery.envelope_version"),
    )  # fmt: skip
    breakers = Breakers(
        board=ports.board, environment=config.text("host.environment"),
        executor=config.text("host.name"), now_ms=now_ms,
        jitter=lambda: pipeline.jitter(), on_event=telemetry.log.event,  # noqa: PLW0108
    )  # fmt: skip
    usage = Usages(now_ms=now_ms, on_denied=telemetry.shadow_denies)
    pipeline = Pipeline(
        environment=config.text("host.environment"), rules=config.rules,
        ack_wait_ms=config.number("delivery.ack_wait_ms"), trust=ports.trust, registry=registry,
        mediator=Mediator(ports.stores, breakers, usage), usage=usage, settler=settler,
        outbox=ports.outbox, records=ports.records, intake=ports.intake, telemetry=telemetry,
        guards=Guards(breakers, Budgets(now_ms)), now_ms=now_ms,
    )  # fmt: skip
    pipeline.pool = Pool(
        owner=pipeline, slots=Slots(config.number("sandbox.count")),
        modules_of=registry.of_tenant, zygote=zygote,
        attempts_per_sandbox_max=config.number("sandbox.attempts_per_sandbox_max"),
    )  # fmt: skip
    usage.under(config.policy, None)
    share(pipeline.pool.slots, config)
    return pipeline


def share(slots: Slots, config: Config) -> None:
    """Let tenants share the slots as this configuration says."""
    tenants = config.policy.tenants
    # With one tenant there is nobody to keep a slot for.
    slots.reserve = min(config.number("sandbox.reserve"), max(len(tenants) - 1, 0))
    slots.most = {t.name: t.sandboxes_max for t in tenants}
    slots.shares.weights = {t.name: t.weight for t in tenants}
