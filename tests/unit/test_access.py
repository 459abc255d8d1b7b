"""Who may do what: roles, bindings, denials, and what is implied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from executor import config_document
from executor.core import access
from executor.core.access import (
    ACTIONS,
    BUILT_IN,
    Access,
    Binding,
    Party,
    of_key,
    of_publisher,
    of_roles,
    of_tenant,
)
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError

KEY: Final = SecretKey(bytes([1]) * 32).public
OTHER: Final = SecretKey(bytes([2]) * 32).public
WHO: Final = frozenset({of_key(KEY)})
SOME: Final = frozenset({"acme"})


def may(*bindings: Binding, action: str = "pause", where: str = "acme/hello", by: str = "") -> bool:
    """Whether the key may do it under these bindings."""
    tenant, _, task = where.partition("/")
    return Access(bindings=bindings).may(of_key(KEY), action, tenant, task, by).allowed


@pytest.mark.parametrize(
    ("change", "where", "allowed"),
    [
        ({}, "acme/hello", True),
        ({}, "*/*", True),
        ({"tenants": SOME}, "acme/hello", True),
        ({"tenants": SOME}, "acme/*", True),
        ({"tenants": SOME}, "other/hello", False),
        ({"tenants": SOME}, "*/hello", False),
        ({"tasks": frozenset({"hello"})}, "acme/hello", True),
        ({"tasks": frozenset({"hello"})}, "acme/other", False),
        ({"tasks": frozenset({"hello"})}, "acme/*", False),
        ({"who": frozenset({of_key(OTHER)})}, "acme/hello", False),
        ({"role": "reader"}, "acme/hello", False),
    ],
)
def test_what_a_binding_allows(change: dict[str, object], where: str, *, allowed: bool) -> None:
    """A role is had by whom, and within which tenants and tasks, its binding says."""
    given = replace(Binding("operator", WHO), **change)  # type: ignore[arg-type]
    assert may(given, where=where) is allowed


@pytest.mark.parametrize(
    ("tenants", "tasks", "where", "allowed"),
    [
        ({"*"}, {"*"}, "acme/hello", False),
        ({"acme"}, {"hello"}, "acme/hello", False),
        ({"acme"}, {"hello"}, "acme/other", True),
        ({"acme"}, {"hello"}, "other/hello", True),
        ({"acme"}, {"hello"}, "acme/*", False),
        ({"acme"}, {"hello"}, "*/hello", False),
        ({"acme"}, {"hello"}, "*/*", False),
        ({"acme"}, {"hello"}, "other/*", True),
        ({"acme"}, {"hello"}, "*/other", True),
    ],
)
def test_a_denial_wins(tenants: set[str], tasks: set[str], where: str, *, allowed: bool) -> None:
    """Before or after what allows; a denial of a part denies what asks for all, and no more."""
    given = Binding("operator", WHO)
    denial = Binding("operator", WHO, frozenset(tenants), frozenset(tasks), True, "gone")
    assert may(given, denial, where=where) is may(denial, given, where=where) is allowed
    decision = Access(bindings=(given, denial)).may(of_key(KEY), "pause", "acme", "hello")
    if where == "acme/hello":
        assert decision.why == "`operator` is denied to it: gone"


def test_a_signer_beside_the_tenant() -> None:
    """A second principal may what either may, and not what either is denied."""
    tenant = of_tenant("acme")
    by_key = Binding("submitter", WHO)
    table = Access(bindings=(by_key,))
    assert not table.may(tenant, "submit", "acme", "hello").allowed
    assert table.may(tenant, "submit", "acme", "hello", of_key(KEY)).allowed
    denied = Binding("submitter", frozenset({tenant}), deny=True)
    both = Access(bindings=(by_key, denied))
    assert not both.may(tenant, "submit", "acme", "hello", of_key(KEY)).allowed
    assert both.may(of_key(KEY), "submit", "acme", "hello").allowed


def test_nothing_is_allowed_to_nobody() -> None:
    """Without bindings every action is denied, and says so."""
    for action in ACTIONS:
        decision = Access().may(of_key(KEY), action, "acme", "hello")
        assert (decision.allowed, decision.why) == (False, f"no role of it has `{action}` there")


def test_decisions_are_kept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision is made once for a policy; names that somebody invents fill no memory."""
    monkeypatch.setattr(access, "_KNOWN_MAX", 3)
    table = Access(bindings=(Binding("operator", WHO),))
    first = table.may(of_key(KEY), "pause", "acme", "t0")
    assert table.may(of_key(KEY), "pause", "acme", "t0") is first
    for number in range(10):
        table.may(of_key(KEY), "pause", "acme", f"t{number}")
        assert len(table._known) <= 3
    assert table == Access(bindings=(Binding("operator", WHO),))


