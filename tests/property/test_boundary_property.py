"""Bytes and numbers that cross a boundary: read by the rules or refused by a code; fixed seeds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import envelope, manifest, release, signature, subjects, wasm
from executor.core.manifest import Manifest, Want
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Delivery, Digest, Receipt, Release, TaskRequest
from executor.sandbox.memory import U32_MASK, BadPointer, GuestMemory

fixed = settings(
    derandomize=True, deadline=None, max_examples=200, database=None, print_blob=True
)  # fmt: skip

MAGIC: Final = b"\0asm\x01\0\0\0"
KEY: Final = SecretKey(bytes([1]) * 32)
FULL: Final = manifest.encode(
    Manifest(
        "resize", "1.0.0", summary='Äöü \\ " 😀', input="text/plain", output="x", idempotent=True,
        wants=(Want("executor:kv@1", "a/b", "why"), Want("executor:log@1")), source_date=1,
        limits=(("fuel", 7), ("memory_bytes", 65_536)), built_with="zig", not_after=2,
    )
)  # fmt: skip
BARE: Final = MAGIC + b"\x01\x04\x01\x60\0\0" + wasm.custom("name", b"x" * 40)
SIGNED: Final = signature.sign_module(BARE + wasm.custom(manifest.SECTION, FULL), KEY)
LIVE: Final = Release("acme", "resize", Digest("sha256:" + "ab" * 32), "1.0.0")
FRAMING: Final = ("module.invalid", "module.too-complex")


@contextmanager
def only(*codes: str) -> Iterator[None]:
    """Pass over the errors that are promised; any other is the test's failure."""
    try:
        yield
    except ExecutorError as error:
        if error.code not in codes:
            raise


def changed(original: bytes, least: int = 0) -> st.SearchStrategy[bytes]:
    """`original` with one to four pieces, behind its first `least` bytes, replaced by others."""
    place = st.integers(least, len(original))
    piece = st.binary(max_size=8) | st.builds(lambda a, b: original[a : a + b], place, place)
    edits = st.lists(st.tuples(place, st.integers(0, 40), piece), min_size=1, max_size=4)

    def edit(found: list[tuple[int, int, bytes]]) -> bytes:
        data = original
        for start, cut, new in found:
            data = data[:start] + new + data[start + cut :]
        return data

    return edits.map(edit)


# The manifest.


@fixed
@given(changed(FULL) | st.binary(max_size=200))
def test_any_bytes_as_a_manifest(data: bytes) -> None:
    """Bytes that were a manifest are one, in their one spelling, or refused by its own code."""
    with only("module.manifest-invalid"):
        found = manifest.decode(data)
        assert manifest.encode(found) == data
    with only("module.manifest-invalid"):
        assert manifest.encode(manifest.read(BARE + wasm.custom(manifest.SECTION, data))) == data


@fixed
@given(changed(SIGNED) | st.binary(max_size=200).map(MAGIC.__add__) | st.binary(max_size=60))
def test_any_module_is_asked_for_its_manifest(module: bytes) -> None:
    """No file, however it is framed, raises anything but the codes of modules."""
    with only("module.manifest-invalid", *FRAMING):
        assert manifest.encode(manifest.read(module)) in module


# The signature.


@fixed
@given(changed(SIGNED) | changed(SIGNED, len(SIGNED) - len(BARE)))
def test_a_changed_module_is_nobodys(module: bytes) -> None:
    """A module with pieces exchanged is refused, unless all that was signed is still there."""
    with only("module.unsigned", "module.signature-invalid", *FRAMING):
        if signature.verify_module(module, [KEY.public]):
            rest = wasm.sections(module)[0].end
            assert module[rest:] == SIGNED[wasm.sections(SIGNED)[0].end :]
    with only("module.signature-invalid", *FRAMING):
        assert len(signature.signers(module)) <= signature.SIGNATURES_MAX


# Guest memory, compared with a model in plain bytes.

GUARD: Final = 64
any_int = (
    st.integers(-(2**63), 2**64 - 1)
    | st.integers(-40, 300)
    | st.integers(-40, 300).map(lambda n: 2**32 + n)
    | st.integers(-40, 300).map(lambda n: 2**31 + n)
)
operations = st.lists(
    st.tuples(st.sampled_from(["read", "write", "grow"]), any_int, any_int,
              st.binary(max_size=80)),
    max_size=8,
)  # fmt: skip


