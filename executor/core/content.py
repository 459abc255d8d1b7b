"""Contents of tasks, for people: command line and client look inside, the supervisor never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgpack

from executor.errors import ExecutorError

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"

# What a display looks into: deeper, or more, is shown as bytes.
_SHOWN_DEPTH_MAX: Final = 32
_SHOWN_ITEMS_MAX: Final = 20_000


def to_msgpack(value: object) -> bytes:
    """`value` (what JSON can hold) as msgpack."""
    body: bytes = msgpack.packb(value)
    return body


def from_msgpack(data: bytes) -> object:
    """The value in `data`, bounded for display. Errors  `message.malformed`."""
    try:
        value: object = msgpack.unpackb(
            data, raw=False, max_array_len=_SHOWN_ITEMS_MAX, max_map_len=_SHOWN_ITEMS_MAX,
            max_ext_len=0, max_str_len=max(len(data), 1), max_bin_len=max(len(data), 1),
        )  # fmt: skip
    except Exception as error:  # the library raises a dozen types; all mean the same here
        raise ExecutorError("message.malformed", "the bytes are not msgpack") from error
    level, items = [value], 0
    for _ in range(_SHOWN_DEPTH_MAX):
        level = [inner for outer in level for inner in _inside(outer)]
        items += len(level)
        if not level and items <= _SHOWN_ITEMS_MAX:
            return value
    raise ExecutorError(
        "message.malformed", f"more than {_SHOWN_DEPTH_MAX} levels or {_SHOWN_ITEMS_MAX} items"
    )


def _inside(value: object) -> Sequence[object]:
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
        case _:
            return ()
