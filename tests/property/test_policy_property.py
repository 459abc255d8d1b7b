"""Policy over any grants, ceilings, publishers and bindings: less never allows more; fixed seeds.

A world is everything that an operator writes; a step takes something away, narrows it, or adds a
restriction. After every step no module may do, and nobody may ask for, what was refused before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import abi, policy, scopes
from executor.core.access import (
    ACTIONS,
    BUILT_IN,
    Access,
    Binding,
    of_key,
    of_publisher,
    of_roles,
    of_tenant,
)
from executor.core.manifest import LIMITS, Manifest, Want
from executor.core.policy import Ceiling, Grant, Policy, Publisher, Requirement, Tenant
from executor.core.scopes import EVERY
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import FIELDS, Authority, KvScope, Limits

NAMES: Final = ("log", "clock", "random", "kv")
KEYS: Final = tuple(PublicKey(bytes([n]) * 32) for n in (7, 8, 9))
KV: Final = frozenset(abi.CAPABILITIES[abi.KV])
STORED: Final = ("a", "b", "a/x", "a/x/y", "a/b/c", "ab", "b/x", "b/a/x", "c", "a/c/x")
PRINCIPALS: Final = (of_tenant("acme"), of_tenant("other"), *map(of_key, KEYS[:2]))
TASKS: Final = ("thumbs", "other", "*")
NOW: Final = 100

amount = st.integers(1, 9)
# Few names, so that several sides speak of the same limit.
limits = st.dictionaries(st.sampled_from(["fuel", "calls"]), amount, max_size=2).map(
    lambda found: tuple(sorted(found.items()))
)
# Mostly much, or nearly everything would be refused before and after.
capabilities = st.sampled_from(["", "", "", *NAMES]).map(lambda less_: frozenset(NAMES) - {less_})
ceilings = st.builds(Ceiling, capabilities, limits)
patterns = st.lists(
    st.sampled_from(["*", "a/*", "x", "b/*", "x/*", "c/x"]), min_size=1, max_size=2
).map(scopes.reduced)  # fmt: skip
kv_scopes = st.builds(
    lambda prefix, keys, written: KvScope(prefix, keys, keys if written else ()),
    st.sampled_from(["", "a/", "b/", "a", "a/b/"]), patterns, st.booleans(),
)  # fmt: skip
grants = st.builds(
    Grant, tenant=st.sampled_from(["acme"] * 9 + ["other"]),
    task=st.sampled_from(["thumbs", "*"] * 4 + ["other"]), why=st.just("tests"),
    signer=st.sampled_from(["*", "ci", "*", "x"]), capabilities=capabilities,
    kv=kv_scopes | kv_scopes | kv_scopes | st.none(), limits=limits,
    not_after=st.sampled_from([0, 0, 0, 0, NOW, NOW + 9, NOW - 1]),
)  # fmt: skip
publishers = st.tuples(
    *[
        st.builds(
            Publisher, st.just(name), st.just(key),
            st.sampled_from([("acme/*",), ("*/*",), ("acme/thumbs", "x/y"), ("acme/other",)]),
            st.none() | ceilings | ceilings,
        )
        for name, key in zip(("ci", "x", "ci"), KEYS, strict=True)
    ]
)  # fmt: skip
requirements = st.builds(
    Requirement, st.sampled_from([("*/*",), ("acme/thumbs",), ("acme/other",)]),
    st.sampled_from([1, 1, 2]), st.just(()), limits,
)  # fmt: skip
roles = st.dictionaries(
    st.sampled_from(["lead", "bot"]), st.frozensets(st.sampled_from(ACTIONS), max_size=4)
).map(lambda own: {**BUILT_IN, "lead": frozenset(), "bot": frozenset(), **own})
bindings = st.builds(
    Binding, st.sampled_from([*BUILT_IN, "lead", "bot"]),
    st.frozensets(st.sampled_from(PRINCIPALS), min_size=1, max_size=2),
    st.sampled_from([frozenset({"*"}), frozenset({"acme"}), frozenset({"acme", "other"})]),
    st.sampled_from([frozenset({"*"}), frozenset({"thumbs"}), frozenset({"other"})]),
    st.sampled_from([False] * 4 + [True]), st.just("tests"),
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """What an operator writes; `access` is made of it as `config_document` does."""

    host: Limits
    tenant: Tenant
    grants: tuple[Grant, ...]
    publishers: tuple[Publisher, ...]
    requirements: tuple[Requirement, ...]
    roles: dict[str, frozenset[str]]
    bindings: tuple[Binding, ...]

    @property
    def policy(self) -> Policy:
        """The policy that it stands for."""
        implied = [*of_roles(self.tenant.name, self.tenant.roles)]
        for publisher in self.publishers:
            implied += of_publisher(publisher.key, publisher.tasks)
        return Policy(
            self.host, (self.tenant,), self.grants, requirements=self.requirements,
            access=Access(self.roles, (*self.bindings, *implied)),
        )  # fmt: skip


@dataclass(frozen=True)
class Module:
    """What it imports and asks for, and who signed it."""

    imports: frozenset[str]
    limits: dict[str, int]
    keys: frozenset[PublicKey]


worlds = st.builds(
    World, st.integers(5, 9).map(lambda most: Limits(*[most] * len(FIELDS))),
    st.builds(
        Tenant, st.just("acme"),
        st.builds(Ceiling, capabilities.map(lambda some: some | {"kv"}), limits),
        roles=st.sampled_from([("submitter", "reader"), ("submitter",), ("lead",)]),
    ),
    st.lists(grants, min_size=2, max_size=4).map(tuple), publishers,
    st.lists(requirements, max_size=1).map(tuple), roles,
    st.lists(bindings, max_size=3).map(tuple),
)  # fmt: skip
modules = st.builds(
    Module,
    st.frozensets(
        st.sampled_from(sorted(KV)) | st.sampled_from(sorted(abi.FUNCTIONS)), min_size=1, max_size=2
    ),
    st.dictionaries(st.sampled_from(sorted(LIMITS)), amount, max_size=2),
    st.frozensets(st.sampled_from(KEYS), min_size=2),
)  # fmt: skip
T = TypeVar("T")
fixed = settings(derandomize=True, max_examples=400)


def authorise(world: World, module: Module) -> Authority | None:
    """What a module may do, or None if it is refused."""
    using = world.policy
    signers = [
        publisher for publisher in world.publishers
        if publisher.key in module.keys and publisher.may_sign("acme", "thumbs")
        and using.access.may(of_key(publisher.key), "publish", "acme", "thumbs").allowed
    ]  # fmt: skip
    found = [abi.FUNCTIONS[name] for name in sorted(module.imports)]
    manifest = Manifest(
        "thumbs", "1", wants=tuple(Want(module) for module in abi.CAPABILITIES),
        limits=tuple(sorted(module.limits.items())),
    )  # fmt: skip
    try:
        return policy.authorise(
            using, tenant="acme", task="thumbs", manifest=manifest, signers=signers, at=NOW,
            imports=[(f.module, f.name, policy.spell(f.params, f.results)) for f in found],
        )  # fmt: skip
    except ExecutorError as error:
        if error.code not in {"policy.capability-denied", "module.signer-untrusted"}:
            raise
        return None


def reachable(authority: Authority) -> set[tuple[str, str]]:
    """The calls on stored keys that the mediator would let through."""
    scope = authority.kv
    if scope is None:
        return set()
    return {
        (name, stored) for name in authority.functions & KV for stored in STORED
        if stored.startswith(scope.prefix)
        and scopes.allows(scope, name, stored.removeprefix(scope.prefix))
    }  # fmt: skip


def lower(limits_: Limits, than: Limits) -> bool:
    """Whether no limit is above the other's."""
    return all(getattr(limits_, f.name) <= getattr(than, f.name) for f in fields(Limits))


