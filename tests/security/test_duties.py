"""Segregation of duties: the table of who may do what, as one production policy has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from executor import config_document
from executor.cli.policy import matrix_text
from executor.config_document import Document
from executor.core import review
from executor.core.access import ACTIONS, BUILT_IN, Access, Binding, of_key, of_publisher
from executor.core.policy import Policy, Publisher
from executor.core.review import Statement
from executor.core.signature import SecretKey
from tests.support.guests import seed
from tests.support.signers import Team, public

HERE: Final = Path(__file__).parent
KEY: Final = SecretKey(seed("one key")).public


def production(*changes: tuple[str, str]) -> Document:
    """The policy beside this file, as it is or changed."""
    text = (HERE / "policy.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return config_document.parse(text.encode(), name="policy.toml", folder=HERE)


def statement(document: Document) -> Statement:
    """The document as `policy check` looks at it."""
    return Statement(
        Policy(tenants=document.tenants, grants=document.grants, access=document.access,
               requirements=document.requirements),
        document.publishers, (*document.operators, *document.submitters), document.executors,
        document.revoked, document.builders,
    )  # fmt: skip


def test_the_matrix_is_the_committed_one() -> None:
    """Every role by action, and every key by action and tenant: a change is a diff someone reads.

    Made anew: executor policy matrix tests/security/policy.toml > tests/security/matrix.txt
    """
    found = statement(production())
    made = matrix_text(found.policy.access.roles, review.matrix(found))
    assert made == (HERE / "matrix.txt").read_text().rstrip("\n")


def test_no_key_publishes_and_grants() -> None:
    """Of all production keys none both publishes a module and grants it a capability."""
    found = statement(production())
    actions: dict[str, set[str]] = {}
    for row in review.matrix(found):
        actions.setdefault(row.who, set()).add(row.action)
    assert {"acme-build", "zebra-build", "policy-1", "policy-2", "release-desk"} <= set(actions)
    for who, may in actions.items():
        assert len(may & {"publish", "release", "change-policy"}) <= 1, who
    assert review.conflicts(found) == {}
    assert review.findings(found, 0) == []


@pytest.mark.parametrize("first", sorted(BUILT_IN))
@pytest.mark.parametrize("second", sorted(BUILT_IN))
def test_two_roles_of_one_key(first: str, second: str) -> None:
    """Any two built-in roles of one key, in whatever tenants: only publisher and policy-signer
    together are both halves, and they are found.
    """  # noqa: D205
    document = production()
    bindings = (Binding(first, frozenset({of_key(KEY)}), frozenset({"acme"})),
                Binding(second, frozenset({of_key(KEY)}), frozenset({"zebra"})))  # fmt: skip
    access = replace(document.access, bindings=(*document.access.bindings, *bindings))
    publisher = Publisher("both", KEY, ())
    found = statement(
        replace(document, access=access, publishers=(*document.publishers, publisher))
    )
    halves = {first, second} == {"publisher", "policy-signer"}
    assert bool(review.conflicts(found)) is halves


def test_a_publisher_that_grants_in_one_task_is_found() -> None:
    """A right within one task of one tenant is a right; denied where it is given, it is none."""
    document = production()
    half = Binding("policy-signer", frozenset({of_key(KEY)}), frozenset({"acme"}),
                   frozenset({"thumbs"}))  # fmt: skip
    implied = tuple(of_publisher(KEY, ["zebra/report"]))
    for denial, conflict in (((), True), ((replace(half, deny=True),), False)):
        access = Access(document.access.roles, (*document.access.bindings, half, *implied, *denial))
        found = statement(replace(document, access=access, publishers=(
            *document.publishers, Publisher("both", KEY, ("zebra/report",)),
        )))  # fmt: skip
        assert bool(review.conflicts(found)) is conflict


def test_a_publisher_or_host_that_signs_policy_is_found() -> None:
    """Where policy is signed, whoever signs it grants; and neither builds what runs nor runs it."""
    document = production()
    build, host = document.publishers[0].key, document.executors[0].key
    found = replace(statement(document), granters=frozenset({build, host}))
    assert review.conflicts(found) == {of_key(build): {"publish", "change-policy"}}
    whats = [f.what for f in review.findings(found, 0) if f.kind == "duties"]
    assert any("`acme-build` may change-policy and publish" in what for what in whats)
    assert any("executor `host-1` has a key that signs policy" in what for what in whats)


def test_whoever_signs_policy_is_known(tmp_path: Path) -> None:
    """The verified metadata name the keys of `policy`, and those that decide about them."""
    team = Team(tmp_path / "repository")
    verified = team.sign() or team.source(tmp_path / "trusted").refresh(team.store().get)
    assert verified.granters == set(public("ada", "bo", "cy", "pia", "quin"))


_OF_HOST: Final = SecretKey(seed("host-1")).public.text
_OF_BUILD: Final = SecretKey(seed("acme-build")).public.text
_DESK: Final = 'name = "acme-desk"\n'


@pytest.mark.parametrize(
    ("old", "new", "kind", "says"),
    [
        ('who = ["policy-1"', 'who = ["acme-build"', "duties", "change-policy and publish"),
        (_OF_HOST, _OF_BUILD, "duties", "executor `host-1` has the key of publisher `acme-build`"),
        ('tasks = ["acme/*"]', 'tasks = ["*/*"]', "wildcard", "signs for every tenant"),
        ('tasks = ["zebra/report"]', 'tasks = ["zebra/report"]\nnot_after = 2020-01-01', "expired",
         "key of `zebra-build` has ended"),
        (_DESK, f"{_DESK}not_after = 2020-01-01\n", "expired", "key of `acme-desk` has ended"),
        (_DESK, f"{_DESK}not_after = 2020-01-01\n", "idle", "binding of `desk`"),
        ('why = "stores', 'not_after = 2020-01-01\nwhy = "stores', "expired", "acme/thumbs"),
        ('tenants = ["zebra"]', 'tenants = ["zebre"]', "idle", "no tenant that is configured"),
        ("[[role]]", '[[role]]\nname = "x"\nactions = []\n[[role]]', "idle", "the role `x`"),
        ('signer = "acme-build"', 'signer = "acme-bild"', "idle", "no publisher has that name"),
        ('why = "log lines', 'kv = { prefix = "all/" }\nwhy = "log lines', "keys",
         "prefixes `all/`, `thumbs/`: where they meet its guest names keys below ``"),
        ('capabilities = ["log", "kv"]', 'capabilities = ["log"]', "idle", "gives kv, which is"),
    ],
)  # fmt: skip
def test_what_should_not_stand_there_is_found(old: str, new: str, kind: str, says: str) -> None:
    """Each finding of `policy check`, planted."""
    found = review.findings(statement(production((old, new))), 1_700_000_000_000)
    assert [f for f in found if f.kind == kind and says in f.what]


def test_revoked_keys_are_nobody() -> None:
    """A revoked key is in no row of the matrix, and its bindings are idle."""
    key_id = SecretKey(seed("on-call")).public.key_id.hex()
    found = statement(production(('[[tenant]]\nname = "acme"', f'revoked = ["{key_id}"]\n'
                                  '[[tenant]]\nname = "acme"')))  # fmt: skip
    assert "on-call" not in {row.who for row in review.matrix(found)}
    assert "nobody can use the binding of `operator`" in review.findings(found, 1)[0].what


def test_every_action_has_a_role() -> None:
    """No action that policy knows is in nobody's reach by design."""
    assert {action for actions in BUILT_IN.values() for action in actions} == set(ACTIONS)


