"""The command with a wall clock that is wrong: `python -m tests.support.skewed SECONDS VERB …`.

Only what Python asks for is shifted, in this process alone: the monotonic clock, the server and
the sandboxes, which are born of a process of their own, keep theirs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from executor.cli.main import main

_NS = 1_000_000_000


def _shift(seconds: int) -> None:
    right, right_ns = time.time, time.time_ns

    def shifted() -> float:
        return right() + seconds

    def shifted_ns() -> int:
        return right_ns() + seconds * _NS

    functions: dict[str, Callable[[], float | int]] = {"time": shifted, "time_ns": shifted_ns}
    for name, function in functions.items():
        setattr(time, name, function)


if __name__ == "__main__":
    _shift(int(sys.argv.pop(1)))
    main()
