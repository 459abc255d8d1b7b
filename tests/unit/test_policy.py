"""Policy: authority is an intersection, and a refusal names all that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import pytest

from executor.core import abi, policy
from executor.core.manifest import Manifest, Want
from executor.core.policy import Ceiling, Grant, Import, Policy, Publisher, Requirement, Tenant
from executor.core.scopes import EVERY
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import Authority, Fallback, KvScope, Limits

ALL: Final = frozenset({"log", "clock", "random", "kv"})
KEY: Final = PublicKey(bytes([7]) * 32)
ACME: Final = Tenant("acme", Ceiling(ALL))
CI: Final = Publisher("ci", KEY, ("acme/*",))
OTHER: Final = Publisher("other", PublicKey(bytes([8]) * 32), ("acme/*",))
READ, WRITE = KvScope("thumbs/"), KvScope("thumbs/", write=EVERY)
GRANT: Final = Grant("acme", "thumbs", "why", capabilities=ALL, kv=WRITE)
POLICY: Final = Policy(tenants=(ACME,), grants=(GRANT,), attempts_max=4)
EXPORTS: Final = (("memory", "memory"), ("run", "->i32"))


def imports_of(*names: str) -> list[Import]:
    """Imports as the compiler reports them."""
    found = [abi.FUNCTIONS[name] for name in names]
    return [(f.module, f.name, policy.spell(f.params, f.results)) for f in found]


def manifest_of(*names: str, limits: tuple[tuple[str, int], ...] = ()) -> Manifest:
    """A manifest that wants the capabilities of these functions."""
    modules = sorted({abi.FUNCTIONS[name].module for name in names} - {abi.TASK})
    return Manifest("thumbs", "1.0.0", wants=tuple(map(Want, modules)), limits=limits)


def authorise(
    *names: str, using: Policy = POLICY, signers: Sequence[Publisher] = (CI,),
    manifest: Manifest | None = None, tenant: str = "acme", task: str = "thumbs",
) -> Authority:  # fmt: skip
    """What a module that imports these functions may do."""
    return policy.authorise(
        using, tenant=tenant, task=task, manifest=manifest or manifest_of(*names),
        imports=imports_of(*names), signers=signers,
    )  # fmt: skip


def denial(*names: str, using: Policy, signers: Sequence[Publisher] = (CI,)) -> ExecutorError:
    """The refusal of a module that imports these functions."""
    with pytest.raises(ExecutorError) as caught:
        authorise(*names, using=using, signers=signers)
    assert caught.value.code == "policy.capability-denied"
    return caught.value


# The ABI.


@pytest.mark.parametrize(
    "exports",
    [
        EXPORTS,
        (*EXPORTS, ("_initialize", "->")),
        (*EXPORTS, ("other", "i32->i32"), ("__data_end", "global")),
    ],
    ids=["smallest", "with _initialize", "with others"],
)
def test_a_task_of_profile_core(exports: Sequence[tuple[str, str]]) -> None:
    """`memory` and `run` make a task; `_initialize` may be there; nothing else is read."""
    policy.check_abi(imports_of(*abi.FUNCTIONS), exports)


@pytest.mark.covers("module.abi-mismatch")
@pytest.mark.parametrize(
    "exports",
    [
        (),
        (("run", "->i32"),),
        (("memory", "global"), ("run", "->i32")),
        (("memory", "memory"),),
        (("memory", "memory"), ("run", "->")),
        (("memory", "memory"), ("run", "i32->i32")),
        (("memory", "memory"), ("run", "->i64")),
        (("memory", "memory"), ("run", "memory")),
        (*EXPORTS, ("_initialize", "->i32")),
        (*EXPORTS, ("_initialize", "i32->")),
        (*EXPORTS, ("_start", "->")),
    ],
    ids=[
        "nothing", "no memory", "memory is a global", "no run", "run gives nothing",
        "run takes something", "run gives i64", "run is a memory", "_initialize gives something",
        "_initialize takes something", "command",
    ],
)  # fmt: skip
def test_other_exports_are_no_task(exports: Sequence[tuple[str, str]]) -> None:
    """Each way of missing the ABI is refused before any code runs."""
    with pytest.raises(ExecutorError) as caught:
        policy.check_abi((), exports)
    assert caught.value.code == "module.abi-mismatch"


@pytest.mark.covers("module.import-unknown")
def test_every_unknown_import_is_named_at_once() -> None:
    """The author learns of all imports that nothing offers, not of the first one."""
    wrong = [
        ("env", "abort", "->"), ("executor:kv@1", "kv_steal", "->"), ("executor:log@1", "kv_get",
        "i32 i32 i32 i32->i64"), ("executor:kv@2", "kv_get", "i32 i32 i32 i32->i64"),
    ]  # fmt: skip
    with pytest.raises(ExecutorError) as caught:
        policy.check_abi([*imports_of("log_write"), *wrong], EXPORTS)
    assert caught.value.code == "module.import-unknown"
    assert caught.value.detail == (
        "`env.abort`, `executor:kv@1.kv_steal`, `executor:log@1.kv_get`, `executor:kv@2.kv_get`"
    )


def test_the_list_of_unknown_imports_is_bounded() -> None:
    """A module cannot make a refusal as long as it likes."""
    with pytest.raises(ExecutorError) as caught:
        policy.check_abi([("env", f"f{n}", "->") for n in range(1_000)], EXPORTS)
    assert caught.value.detail.count("`env.") == 16


@pytest.mark.covers("module.abi-mismatch")
def test_an_import_has_the_types_of_the_abi() -> None:
    """A known function with other types is named with both."""
    with pytest.raises(ExecutorError) as caught:
        policy.check_abi([("executor:kv@1", "kv_get", "i32->i32")], EXPORTS)
    assert caught.value.code == "module.abi-mismatch"
    assert caught.value.detail == (
        "`kv_get` is imported as `i32->i32`, it is `i32 i32 i32 i32->i64`"
    )


# Authority.


def test_authority_is_what_was_imported_and_granted() -> None:
    """Of what is granted a module gets what it imports, and nothing beside it."""
    got = authorise("input_read", "log_write", "kv_get")
    assert got.functions == {"log_write", "kv_get"}
    assert (got.kv, got.attempts_max) == (WRITE, 4)
    assert authorise("log_write").kv is None
    assert authorise("input_len") == Authority(attempts_max=4)


@pytest.mark.covers("policy.task-unknown")
def test_a_tenant_that_nobody_configured_has_nothing() -> None:
    """Without a [[tenant]] not even a module without imports runs."""
    for using in (Policy(), replace(POLICY, tenants=(Tenant("other"),))):
        with pytest.raises(ExecutorError) as caught:
            authorise(using=using)
        assert caught.value.code == "policy.task-unknown"


@pytest.mark.covers("policy.capability-denied")
def test_everything_that_is_missing_is_named_at_once() -> None:
    """One refusal names each function, the lines that grant them, and the ceiling to raise."""
    some = Grant("acme", "thumbs", "why", capabilities=frozenset({"log"}))
    using = Policy(tenants=(Tenant("acme", Ceiling(frozenset({"log", "kv"}))),), grants=(some,))
    error = denial("log_write", "clock_now_ns", "kv_get", "kv_put", "random_fill", using=using)
    assert error.detail == "`clock_now_ns`, `kv_get`, `kv_put`, `random_fill`"
    assert error.hint == (
        "add under [[grant]] of tenant `acme`, task `thumbs`, a line each: clock = true; "
        'kv = { prefix = "", mode = "write" }; random = true; '
        "and raise the tenant's ceiling by clock, random"
    )
    assert error.facts == {"granted": "log"}


@pytest.mark.covers("policy.capability-denied")
def test_no_policy_allows_nothing() -> None:
    """A tenant without grants, or with an empty ceiling, gets no function at all."""
    for using in (replace(POLICY, grants=()), replace(POLICY, tenants=(Tenant("acme"),))):
        error = denial("log_write", using=using)
        assert error.facts == {"granted": "nothing"}


@pytest.mark.parametrize(
    ("functions", "line"),
    [
        (["log_write"], "log = true"),
        (["kv_get"], 'kv = { prefix = "", mode = "read" }'),
        (["kv_get", "kv_put"], 'kv = { prefix = "", mode = "write" }'),
        (["kv_delete"], 'kv = { prefix = "", mode = "write" }'),
    ],
)
def test_grant_lines(functions: list[str], line: str) -> None:
    """The printed line grants just what the functions need."""
    assert policy.grant_line(abi.FUNCTIONS[functions[0]].module, functions) == line


@pytest.mark.parametrize(
    ("change", "covers"),
    [
        ({}, True),
        ({"task": "*"}, True),
        ({"task": "other"}, False),
        ({"tenant": "other"}, False),
        ({"tenant": "*"}, False),
        ({"signer": "ci"}, True),
        ({"signer": "stranger"}, False),
    ],
)
def test_whom_a_grant_covers(change: dict[str, str], *, covers: bool) -> None:
    """Task and signer may be any, the tenant never."""
    grant = replace(GRANT, **change)  # type: ignore[arg-type]
    assert grant.covers("acme", "thumbs", ["x", "ci"]) is covers
    using = replace(POLICY, grants=(grant,))
    if covers:
        assert authorise("log_write", using=using).functions == {"log_write"}
    else:
        denial("log_write", using=using)


def test_grants_add_up() -> None:
    """Two grants together allow what each of them allows."""
    one = Grant("acme", "*", "why", capabilities=frozenset({"log"}))
    two = Grant("acme", "thumbs", "why", signer="ci", capabilities=frozenset({"clock"}))
    using = replace(POLICY, grants=(one, two))
    assert authorise("log_write", "clock_now_ns", using=using)
    denial("log_write", "random_fill", using=using)


@pytest.mark.covers("policy.capability-denied")
def test_the_ceilings_bound_every_grant() -> None:
    """Neither a tenant nor a signer gets above its ceiling, whoever grants it."""
    below = replace(POLICY, tenants=(Tenant("acme", Ceiling(ALL - {"kv"})),))
    assert denial("kv_get", using=below).hint == "raise the tenant's ceiling by kv"
    bounded = replace(CI, ceiling=Ceiling(frozenset({"log"})))
    assert authorise("log_write", signers=[bounded])
    error = denial("log_write", "kv_get", "kv_put", using=POLICY, signers=[bounded])
    assert error.hint == "raise a publisher's ceiling by kv"
    assert (error.detail, error.facts) == ("`kv_get`, `kv_put`", {"granted": "log"})


def test_a_second_signature_takes_nothing_away() -> None:
    """What one of two signers vouches for is vouched for: to revoke the other adds nothing."""
    bounded = replace(OTHER, ceiling=Ceiling(frozenset({"log"}), (("fuel", 5), ("calls", 5))))
    for signers in ([CI, bounded], [bounded, CI]):
        got = authorise("kv_get", signers=signers)
        assert got.limits.fuel == POLICY.limits.fuel
    # The same key twice is one signer, with all that its entries have.
    twice = [bounded, replace(bounded, ceiling=Ceiling(ALL, (("fuel", 7),)))]
    assert authorise("kv_get", signers=twice).limits.fuel == 7


@pytest.mark.covers("module.signer-untrusted")
def test_as_many_vouch_as_have_to_sign() -> None:
    """Where two must sign, two must vouch: one signer's ceiling bounds a module of two."""
    two = replace(POLICY, requirements=(Requirement(("acme/*",), 2), Requirement(("x/*",), 9)))
    bounded = replace(OTHER, ceiling=Ceiling(frozenset({"log"}), (("fuel", 5),)))
    assert authorise("log_write", using=two, signers=[CI, bounded]).limits.fuel == 5
    assert "publisher's" in denial("kv_get", using=two, signers=[CI, bounded]).hint
    third = replace(CI, name="third", key=PublicKey(bytes([9]) * 32))
    assert authorise("kv_get", using=two, signers=[CI, bounded, third]).kv == WRITE
    for signers in ([], [CI], [CI, replace(CI, name="again")]):
        with pytest.raises(ExecutorError) as caught:
            authorise(using=two, signers=signers)
        assert caught.value.code == "module.signer-untrusted"


