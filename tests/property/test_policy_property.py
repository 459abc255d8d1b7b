"""Policy over any grants and ceilings: less never allows more; seeds are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import abi, policy
from executor.core.manifest import LIMITS, Manifest, Want
from executor.core.policy import Ceiling, Grant, Policy, Publisher, Tenant
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import FIELDS, Authority, KvScope, Limits

fixed = settings(
    derandomize=True, deadline=None, max_examples=200, database=None, print_blob=True
)  # fmt: skip

NAMES: Final = ("log", "clock", "random", "kv")
KEY: Final = PublicKey(bytes([7]) * 32)
KV: Final = frozenset(abi.CAPABILITIES[abi.KV])

amount = st.integers(1, 9)
limits = st.dictionaries(st.sampled_from(sorted(FIELDS)), amount, max_size=3).map(
    lambda found: tuple(sorted(found.items()))
)
# Mostly much, or nearly everything would be refused before and after.
capabilities = st.frozensets(st.sampled_from(NAMES), max_size=1).map(
    lambda without: frozenset(NAMES) - without
)
ceilings = st.builds(Ceiling, capabilities, limits)
scopes = st.builds(KvScope, st.sampled_from(["", "a/", "b/"]), st.booleans())
grants = st.builds(
    Grant, tenant=st.sampled_from(["acme", "acme", "acme", "other"]),
    task=st.sampled_from(["thumbs", "*", "thumbs", "*", "other"]), why=st.just("tests"),
    signer=st.sampled_from(["*", "ci", "*", "ci", "stranger"]), capabilities=capabilities,
    kv=scopes | scopes | st.none(), limits=limits,
)  # fmt: skip
policies = st.builds(
    lambda ceiling, found, maximum: Policy(
        Limits(*[maximum] * len(FIELDS)), (Tenant("acme", ceiling),), tuple(found)
    ),
    st.builds(Ceiling, capabilities.map(lambda some: some | {"kv"}), limits),
    st.lists(grants, min_size=1, max_size=4), amount,
)  # fmt: skip
publishers = st.builds(
    Publisher, st.sampled_from(["ci", "x"]), st.just(KEY), st.just(("acme/*",)),
    st.none() | ceilings,
)  # fmt: skip
signers = st.lists(publishers, max_size=2)
functions = st.frozensets(
    st.sampled_from(sorted(KV)) | st.sampled_from(sorted(abi.FUNCTIONS)), min_size=1, max_size=3
)
asked = st.dictionaries(st.sampled_from(sorted(LIMITS)), amount, max_size=3)


def authorise(
    using: Policy, signed_by: Sequence[Publisher], imported: frozenset[str],
    wanted: dict[str, int] | None = None,
) -> Authority | None:  # fmt: skip
    """What a module may do, or None if it is refused."""
    found = [abi.FUNCTIONS[name] for name in sorted(imported)]
    manifest = Manifest(
        "thumbs", "1", wants=tuple(Want(module) for module in abi.CAPABILITIES),
        limits=tuple(sorted((wanted or {}).items())),
    )  # fmt: skip
    try:
        return policy.authorise(
            using, tenant="acme", task="thumbs", manifest=manifest, signers=signed_by,
            imports=[(f.module, f.name, policy.spell(f.params, f.results)) for f in found],
        )  # fmt: skip
    except ExecutorError as error:
        if error.code != "policy.capability-denied":
            raise
        return None


def within(scope: KvScope | None, other: KvScope | None) -> bool:
    """Whether a scope allows no call that another one does not."""
    if scope is None:
        return True
    return (
        other is not None
        and scope.prefix.startswith(other.prefix)
        and (other.write or not scope.write)
    )


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
        and within(after.kv, before.kv)
        and lower(after.limits, before.limits)
    )


@fixed
@given(policies, signers, functions, st.data())
def test_removing_a_grant_never_allows_more(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str], data: st.DataObject
) -> None:
    """Without a grant that only gives, a task may do what it could before or less."""
    index = data.draw(st.integers(0, len(using.grants) - 1))
    giving = replace(using.grants[index], kv=None, limits=())
    rest = (*using.grants[:index], *using.grants[index + 1 :])
    before = authorise(replace(using, grants=(*rest, giving)), signed_by, imported)
    assert at_most(authorise(replace(using, grants=rest), signed_by, imported), before)


@fixed
@given(policies, signers, functions, st.data())
def test_what_is_left_was_granted_by_what_is_left(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str], data: st.DataObject
) -> None:
    """After any removal, each function and the scope stand verbatim in a grant that remains."""
    kept = data.draw(st.lists(st.sampled_from(using.grants), unique=True))
    got = authorise(replace(using, grants=tuple(kept)), signed_by, imported)
    if got is None:
        return
    names = [publisher.name for publisher in signed_by]
    covering = [grant for grant in kept if grant.covers("acme", "thumbs", names)]
    for name in got.functions:
        short = abi.FUNCTIONS[name].module.removeprefix("executor:").removesuffix("@1")
        assert any(short in grant.capabilities for grant in covering)
    assert all(grant.tenant == "acme" and grant.task != "other" for grant in covering)
    assert (got.kv is not None) is bool(imported & KV)
    assert got.kv is None or got.kv in [grant.kv for grant in covering]
    assert got.kv is None or got.kv.write or imported & KV == {"kv_get"}


@fixed
@given(ceilings, signers, functions)
def test_no_grant_reaches_above_a_ceiling(
    ceiling: Ceiling, signed_by: list[Publisher], imported: frozenset[str]
) -> None:
    """With everything granted, just what every ceiling has is allowed."""
    grant = Grant("acme", "*", "tests", "*", frozenset(NAMES), KvScope("", write=True))
    got = authorise(
        Policy(tenants=(Tenant("acme", ceiling),), grants=(grant,)), signed_by, imported
    )
    bounds = [ceiling, *(signer.ceiling for signer in signed_by if signer.ceiling is not None)]
    short = {abi.FUNCTIONS[name].module.partition(":")[2].partition("@")[0] for name in imported}
    inside = all(short - {"task"} <= bound.capabilities for bound in bounds)
    assert (got is not None) is inside
    for bound in bounds if got is not None else ():
        assert got is not None
        assert all(getattr(got.limits, name) <= value for name, value in bound.limits)


@fixed
@given(policies, signers, functions)
def test_without_grants_nothing_but_the_task_itself(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str]
) -> None:
    """No grant means that only a module without capabilities runs."""
    got = authorise(replace(using, grants=()), signed_by, imported)
    needs = {name for name in imported if abi.FUNCTIONS[name].module != abi.TASK}
    assert (got is None) is bool(needs)


@fixed
@given(policies, signers, functions, capabilities, limits)
def test_narrowing_the_tenants_ceiling_never_allows_more(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str],
    kept: frozenset[str], lowered: tuple[tuple[str, int], ...],
) -> None:  # fmt: skip
    """A ceiling with fewer capabilities and lower limits narrows every task below it."""
    (tenant,) = using.tenants
    both = dict(tenant.ceiling.limits)
    both |= {name: min(value, both.get(name, value)) for name, value in lowered}
    narrow = Ceiling(tenant.ceiling.capabilities & kept, tuple(both.items()))
    after = replace(using, tenants=(replace(tenant, ceiling=narrow),))
    assert at_most(
        authorise(after, signed_by, imported), authorise(using, signed_by, imported)
    )  # fmt: skip


@fixed
@given(policies, signers, functions, publishers)
def test_another_signers_ceiling_never_allows_more(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str], more: Publisher
) -> None:
    """A ceiling that is put on one of the signers narrows what the module may do."""
    before = [*signed_by, replace(more, ceiling=None)]
    assert at_most(
        authorise(using, [*signed_by, more], imported), authorise(using, before, imported)
    )  # fmt: skip


@fixed
@given(policies, signers, functions, st.data())
def test_narrowing_a_grant_never_allows_more(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str], data: st.DataObject
) -> None:
    """A capability less, reading for writing, a longer prefix or a lower limit: never more."""
    index = data.draw(st.integers(0, len(using.grants) - 1))
    grant = using.grants[index]
    kv = grant.kv and data.draw(
        st.sampled_from([grant.kv, KvScope(grant.kv.prefix), KvScope(grant.kv.prefix + "c/")])
    )
    both = dict(grant.limits)
    for name, value in data.draw(limits):
        both[name] = min(value, both.get(name, value))
    narrow = replace(
        grant, capabilities=grant.capabilities & data.draw(capabilities), kv=kv,
        limits=tuple(both.items()),
    )  # fmt: skip
    after = replace(using, grants=(*using.grants[:index], narrow, *using.grants[index + 1 :]))
    assert at_most(
        authorise(after, signed_by, imported), authorise(using, signed_by, imported)
    )  # fmt: skip


@fixed
@given(policies, signers, functions)
def test_importing_less_never_needs_more(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str]
) -> None:
    """A module that drops an import is never refused where it was accepted."""
    if authorise(using, signed_by, imported) is None:
        return
    for name in imported:
        got = authorise(using, signed_by, imported - {name})
        assert got is not None
        assert name not in got.functions


@fixed
@given(policies, signers, functions, asked, st.data())
def test_lowering_a_limit_never_raises_one(
    using: Policy, signed_by: list[Publisher], imported: frozenset[str], wanted: dict[str, int],
    data: st.DataObject,
) -> None:  # fmt: skip
    """Host, manifest and request each lower limits, and no limit is above the host's."""
    before = authorise(using, signed_by, imported, wanted)
    if before is None:
        return
    assert lower(before.limits, using.limits)
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    host = replace(using, limits=using.limits.lowered({name: data.draw(amount)}))
    assert at_most(authorise(host, signed_by, imported, wanted), before)
    less = wanted | {"fuel": min(wanted.get("fuel", 9), data.draw(amount))}
    assert at_most(authorise(using, signed_by, imported, less), before)
    for request in (data.draw(limits), (("fuel", 2**53),)):
        assert lower(policy.for_request(before, request), before.limits)
