"""Authority = the module's request ∩ the operator's grants ∩ the tenant's and signers' ceilings.

Computed once per (module, tenant, task, policy) and re-checked by the mediator on each call. What
gives only adds: grants, publishers, bindings. What restricts only takes away: ceilings,
requirements, denials. So removing or narrowing anything that gives never allows more, nor does
adding or narrowing anything that restricts; `authorise` says how. No policy means that nothing is
allowed. A refusal names everything that is missing and the lines that would grant it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from executor.core import abi, scopes
from executor.core.access import Access, Party
from executor.core.manifest import Manifest
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import FIELDS, Authority, Fallback, KvScope, Limits

ANY: Final = "*"
NO_LIMIT: Final = 2**30  # of a tenant's own: the host's still hold
_UNBOUNDED: Final = 2**63
_MANIFEST_LIMITS: Final = {
    "fuel": "fuel", "memory_bytes": "memory_bytes", "deadline_ms": "deadline_ms",
    "output_bytes": "output_bytes", "host_calls": "calls",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that any grant can give: short capability names and lowered limits."""

    capabilities: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int], ...] = ()


_BOUNDLESS: Final = Ceiling(frozenset(abi.SHORT_NAMES))


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
    limits: tuple[tuple[str, int], ...] = ()  # of attempts that use what it gives
    fallback: Fallback | None = None
    not_after: int = 0  # ms; 0: it does not end

    def covers(self, tenant: str, task: str, signers: Iterable[str], at: int = 0) -> bool:
        """Whether this grant speaks, at a time in ms, of the task and of one of its signers."""
        return (
            self.tenant == tenant
            and self.task in {ANY, task}
            and (self.signer == ANY or self.signer in set(signers))
            and (not self.not_after or at <= self.not_after)
        )

    def gives(self, function: str) -> bool:
        """Whether a function comes with it."""
        capability = _short(abi.FUNCTIONS[function].module)
        if capability == "kv" and (self.kv is None or not (function == "kv_get" or self.kv.write)):
            return False
        return capability in self.capabilities


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
    limits: tuple[tuple[str, int], ...] = ()  # of every attempt, whatever it uses

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


@dataclass(frozen=True, slots=True)
class Judged:
    """One function that a module imports: who gives it, and what stands against it."""

    function: str
    grants: tuple[Grant, ...]
    above: tuple[str, ...]  # sides whose ceiling it is above: "tenant", "signer"

    @property
    def capability(self) -> str:
        """Its short name."""
        return _short(abi.FUNCTIONS[self.function].module)

    @property
    def allowed(self) -> bool:
        """Whether all sides agree."""
        return bool(self.grants) and not self.above


@dataclass(frozen=True, slots=True)
class Weighed:
    """What `authorise` decides from; `limits` are name → value and the side that set it."""

    functions: tuple[Judged, ...]
    grants: tuple[Grant, ...]  # all that cover the task now
    ceiling: frozenset[str]  # the capabilities that tenant and signers may have
    limits: tuple[tuple[str, int, str], ...]

    @property
    def kv(self) -> KvScope | None:
        """The keys that the grants together give."""
        giving = {g for j in self.functions if j.capability == "kv" for g in j.grants}
        # In the order of the policy, so that two hosts agree.
        return scopes.merged([g.kv for g in self.grants if g in giving and g.kv is not None])


