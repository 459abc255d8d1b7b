"""The table of codes: every row complete, nothing outside it, exits as documented."""

from __future__ import annotations

import pickle
import re

import pytest

from executor.errors import TABLE, Class, ExecutorError

# The stages and their exits as conventions and `--help` promise them to scripts.
EXITS = {
    "guest": 1, "module": 10, "policy": 11, "limit": 12, "sandbox": 13, "transport": 14,
    "config": 15, "message": 16, "capability": 17, "trust": 18, "task": 19, "internal": 70,
}  # fmt: skip

PARTIES = {"submitter", "author", "operator", "us"}


@pytest.mark.parametrize("code", list(TABLE))
def test_every_row_is_complete(code: str) -> None:
    """A row says what happened, what to do and for whom, in one sentence without a full stop."""
    row = TABLE[code]
    assert row.code == code
    assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", code)
    for text in (row.message, row.hint):
        assert text == text.strip()
        assert text
        assert not text.endswith(".")
        assert "\n" not in text
    assert set(row.who.split(", ")) <= PARTIES
    assert row.klass in Class


@pytest.mark.parametrize("code", list(TABLE))
def test_exits_are_those_that_are_documented(code: str) -> None:
    """The exit status follows from the stage alone."""
    row = TABLE[code]
    assert row.stage == code.partition(".")[0]
    assert row.exit == EXITS[row.stage]


def test_each_stage_has_an_exit_of_its_own() -> None:
    """A script can tell the stages apart, and none is success, usage or an interrupt."""
    assert len(set(EXITS.values())) == len(EXITS)
    assert {row.stage for row in TABLE.values()} == EXITS.keys()
    assert not set(EXITS.values()) & {0, 2, 130}


@pytest.mark.parametrize("code", ["", "limit", "limit.", "Limit.fuel-exhausted", "limit.unheard"])
def test_an_unknown_code_is_a_bug(code: str) -> None:
    """Nobody can raise a code that the table does not hold."""
    with pytest.raises(KeyError):
        ExecutorError(code)


def test_the_parts_of_an_error() -> None:
    """The detail continues the row's sentence, the hint can be replaced, the facts are kept."""
    plain = ExecutorError("module.unsigned")
    assert plain.message == TABLE["module.unsigned"].message
    assert plain.hint == TABLE["module.unsigned"].hint
    assert plain.facts == {}
    full = ExecutorError("config.missing", "no file", hint="look", path="a", line=3)
    assert full.code == "config.missing"
    assert full.message == "something that is needed is not configured: no file"
    assert str(full) == f"config.missing: {full.message}"
    assert full.hint == "look"
    assert full.facts == {"path": "a", "line": 3}


def test_an_error_is_never_pickled() -> None:
    """Nothing that could travel by pickle exists here."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(ExecutorError("internal.bug"))


@pytest.mark.covers("internal.bug")
def test_a_bug_is_not_the_submitters() -> None:
    """A state that we do not know ends the task, keeps its bytes and is ours to mend."""
    row = TABLE["internal.bug"]
    assert (row.klass, row.who, row.exit) == (Class.PERMANENT, "us", 70)