def test_limits_are_the_minimum_of_all_sides() -> None:
    """Host, tenant, signer, requirement, grant and manifest each only lower a limit."""
    using = Policy(
        limits=Limits(fuel=100, calls=100, deadline_ms=100, memory_bytes=100, output_bytes=100),
        tenants=(Tenant("acme", Ceiling(ALL, (("fuel", 50), ("calls", 999)))),),
        grants=(replace(GRANT, limits=(("deadline_ms", 40), ("fuel", 60))),),
        requirements=(Requirement(("acme/thumbs",), limits=(("log_lines", 3),)),),
    )
    signer = replace(CI, ceiling=Ceiling(ALL, (("memory_bytes", 30),)))
    asked = (("fuel", 45), ("host_calls", 20), ("output_bytes", 999))
    manifest = manifest_of("log_write", limits=asked)
    got = authorise("log_write", using=using, signers=[signer], manifest=manifest)
    assert got.limits == replace(
        using.limits, fuel=45, calls=20, deadline_ms=40, memory_bytes=30, log_lines=3
    )  # fmt: skip
    assert policy.for_request(got, [("fuel", 46), ("deadline_ms", 1), ("x", 1)]) == replace(
        got.limits, deadline_ms=1
    )
    weighed = policy.weigh(
        using, tenant="acme", task="thumbs", manifest=manifest, at=0, signers=[signer],
        imports=imports_of("log_write"),
    )  # fmt: skip
    by = {name: side for name, _, side in weighed.limits}
    assert {by[n] for n in by if n not in dict(got_sides())} == {"host"}
    assert {name: by[name] for name in dict(got_sides())} == dict(got_sides())


