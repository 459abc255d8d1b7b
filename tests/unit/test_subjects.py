"""Subjects: built and parsed by one rule for tokens, and never more than they say."""

from __future__ import annotations

import pytest

from executor.core import subjects

BAD_TOKENS = [
    "", "a.b", "a b", "*", ">", "$JS", "a\n", "\na", "é", "a/b", "a" * 65, "a\0", "a*", "٣",
]  # fmt: skip


@pytest.mark.parametrize("token", ["a", "A-Z_9", "_x", "-", "0", "a" * 64])
def test_tokens(token: str) -> None:
    """A token is 1 to 64 of letters, digits, `_` and `-`."""
    assert subjects.is_token(token)


@pytest.mark.parametrize("token", BAD_TOKENS)
def test_no_other_text_is_a_token(token: str) -> None:
    """Wildcards, dots, spaces, line ends and other alphabets never enter a subject."""
    assert not subjects.is_token(token)
    assert not subjects.is_id(token)
    for build, *parts in (
        (subjects.task, token, "t"), (subjects.task, "a", token), (subjects.due, token, "t"),
        (subjects.result, "a", "t", token), (subjects.dead, "a", "t", token),
        (subjects.either, "a", token, "1"), (subjects.later, "a", "t", token, 1),
        (subjects.tasks_stream, token), (subjects.outcomes_stream, token),
        (subjects.tenant_bucket, token), (subjects.release_key, "a", token),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not a subject token"):
            build(*parts)


def test_ids_that_begin_with_an_underscore_are_ours() -> None:
    """No submitter can claim the id under which an undecodable message is recorded."""
    assert subjects.is_id("a_1")
    assert subjects.is_token("_17")
    assert not subjects.is_id("_17")


def test_every_subject_has_one_spelling() -> None:
    """The spellings are wire format."""
    assert subjects.task("acme", "resize") == "task.acme.resize"
    assert subjects.result("acme", "resize", "1") == "result.acme.resize.1"
    assert subjects.dead("acme", "resize", "1") == "dead.acme.resize.1"
    assert subjects.either("acme", "resize", "1") == "*.acme.resize.1"
    assert subjects.later("acme", "resize", "1", 7) == "later.acme.resize.1.7"
    assert subjects.due("acme", "resize") == "due.acme.resize"
    assert subjects.release_key("acme", "resize") == "release.acme.resize"
    assert subjects.tasks_stream("acme") == "TASKS_acme"
    assert subjects.outcomes_stream("acme") == "OUTCOMES_acme"
    assert subjects.tenant_bucket("acme") == "T_acme"
    assert subjects.audience("prod", "task.acme.resize") == "prod/task.acme.resize"


def test_task_subjects_parse_back() -> None:
    """What was built is taken apart again."""
    assert subjects.parse_task(subjects.task("acme", "resize")) == ("acme", "resize")


@pytest.mark.parametrize(
    "subject",
    [
        "", "task", "task.acme", "task.acme.resize.1", "due.acme.resize", "task.acme.*",
        "task..resize", "task.acme.resize\n", "Task.acme.resize",
    ],
)  # fmt: skip
def test_other_subjects_are_no_task(subject: str) -> None:
    """A subject of another shape is no task, not a task with odd names."""
    assert subjects.parse_task(subject) is None


@pytest.mark.parametrize("below", ["", "stored."])
@pytest.mark.parametrize("kind", ["result", "dead"])
def test_terminal_subjects_parse_back(kind: str, below: str) -> None:
    """A terminal subject reads the same directly and below `stored.`."""
    subject = f"{below}{kind}.acme.resize.1"
    assert subjects.parse_terminal(subject) == (kind, "acme", "resize", "1")


@pytest.mark.parametrize(
    "subject",
    [
        "", "result.acme.resize", "result.acme.resize.1.2", "task.acme.resize.1",
        "stored.stored.result.acme.resize.1", "retry.acme.resize.1", "result.acme.resize.",
        "dead.acme.*.1",
    ],
)  # fmt: skip
def test_other_subjects_are_not_terminal(subject: str) -> None:
    """Only `result` and `dead` with three tokens hold a terminal record."""
    assert subjects.parse_terminal(subject) is None
