"""Which keys of a bucket: patterns, scopes, what they have in common and what holds what.

A scope is read as a set of stored keys, its prefix in front of what its patterns match. Several
scopes together are their union and no more: the prefix becomes the folder that they share, the
patterns grow by what was cut off. So a scope that is taken away never adds a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from executor.model import KvScope

Patterns = tuple[str, ...]
EVERY: Final[Patterns] = ("*",)


def match(patterns: Iterable[str], key: str) -> bool:
    """Whether one of the patterns is this key, or goes on with it."""
    return any(
        key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern
        for pattern in patterns
    )


def _holds(pattern: str, other: str) -> bool:
    """Whether a pattern matches every key that another one does."""
    if not other:
        return True
    if pattern.endswith("*"):
        return other.removesuffix("*").startswith(pattern[:-1])
    return pattern == other


def hold(patterns: Patterns, others: Patterns) -> bool:
    """Whether each of the others lies inside one of the patterns."""
    return all(any(_holds(pattern, other) for pattern in patterns) for other in others)


def reduced(patterns: Iterable[str]) -> Patterns:
    """The same keys, without what another pattern holds already."""
    found = sorted(set(patterns))
    return tuple(p for p in found if not any(_holds(o, p) for o in found if o != p))


def stored(prefix: str, patterns: Patterns) -> Patterns:
    """The patterns of the stored keys, with a prefix in front."""
    return tuple(pattern and prefix + pattern for pattern in patterns)


def merged(scopes: Sequence[KvScope]) -> KvScope | None:
    """One scope of just the keys of all of these; None of none."""
    if not scopes:
        return None
    prefixes = {scope.prefix for scope in scopes}
    prefix = _folder(prefixes) if len(prefixes) > 1 else scopes[0].prefix
    read: list[str] = []
    write: list[str] = []
    for scope in scopes:
        by = scope.prefix[len(prefix) :]
        read += stored(by, scope.read)
        write += stored(by, scope.write)
    return KvScope(prefix, reduced(read), reduced(write))


def _folder(prefixes: Iterable[str]) -> str:
    """The longest folder that all of them lie in."""
    first, last = min(prefixes), max(prefixes)
    same = 0
    while same < len(first) and first[same] == last[same]:
        same += 1
    return first[: first.rfind("/", 0, same) + 1]


def inside(scope: KvScope | None, bound: KvScope | None) -> bool:
    """Whether every key and right of `scope` is one of `bound` as well."""
    if scope is None:
        return True
    return bound is not None and all(
        hold(stored(bound.prefix, wide), stored(scope.prefix, narrow))
        for wide, narrow in ((bound.read, scope.read), (bound.write, scope.write))
    )


def allows(scope: KvScope | None, function: str, key: str) -> bool:
    """The mediator's check: whether this call, with this key, is inside the scope.

    The key is the guest's, below the scope's prefix; the caller has checked its characters.
    """
    if scope is None or not key or key.startswith(".") or key.endswith(".") or ".." in key:
        return False
    return match(scope.read if function == "kv_get" else scope.write, key)


def widened(patterns: Patterns, key: str, most: int) -> Patterns:
    """The patterns with a key; beyond `most` of them, folders stand for what is in them."""
    if match(patterns, key):
        return patterns
    found = reduced((*patterns, key))
    while len(found) > most:
        folders = [_folder({name.removesuffix("*").removesuffix("/")}) for name in found]
        # The fullest one, and the top only when there is no other.
        fullest = max(folders, key=lambda folder: (folder != "", folders.count(folder), folder))
        pairs = zip(found, folders, strict=True)
        found = reduced(f"{fullest}*" if it == fullest else name for name, it in pairs)
    return found
