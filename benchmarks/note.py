"""What a run says while it works, on stderr: stdout is for data."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    """One line."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)
