"""Fuzz targets: whatever the bytes are, each parser at a boundary answers or refuses by its codes.

    python -m tests.fuzz.fuzz TARGET [options of atheris and libFuzzer]
    python -m tests.fuzz.fuzz TARGET --self-test N

The first form runs until it is stopped, guided by coverage, and needs atheris. The second one runs
N seeded mutations of the corpus and needs nothing. A target returns whether it took the bytes, and
raises for whatever a caller is not promised.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from executor.core import (
    abi,
    content,
    envelope,
    frames,
    manifest,
    provenance,
    release,
    scan,
    seal,
    signature,
    strict,
    wasm,
)
from executor.core.access import Party
from executor.core.conversation import Conversation
from executor.core.envelope import Draft, Origin, Record, Sealed
from executor.core.frames import Answer, Call, Done, Frame, Ready, Run
from executor.core.manifest import Manifest, Want
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Digest, Receipt, Release, TaskId, TaskRequest

VECTORS: Final = Path(__file__).parents[1] / "unit" / "vectors" / "wasmsig"
KEY: Final = SecretKey(b"k" * 32)
OTHER: Final = SecretKey(b"o" * 32)
MAGIC: Final = b"\0asm\x01\0\0\0"
INPUT_MAX: Final = 4096

Corpus = tuple[bytes, ...]
Target = Callable[[bytes], bool]


def promised(error: ExecutorError, *codes: str) -> bool:
    """Answer for a target that refused: False if a code begins like this, else it is raised."""
    if not error.code.startswith(codes):
        raise error
    return False


# Frames. The first byte chooses the state of the conversation, the second where the rest is cut.

STATES: Final = ("starting", "idle", "running", "calling", "queued")
RUN: Final = Run(1, 0, b"in", 1, 1, 1, 64, 8, 1, 4, 4, call_bytes=8192)


def conversation(state: str) -> Conversation:
    """A conversation in one of the states, with attempts 1 and 2 where there are any."""
    talk = Conversation()
    if state != "starting":
        list(talk.receive(frames.encode(Ready((), ""))))
    if state not in {"starting", "idle"}:
        talk.run(RUN)
    if state == "queued":
        talk.run(replace(RUN, seq=2, module=1, input=b""))
    if state == "calling":
        list(talk.receive(frames.encode(Call(1, 0, "kv_get", b"k", b""))))
    return talk


def converse(talk: Conversation, pieces: Sequence[bytes]) -> list[Frame]:
    """The events in `pieces`, each held to what the supervisor relies on; calls are answered.

    Errors  `sandbox.protocol-violation`.
    """
    events: list[Frame] = []
    for piece in pieces:
        for event in talk.receive(piece):
            events.append(event)
            if isinstance(event, Call):
                function = abi.FUNCTIONS[event.function]
                assert function.mediated
                assert len(event.value) <= RUN.call_bytes
                talk.answer(Answer(event.seq, event.ordinal, 0, b""))
            elif isinstance(event, Done):
                assert event.code in {"", *frames.GUEST_CODES}
                assert len(event.output) <= RUN.output_bytes
                assert event.fuel_used <= RUN.fuel
                assert event.memory_bytes <= RUN.memory_bytes
                assert event.host_calls <= RUN.calls
                assert len(event.logs) <= RUN.log_lines
                assert sum(len(text.encode()) for _, text in event.logs) <= RUN.log_bytes
                assert len(event.last_calls) <= (frames.LAST_CALLS_MAX if event.code else 0)
                assert all(name in abi.FUNCTIONS for name, _ in event.last_calls)
        # What is kept is less than one frame.
        assert len(talk._reader._buffer) < frames.FRAME_MAX + 4
    return events


def frames_target(data: bytes) -> bool:
    """A sandbox sends `data`: legal frames, or a violation."""
    state, cut, said = STATES[data[0] % len(STATES)] if data else "starting", data[1:2], data[2:]
    at = cut[0] if cut else 0
    talk = conversation(state)
    before = talk.outstanding
    try:
        events = converse(talk, [said[:at], said[at:]])
    except ExecutorError as error:
        return promised(error, "sandbox.protocol-violation")
    ended = [event.seq for event in events if isinstance(event, Done)]
    assert ended == list(range(1, len(ended) + 1))
    assert before - talk.outstanding == len(ended)
    return True


def done(seq: int, **changes: object) -> Done:
    """The end of an attempt."""
    fields = {
        "seq": seq, "code": "", "message": "", "transient": False, "retry_after_ms": -1,
        "output": b"out", "logs": ((1, "line"),), "log_dropped": 0, "fuel_used": 1,
        "memory_bytes": 1, "guest_us": 1, "host_us": 1, "host_calls": 1, "facts": (("a", "b"),),
        "last_calls": (),
    }  # fmt: skip
    return Done(**(fields | changes))  # type: ignore[arg-type]  # a test that is wrong fails


@functools.cache
def frames_corpus() -> Corpus:
    """Streams that are legal in one of the states, and some that never are."""
    said: list[tuple[str, list[Frame]]] = [
        ("starting", [Ready(("rlimits", "seccomp"), "engine")]),
        ("starting", [frames.Failed("sandbox.start-failed", "no engine")]),
        ("idle", [Ready((), "")]),
        ("running", [done(1)]),
        ("running", [Call(1, 0, "kv_put", b"key", b"value"), done(1)]),
        ("running", [Call(1, 0, "kv_get", b"key", b""), Call(1, 1, "kv_delete", b"key", b"")]),
        ("running", [done(1, code="guest.trap", message="unreachable", output=b"")]),
        ("running", [done(1, code="guest.trap", last_calls=(("kv_get", -4), ("take", 1)))]),
        ("queued", [done(1), done(2)]),
        ("queued", [done(1), Call(2, 0, "kv_get", b"key", b"")]),
        ("calling", [done(1)]),
        ("running", [RUN]),
        ("running", [frames.Load(((3, ("kv_get",)),))]),
        ("running", [frames.Compiled((("m", "n", "->"),), (("e", "->"),), 1, 1, "engine")]),
        ("running", [frames.Rejected("module.invalid", "no")]),
        # Too large to be decoded unseen.
        ("running", [Call(1, 0, "kv_put", b"key", bytes(5_000)), done(1)]),
    ]
    nested = b"\x92\x05\xdc\x03\xe8" + (b"\x95" + b"\x90" * 5) * 1_000
    return (
        *(
            bytes([STATES.index(state), 255]) + b"".join(map(frames.encode, sent))
            for state, sent in said
        ),
        bytes([STATES.index("running"), 255]) + len(nested).to_bytes(4, "big") + nested,
    )


# Envelopes and releases. The first byte chooses the reader.

ASK: Final = TaskRequest("acme", "resize", TaskId("1"), b"input", content_type="text/plain")
SUBJECT: Final = "result.acme.resize.1"


def _decode_task(data: bytes, headers: dict[str, str]) -> None:
    found = envelope.decode_task(
        data, headers, "acme", "resize", environment="dev", raw_allowed=True, input_max=INPUT_MAX
    )
    if isinstance(found, TaskRequest):
        assert (found.tenant, found.task, found.attempt, found.crashes) == ("acme", "resize", 1, 0)
        assert len(found.input) <= INPUT_MAX


def _decode_retry(data: bytes) -> None:
    sealed = Sealed("retry", "", "1", "", 0, data, signature.Proof(1, 0, b"", b""))
    request, _ = envelope.decode_retry(
        sealed, "acme", "resize", environment="dev", input_max=INPUT_MAX
    )
    assert request.id == "1"


def _decode_raw(data: bytes) -> None:
    head, _, body = data.partition(b"\0")
    task_id, _, content_type = head.decode("utf-8", "surrogateescape").partition(" ")
    _decode_task(body, {"Task-Id": task_id, "Content-Type": content_type})


READERS: Final[tuple[Callable[[bytes], object], ...]] = (
    lambda data: _decode_task(data, {}),
    envelope.decode_sealed,
    lambda data: envelope.decode_record("result", data),
    lambda data: envelope.decode_record("dead", data),
    _decode_retry,
    _decode_raw,
    lambda data: release.decode(data, "acme", "resize", environment="dev"),
    content.from_msgpack,
    lambda data: envelope.decode_record("dead", data, 1),
)


def envelope_target(data: bytes) -> bool:
    """A message or a stored value says `data`: a value, or a code of messages."""
    try:
        READERS[data[0] % len(READERS) if data else 0](data[1:])
    except ExecutorError as error:
        return promised(error, "message.")
    return True


@functools.cache
def envelope_corpus() -> Corpus:
    """One message for each of the readers."""
    record = Record("resize", 1, 3, 1, 2, Receipt(), output=b"out", content_type="text/plain")
    letter = Record(
        "resize", 1, 3, 1, 2, Receipt(), code="guest.trap", message="no", facts=(("a", 1),),
        logs=((1, "line"),), origin=Origin("task.acme.resize", b"x", (("Task-Id", "1"),), 1),
        limits=(("fuel", 7),), last_calls=(("kv_get", -4),), signers=("author",),
    )  # fmt: skip
    payloads = [envelope.encode_record(one) for one in (record, letter)]
    body = envelope.encode_task(ASK, "dev")
    whole = Origin("task.acme.resize", body, (), len(body))
    sealed = seal.seal(KEY, [Draft("result", f"dev/{SUBJECT}", "1", payloads[0])], at=1)[0]
    live = Release("acme", "resize", Digest("sha256:" + "ab" * 32), "1.0.0")
    found = (
        body, sealed, *payloads, envelope.encode_retry(ASK, whole), b"id text/plain\0body",
        release.encode(live, "dev"), content.to_msgpack({"a": [1, {"b": "c"}]}),
        envelope.encode_record(letter, 1),
    )  # fmt: skip
    return tuple(bytes([reader]) + data for reader, data in enumerate(found))


# Modules: manifest, signature, framing.


def manifest_target(data: bytes) -> bool:
    """A signed module carries `data` as its manifest: one with that very spelling, or none."""
    try:
        found = manifest.read(MAGIC + wasm.custom(manifest.SECTION, data))
    except ExecutorError as error:
        return promised(error, "module.manifest-invalid", "module.too-complex")
    assert manifest.encode(found) == data
    return True


@functools.cache
def manifest_corpus() -> Corpus:
    """A small and a full manifest."""
    wants = tuple(Want(name, "a/b", "why") for name in abi.CAPABILITIES)
    full = Manifest(
        "resize", "1.0.0", summary='Äöü \\ " 😀', wants=wants, input="text/plain", output="x",
        limits=tuple((name, 7) for name in sorted(manifest.LIMITS)), idempotent=True,
        source_date=1, built_with="zig 0.17", not_after=2,
    )  # fmt: skip
    return manifest.encode(Manifest("resize", "1.0.0")), manifest.encode(full)


def _rest(module: bytes) -> bytes:
    return module[wasm.sections(module)[0].end :]


def signature_target(data: bytes) -> bool:
    """The store holds `data`: a module whose signed bytes are the signer's, or nobody's."""
    try:
        signature.signers(data)
        held = signature.verify_module(data, [KEY.public])
    except ExecutorError as error:
        return promised(
            error, "module.invalid", "module.too-complex", "module.unsigned",
            "module.signature-invalid",
        )  # fmt: skip
    if not held:
        return False
    assert held == (KEY.public,)
    assert _rest(data) in {_rest(module) for module in signature_corpus()}
    return True


@functools.cache
def signature_corpus() -> Corpus:
    """Modules with one signature and with two."""
    bare = MAGIC + b"\x01\x04\x01\x60\0\0" + wasm.custom("name", b"x" * 40)
    described = manifest.append(bare, Manifest("resize", "1.0.0"))
    one = signature.sign_module(described, KEY)
    return one, signature.sign_module(one, OTHER), signature.sign_module(bare, KEY)


def wasm_target(data: bytes) -> bool:
    """Anybody's file is `data`: sections that fill it without a gap, or none."""
    try:
        found = wasm.sections(data)
    except ExecutorError as error:
        return promised(error, "module.invalid", "module.too-complex")
    end = wasm.HEADER
    for section in found:
        assert section.start == end < section.payload <= section.end
        assert bool(section.name) <= (section.id == wasm.CUSTOM)
        end = section.end
    assert end == len(data)
    return True


