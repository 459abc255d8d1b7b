"""Authority = the module's request ∩ the operator's grants ∩ the tenant's and signer's ceilings.

Computed once per (module, tenant, task, policy) and re-checked by the mediator on each call.
Narrowing anything never allows more, nor does removing a grant, but for what it narrowed itself:
its `limits`, and its kv scope, which replaces a less specific grant's. No policy means that nothing
is allowed. A refusal names everything that is missing and the lines that would grant it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import abi
from executor.core.access import Access, Party
from executor.core.manifest import Manifest
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import FIELDS, Authority, Fallback, KvScope, Limits

ANY: Final = "*"
NO_LIMIT: Final = 2**30  # of a tenant's own: the host's still hold
_MANIFEST_LIMITS: Final = {
    "fuel": "fuel", "memory_bytes": "memory_bytes", "deadline_ms": "deadline_ms",
    "output_bytes": "output_bytes", "host_calls": "calls",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that any grant can give: short capability names and lowered limits."""

    capabilities: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as the operator configures it."""

    name: str
    ceiling: Ceiling = field(default_factory=Ceiling)
    raw_bodies: bool = True
    queue_max_messages: int = 1_000_000
    queue_max_mib: int = 1_024
    weight: int = 1  # of its share of fuel, against other tenants that have work
    sandboxes_max: int = NO_LIMIT  # at once, hence attempts at once
    tasks_per_s: int = NO_LIMIT  # taken from its queue
    roles: tuple[str, ...] = ("submitter", "reader")  # of whoever may use its subjects
    signed_requests: bool = False  # nothing is taken that no listed submitter signed


@dataclass(frozen=True, slots=True)
class Grant:
    """One statement of the operator. `task` and `signer` may be "*"."""

    tenant: str
    task: str
    why: str
    signer: str = ANY
    capabilities: frozenset[str] = frozenset()  # short names: log, clock, random, kv
    kv: KvScope | None = None
    limits: tuple[tuple[str, int], ...] = ()
    fallback: Fallback | None = None

    def covers(self, tenant: str, task: str, signers: Iterable[str]) -> bool:
        """Whether this grant speaks of the task and of one of its signers."""
        return (
            self.tenant == tenant
            and self.task in {ANY, task}
            and (self.signer == ANY or self.signer in set(signers))
        )


@dataclass(frozen=True, slots=True)
class Publisher:
    """A key that may sign modules, and for which tasks: "tenant/task", either part may be "*"."""

    name: str
    key: PublicKey
    tasks: tuple[str, ...]
    ceiling: Ceiling | None = None
    large: bool = False  # its modules may have the caps and the compile budget of large ones
    not_before: int = 0  # ms, of use: when a module was signed nobody can say
    not_after: int = 0  # ms; 0: never

    def valid_at(self, at: int) -> bool:
        """Whether modules that the key signed may be admitted at `at`."""
        return self.not_before <= at and (not self.not_after or at <= self.not_after)

    def may_sign(self, tenant: str, task: str) -> bool:
        """Whether modules of this task are believed when this key signed them."""
        return _matches(self.tasks, tenant, task)


def _matches(patterns: Iterable[str], tenant: str, task: str) -> bool:
    for pattern in patterns:
        of_tenant, _, of_task = pattern.partition("/")
        if of_tenant in {ANY, tenant} and of_task in {ANY, task}:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Requirement:
    """What modules of these tasks need beyond one publisher's signature."""

    tasks: tuple[str, ...]
    signatures: int = 1  # of distinct publishers' keys
    builders: tuple[str, ...] = ()  # who must have built it, by name; empty: no provenance needed

    def covers(self, tenant: str, task: str) -> bool:
        """Whether it speaks of the task."""
        return _matches(self.tasks, tenant, task)


