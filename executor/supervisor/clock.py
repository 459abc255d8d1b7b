"""The server's clock, as far as it can be known from here.

Times in messages are the server's, and executors on other hosts judge them too: a host whose clock
is wrong must not expire tasks early, or put retries off by an hour. So `now_ms` is the host's clock
and what it was seen to be off by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


def host_ms() -> int:
    """Milliseconds since 1970, by this host."""
    return time.time_ns() // 1_000_000


@dataclass
class ServerClock:
    """See the module."""

    offset_ms: int = 0

    def now_ms(self) -> int:
        """Milliseconds since 1970, by the server."""
        return time.time_ns() // 1_000_000 + self.offset_ms

    def measured(self, *, sent_ms: int, server_ms: int, received_ms: int) -> bool:
        """The server stamped something between these two readings of the host's clock.

        What the readings leave open is no error: only beyond it the offset is taken. Returns
        whether it changed by more than a second.
        """
        before = self.offset_ms
        if server_ms < sent_ms:
            self.offset_ms = server_ms - sent_ms
        elif server_ms > received_ms:
            self.offset_ms = server_ms - received_ms
        else:
            self.offset_ms = 0
        return abs(self.offset_ms - before) > 1_000  # noqa: PLR2004 - a second
