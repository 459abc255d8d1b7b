"""Policy seen as a whole: who may do what, what two versions differ in, what is wrong with one.

Values in, rows out; nothing here decides anything. What a policy allows is asked of `policy` and
`access` themselves, for every tenant, task and signer that it names and for one that it does not,
so that a row cannot say what is not so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from executor.core import abi, scopes
from executor.core import policy as policies
from executor.core.access import ACTIONS, ANY, BUILT_IN, Access, Party, of_key, of_tenant
from executor.core.manifest import Manifest, Want
from executor.core.policy import Grant, Policy, Publisher
from executor.core.seal import ExecutorKey
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import FIELDS

# A name that no policy has: what holds for it holds for every task that is not named.
_OTHER: Final = "-"


@dataclass(frozen=True, slots=True)
class Statement:
    """A policy with the keys that it speaks of."""

    policy: Policy
    publishers: tuple[Publisher, ...] = ()
    parties: tuple[Party, ...] = ()  # operators and submitters
    executors: tuple[ExecutorKey, ...] = ()
    revoked: frozenset[str] = frozenset()
    builders: tuple[Party, ...] = ()
    granters: frozenset[PublicKey] = frozenset()  # who signs policy, where it is signed

    def principals(self) -> dict[str, str]:
        """Principal → name, of all that may be bound to a role; a key has its first name."""
        found = {of_tenant(t.name): of_tenant(t.name) for t in self.policy.tenants}
        for party in self.keys:
            if party.key.key_id.hex() not in self.revoked:
                found.setdefault(of_key(party.key), party.name)
        return found

    @property
    def keys(self) -> tuple[Party | Publisher, ...]:
        """Everybody who can be bound to a role by a key."""
        return (*self.parties, *self.publishers)

    def tasks(self, tenant: str) -> set[str]:
        """Every task of a tenant that is named anywhere."""
        found = {grant.task for grant in self.policy.grants if grant.tenant == tenant}
        for binding in self.policy.access.bindings:
            if {ANY, tenant} & binding.tenants:
                found |= binding.tasks
        patterns = [pattern for publisher in self.publishers for pattern in publisher.tasks]
        for requirement in self.policy.requirements:
            patterns += requirement.tasks
        for pattern in patterns:
            of, _, task = pattern.partition("/")
            if of in {ANY, tenant}:
                found.add(task)
        return found - {ANY}


# Who may do what.


@dataclass(frozen=True, slots=True)
class May:
    """One action of one principal in one tenant: `tasks` are names, "*", or "* but" and names."""

    tenant: str
    who: str
    action: str
    tasks: str


def matrix(statement: Statement) -> Iterator[May]:
    """Every action that is allowed, by tenant and who; "*" is every tenant at once."""
    access, tenants = statement.policy.access, [t.name for t in statement.policy.tenants]
    for tenant in (ANY, *sorted(tenants)):
        names = sorted(statement.tasks(tenant))
        for principal, name in sorted(statement.principals().items(), key=lambda item: item[1]):
            for action in ACTIONS:
                tasks = _tasks(access, principal, action, tenant, names)
                if tasks:
                    yield May(tenant, name, action, tasks)


def _tasks(access: Access, who: str, action: str, tenant: str, names: Sequence[str]) -> str:
    may = [name for name in names if access.may(who, action, tenant, name).allowed]
    if not access.may(who, action, tenant, _OTHER).allowed:
        return " ".join(may)
    but = [name for name in names if name not in may]
    return " ".join(["* but", *but]) if but else ANY


# What is allowed to tasks.

_Key = tuple[str, str, str]  # whose, to whom, what


def effects(statement: Statement) -> dict[_Key, int]:
    """Everything that is allowed: (tenant/task, signer or principal, what) → 1, or a limit.

    A module of a task is taken to import one function at a time, signed by one publisher, or by
    all where several must sign; a task that is not named is `*`.
    """
    found: dict[_Key, int] = {}
    for tenant in statement.policy.tenants:
        for task in (*sorted(statement.tasks(tenant.name)), _OTHER):
            where = f"{tenant.name}/{ANY if task == _OTHER else task}"
            for who, signers in _signings(statement, tenant.name, task):
                for what, value in _reach(statement.policy, tenant.name, task, signers):
                    found[where, who, what] = value
    for row in matrix(statement):
        for name in row.tasks.split(" ") if "but" not in row.tasks else [row.tasks]:
            found[f"{row.tenant}/{name}", row.who, f"may {row.action}"] = 1
    return found


def _signings(
    statement: Statement, tenant: str, task: str
) -> Iterator[tuple[str, Sequence[Publisher]]]:
    policy = statement.policy
    trusted = [
        publisher for publisher in statement.publishers
        if publisher.may_sign(tenant, task)
        and publisher.key.key_id.hex() not in statement.revoked
        and policy.access.may(of_key(publisher.key), "publish", tenant, task).allowed
    ]  # fmt: skip
    needed = [found.signatures for found in policy.requirements if found.covers(tenant, task)]
    if max(needed, default=1) > 1:
        yield "all signers", trusted
    else:
        yield from ((publisher.name, [publisher]) for publisher in trusted)


def _reach(
    policy: Policy, tenant: str, task: str, signers: Sequence[Publisher]
) -> Iterator[tuple[str, int]]:
    for function in [None, *abi.FUNCTIONS.values()]:
        if function is not None and function.module == abi.TASK:
            continue
        imports = [] if function is None else [
            (function.module, function.name, policies.spell(function.params, function.results))
        ]  # fmt: skip
        wants = tuple(Want(module) for module in abi.CAPABILITIES)
        try:
            got = policies.authorise(
                policy, tenant=tenant, task=task, manifest=Manifest(task, "0", wants=wants),
                imports=imports, signers=signers,
            )  # fmt: skip
        except ExecutorError:
            continue
        name = function.name if function else "run"
        yield name, 1
        for limit in sorted(FIELDS):
            yield f"{name} with {limit}", getattr(got.limits, limit)
        if got.kv is not None:
            keys = got.kv.read if name == "kv_get" else got.kv.write
            for pattern in scopes.stored(got.kv.prefix, keys):
                yield f"{name} of {pattern}", 1


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that somebody gains or loses; 0 where it is not allowed at all."""

    where: str
    who: str
    what: str
    before: int
    after: int