def got_sides() -> list[tuple[str, str]]:
    """Which side lowered which limit above."""
    return [
        ("fuel", "module"), ("calls", "module"), ("deadline_ms", "grant"),
        ("memory_bytes", "signer"), ("log_lines", "requirement"),
    ]  # fmt: skip


def test_a_grants_limits_hold_for_what_it_gives() -> None:
    """Of several grants of a function the highest limit counts; of several functions the lowest."""
    general = Grant("acme", "*", "why", capabilities=frozenset({"log"}))
    low = (("fuel", 10), ("calls", 10))
    specific = replace(GRANT, capabilities=frozenset({"kv"}), limits=low)
    using = replace(POLICY, grants=(general, specific))
    assert authorise("log_write", using=using).limits == POLICY.limits
    assert authorise("log_write", "kv_get", using=using).limits.fuel == 10
    reads = replace(specific, kv=READ, limits=(("fuel", 20),))
    both = replace(POLICY, grants=(general, specific, reads))
    got = authorise("kv_get", using=both).limits
    assert (got.fuel, got.calls) == (20, POLICY.limits.calls)
    # Writing comes with the first alone.
    assert authorise("kv_get", "kv_put", using=both).limits.fuel == 10


def test_a_grant_ends() -> None:
    """After its `not_after` a grant is none, and what it gave says when that is."""
    ending = replace(GRANT, not_after=50)
    using = replace(POLICY, grants=(ending, replace(ending, not_after=70), GRANT))
    assert authorise("log_write", using=using).not_after == 50
    using = replace(POLICY, grants=(ending,))
    arguments = {
        "tenant": "acme", "task": "thumbs", "manifest": manifest_of("log_write"),
        "imports": imports_of("log_write"), "signers": [CI],
    }  # fmt: skip
    assert policy.authorise(using, at=50, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ExecutorError):
        policy.authorise(using, at=51, **arguments)  # type: ignore[arg-type]