class Arena:
    """Bytes between guards; a guest's memory is a growing part of them."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(bytes(range(256)) + bytes(200)) + bytearray(b"\xa5" * GUARD)
        self.most = len(self.bytes) - GUARD
        self.size = min(size, self.most)
        before = b"\x5a" * GUARD
        self.buffer = ctypes.create_string_buffer(before + self.bytes, GUARD + len(self.bytes))
        self.memory = GuestMemory(lambda: (ctypes.addressof(self.buffer) + GUARD, self.size))

    def as_modelled(self) -> bool:
        """Whether nothing but what the model wrote was touched, the guards included."""
        return self.buffer.raw == b"\x5a" * GUARD + self.bytes


@fixed
@given(st.integers(0, 500), operations)
def test_guest_memory_is_the_model(
    size: int, story: list[tuple[str, int, int, bytes]]
) -> None:  # fmt: skip
    """Any 64-bit pointer and length: the bytes of that range, or `BadPointer` and nothing done."""
    arena = Arena(size)
    for what, pointer, length, data in story:
        start = pointer & U32_MASK
        count = len(data) if what == "write" else length & U32_MASK
        inside = start + count <= arena.size
        try:
            if what == "grow":
                arena.size = min(arena.size + start % 64, arena.most)
            elif what == "read":
                assert arena.memory.range(pointer, length) == arena.bytes[start : start + count]
                assert inside
            else:
                arena.memory.range(pointer, len(data))[:] = data
                arena.bytes[start : start + count] = data
                assert inside
        except BadPointer as error:
            if inside or (error.pointer, error.length, error.size) != (start, count, arena.size):
                raise
        assert arena.as_modelled()


# The raw form.

printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)
header = printable | st.text(max_size=40) | st.text(st.characters(categories=["Cs", "Cc"]))
headers = st.dictionaries(
    st.sampled_from(["Content-Type", "traceparent", "Nats-Msg-Id", "Nats-Schedule", "task-id"])
    | st.text(max_size=10),
    header, max_size=5,
)  # fmt: skip
tokens = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


@fixed
@given(tokens | header, headers, st.binary(max_size=120))
def test_any_headers_of_a_raw_message(
    task_id: str, found: dict[str, str], body: bytes
) -> None:  # fmt: skip
    """Headers are text within bounds or refused; none but three counts, and all can be recorded."""
    found = found | {envelope.TASK_ID: task_id}
    with only("message.malformed", "message.too-large"):
        request = envelope.decode_task(
            body, found, "acme", "resize", environment="dev", raw_allowed=True, input_max=100
        )
        assert isinstance(request, TaskRequest)
        assert subjects.is_id(request.id)
        texts = (request.content_type, request.trace)
        assert all(len(t) <= 256 and t.isascii() and (not t or t.isprintable()) for t in texts)
        assert request == TaskRequest(
            "acme", "resize", request.id, body, content_type=found.get("Content-Type", ""),
            trace=found.get("traceparent", ""), raw=True,
        )  # fmt: skip
    delivery = Delivery(
        data=body, subject="task.acme.resize", tenant="acme", headers=found, sequence=1,
        delivered=1, stored_at=0, lease="",
    )  # fmt: skip
    origin = envelope.origin_of(delivery)
    names = {name for name, _ in origin.headers}
    assert names <= {"Task-Id", "Content-Type", "traceparent"}
    record = envelope.Record(
        "resize", 1, 1, 0, 0, Receipt(), code="message.malformed", origin=origin
    )
    assert envelope.decode_record("dead", envelope.encode_record(record)).origin == origin


# A release in CONTROL.

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=80)
    | st.binary(max_size=40) | st.sampled_from(["release", LIVE.digest, LIVE.digest + "\n", 1])
)  # fmt: skip
entries = st.dictionaries(
    st.sampled_from(["v", "typ", "aud", "digest", "version", "extra"]), scalars, max_size=3
).map(
    lambda found: msgpack.packb(
        {"v": 1, "typ": "release", "aud": "dev/release.acme.resize", "digest": LIVE.digest,
         "version": "1.0.0"} | found
    )
)  # fmt: skip


@fixed
@given(changed(release.encode(LIVE, "dev")) | entries | st.binary(max_size=80))
def test_any_bytes_as_a_release(data: bytes) -> None:
    """A value in CONTROL is a release of its own key and environment, or refused by a code."""
    codes = ("message.malformed", "message.version-unknown", "message.audience-mismatch")
    with only(*codes):
        found = release.decode(data, "acme", "resize", environment="dev")
        assert (found.tenant, found.task) == ("acme", "resize")
        assert len(found.digest) == len(LIVE.digest)
    for tenant, environment in (("other", "dev"), ("acme", "prod")):
        with only(*codes):
            release.decode(data, tenant, "resize", environment=environment)
            # Only an entry that names the other place in so many words is one there.
            assert f"{environment}/release.{tenant}.resize".encode() in data