@functools.cache
def wasm_corpus() -> Corpus:
    """Real modules, a component's head, sections of every id."""
    sections = b"".join(bytes([number]) + wasm.uleb(3) + b"abc" for number in range(1, 14))
    padded = b"\x0a\x83\x80\x80\x80\x00abc"
    real = tuple(path.read_bytes() for path in sorted(VECTORS.glob("*.wasm")))
    return (*real, *signature_corpus(), MAGIC + sections, MAGIC + padded, b"\0asm\x0d\0\x01\0")


BUILDER: Final = Party("farm", KEY.public)
BUILT: Final = signature.digest(MAGIC)


def provenance_target(data: bytes) -> bool:
    """An envelope, or what an accepted builder signed: a statement about our module, or none."""
    if not data.startswith(b'{"payload"'):
        made = KEY.sign(provenance.pae(data))
        data = provenance._envelope(data, KEY.public.key_id.hex(), made)
    try:
        said = provenance.verify(data, BUILT, [BUILDER])
    except ExecutorError as error:
        return promised(error, "module.provenance-invalid")
    assert said.builder == BUILDER
    assert all(isinstance(part, str) for source in said.sources for part in source)
    return True


@functools.cache
def provenance_corpus() -> Corpus:
    """Envelopes, and statements that are signed before they are read."""
    build = provenance.Build(BUILT, "t", "1", "c", (("src/t.c", "ab" * 32),), (("zig", "1"),))
    statement = strict.dump(provenance._statement(build, KEY.public))
    return provenance.sign(build, KEY), statement, strict.dump({"_type": [{}], "subject": 7})