def weigh(
    policy: Policy, *, tenant: str, task: str, manifest: Manifest,
    imports: Sequence[Import], signers: Sequence[Publisher], at: int,
) -> Weighed:  # fmt: skip
    """Each function and limit that a module asks for, with what every side says to it.

    Errors  `policy.task-unknown` for a tenant nobody configured, `module.manifest-invalid` for an
            import it does not declare, `module.signer-untrusted` for too few signers.
    """
    party = policy.tenant(tenant)
    if party is None:
        raise ExecutorError("policy.task-unknown", f"no tenant `{tenant}` is configured")
    wanted = sorted((module, name) for module, name, _ in imports if module != abi.TASK)
    declared = {want.capability for want in manifest.wants}
    if undeclared := sorted({module for module, _ in wanted} - declared):
        raise ExecutorError(
            "module.manifest-invalid",
            f"it imports {', '.join(f'`{u}`' for u in undeclared)}, which `wants` does not list",
        )
    requirements = [found for found in policy.requirements if found.covers(tenant, task)]
    vouched = _vouched(signers, policy.required(tenant, task).signatures)
    names = [signer.name for signer in signers]
    grants = tuple(grant for grant in policy.grants if grant.covers(tenant, task, names, at))
    functions = []
    for _, name in wanted:
        giving = tuple(grant for grant in grants if grant.gives(name))
        judged = Judged(name, giving, ())
        above = [side for side, ceiling in (("tenant", party.ceiling), ("signer", vouched))
                 if judged.capability not in ceiling.capabilities]  # fmt: skip
        functions.append(replace(judged, above=tuple(above)))
    sides = [("tenant", dict(party.ceiling.limits)), ("signer", dict(vouched.limits))]
    sides += [("requirement", dict(found.limits)) for found in requirements]
    sides += [("grant", _most(dict(grant.limits) for grant in found.grants)) for found in functions]
    asked = {_MANIFEST_LIMITS[name]: value for name, value in manifest.limits}
    return Weighed(
        tuple(functions), grants, party.ceiling.capabilities & vouched.capabilities,
        _lowest(policy.limits, [*sides, ("module", asked)]),
    )  # fmt: skip


def _most(caps: Iterable[dict[str, int]]) -> dict[str, int]:
    """The highest of several caps on each limit; who does not name it does not cap it."""
    first, *others = [*caps] or [{}]
    return {
        name: max(value, *(cap[name] for cap in others)) if others else value
        for name, value in first.items()
        if all(name in cap for cap in others)
    }


def _lowest(
    host: Limits, sides: Sequence[tuple[str, dict[str, int]]]
) -> tuple[tuple[str, int, str], ...]:
    rows = []
    for name in sorted(FIELDS):
        value, by = getattr(host, name), "host"
        for side, caps in sides:
            if caps.get(name, value) < value:
                value, by = caps[name], side
        rows.append((name, value, by))
    return tuple(rows)


def how_many(publishers: Sequence[Publisher]) -> int:
    """How many vouch: two keys of one publisher are one, and so are two names for one key."""
    return min(len({p.name for p in publishers}), len({p.key for p in publishers}))


def _vouched(signers: Sequence[Publisher], needed: int) -> Ceiling:
    """What as many vouch for as have to sign.

    A signature adds what its publisher's ceiling has and takes nothing away: else revoking one of
    two signers could allow more.
    """
    if how_many(signers) < needed:
        raise ExecutorError(
            "module.signer-untrusted", f"{how_many(signers)} of {needed} trusted publishers signed"
        )
    ceilings = [(signer, signer.ceiling or _BOUNDLESS) for signer in signers]
    most: dict[str, int] = {}
    for name in FIELDS:
        caps = [(signer, dict(c.limits).get(name, _UNBOUNDED)) for signer, c in ceilings]
        most[name] = max(
            value for _, value in caps
            if how_many([signer for signer, cap in caps if cap >= value]) >= needed
        )  # fmt: skip
    return Ceiling(
        frozenset(
            name for name in abi.SHORT_NAMES
            if how_many([signer for signer, c in ceilings if name in c.capabilities]) >= needed
        ),
        tuple(most.items()),
    )  # fmt: skip