def at_most(after: Authority | None, before: Authority | None) -> bool:
    """Whether `after` allows nothing that `before` did not."""
    if after is None:
        return True
    return (
        before is not None
        and after.functions <= before.functions
        and reachable(after) <= reachable(before)
        and scopes.inside(after.kv, before.kv)
        and lower(after.limits, before.limits)
    )


def acts(world: World) -> set[tuple[str, str, str, str]]:
    """All that anybody may ask for."""
    access = world.policy.access
    return {
        (who, action, tenant, task)
        for who in PRINCIPALS
        for action in ACTIONS
        for tenant in ("acme", "other", "*")
        for task in TASKS
        if access.may(who, action, tenant, task).allowed
    }


def lowered(
    caps: tuple[tuple[str, int], ...], by: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, int], ...]:
    """Limits that are lower, or there are more of them."""
    both = dict(caps)
    for name, value in by:
        both[name] = min(value, both.get(name, value))
    return tuple(both.items())


def narrower(data: st.DataObject, ceiling: Ceiling) -> Ceiling:
    """A ceiling with less below it."""
    return Ceiling(
        ceiling.capabilities & data.draw(capabilities), lowered(ceiling.limits, data.draw(limits))
    )


def less(data: st.DataObject, grant: Grant) -> Grant:
    """A grant that gives less."""
    kv = grant.kv
    if kv is not None:
        kept = tuple(p for p in kv.read if data.draw(st.booleans())) or ("",)
        kv = data.draw(
            st.sampled_from([
                kv, None, KvScope(kv.prefix, kv.read), KvScope(kv.prefix, kept, kv.write and kept),
                KvScope(kv.prefix + "c/", EVERY, kv.write and EVERY) if "*" in kv.read else kv,
            ])
        )  # fmt: skip
    return replace(
        grant, capabilities=grant.capabilities & data.draw(capabilities), kv=kv,
        limits=lowered(grant.limits, data.draw(limits)),
        task=data.draw(st.sampled_from([grant.task, "other"])),
        signer=data.draw(st.sampled_from([grant.signer] + ["ci"] * (grant.signer == "*"))),
        not_after=data.draw(st.sampled_from([grant.not_after, NOW - 1])),
    )  # fmt: skip


