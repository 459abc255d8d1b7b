"""`executor:log@1`, served in the sandbox: lines collected during the attempt, bounded three ways.

A line that would pass a bound is dropped and counted; logging never fails an attempt. The text is
the guest's: whoever shows it escapes it.
"""

from __future__ import annotations

from typing import Final

from executor.core import abi

LEVEL_MAX: Final = 3
# Bounds of the Done frame, whatever the attempt's limits say: 256 lines, and 128 KiB beside an
# output of 512 KiB and a message leave a frame room for its facts.
LINES_MAX: Final = 256
BYTES_MAX: Final = 128 * 1024


class LogBook:
    """The lines of one attempt as (level 0 to 3, text), and how many were dropped."""

    __slots__ = ("_bytes_left", "_lines_max", "dropped", "lines")

    def __init__(self, *, bytes_max: int, lines_max: int) -> None:
        self.lines: list[tuple[int, str]] = []
        self.dropped = 0
        self._bytes_left = min(bytes_max, BYTES_MAX)
        self._lines_max = min(lines_max, LINES_MAX)

    def drop(self) -> None:
        """Count a line that was not even read, because it is longer than a line may be."""
        self.dropped += 1

    def add(self, level: int, line: bytes) -> None:
        """Keep one line, or count it as dropped. A level outside 0 to 3 is data and is clamped."""
        text = line.decode("utf-8", "replace")
        # Counted as it will travel: a byte that is not UTF-8 becomes a character of three.
        size = len(line) if line.isascii() else len(text.encode())
        if (
            len(line) > abi.LOG_LINE_MAX
            or size > self._bytes_left
            or len(self.lines) >= self._lines_max
        ):
            self.dropped += 1
            return
        self._bytes_left -= size
        self.lines.append((min(max(level, 0), LEVEL_MAX), text))
