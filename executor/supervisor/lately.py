"""What an executor heard lately in CONTROL, passed on to those that start later.

They have no memory. A copy of an entry that was taken back within minutes, stored again within
them, is fresh to whoever starts then, or days after. Executors that run refuse it, and what they
heard proves it wrong: entries as they were stored, each under its author's own signature.

What is contested, for an older copy stands in its place, is passed on until something newer is
said; all else for as long as a copy of what was said before could be stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from executor.core import control
from executor.core.content import to_msgpack
from executor.core.fields import ITEMS_MAX, unpack
from executor.core.seal import FRESH_MS
from executor.errors import ExecutorError
from executor.model import KIB

# A task that is cancelled once more harms nobody but whoever may cancel it.
_TYPES: Final = frozenset({"release", "pause", "quarantine", "schedule", "break-glass"})
# Between an entry and what took its place, if a copy of the first could be fresh after the second.
KEPT_MS: Final = 2 * FRESH_MS
_ENTRY_MAX: Final = 4 * KIB  # what takes back is smaller
_TOTAL_MAX: Final = control.BYTES_MAX - 4 * KIB  # with their lengths they fit one field
_AGAIN_MS: Final = 24 * 3_600_000  # what was told goes by itself after a week


@dataclass
class Lately:
    """See the module."""

    now_ms: Callable[[], int]
    _entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # when signed, and all
    _contested: set[str] = field(default_factory=set)
    _told_at: int = 0  # 0: there is something new

    def note(self, key: str, iat: int, value: bytes, *, contested: bool) -> None:
        """This is the newest word; contested if an older one stands there."""
        self._entries.pop(key, None)
        self._contested.discard(key)
        if key.partition(".")[0] not in _TYPES or len(value) > _ENTRY_MAX:
            return
        if contested or iat > self.now_ms() - KEPT_MS:
            self._entries[key] = iat, value
            self._told_at = 0
        if contested:
            self._contested.add(key)
        while len(self._entries) > ITEMS_MAX or self._size() > _TOTAL_MAX:
            oldest = next((k for k in self._entries if k not in self._contested), key)
            del self._entries[oldest]
            self._contested.discard(oldest)

    def _size(self) -> int:
        return sum(len(key) + len(value) for key, (_, value) in self._entries.items())

    def contest(self, key: str) -> None:
        """An older word was stored over it: what is told must come after that."""
        if key in self._entries:
            self._contested.add(key)
            self._told_at = 0

    def news(self) -> bytes:
        """What is to be told now, the `entries` of a `heard`; nothing if that was done."""
        now = self.now_ms()
        self._entries = {
            key: kept for key, kept in self._entries.items()
            if key in self._contested or kept[0] > now - KEPT_MS
        }  # fmt: skip
        again = bool(self._contested) and now - self._told_at > _AGAIN_MS
        if not self._entries or (self._told_at and not again):
            return b""
        self._told_at = now
        return to_msgpack({key: value for key, (_, value) in self._entries.items()})


def entries(told: control.Value) -> Iterator[tuple[str, bytes]]:
    """What another executor told. Errors  `message.malformed`."""
    for key, value in unpack(told if isinstance(told, bytes) else b"", lists=False).items():
        if not isinstance(key, str) or not isinstance(value, bytes):
            raise ExecutorError("message.malformed", "not entries")
        if key.partition(".")[0] in _TYPES:
            yield key, value
