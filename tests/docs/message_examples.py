"""The examples in executor/core/README.md, made from the code that makes the real messages."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgpack

from executor.core import control, envelope, release, seal, subjects
from executor.core.envelope import Draft, Origin, Record
from executor.core.schedule import Schedule
from executor.core.signature import SecretKey
from executor.model import Digest, PastAttempt, Receipt, Release, TaskId, TaskRequest

KEY = SecretKey(bytes(range(32)))
NOW = 1_767_225_600_000
DIGEST = Digest("sha256:" + "9f" * 32)
REQUEST = TaskRequest(
    "acme", "hello", TaskId("3f9c01"), b"world", content_type="text/plain", fresh=True,
    expires_at=NOW + 60_000, limits=(("deadline_ms", 500),),
    trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", submitted_at=NOW,
)  # fmt: skip
RECEIPT = Receipt(
    digest=DIGEST, fuel_used=2_310, memory_peak_bytes=131_072, guest_us=180, host_us=12,
    host_calls=3, input_bytes=5, output_bytes=14, log_lines=1, engine="wasmtime 50.0.1",
    containment="full",
)  # fmt: skip


def _shown(data: bytes) -> object:
    """A decoded message for the page: bytes as text where they are, else as hex, cut."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, bytes):
            if value.isascii() and value.decode("ascii").isprintable() and value:
                return f"bin {value.decode('ascii')!r}"
            return f"bin, {len(value)} bytes"
        return value

    return plain(msgpack.unpackb(data))


def _sealed(
    typ: str, subject: str, payload: bytes, version: int = 1
) -> Iterator[tuple[str, object]]:
    draft = Draft(typ, subjects.audience("dev", subject), REQUEST.id, payload, version)
    (body,) = seal.seal(KEY, [draft], at=NOW)
    yield f"`{typ}` on `{subject}`", _shown(body)
    yield f"the payload of that `{typ}`", _shown(payload)


def pages() -> Iterator[tuple[str, object]]:
    """(title, decoded message) of each kind."""
    task = envelope.encode_task(REQUEST, "dev")
    yield "`task` on `task.acme.hello`", _shown(task)
    origin = Origin("task.acme.hello", task, (), len(task))
    again = REQUEST.__class__(
        **{name: getattr(REQUEST, name) for name in REQUEST.__dataclass_fields__}
        | {"attempt": 2, "history": (PastAttempt(1, "guest.failed", NOW),)}
    )
    yield from _sealed("retry", "task.acme.hello", envelope.encode_retry(again, origin))
    said = Schedule("0 30 9 * * *", "Europe/Berlin", b"world", "text/plain", at=NOW)
    yield from _sealed("schedule", "task.acme.hello", said.payload())
    record = Record(
        "hello", 1, 3, NOW, NOW + 4, RECEIPT, version="1.0.0", trace=REQUEST.trace,
        output=b"Hello, world!", content_type="text/plain",
    )  # fmt: skip
    yield from _sealed("result", "result.acme.hello.3f9c01", envelope.encode_record(record))
    letter = Record(
        "hello", 1, 3, NOW, NOW + 4, RECEIPT, version="1.0.0", code="guest.trap",
        message="unreachable in parse_header", hint="the trap's frames name the function",
        facts=(("frame0", "parse_header"),), logs=((1, "greeting 5 bytes"),), origin=origin,
        history=(PastAttempt(1, "guest.trap", NOW + 4),),
        limits=(("fuel", 1_000_000_000), ("memory_bytes", 67_108_864), ("deadline_ms", 500)),
        last_calls=(("input_read", 0), ("kv_get", -1), ("log_write", 0)), signers=("author",),
    )  # fmt: skip
    payload = envelope.encode_record(letter)
    yield from _sealed("dead", "dead.acme.hello.3f9c01", payload, envelope.record_version(letter))
    draft = seal.signed_draft(REQUEST, "dev")
    yield "`task` that a submitter signed", _shown(seal.seal(KEY, [draft], at=NOW)[0])
    live = release.encode(Release("acme", "hello", DIGEST, "1.0.0"), "dev")
    key = subjects.schedule_key("acme", "hello", "nightly")
    yield (
        "`release` under `release.acme.hello` in CONTROL",
        _shown(seal.say(KEY, "dev", "release.acme.hello", live, at=NOW)),
    )
    yield "the payload of that `release`", _shown(live)
    payload = control.encode("schedule", key, "dev", **said.fields())
    yield f"the payload of a `schedule` under `{key}`", _shown(payload)
    subject = subjects.commands_of("acme")
    payload = control.encode(
        "command", subject, "dev", verb="retry", tenant="acme", task="_", id="3f9c01", sequence=0,
        exp=NOW + seal.COMMAND_MS,
    )  # fmt: skip
    yield f"the payload of a command on `{subject}`", _shown(payload)


def examples() -> str:
    """All examples, as they stand in the page."""
    return "\n\n".join(
        f"{title}:\n\n```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"
        for title, value in pages()
    )