def scan_target(data: bytes) -> bool:
    """Anybody's file is `data`: findings that lie in it, at most so many."""
    try:
        found = scan.scan(data)
    except ExecutorError as error:
        return promised(error, "module.invalid", "module.too-complex")
    assert len(found) <= scan.FINDINGS_MAX
    assert all(0 <= finding.offset < len(data) for finding in found)
    return bool(found)


@functools.cache
def scan_corpus() -> Corpus:
    """Files with something to find, and real ones."""
    planted = KEY.pem() + b"password = 'a1b2c3d4e5f6' https://a:b@c /home/x/y AKIA" + b"Q7" * 8
    return MAGIC + wasm.custom("notes", planted), *wasm_corpus()


TARGETS: Final[dict[str, tuple[Target, Callable[[], Corpus]]]] = {
    "frames": (frames_target, frames_corpus),
    "envelope": (envelope_target, envelope_corpus),
    "manifest": (manifest_target, manifest_corpus),
    "signature": (signature_target, signature_corpus),
    "wasm": (wasm_target, wasm_corpus),
    "provenance": (provenance_target, provenance_corpus),
    "scan": (scan_target, scan_corpus),
}

# Bytes at which formats turn: limits of LEB128 and msgpack, markers of msgpack, lengths.
_EDGES: Final = (
    b"\0", b"\x7f", b"\x80", b"\xff", b"\xc0", b"\xc1", b"\x90", b"\x9f", b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xff" * 5,
    b"\xc9\0\0\0\1\1", b"\xcb\x7f\xf8\0\0\0\0\0\0", b'"', b"\\", b"[", b"{}", b"0",
)  # fmt: skip