# What changes.


def effects(*changes: tuple[str, str]) -> set[tuple[str, str, str, int, int]]:
    """What a change of the policy does."""
    found = review.diff(statement(production()), statement(production(*changes)))
    back = review.diff(statement(production(*changes)), statement(production()))
    turned = {(c.where, c.who, c.what, c.after, c.before) for c in back}
    rows = {(c.where, c.who, c.what, c.before, c.after) for c in found}
    assert rows == turned
    return rows


def test_nothing_changes_by_other_words() -> None:
    """Reasons, order and names of roles are no effect."""
    assert effects() == set()
    assert effects(("stores thumbnails", "for the pictures")) == set()


_MIB: Final = 1024 * 1024


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("memory_max_mib = 32", "memory_max_mib = 16"), {
            ("acme/thumbs", "acme-build", f"{name} with memory_bytes", 32 * _MIB, 16 * _MIB)
            for name in ("kv_delete", "kv_get", "kv_put")
        }),
        (('mode = "write"', 'mode = "read"'), {
            ("acme/thumbs", "acme-build", what, 1, 0)
            for name in ("kv_delete", "kv_put") for what in (name, f"{name} of thumbs/*")
        }),
        (('prefix = "thumbs/"', 'prefix = "pictures/"'), {
            ("acme/thumbs", "acme-build", f"{name} of {prefix}/*", *values)
            for name in ("kv_delete", "kv_get", "kv_put")
            for prefix, values in (("thumbs", (1, 0)), ("pictures", (0, 1)))
        }),
        (('who = ["zebra-app"]\ntenants = ["zebra"]', 'who = ["zebra-app"]\ntasks = ["report"]'), {
            *[("zebra/*", "zebra-app", f"may {a}", 1, 0) for a in ("submit", "cancel")],
            *[(f"{t}/report", "zebra-app", f"may {a}", 0, 1)
              for a in ("submit", "cancel") for t in ("*", "acme", "zebra")],
        }),
        (("roles = []", 'roles = ["reader"]'), {("zebra/*", "tenant:zebra", "may read", 0, 1)}),
        (('task = "thumbs"\nsigner', 'task = "other"\nsigner'), {
            ("acme/" + task, "acme-build", what, *values)
            for name in ("kv_delete", "kv_get", "kv_put")
            for what in (name, f"{name} of thumbs/*")
            for task, values in (("thumbs", (1, 0)), ("other", (0, 1)))
        }),
        (('[[publisher]]\nname = "acme-build"', '[[requirement]]\ntasks = ["acme/thumbs"]\n'
          'signatures = 2\n[[publisher]]\nname = "acme-build"'), {
            ("acme/thumbs", "acme-build", what, 1, 0)
            for what in ("run", "log_write", "kv_delete", "kv_get", "kv_put",
                         *(f"kv_{n} of thumbs/*" for n in ("delete", "get", "put")))
        }),
    ],
    ids=["limit", "mode", "prefix", "binding", "role", "task", "signatures"],
)  # fmt: skip
def test_what_a_change_does(
    change: tuple[str, str], expected: set[tuple[str, str, str, int, int]]
) -> None:
    """By effect: who gains, who loses, in which task; there and back are the same rows."""
    assert effects(change) == expected
