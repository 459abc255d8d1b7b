"""What policy asks for beyond one signature, and how it is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from executor import config as configs
from executor import config_document
from executor.core.policy import Policy, Publisher, Required, Requirement
from executor.core.signature import SecretKey
from executor.errors import ExecutorError

A, B = (SecretKey(bytes([n]) * 32).public for n in (1, 2))
DAY_MS: Final = 24 * 3600 * 1000
PUBLISHER: Final = f'[[publisher]]\nname = "ci"\nkey = "{A.text}"\ntasks = ["*/*"]\n'
BUILDER: Final = f'[[builder]]\nname = "farm"\nkey = "{B.text}"\n'
REQUIREMENT: Final = '[[requirement]]\ntasks = ["acme/*"]\nsignatures = 2\nbuilders = ["farm"]\n'


def read(text: str) -> configs.Config:
    """A configuration of these tables."""
    return configs.parse(text, folder=Path(), name="test.toml", environ={})


def refused(text: str) -> str:
    """What is wrong with it."""
    with pytest.raises(ExecutorError) as caught:
        read(text)
    return caught.value.message


def test_nothing_more_is_asked_by_default() -> None:
    """One publisher and no provenance, for a task that no requirement speaks of."""
    assert Policy().required("acme", "hello") == Required(1, None)
    policy = Policy(requirements=(Requirement(("other/*",), 3, ("farm",)),))
    assert policy.required("acme", "hello") == Required(1, None)


def test_every_requirement_has_to_hold() -> None:
    """The most signatures count, and a builder that all lists name."""
    policy = Policy(
        requirements=(
            Requirement(("*/*",), 2),
            Requirement(("acme/*",), 1, ("farm", "laptop")),
            Requirement(("acme/pay",), 3, ("farm", "vault")),
            Requirement(("acme/odd",), 1, ("vault",)),
        )
    )
    assert policy.required("zebra", "x") == Required(2, None)
    assert policy.required("acme", "x") == Required(2, frozenset({"farm", "laptop"}))
    assert policy.required("acme", "pay") == Required(3, frozenset({"farm"}))
    # Lists that contradict each other accept nobody, which is not the same as not to ask.
    assert policy.required("acme", "odd") == Required(2, frozenset())


def test_another_requirement_never_asks_for_less() -> None:
    """Adding a row keeps or raises the number, keeps or narrows the builders."""
    rows = (
        Requirement(("acme/*",), 2, ("a", "b")), Requirement(("*/*",), 1, ("b", "c")),
        Requirement(("acme/hello",), 3), Requirement(("*/hello",), 1, ("d",)),
    )  # fmt: skip
    before = Required()
    for count in range(1, len(rows) + 1):
        after = Policy(requirements=rows[:count]).required("acme", "hello")
        assert after.signatures >= before.signatures
        assert before.builders is None or (
            after.builders is not None and after.builders <= before.builders
        )
        before = after


@pytest.mark.parametrize(
    ("at", "valid"), [(0, False), (9, False), (10, True), (20, True), (21, False)]
)
def test_a_publishers_key_is_valid_for_a_time(at: int, *, valid: bool) -> None:
    """Both ends belong to it; 0 is no end."""
    assert Publisher("ci", A, (), not_before=10, not_after=20).valid_at(at) is valid
    assert Publisher("ci", A, ()).valid_at(at)


def test_the_tables_are_read() -> None:
    """Builders, requirements and the days of a publisher's key come from the file."""
    days = "not_before = 1970-01-02\nnot_after = 1970-01-03T00:00:00Z\n"
    config = read(PUBLISHER + days + BUILDER + days + REQUIREMENT)
    (publisher,) = config.publishers
    (builder,) = config.policy.builders
    assert (publisher.not_before, publisher.not_after) == (DAY_MS, 2 * DAY_MS)
    assert (builder.name, builder.key, builder.not_before) == ("farm", B, DAY_MS)
    assert config.policy.required("acme", "x") == Required(2, frozenset({"farm"}))


def test_a_policy_file_has_the_same_tables() -> None:
    """What is signed says it in the same words."""
    text = (BUILDER + REQUIREMENT).encode()
    document = config_document.parse(text, name="policy.toml", folder=Path())
    assert [builder.name for builder in document.builders] == ["farm"]
    assert document.grants_anything


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (REQUIREMENT, "builder farm"),
        (BUILDER + REQUIREMENT.replace("farm", "fram"), "did you mean `farm`"),
        (BUILDER + 'tasks = ["*/*"]', "builder.tasks"),
        (BUILDER.replace("ed25519:", "rsa:"), "no public key"),
        (REQUIREMENT.replace("= 2", "= 0"), "1..16"),
        (REQUIREMENT.replace("= 2", "= 17"), "1..16"),
        (REQUIREMENT.replace("acme/*", "acme"), "TENANT/TASK"),
        (PUBLISHER + "not_after = 7", "`not_after` is neither a day"),
    ],
)
def test_a_wrong_table_is_refused(text: str, word: str) -> None:
    """A requirement that nothing could meet, or that says something else, is an error at load."""
    assert word in refused(text)
