"""Scopes of keys: what matches, what holds what, and what several are together."""

from __future__ import annotations

import pytest

from executor.core import scopes
from executor.core.scopes import EVERY, Patterns
from executor.model import KvScope

READ, WRITE = KvScope("thumbs/"), KvScope("thumbs/", write=EVERY)


@pytest.mark.parametrize(
    ("scope", "function", "key", "allowed"),
    [
        (READ, "kv_get", "a", True),
        (READ, "kv_put", "a", False),
        (READ, "kv_delete", "a", False),
        (WRITE, "kv_put", "a/b.c", True),
        (WRITE, "kv_delete", "a", True),
        (None, "kv_get", "a", False),
        (WRITE, "kv_get", "", False),
        (WRITE, "kv_get", ".a", False),
        (WRITE, "kv_get", "a.", False),
        (WRITE, "kv_get", "a..b", False),
        (KvScope("", ("a", "b/*")), "kv_get", "a", True),
        (KvScope("", ("a", "b/*")), "kv_get", "a/b", False),
        (KvScope("", ("a", "b/*")), "kv_get", "b/c", True),
        (KvScope("", ("a", "b/*")), "kv_get", "bc", False),
        (KvScope("", ("",), ("",)), "kv_put", "a", False),
    ],
)
def test_the_mediator_checks_each_call(
    scope: KvScope | None, function: str, key: str, *, allowed: bool
) -> None:
    """A call is inside the scope by its function and by a key that names one entry."""
    assert scopes.allows(scope, function, key) is allowed


@pytest.mark.parametrize(
    ("patterns", "others", "hold"),
    [
        (("*",), ("a", "b/*", "*", ""), True),
        (("b/*",), ("b/c", "b/c/*", "b/*"), True),
        (("b/*",), ("b",), False),
        (("b/*",), ("*",), False),
        (("a",), ("a",), True),
        (("a",), ("a/*",), False),
        (("a", "b/*"), ("a", "b/x"), True),
        ((), ("",), False),
        (("",), ("",), True),
        (("",), ("a",), False),
    ],
)
def test_what_holds_what(patterns: Patterns, others: Patterns, *, hold: bool) -> None:
    """Patterns compare by what they match, a folder never by the beginning of its name."""
    assert scopes.hold(patterns, others) is hold


@pytest.mark.parametrize(
    ("found", "together"),
    [
        ([], None),
        ([READ], READ),
        ([KvScope("thumb")], KvScope("thumb")),
        ([READ, WRITE], WRITE),
        ([READ, KvScope("")], KvScope("")),
        ([KvScope("a/"), KvScope("b/", write=EVERY)], KvScope("", ("a/*", "b/*"), ("b/*",))),
        ([KvScope("x/a/"), KvScope("x/b/")], KvScope("x/", ("a/*", "b/*"))),
        ([KvScope("thumb"), KvScope("thumbs/")], KvScope("", ("thumb*",))),
        ([KvScope("a/", ("k",)), KvScope("b/", ("",), ("",))], KvScope("", ("a/k",), ("",))),
    ],
)
def test_scopes_together_are_their_union(found: list[KvScope], together: KvScope | None) -> None:
    """The prefix is the folder they share; no key comes in that none of them has."""
    assert scopes.merged(found) == together


@pytest.mark.parametrize(
    ("scope", "bound", "inside"),
    [
        (None, None, True),
        (None, READ, True),
        (READ, None, False),
        (READ, WRITE, True),
        (WRITE, READ, False),
        (KvScope("thumbs/small/"), READ, True),
        (KvScope("", ("thumbs/*",)), READ, True),
        (KvScope(""), READ, False),
        (KvScope("thumbs"), READ, False),
    ],
)
def test_what_lies_inside_what(
    scope: KvScope | None, bound: KvScope | None, *, inside: bool
) -> None:
    """Scopes compare by the stored keys, however prefix and patterns share them out."""
    assert scopes.inside(scope, bound) is inside


def test_used_keys_stay_few() -> None:
    """Keys are kept one by one, then by folder, in the end all as one."""
    few: Patterns = ()
    for key in ("b/1", "b/1", "a", "b/2"):
        few = scopes.widened(few, key, 3)
    assert few == ("a", "b/1", "b/2")
    assert scopes.widened(few, "c/d/1", 3) == ("a", "b/*", "c/d/1")
    assert scopes.widened(("a", "b", "c/*"), "d", 3) == ("*",)
    assert scopes.widened(("a/b/*", "c/*"), "d", 2) == ("*",)
    folders = scopes.widened(("b/1", "b/2"), "b/c/3", 2)
    assert folders == ("b/*",)
    assert scopes.widened(folders, "b/zz", 2) is folders