def authorise(
    policy: Policy, *, tenant: str, task: str, manifest: Manifest,
    imports: Sequence[Import], signers: Sequence[Publisher], at: int = 0,
) -> Authority:  # fmt: skip
    """What this module may do for this task, at a time in ms.

    A function needs a grant that gives it, and the ceilings of the tenant and of a signer. A limit
    is the lowest of what the host, both ceilings, the requirements and the manifest say, and for
    each imported function the highest that a grant gives it with. Keys of several grants add up.

    Errors  those of `weigh`, and `policy.capability-denied` with everything that is missing.
    """
    weighed = weigh(policy, tenant=tenant, task=task, manifest=manifest, imports=imports,
                    signers=signers, at=at)  # fmt: skip
    if not all(judged.allowed for judged in weighed.functions):
        raise _denied(tenant, task, weighed)
    limits = policy.limits.lowered({name: value for name, value, _ in weighed.limits})
    functions = frozenset(judged.function for judged in weighed.functions)
    ends = [grant.not_after for grant in weighed.grants if grant.not_after]
    return Authority(functions, weighed.kv, limits, policy.attempts_max, min(ends, default=0))


def fallback_for(
    policy: Policy, tenant: str, task: str, signers: Iterable[str], at: int = 0
) -> Fallback | None:
    """What takes the place of this task's failures: the most specific grant's, whole."""
    names = tuple(signers)
    grants = [g for g in policy.grants if g.fallback and g.covers(tenant, task, names, at)]
    best = max(grants, key=lambda g: (g.task != ANY, g.signer != ANY), default=None)
    return best.fallback if best else None


def is_wider(policy: Policy, grant: Grant) -> bool:
    """Whether the module of a grant's fallback could be allowed more than the grant's own task."""
    if grant.fallback is None or not grant.fallback.task:
        return False

    def reach(task: str) -> tuple[frozenset[str], KvScope | None]:
        grants = [g for g in policy.grants if g.tenant == grant.tenant and g.task in {ANY, task}]
        kv = scopes.merged([g.kv for g in grants if g.kv is not None])
        return frozenset().union(*(g.capabilities for g in grants)), kv

    own, own_kv = reach(grant.task)
    other, other_kv = reach(grant.fallback.task)
    return not other <= own or not scopes.inside(other_kv, own_kv)


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
    if not scopes.inside(other.kv, bound.kv):
        raise ExecutorError(
            "policy.capability-denied", "`kv` with another scope",
            hint="give the fallback's task a `kv` within that of the task it stands in for",
        )  # fmt: skip
    caps = {name: getattr(bound.limits, name) for name in FIELDS}
    ends = [end for end in (other.not_after, bound.not_after) if end]
    return replace(other, limits=other.limits.lowered(caps), not_after=min(ends, default=0))


def _denied(tenant: str, task: str, weighed: Weighed) -> ExecutorError:
    missing = [judged for judged in weighed.functions if not judged.allowed]
    ungranted: dict[str, list[str]] = {}
    for judged in missing:
        if not judged.grants:
            capability = abi.FUNCTIONS[judged.function].module
            ungranted.setdefault(capability, []).append(judged.function)
    todo = []
    if ungranted:
        lines = "; ".join(grant_line(*item) for item in ungranted.items())
        todo.append(
            f"add under [[grant]] of tenant `{tenant}`, task `{task}`, a line each: {lines}"
        )
    for side, name in (("tenant", "the tenant's"), ("signer", "a publisher's")):
        above = sorted({judged.capability for judged in missing if side in judged.above})
        if above:
            todo.append(f"raise {name} ceiling by {', '.join(above)}")
    given: frozenset[str] = frozenset().union(*(grant.capabilities for grant in weighed.grants))
    return ExecutorError(
        "policy.capability-denied", ", ".join(f"`{judged.function}`" for judged in missing),
        hint="; and ".join(todo), granted=", ".join(sorted(given & weighed.ceiling)) or "nothing",
    )  # fmt: skip


def for_request(authority: Authority, asked: Iterable[tuple[str, int]]) -> Limits:
    """The limits of one attempt: a request only lowers what it may have."""
    lower = dict(asked)
    return authority.limits.lowered(lower) if lower else authority.limits
