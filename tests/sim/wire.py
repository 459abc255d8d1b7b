"""What server, links and checks of the simulation have in common: names, and who hears what."""

from __future__ import annotations

from typing import Final, Protocol

from executor.core import subjects
from executor.model import StoredMessage

Headers = dict[str, str]

TENANT: Final = "acme"
TASKS: Final = subjects.tasks_stream(TENANT)
LATER: Final = subjects.later_stream(TENANT)
OUTCOMES: Final = subjects.outcomes_stream(TENANT)
START_MS: Final = 1_700_000_000_000  # the wall clock when virtual time begins
MESSAGE_ID: Final = "Nats-Msg-Id"


class Peer(Protocol):
    """A connection, as the server sees it."""

    name: str

    def receive(
        self, subject: str, body: bytes, headers: Headers, reply: str, *, sure: bool = False
    ) -> None:
        """Take a message from the server; a `sure` one is not lost by itself."""

    def listens(self, subject: str) -> bool:
        """Whether it would take a message on `subject` now."""


class Spy:
    """Hears what happens in the server; the checks of the simulation are one."""

    def stored(self, stream: str, message: StoredMessage, by: str) -> None:
        """A stream took a message."""

    def repeated(self, stream: str, subject: str, by: str) -> None:
        """A stream found a message to be a duplicate."""

    def fired(self, schedule: StoredMessage, sequence: int) -> None:
        """A schedule becomes the message with this sequence in TASKS."""

    def read(self, subject: str, by: str, snapshot: float) -> None:
        """A direct get saw OUTCOMES as it was at `snapshot`."""

    def say(self, what: str, *facts: object) -> None:
        """A line for the trace."""