def test_built_in_roles_are_apart() -> None:
    """No role that is built in both publishes and grants, or either of them and releases."""
    duties = {"publish", "release", "change-policy"}
    assert all(len(actions & duties) <= 1 for actions in BUILT_IN.values())
    assert frozenset().union(*BUILT_IN.values()) == set(ACTIONS)


def test_what_is_implied() -> None:
    """A tenant's token has its roles in its tenant, a publisher's key its role in its tasks."""
    table = Access(bindings=(
        *of_roles("acme", ["submitter"]), *of_publisher(KEY, ["acme/hello", "*/shared"]),
    ))  # fmt: skip
    allowed = {
        (action, where)
        for action in ("submit", "publish", "read")
        for where in ("acme/hello", "acme/other", "zebra/shared", "zebra/hello")
        for who in (of_tenant("acme"), of_key(KEY))
        if table.may(who, action, *where.split("/")).allowed
    }
    assert allowed == {
        ("submit", "acme/hello"), ("submit", "acme/other"),
        ("publish", "acme/hello"), ("publish", "zebra/shared"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("at", "valid"), [(4, False), (5, True), (9, True), (10, False)]
)  # fmt: skip
def test_when_a_key_counts(at: int, *, valid: bool) -> None:
    """From its first to its last millisecond."""
    assert Party("olga", KEY, 5, 9).valid_at(at) is valid
    assert Party("olga", KEY).valid_at(at)


# From a document.

_TEXT: Final = f"""
[[tenant]]
name = "acme"
roles = ["caller"]
[[operator]]
name = "olga"
key = "{KEY.text}"
[[publisher]]
name = "ci"
key = "{OTHER.text}"
tasks = ["acme/hello"]
[[role]]
name = "caller"
actions = ["submit"]
[[binding]]
role = "operator"
who = ["olga"]
tenants = ["acme"]
why = "on call"
[[binding]]
role = "publisher"
who = ["ci"]
tasks = ["other"]
why = "more tasks"
[[binding]]
role = "caller"
who = ["tenant:acme"]
tasks = ["closed"]
deny = true
why = "not yet"
"""


def parse(text: str) -> Access:
    """The table of a policy file."""
    return config_document.parse(text.encode(), name="policy.toml", folder=Path()).access


def test_a_document_makes_the_table() -> None:
    """Names of parties become principals; roles of one's own and denials count."""
    table = parse(_TEXT)
    ci: PublicKey = OTHER
    assert table.may(of_key(KEY), "pause", "acme", "hello").allowed
    assert not table.may(of_key(KEY), "pause", "zebra", "hello").allowed
    assert table.may(of_key(ci), "publish", "acme", "hello").allowed
    assert table.may(of_key(ci), "publish", "acme", "other").allowed
    assert table.may(of_tenant("acme"), "submit", "acme", "hello").allowed
    assert not table.may(of_tenant("acme"), "submit", "acme", "closed").allowed
    assert not table.may(of_tenant("acme"), "read", "acme", "hello").allowed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('actions = ["submit"]', 'actions = ["sumbit"]', "`sumbit`, which is none of submit"),
        ('role = "operator"', 'role = "operater"', "did you mean `operator`"),
        ('who = ["olga"]', 'who = ["olge"]', "did you mean `olga`"),
        ('roles = ["caller"]', 'roles = ["callers"]', "did you mean `caller`"),
        ('name = "caller"', 'name = "reader"', "is a second role `reader`"),
        ('why = "on call"', "", "`why` is missing"),
        ('why = "on call"', 'why = " "', "`why` is empty"),
        ('tenants = ["acme"]', 'tenants = ["a.b"]', "neither"),
        ("deny = true", "denies = true", "unknown key `binding.denies`"),
        ("deny = true", "dney = true", "unknown key `binding.dney`"),
    ],
)
def test_what_nobody_knows_is_refused_at_load(old: str, new: str, says: str) -> None:
    """An unknown action, role, party or field is an error when policy is read, never when asked."""
    assert old in _TEXT
    with pytest.raises(ExecutorError) as caught:
        parse(_TEXT.replace(old, new))
    assert caught.value.code in {"config.invalid", "config.key-unknown"}
    assert says in caught.value.detail
