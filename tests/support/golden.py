"""The messages whose bytes are kept under tests/unit/vectors/messages, and the values in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from executor.core import subjects
from executor.core.envelope import Draft, Origin, Record
from executor.core.signature import SecretKey
from executor.model import Digest, PastAttempt, Receipt, Release, TaskId, TaskRequest

FOLDER: Final = Path(__file__).parents[1] / "unit" / "vectors" / "messages"
KEY: Final = SecretKey(bytes(range(32)))
NOW: Final = 1_767_225_600_000
DIGEST: Final = Digest("sha256:" + "9f" * 32)

PLAIN: Final = TaskRequest("acme", "hello", TaskId("3f9c01"), b"world", fresh=True)
FULL: Final = TaskRequest(
    "acme", "hello", TaskId("3f9c02"), b"world", content_type="text/plain",
    expires_at=NOW + 60_000, not_before=NOW + 1_000, attempts_max=2,
    limits=(("fuel", 1_000), ("memory_bytes", 65_536), ("deadline_ms", 500)),
    trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)  # fmt: skip
HISTORY: Final = (PastAttempt(1, "guest.failed", NOW), PastAttempt(2, "sandbox.crashed", NOW + 1))
RECEIPT: Final = Receipt(
    digest=DIGEST, fuel_used=2_310, memory_peak_bytes=131_072, guest_us=180, host_us=12,
    host_calls=3, input_bytes=5, output_bytes=14, log_lines=1, log_dropped=1,
    engine="wasmtime 50.0.1", containment="full",
)  # fmt: skip
RESULT: Final = Record(
    "hello", 2, 3, NOW, NOW + 4, RECEIPT, version="1.0.0", trace=FULL.trace, history=HISTORY,
    output=b"Hello, world!", content_type="text/plain", degraded=True,
)  # fmt: skip
RAW: Final = Origin(
    "task.acme.hello", b"world", (("Task-Id", "3f9c03"), ("Content-Type", "text/plain")), 5
)
DEAD: Final = Record(
    "hello", 2, 3, NOW, NOW + 4, RECEIPT, version="1.0.0", trace=FULL.trace, history=HISTORY,
    code="guest.trap", message="unreachable in parse_header", hint="look at the frames",
    facts=(("trap", "unreachable"), ("frame0", "parse_header"), ("deadline_ms", 500)),
    logs=((1, "greeting 5 bytes"),), origin=RAW, discarded_at=NOW + 9,
)  # fmt: skip
RESULT_2: Final = replace(RESULT, cause="capability.unavailable")
DEAD_2: Final = replace(
    DEAD, limits=(("fuel", 1_000), ("memory_bytes", 65_536), ("deadline_ms", 500)),
    last_calls=(("kv_get", -4), ("log_write", 0), ("output_write", 1)), signers=("acme-ci",),
)  # fmt: skip
CUT: Final = Record(
    "hello", 1, 3, NOW, NOW + 4, Receipt(), code="message.too-large",
    origin=Origin("task.acme.hello", b"x" * 64, (), 600_000, "ab" * 32),
)  # fmt: skip
RELEASE: Final = Release("acme", "hello", DIGEST, "1.0.0")

# Name → type, subject, id.
SEALED: Final = {
    "retry": ("retry", "task.acme.hello", "3f9c02"),
    "result": ("result", "result.acme.hello.3f9c02", "3f9c02"),
    "dead": ("dead", "dead.acme.hello.3f9c03", "3f9c03"),
    "dead-cut": ("dead", "dead.acme.hello._77", "_77"),
}
# Type of a value in CONTROL → its key and fields.
CONTROL: Final[dict[str, tuple[str, dict[str, str | int]]]] = {
    "cancel": ("cancel.acme._.3f9c01", {"until": NOW}),
    "pause": (subjects.pause_key("acme", "hello"), {"at": NOW, "why": "a broken service"}),
    "quarantine": (
        subjects.quarantine_key(DIGEST),
        {"at": NOW, "code": "sandbox.crashed", "task": "acme/hello", "by": "local"},
    ),
    "breaker": (subjects.breaker_key("kv", "acme", "_"), {"until": NOW, "trips": 2, "by": "local"}),
}


def draft(name: str, payload: bytes) -> Draft:
    """One of `SEALED` with its payload."""
    typ, subject, task_id = SEALED[name]
    return Draft(typ, f"dev/{subject}", task_id, payload)