def diff(one: Statement, other: Statement) -> list[Change]:
    """What changes by effect from one statement to another; limits of what is new are left out."""
    before, after = effects(_naming(one, other)), effects(_naming(other, one))
    changes = []
    for key in sorted(before.keys() | after.keys()):
        where, who, what = key
        function, _, limit = what.partition(" with ")
        base = (where, who, function)
        if before.get(key, 0) == after.get(key, 0) or (
            limit and (base in before) != (base in after)
        ):
            continue
        changes.append(Change(where, who, what, before.get(key, 0), after.get(key, 0)))
    return changes


def _naming(one: Statement, other: Statement) -> Statement:
    """The same, asked for each task that the other one names as well."""
    # A grant of nothing names a task and gives nothing.
    named = tuple(
        Grant(tenant.name, task, "named by the other", signer="")
        for tenant in one.policy.tenants
        for task in sorted(other.tasks(tenant.name) - one.tasks(tenant.name))
    )
    grants = (*one.policy.grants, *named)
    return replace(one, policy=replace(one.policy, grants=grants))


# What is wrong.


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that stands there and should not; `kind` is stable."""

    kind: str
    what: str


def findings(statement: Statement, now: int) -> list[Finding]:
    """What an operator should look at, worst first."""
    return [
        *_duties(statement), *_wildcards(statement), *_expired(statement, now),
        *_keys(statement), *_idle(statement, now),
    ]  # fmt: skip


def conflicts(statement: Statement) -> dict[str, set[str]]:
    """Principal → actions, of whoever may both publish a module and grant it a capability."""
    access, found = statement.policy.access, {}
    granters = {of_key(key) for key in statement.granters}
    tenants = [tenant.name for tenant in statement.policy.tenants]
    for principal in statement.principals():
        actions = {
            action for action in ("publish", "release", "change-policy")
            for tenant in (ANY, *tenants)
            if _tasks(access, principal, action, tenant, sorted(statement.tasks(tenant)))
        }  # fmt: skip
        if principal in granters:
            actions.add("change-policy")
        if "publish" in actions and "change-policy" in actions:
            found[principal] = actions
    return found


def _duties(statement: Statement) -> Iterator[Finding]:
    names = statement.principals()
    for principal, actions in sorted(conflicts(statement).items()):
        both = " and ".join(sorted(actions))
        yield Finding("duties", f"`{names[principal]}` may {both}: one key makes code run with "
                      "authority; give one of them to another key")  # fmt: skip
    of_publishers = {publisher.key: publisher.name for publisher in statement.publishers}
    for executor in statement.executors:
        if executor.key in of_publishers:
            name = of_publishers[executor.key]
            yield Finding("duties", f"executor `{executor.name}` has the key of publisher "
                          f"`{name}`: a host could make what it runs")  # fmt: skip

        if executor.key in statement.granters:
            yield Finding("duties", f"executor `{executor.name}` has a key that signs policy: a "
                          "host could grant what it runs")  # fmt: skip


def _wildcards(statement: Statement) -> Iterator[Finding]:
    for publisher in statement.publishers:
        if any(pattern.startswith(f"{ANY}/") for pattern in publisher.tasks):
            yield Finding("wildcard", f"publisher `{publisher.name}` signs for every tenant: name "
                          "them in its `tasks`")  # fmt: skip


def _keys(statement: Statement) -> Iterator[Finding]:
    """Tasks whose grants disagree on the prefix: what the guest calls a key moved."""
    told = set()
    for tenant in statement.policy.tenants:
        for task in (*sorted(statement.tasks(tenant.name)), _OTHER):
            found = [
                grant.kv for grant in statement.policy.grants
                if grant.kv and grant.tenant == tenant.name and grant.task in {ANY, task}
            ]  # fmt: skip
            together = scopes.merged(found)
            prefixes = sorted({scope.prefix for scope in found})
            if together is None or len(prefixes) == 1 or (tenant.name, *prefixes) in told:
                continue
            told.add((tenant.name, *prefixes))
            listed = ", ".join(f"`{prefix}`" for prefix in prefixes)
            name = f"{tenant.name}/{ANY if task == _OTHER else task}"
            yield Finding("keys", f"grants to `{name}` have the prefixes {listed}: where they meet "
                          f"its guest names keys below `{together.prefix}`")  # fmt: skip


def _expired(statement: Statement, now: int) -> Iterator[Finding]:
    keys = (*statement.keys, *statement.executors, *statement.builders)
    for key in keys:
        if 0 < key.not_after < now:
            yield Finding("expired", f"the key of `{key.name}` has ended: remove it, or renew it")
    for grant in statement.policy.grants:
        if 0 < grant.not_after < now:
            yield Finding("expired", f"{_named(grant)} has ended: remove it")


def _named(grant: Grant) -> str:
    signer = f" by `{grant.signer}`" if grant.signer != ANY else ""
    return f"the grant to `{grant.tenant}/{grant.task}`{signer} ({grant.why})"


def _idle(statement: Statement, now: int) -> Iterator[Finding]:
    policy, access = statement.policy, statement.policy.access
    tenants = {tenant.name for tenant in policy.tenants}
    ended = {of_key(p.key) for p in statement.keys if not p.valid_at(now)}
    ended |= {of_key(p.key) for p in statement.keys if p.key.key_id.hex() in statement.revoked}
    used = {binding.role for binding in access.bindings}
    for binding in access.bindings:
        if not binding.who - ended:
            yield Finding("idle", f"nobody can use the binding of `{binding.role}` "
                          f"({binding.why}): every key of it has ended")  # fmt: skip
        elif not ({ANY} | tenants) & binding.tenants:
            yield Finding("idle", f"the binding of `{binding.role}` ({binding.why}) names no "
                          "tenant that is configured")  # fmt: skip
    for name in sorted(access.roles.keys() - BUILT_IN.keys() - used):
        yield Finding("idle", f"nobody has the role `{name}`")
    signers = {publisher.name for publisher in statement.publishers}
    for grant in policy.grants:
        if grant.signer not in {ANY, *signers}:
            yield Finding("idle", f"{_named(grant)}: no publisher has that name")
        party = policy.tenant(grant.tenant)
        above = grant.capabilities - (party.ceiling.capabilities if party else frozenset())
        if above:
            yield Finding("idle", f"{_named(grant)} gives {', '.join(sorted(above))}, which is "
                          "above the tenant's ceiling")  # fmt: skip
