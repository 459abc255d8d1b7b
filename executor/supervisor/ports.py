"""What the supervisor needs from the outside, as protocols.

NATS fills them in `serve`, plain objects in `executor run`, scripts in tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from executor.core.policy import Policy, Publisher
from executor.core.seal import Opener
from executor.model import Answer, Digest, Outgoing, Release, StoredMessage


class Outbox(Protocol):
    """Publishes durably and settles deliveries; nothing here awaits."""

    def publish(
        self, outgoing: Outgoing, on_answer: Callable[[Answer], None], deadline_s: float
    ) -> None:
        """Store a message; the answer comes exactly once."""

    def push(self) -> None:
        """What was published in this turn of the loop is all: it leaves now."""

    def ack(self, lease: str) -> None:
        """The delivery is settled."""

    def nak(self, lease: str, delay_ms: int = 0) -> None:
        """Hand the message over again."""

    def progress(self, lease: str) -> None:
        """Renew the lease."""


class Records(Protocol):
    """Reads terminal records."""

    def read(self, tenant: str, task: str, task_id: str) -> Awaitable[Sequence[StoredMessage]]:
        """What is stored under the result and the dead subject of a task id."""

    def waiting(self, tenant: str, task: str, task_id: str) -> Awaitable[Sequence[StoredMessage]]:
        """The schedules of a task id, on their `later.…` subjects; `task` may be `ANY_TASK`."""

    def recurring(
        self, tenant: str, task: str, schedule_id: str
    ) -> Awaitable[StoredMessage | None]:
        """A recurring schedule as LATER has it, with its headers."""


class Board(Protocol):
    """The CONTROL bucket, as an executor writes to it: what it says there every executor hears.

    It signs what it is given; what it gives is to be opened.
    """

    def put(self, key: str, value: bytes) -> None:
        """Say something, now or once there is a connection; the last word of a key counts."""

    def delete(self, key: str) -> None:
        """Take it back."""

    def get(self, key: str) -> Awaitable[StoredMessage | None]:
        """What stands there now, read anew."""


class Modules(Protocol):
    """Finds releases and module bytes."""

    def release(self, tenant: str, task: str) -> Release | None:
        """What the task name stands for now, from a local view that is kept up to date."""

    def releases(self) -> Sequence[Release]:
        """All of them."""

    def get(self, digest: Digest, max_bytes: int) -> Awaitable[bytes | None]:
        """The bytes stored under a digest, not yet verified; None when there are none."""

    def provenance(self, digest: Digest, max_bytes: int) -> Awaitable[bytes | None]:
        """The statement stored beside a module, not yet verified; None when there is none."""


class KvStore(Protocol):
    """One tenant's bucket."""

    def get(self, key: str) -> Awaitable[bytes | None]:
        """The value, or None."""

    def put(self, key: str, value: bytes) -> Awaitable[None]:
        """Set it."""

    def delete(self, key: str) -> Awaitable[None]:
        """Remove it; removing what is not there is no error."""


class Stores(Protocol):
    """The buckets by tenant."""

    def kv(self, tenant: str) -> KvStore:
        """The tenant's bucket."""


class Trust(Protocol):
    """Whom we believe, for what; a new value after each reload."""

    def publishers(self, tenant: str, task: str) -> Sequence[Publisher]:
        """The keys that may sign modules of this task."""

    def policy(self) -> Policy:
        """Tenants, grants, ceilings."""

    def opener(self) -> Opener:
        """Checks what executors, operators and submitters signed."""

    def is_revoked(self, *names: str) -> bool:
        """Whether a digest or key id is revoked."""


class Intake(Protocol):
    """Where deliveries come from."""

    def completed(self, tenant: str) -> None:
        """One delivery of this tenant is settled: its credit may be given out again."""
