"""Strict JSON: bounded depth, no name twice, whole numbers that every reader keeps exactly."""

from __future__ import annotations

import json
import re
from typing import Final, NoReturn

INT_MAX: Final = 2**53 - 1  # the largest integer that every JSON reader keeps exactly

_INT_DIGITS: Final = len(str(INT_MAX))
# The possessive star and the optional quote keep this linear on strings that never end.
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")


class NotStrictError(ValueError):
    """What is wrong, and with which member, where that is known."""

    def __init__(self, detail: str, member: str = "") -> None:
        self.detail = detail
        self.member = member
        super().__init__(detail)


def shown(text: str) -> str:
    """A name out of a file, short and without anything a terminal would obey."""
    return ascii(text[:64])[1:-1]


def load(data: bytes, *, depth_max: int) -> object:
    """The value in `data`, whose size the caller has bounded. Raises `NotStrictError`."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise NotStrictError("not UTF-8") from error
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > depth_max:
            raise NotStrictError(f"nested deeper than {depth_max}")
    try:
        value: object = json.loads(
            text, object_pairs_hook=_members, parse_int=_load_int,
            parse_float=_no_number, parse_constant=_no_number,
        )  # fmt: skip
    except NotStrictError:
        raise
    except ValueError as error:
        raise NotStrictError("not JSON") from error
    return value


def dump(value: object) -> bytes:
    """The one spelling: names sorted, no spaces, no escapes that are not needed.

    RFC 8785 sorts names by UTF-16 units and Python by code points: the same for ASCII. A text that
    is no Unicode is a `UnicodeEncodeError`.
    """
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members:
            raise NotStrictError("twice in one object", shown(name))
        members[name] = value
    return members


def _load_int(digits: str) -> int:
    # Counted before it is converted: the conversion is quadratic.
    if len(digits) > _INT_DIGITS or (value := int(digits)) > INT_MAX:
        raise NotStrictError(f"a number outside 0 to {INT_MAX}")
    return value


def _no_number(digits: str) -> NoReturn:
    raise NotStrictError(f"{shown(digits)} is not an integer")