def mutate(rng: random.Random, corpus: Corpus) -> bytes:
    """One to four changes of an entry of the corpus; now and then bytes without any form."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(64))
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(8):
            case 0 | 1 if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2 if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
            case 3:
                data[start:start] = rng.choice(_EDGES)
            case 4:
                del data[start : min(end, start + rng.choice((1, 4, 64)))]
            case 5:
                data[start:start] = data[start:end]
            case 6:
                other = rng.choice(corpus)
                data[start:] = other[rng.randrange(len(other)) :]
            case _:
                edge = rng.choice(_EDGES)
                data[start : start + len(edge)] = edge
    return bytes(data)


def self_test(name: str, count: int, seed: int = 0) -> tuple[int, int]:
    """Run the corpus and `count` mutations: how many were taken, how many refused."""
    target, corpus = TARGETS[name]
    # Of its own for each target: a new entry in one corpus leaves the others' inputs as they are.
    rng = random.Random(hashlib.sha256(f"{name} {seed}".encode()).digest())
    entries = corpus()
    taken = 0
    for data in (*entries, *(mutate(rng, entries) for _ in range(count))):
        try:
            taken += target(data)
        except BaseException as error:
            error.add_note(f"target {name}, input {data.hex()}")
            raise
    return taken, len(entries) + count - taken


def main(arguments: Sequence[str]) -> int:
    """Run one target; 2 for a wrong command line or without atheris."""
    if not arguments or arguments[0] not in TARGETS:
        sys.stderr.write(f"usage: python -m tests.fuzz.fuzz {'|'.join(TARGETS)} [options]\n")
        return 2
    name, *options = arguments
    if options[:1] == ["--self-test"]:
        if len(options) != 2 or not options[1].isdigit():
            sys.stderr.write("--self-test takes the number of mutations\n")
            return 2
        taken, refused = self_test(name, int(options[1]))
        sys.stdout.write(f"{name}: {taken} taken, {refused} refused, 0 surprises\n")
        return 0
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("atheris is missing: pip install atheris\n")
        return 2
    target, corpus = TARGETS[name]
    entries = corpus()

    def custom(data: bytes, most: int, seed: int) -> bytes:
        # Every other input is a change of ours, which keeps more of the form than one of libFuzzer.
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return mutate(random.Random(seed), (data or entries[0], *entries))[:most]

    def run(data: bytes) -> None:
        target(data)  # its answer is for the self-test

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *options], run, custom_mutator=custom)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