@pytest.mark.covers("module.manifest-invalid")
def test_wants_cover_the_imports() -> None:
    """A module that imports what its signed manifest does not ask for is refused, all named."""
    with pytest.raises(ExecutorError) as caught:
        authorise("log_write", "kv_get", "clock_now_ns", manifest=manifest_of("log_write"))
    assert caught.value.code == "module.manifest-invalid"
    assert "`executor:clock@1`, `executor:kv@1`" in caught.value.detail


def test_wanting_more_than_is_imported_is_harmless() -> None:
    """A want without an import grants nothing and refuses nothing."""
    asked = manifest_of("log_write", "kv_get")
    using = replace(POLICY, grants=(replace(GRANT, capabilities=frozenset({"log"}), kv=None),))
    assert authorise("log_write", manifest=asked, using=using).functions == {"log_write"}


# kv.


@pytest.mark.covers("policy.capability-denied")
def test_reading_is_not_writing() -> None:
    """A grant to read covers `kv_get` alone."""
    reading = replace(POLICY, grants=(replace(GRANT, kv=READ),))
    assert authorise("kv_get", using=reading).kv == READ
    for write in ("kv_put", "kv_delete"):
        assert authorise("kv_get", write).kv == WRITE
        error = denial("kv_get", write, using=reading)
        assert error.detail == f"`{write}`"
        assert 'mode = "write"' in error.hint


