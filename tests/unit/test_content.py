"""Contents: what command line and client look into is bounded in depth and in number."""

from __future__ import annotations

import msgpack
import pytest

from executor.core import content
from executor.errors import ExecutorError


def nested(depth: int) -> bytes:
    """A number inside `depth` lists."""
    return b"\x91" * depth + b"\x01"


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**64 - 1, 1.5, "é", b"\xff", [], {}, [1, [2, {"a": [3]}]], {"a": None}],
    ids=str,
)
def test_values_read_back(value: object) -> None:
    """What JSON can hold, and bytes, travel unchanged."""
    assert content.from_msgpack(content.to_msgpack(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc1", b"\x01\x01", b"\xa1\xff", b"\x81\x01\x01", b"\xdd\xff\xff\xff\xff",
        msgpack.packb(msgpack.ExtType(1, b"x")), b"\x91" * 100_000, nested(32),
        msgpack.packb([[0] * 10_000, [0] * 10_000]), msgpack.packb([0] * 20_001),
        msgpack.packb({str(n): 0 for n in range(20_001)}),
    ],
    ids=[
        "empty", "never used byte", "trailing byte", "not UTF-8", "number as key", "4 G items",
        "ext type", "endless lists", "too deep", "too many in all", "too many in a list",
        "too many in a map",
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused(data: bytes) -> None:
    """A hostile output is refused before it costs memory or overflows a renderer's stack."""
    with pytest.raises(ExecutorError) as caught:
        content.from_msgpack(data)
    assert caught.value.code == "message.malformed"


def test_bounds_are_inclusive() -> None:
    """31 lists round a value, and 20 000 items, are still shown."""
    assert content.from_msgpack(nested(31))
    items = [[0] * 9_999, {str(n): 0 for n in range(9_999)}]
    assert content.from_msgpack(content.to_msgpack(items)) == items
