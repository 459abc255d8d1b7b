"""The task that all contenders do: count the words of 1,000 characters."""

from __future__ import annotations

import json
from typing import Final

TEXT: Final = " ".join(f"word{i % 97}" for i in range(160))[:1000]
WORDS: Final = TEXT.encode()


def count(data: bytes) -> dict[str, int]:
    """The same answer as tasks_wasm/wordcount."""
    words = data.split()
    return {"words": len(words), "distinct": len(set(words))}


def count_json(data: bytes) -> bytes:
    """The answer as its bytes."""
    return json.dumps(count(data)).encode()


EXPECTED: Final = count(WORDS)
EXPECTED_JSON: Final = count_json(WORDS)


def check(found: object) -> None:
    """Each result that comes back is compared."""
    if found not in (EXPECTED, EXPECTED_JSON):
        raise ValueError(f"not the result: {found!r}")