def without(found: Sequence[T], index: int) -> tuple[T, ...]:
    """All but one."""
    return (*found[:index], *found[index + 1 :])


def step(world: World, data: st.DataObject, which: str = "") -> World:
    """Take something away, narrow it, or add a restriction."""
    grant = data.draw(st.integers(0, len(world.grants) - 1)) if world.grants else None
    who = data.draw(st.integers(0, len(world.publishers) - 1)) if world.publishers else None
    giving = [n for n, binding in enumerate(world.bindings) if not binding.deny]
    which = which or data.draw(st.sampled_from([
        "less", "less", "less", "tenant", "publisher", "signer", "tasks", "requirement", "host",
        "binding", "deny", "roles", "action",
    ]))  # fmt: skip
    if which == "less" and grant is not None:
        kept = (*world.grants[:grant], less(data, world.grants[grant]), *world.grants[grant + 1 :])
        return replace(world, grants=kept)
    if which == "tenant":
        ceiling = narrower(data, world.tenant.ceiling)
        return replace(world, tenant=replace(world.tenant, ceiling=ceiling))
    if which == "publisher" and who is not None:
        return replace(world, publishers=without(world.publishers, who))
    if which in {"signer", "tasks"} and who is not None:
        one = world.publishers[who]
        if which == "tasks":
            one = replace(one, tasks=data.draw(st.sampled_from([(), one.tasks[:1]])))
        else:
            most = one.ceiling or Ceiling(frozenset(NAMES))
            one = replace(one, ceiling=narrower(data, most))
        return replace(
            world, publishers=(*world.publishers[:who], one, *world.publishers[who + 1 :])
        )
    if which == "requirement":
        return replace(world, requirements=(*world.requirements, data.draw(requirements)))
    if which == "host":
        return replace(world, host=world.host.lowered(dict(data.draw(limits))))
    if which == "binding" and giving:
        index = data.draw(st.sampled_from(giving))
        if data.draw(st.booleans()):
            return replace(world, bindings=without(world.bindings, index))
        one_ = replace(world.bindings[index], tasks=frozenset({"other"}))
        if not {"*", "other"} & world.bindings[index].tasks:
            return world
        kept_ = (*world.bindings[:index], one_, *world.bindings[index + 1 :])
        return replace(world, bindings=kept_)
    if which == "deny":
        denial = replace(data.draw(bindings), deny=True)
        place = data.draw(st.integers(0, len(world.bindings)))
        found = (*world.bindings[:place], denial, *world.bindings[place:])
        return replace(world, bindings=found)
    if which == "roles":
        return replace(world, tenant=replace(world.tenant, roles=world.tenant.roles[1:]))
    used = {binding.role for binding in world.bindings if binding.deny}
    own = [name for name in ("lead", "bot") if name not in used and world.roles[name]]
    if not own:
        return world
    role = data.draw(st.sampled_from(own))
    action = data.draw(st.sampled_from(sorted(world.roles[role])))
    return replace(world, roles={**world.roles, role: world.roles[role] - {action}})


@fixed
@given(worlds, modules, st.data())
def test_taking_away_or_restricting_never_allows_more(
    world: World, module: Module, data: st.DataObject
) -> None:
    """No step lets a module do, or anybody ask for, what was refused before it."""
    before = authorise(world, module)
    for index in range(len(world.grants)):
        fewer = replace(world, grants=without(world.grants, index))
        assert at_most(authorise(fewer, module), before)
    for index in range(len(world.publishers)):
        fewer = replace(world, publishers=without(world.publishers, index))
        assert at_most(authorise(fewer, module), before)
    for _ in range(4):
        after = step(world, data)
        assert at_most(authorise(after, module), before)