@dataclass(frozen=True, slots=True)
class Required:
    """What all requirements together ask of a task's modules."""

    signatures: int = 1
    builders: frozenset[str] | None = None  # None: no provenance; empty: nobody's is accepted


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that grants, as one value; `version` changes whenever it does."""

    limits: Limits = field(default_factory=Limits)  # the host's maximum
    tenants: tuple[Tenant, ...] = ()
    grants: tuple[Grant, ...] = ()
    attempts_max: int = 3
    version: int = 0
    access: Access = field(default_factory=Access)
    requirements: tuple[Requirement, ...] = ()
    builders: tuple[Party, ...] = ()

    def required(self, tenant: str, task: str) -> Required:
        """What a module needs beyond one publisher's signature: every requirement has to hold."""
        signatures, builders = 1, None
        for one in self.requirements:
            if one.covers(tenant, task):
                signatures = max(signatures, one.signatures)
                if one.builders:
                    named = frozenset(one.builders)
                    builders = named if builders is None else builders & named
        return Required(signatures, builders)

    _by_name: dict[str, Tenant] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {tenant.name: tenant for tenant in self.tenants})

    def tenant(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        return self._by_name.get(name)


Import = tuple[str, str, str]  # module, name, signature


def spell(params: Sequence[str], results: Sequence[str]) -> str:
    """A function's type as the compiler reports it: `i32 i32->i64`."""
    return f"{' '.join(params)}->{' '.join(results)}"


def check_abi(imports: Sequence[Import], exports: Sequence[tuple[str, str]]) -> None:
    """Refuse what is no task of profile core v1.

    Errors  `module.abi-mismatch`; `module.import-unknown`, which names every unknown import.
    """
    by_name = dict(exports)
    if by_name.get(abi.MEMORY) != "memory":
        raise ExecutorError("module.abi-mismatch", "it exports no `memory`")
    if by_name.get(abi.ENTRY) != spell((), ("i32",)):
        raise ExecutorError("module.abi-mismatch", "it exports no `run: () -> i32`")
    if abi.INITIALIZE in by_name and by_name[abi.INITIALIZE] != spell((), ()):
        raise ExecutorError("module.abi-mismatch", "its `_initialize` takes or returns something")
    if "_start" in by_name:
        raise ExecutorError("module.abi-mismatch", "it exports both `run` and `_start`")
    unknown = []
    for module, name, signature in imports:
        function = abi.FUNCTIONS.get(name)
        if function is None or function.module != module:
            unknown.append(f"{module}.{name}")
        elif signature != spell(function.params, function.results):
            raise ExecutorError(
                "module.abi-mismatch",
                f"`{name}` is imported as `{signature}`, "
                f"it is `{spell(function.params, function.results)}`",
            )
    if unknown:
        raise ExecutorError("module.import-unknown", ", ".join(f"`{u}`" for u in unknown[:16]))


def _short(capability: str) -> str:
    return capability.partition(":")[2].partition("@")[0]


def grant_line(capability: str, functions: Iterable[str]) -> str:
    """The line under [[grant]] that allows a capability."""
    if _short(capability) != "kv":
        return f"{_short(capability)} = true"
    writes = {"kv_put", "kv_delete"} & set(functions)
    return f'kv = {{ prefix = "", mode = "{"write" if writes else "read"}" }}'


def authorise(
    policy: Policy, *, tenant: str, task: str, manifest: Manifest,
    imports: Sequence[Import], signers: Sequence[Publisher],
) -> Authority:  # fmt: skip
    """What this module may do for this task.

    Errors  `policy.task-unknown` for a tenant nobody configured, `policy.capability-denied` with
            every missing capability, `module.manifest-invalid` for an import it does not declare.
    """
    party = policy.tenant(tenant)
    if party is None:
        raise ExecutorError("policy.task-unknown", f"no tenant `{tenant}` is configured")
    wanted: dict[str, set[str]] = {}
    for module, name, _ in imports:
        if module != abi.TASK:
            wanted.setdefault(module, set()).add(name)
    declared = {want.capability for want in manifest.wants}
    if undeclared := sorted(wanted.keys() - declared):
        raise ExecutorError(
            "module.manifest-invalid",
            f"it imports {', '.join(f'`{u}`' for u in undeclared)}, which `wants` does not list",
        )
    names = [signer.name for signer in signers]
    grants = [grant for grant in policy.grants if grant.covers(tenant, task, names)]
    allowed = _allowed(party, grants, signers)
    kv = _kv_scope(grants) if "kv" in allowed else None
    missing = [
        (capability, refused)
        for capability, functions in sorted(wanted.items())
        if (refused := functions - _granted(capability, functions, allowed, kv))
    ]
    if missing:
        raise _denied(tenant, task, missing, allowed, party)
    limits = policy.limits.lowered(dict(party.ceiling.limits))
    for signer in signers:
        limits = limits.lowered(dict(signer.ceiling.limits) if signer.ceiling else {})
    for grant in grants:
        limits = limits.lowered(dict(grant.limits))
    limits = limits.lowered({_MANIFEST_LIMITS[name]: value for name, value in manifest.limits})
    functions = frozenset(name for names in wanted.values() for name in names)
    return Authority(functions, kv if "executor:kv@1" in wanted else None, limits,
                     policy.attempts_max)  # fmt: skip


def _allowed(
    party: Tenant, grants: Sequence[Grant], signers: Sequence[Publisher]
) -> frozenset[str]:
    granted: frozenset[str] = frozenset().union(*(grant.capabilities for grant in grants))
    allowed = granted & party.ceiling.capabilities
    for signer in signers:
        if signer.ceiling is not None:
            allowed &= signer.ceiling.capabilities
    return allowed


def _kv_scope(grants: Sequence[Grant]) -> KvScope | None:
    # The most specific grant wins whole: two scopes are never merged into one that nobody wrote.
    scopes = [grant for grant in grants if grant.kv is not None]
    best = max(scopes, key=lambda g: (g.task != ANY, g.signer != ANY), default=None)
    return best.kv if best else None


def fallback_for(policy: Policy, tenant: str, task: str, signers: Iterable[str]) -> Fallback | None:
    """What takes the place of this task's failures: the most specific grant's, whole."""
    names = tuple(signers)
    grants = [g for g in policy.grants if g.fallback and g.covers(tenant, task, names)]
    best = max(grants, key=lambda g: (g.task != ANY, g.signer != ANY), default=None)
    return best.fallback if best else None


def is_wider(policy: Policy, grant: Grant) -> bool:
    """Whether the module of a grant's fallback could be allowed more than the grant's own task."""
    if grant.fallback is None or not grant.fallback.task:
        return False

    def reach(task: str) -> tuple[frozenset[str], KvScope | None]:
        grants = [g for g in policy.grants if g.tenant == grant.tenant and g.task in {ANY, task}]
        return frozenset().union(*(g.capabilities for g in grants)), _kv_scope(grants)

    own, own_kv = reach(grant.task)
    other, other_kv = reach(grant.fallback.task)
    return not other <= own or (other_kv is not None and not _covers(own_kv, other_kv))


def within(other: Authority, bound: Authority) -> Authority:
    """`other`, with no more authority than `bound`.

    Errors  `policy.capability-denied` for what `bound` does not have.
    """
    more = sorted(other.functions - bound.functions)
    if more:
        raise ExecutorError(
            "policy.capability-denied", ", ".join(f"`{name}`" for name in more),
            hint="a fallback may do what its task may, and nothing else",
        )  # fmt: skip
    if other.kv is not None and not _covers(bound.kv, other.kv):
        raise ExecutorError(
            "policy.capability-denied", "`kv` with another scope",
            hint="give the fallback's task a `kv` within that of the task it stands in for",
        )  # fmt: skip
    caps = {name: getattr(bound.limits, name) for name in FIELDS}
    return replace(other, limits=other.limits.lowered(caps))


def _covers(bound: KvScope | None, scope: KvScope) -> bool:
    """Whether every key and right of `scope` is one of `bound` as well."""
    return (
        bound is not None
        and scope.prefix.startswith(bound.prefix)
        and (bound.write or not scope.write)
    )


def _granted(
    capability: str, functions: set[str], allowed: frozenset[str], kv: KvScope | None
) -> set[str]:
    short = _short(capability)
    if short not in allowed:
        return set()
    if short == "kv" and (kv is None or not kv.write):
        return {"kv_get"} if kv else set()
    return functions


def _denied(
    tenant: str, task: str, missing: Sequence[tuple[str, set[str]]], allowed: frozenset[str],
    party: Tenant,
) -> ExecutorError:  # fmt: skip
    names = ", ".join(f"`{name}`" for _, functions in missing for name in sorted(functions))
    lines = "; ".join(grant_line(capability, functions) for capability, functions in missing)
    hint = f"add under [[grant]] of tenant `{tenant}`, task `{task}`, a line each: {lines}"
    above = sorted({_short(c) for c, _ in missing} - party.ceiling.capabilities)
    if above:
        hint += f"; and raise the tenant's ceiling by {', '.join(above)}"
    return ExecutorError(
        "policy.capability-denied", f"{names}", hint=hint,
        granted=", ".join(sorted(allowed)) or "nothing",
    )  # fmt: skip


def for_request(authority: Authority, asked: Iterable[tuple[str, int]]) -> Limits:
    """The limits of one attempt: a request only lowers what it may have."""
    lower = dict(asked)
    return authority.limits.lowered(lower) if lower else authority.limits


def kv_allows(scope: KvScope | None, function: str, key: str) -> bool:
    """The mediator's check: whether this call, with this key, is inside the grant.

    The key is the guest's, below the grant's prefix; the caller has checked its characters.
    """
    if scope is None or not key or key.startswith(".") or key.endswith(".") or ".." in key:
        return False
    return scope.write or function == "kv_get"