def test_kv_without_a_scope_is_nothing() -> None:
    """The bare name of the capability opens no bucket."""
    denial("kv_get", using=replace(POLICY, grants=(replace(GRANT, kv=None),)))


def test_scopes_of_several_grants_add_up() -> None:
    """Keys that one grant gives are not lost to another one, whatever its task or signer."""
    wide = replace(GRANT, task="*", kv=KvScope("thumbs/"))
    narrow = replace(GRANT, signer="ci", kv=KvScope("thumbs/small/", write=EVERY))
    for grants in ((wide, narrow), (narrow, wide)):
        got = authorise("kv_get", "kv_put", using=replace(POLICY, grants=grants)).kv
        assert got == KvScope("thumbs/", write=("small/*",))
    assert authorise("kv_put", using=replace(POLICY, grants=(narrow,))).kv == narrow.kv
    denial("kv_put", using=replace(POLICY, grants=(wide,)))


# Publishers.


@pytest.mark.parametrize(
    ("patterns", "may"),
    [
        ((), False), (("acme/thumbs",), True), (("acme/*",), True), (("*/*",), True),
        (("*/thumbs",), True), (("acme/other",), False), (("other/*",), False), (("acme",), False),
        (("acme/thumb",), False), (("other/*", "acme/thumbs"), True), (("acme/thumbs/x",), False),
    ],
)  # fmt: skip
def test_for_which_tasks_a_key_signs(patterns: tuple[str, ...], *, may: bool) -> None:
    """Patterns compare part by part, never by prefix."""
    assert Publisher("ci", KEY, patterns).may_sign("acme", "thumbs") is may


# Fallbacks.


def test_a_fallback_has_no_wider_scope() -> None:
    """The other module's keys and end are bounded by those of the task."""
    bound = Authority(frozenset({"kv_get"}), READ, not_after=9)
    other = Authority(frozenset({"kv_get"}), KvScope("thumbs/", ("small/*",)))
    assert policy.within(other, bound) == replace(other, not_after=9)
    for kv in (KvScope(), WRITE):
        with pytest.raises(ExecutorError) as caught:
            policy.within(replace(other, kv=kv), bound)
        assert caught.value.code == "policy.capability-denied"


def test_whose_fallback_it_is() -> None:
    """The grant for the task before the one for all, the signer's before anybody's; none after."""
    own, any_, ended = (Fallback(frozenset({"guest.trap"}), bytes([n])) for n in range(3))
    using = replace(POLICY, grants=(
        replace(GRANT, task="*", fallback=any_), replace(GRANT, fallback=own),
        replace(GRANT, signer="ci", fallback=ended, not_after=5), GRANT,
    ))  # fmt: skip
    assert policy.fallback_for(using, "acme", "thumbs", ["ci"], 5) is ended
    assert policy.fallback_for(using, "acme", "thumbs", ["ci"], 6) is own
    assert policy.fallback_for(using, "acme", "other", [], 6) is any_
    assert policy.fallback_for(using, "zebra", "other", []) is None


@pytest.mark.parametrize(
    ("other", "wider"),
    [
        ({}, False),
        ({"capabilities": frozenset({"log"}), "kv": None}, False),
        ({"kv": KvScope("thumbs/small/")}, False),
        ({"kv": KvScope("")}, True),
        ({"capabilities": ALL}, True),
    ],
)
def test_what_a_fallback_could_reach(other: dict[str, object], *, wider: bool) -> None:
    """A module of another task stands in only where that task is granted no more."""
    mine = replace(
        GRANT, capabilities=frozenset({"log", "kv"}),
        fallback=Fallback(frozenset({"guest.trap"}), task="simple"),
    )  # fmt: skip
    simple = replace(mine, task="simple", **other)  # type: ignore[arg-type]
    assert policy.is_wider(replace(POLICY, grants=(mine, simple)), mine) is wider
    assert not policy.is_wider(POLICY, GRANT)
    fixed = replace(mine, fallback=Fallback(frozenset({"guest.trap"}), b"x"))
    assert not policy.is_wider(POLICY, fixed)


def test_a_fallback_does_nothing_that_its_task_may_not() -> None:
    """A function that the task's module does not have is refused by name."""
    with pytest.raises(ExecutorError) as caught:
        policy.within(Authority(frozenset({"kv_get", "log_write"})), Authority())
    assert caught.value.detail == "`kv_get`, `log_write`"