@fixed
@given(worlds, st.data())
def test_nobody_may_ask_for_more_after_less(world: World, data: st.DataObject) -> None:
    """Without a binding, a role of a tenant or a publisher, or with a denial, none may do more."""
    before = acts(world)
    for which in ("binding", "deny", "roles", "action", "publisher", "tasks"):
        assert acts(step(world, data, which)) <= before


@fixed
@given(worlds, modules)
def test_every_authority_was_written(world: World, module: Module) -> None:
    """Each function, and each stored key, is in one grant that holds now; nothing is invented."""
    got = authorise(world, module)
    if got is None:
        return
    names = [p.name for p in world.publishers if p.key in module.keys]
    covering = [g for g in world.grants if g.covers("acme", "thumbs", names, NOW)]
    for name in got.functions:
        assert any(grant.gives(name) for grant in covering)
        assert all(b.capabilities >= {abi_short(name)} for b in [world.tenant.ceiling])
    for name, stored in reachable(got):
        assert any(
            grant.kv is not None and stored.startswith(grant.kv.prefix)
            and scopes.match(
                grant.kv.read if name == "kv_get" else grant.kv.write,
                stored.removeprefix(grant.kv.prefix),
            )
            for grant in covering if grant.gives(name)
        )  # fmt: skip
    assert lower(got.limits, world.host)
    assert (got.kv is not None) is bool(module.imports & KV)


def abi_short(function: str) -> str:
    """The capability of a function."""
    return abi.FUNCTIONS[function].module.partition(":")[2].partition("@")[0]


@fixed
@given(worlds, modules)
def test_no_grant_reaches_above_a_ceiling(world: World, module: Module) -> None:
    """With everything granted, a function and limit are below the tenant's ceiling and a signer's.

    Below those of as many signers as the task's requirements name, one at least.
    """
    everything = Grant("acme", "*", "tests", "*", frozenset(NAMES), KvScope("", write=EVERY))
    got = authorise(replace(world, grants=(everything,)), module)
    if got is None:
        return
    signers = [p for p in world.publishers if p.key in module.keys]
    ceilings_ = [signer.ceiling or Ceiling(frozenset(NAMES)) for signer in signers]
    for short in {abi_short(name) for name in got.functions}:
        assert short in world.tenant.ceiling.capabilities
        assert any(short in ceiling.capabilities for ceiling in ceilings_)
    for name in FIELDS:
        assert getattr(got.limits, name) <= dict(world.tenant.ceiling.limits).get(name, 9)
        assert getattr(got.limits, name) <= max(
            dict(ceiling.limits).get(name, 9) for ceiling in ceilings_
        )


@fixed
@given(worlds, modules)
def test_without_grants_nothing_but_the_task_itself(world: World, module: Module) -> None:
    """No grant means that only a module without capabilities runs."""
    got = authorise(replace(world, grants=()), module)
    needs = {name for name in module.imports if abi.FUNCTIONS[name].module != abi.TASK}
    assert got is None or not needs


@fixed
@given(worlds, modules)
def test_importing_less_never_needs_more(world: World, module: Module) -> None:
    """A module that drops an import is never refused where it was accepted."""
    if authorise(world, module) is None:
        return
    for name in module.imports:
        got = authorise(world, replace(module, imports=module.imports - {name}))
        assert got is not None
        assert name not in got.functions


@fixed
@given(worlds, modules, st.data())
def test_asking_for_less_never_gives_more(
    world: World, module: Module, data: st.DataObject
) -> None:
    """Manifest and request each lower limits, and no limit is above the host's."""
    before = authorise(world, module)
    if before is None:
        return
    asked = module.limits | {"fuel": min(module.limits.get("fuel", 9), data.draw(amount))}
    assert at_most(authorise(world, replace(module, limits=asked)), before)
    for request in (data.draw(limits), (("fuel", 2**53),)):
        assert lower(policy.for_request(before, request), before.limits)


@fixed
@given(st.lists(kv_scopes, max_size=4), st.data())
def test_a_scope_more_takes_no_key_away(found: list[KvScope], data: st.DataObject) -> None:
    """Scopes together hold each of them, and every key of theirs is in one of them."""
    together = scopes.merged(found)
    for scope in found:
        assert scopes.inside(scope, together)
    fewer = scopes.merged([scope for scope in found if data.draw(st.booleans())])
    assert scopes.inside(fewer, together)
