"""Bytes of strangers to typed values: one flat msgpack map, bounded before it is objects.

`unpack` gives the map, `check` compares it with a table, `rows` and `texts` read its lists. All
refuse what is unknown or of another type, with `message.malformed`. `pack` is the way back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgpack

from executor.errors import ExecutorError
from executor.model import KIB

# One for all: to make one costs as much as to pack a small map. Of values of the built-in types,
# and only such are packed, it calls nothing back: threads cannot meet in it.
pack: Final = msgpack.Packer().pack

INT_MAX: Final = 2**53
_TIME_MAX: Final = 9_200_000_000_000  # 2261: beyond 2262 the server's clock overflows
ITEMS_MAX: Final = 64
# Holds a guest's message of 8 Ki characters, each of which may take four bytes.
TEXT_MAX: Final = 32 * KIB
# How a map begins: of up to 15 pairs; or of more, with their number in two or four bytes.
_FIXMAP, _FIXMAP_MAX, _MAP16 = 0x80, 0x8F, 0xDE

# A field's type, and its greatest length (text, binary) or value (whole numbers, from 0).
Table = Mapping[str, tuple[Any, int]]
_UNKNOWN: Final = (object, 0)
TEXT: Final = (str, 256)
COUNT: Final = (int, INT_MAX - 1)
TIME: Final = (int, _TIME_MAX)  # ms since 1970
FLAG: Final = (bool, 1)
DATA: Final = (bytes, INT_MAX)  # as large as the message may be
LIST: Final = (list, ITEMS_MAX)


def malformed(detail: str) -> ExecutorError:
    """What is wrong with a message."""
    return ExecutorError("message.malformed", detail)


class _OneMap:
    """Hook for msgpack: lets one map pass, and stops the decoder at a second one."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        if self._seen:
            raise malformed("nested maps")
        self._seen = True
        return value


def _pairs(data: bytes) -> int:
    """How many pairs the map that begins here says it has."""
    first = data[0]
    if _FIXMAP <= first <= _FIXMAP_MAX:
        return first - _FIXMAP
    return int.from_bytes(data[1:3] if first == _MAP16 else data[1:5], "big")


def unpack(data: bytes, *, lists: bool) -> dict[str, Any]:
    """The flat map in `data`; with `lists`, values may be lists of scalars or of short lists.

    Errors  `message.malformed`. Bounds: limits are given to the decoder, so that
    hostile bytes are refused before they become objects.
    """
    try:
        value: object = msgpack.unpackb(
            data, raw=False, use_list=True, strict_map_key=True, object_hook=_OneMap(),
            max_str_len=TEXT_MAX, max_bin_len=max(len(data), 1), max_map_len=ITEMS_MAX,
            max_array_len=ITEMS_MAX if lists else 0, max_ext_len=0,
        )  # fmt: skip
    except ExecutorError:
        raise
    except Exception as error:  # the library raises a dozen types; all mean the same here
        raise malformed("the body is not a msgpack map") from error
    if not isinstance(value, dict):
        raise malformed("the body is not a msgpack map")
    if len(value) != _pairs(data):  # of two equal keys a dict keeps one
        raise malformed("a duplicate key")
    return value


def check(values: Mapping[str, Any], table: Table, needed: Collection[str]) -> None:
    """Refuse a map that is not as its table says, or lacks one of the `needed` fields."""
    for name in needed:
        if name not in values:
            raise malformed(f"`{name}` is missing")
    for name, value in values.items():
        kind, most = table.get(name, _UNKNOWN)
        if type(value) is not kind:  # not isinstance: true would pass for a number
            raise _unexpected(name, table)
        size = value if kind is int else 0 if kind is bool else len(value)
        if not 0 <= size <= most:
            raise _unexpected(name, table)


def _unexpected(name: str, table: Table) -> ExecutorError:
    if name not in table:
        return malformed(f"unknown field `{str(name)[:64]}`")
    kind, most = table[name]
    if table[name] is TIME:
        return malformed(f"`{name}` is no time in ms since 1970 before the year 2261")
    return malformed(f"`{name}` is no {kind.__name__} of at most {most}")


def rows(value: list[Any] | None, name: str, *types: type) -> tuple[tuple[Any, ...], ...]:
    """A list of rows of these types, or None; `object` is anything. Errors  `message.malformed`."""
    if not value:  # as almost always
        return ()
    for row in value:
        if not isinstance(row, list) or len(row) != len(types):
            raise malformed(f"`{name}` has a row of another shape")
        # Not isinstance: true would pass for a number.
        if not all(kind in {type(c), object} for c, kind in zip(row, types, strict=True)):
            raise malformed(f"`{name}` has a row of another type")
    return tuple(map(tuple, value))


def texts(value: Sequence[Any], name: str) -> tuple[str, ...]:
    """A list of texts. Errors  `message.malformed`."""
    if not all(isinstance(text, str) for text in value):
        raise malformed(f"`{name}` is no list of texts")
    return tuple(value)
