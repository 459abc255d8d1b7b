"""Blocks of calls in one process: microseconds of one call, a value for each block."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping

PAYLOAD = bytes(range(256)) * 4


def measure(call: Callable[[], object], seconds: float, blocks: int = 8) -> list[float]:
    """Call it for about so long, in blocks, after two blocks that do not count."""
    begin = time.perf_counter()
    call()
    call()
    each = max((time.perf_counter() - begin) / 2, 1e-7)
    count = max(1, int(seconds / blocks / each))
    gc.collect()
    found = []
    for block in range(blocks + 2):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if block > 1:
            found.append((time.perf_counter() - begin) * 1e6 / count)
    return found


def report(calls: Mapping[str, tuple[str, Callable[[], object], int]], seconds: float) -> None:
    """Measure by (contender, metric) in turn; `int` is by how many a call is divided.

    The key is `contender`, the first of the tuple the metric.
    """
    for who, (metric, call, parts) in calls.items():
        values = [value / parts for value in measure(call, seconds)]
        name = who.partition(" @")[0]
        sys.stdout.write(json.dumps({"who": name, "metric": metric, "values": values}) + "\n")
        sys.stdout.flush()
