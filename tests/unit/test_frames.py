"""Frames: every field bounded, every chunking equal, and only what is legal in its turn."""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from dataclasses import fields, replace
from typing import Any, Final

import msgpack
import pytest

from executor.core import abi, frames
from executor.core.conversation import Conversation
from executor.core.frames import (
    Answer,
    Call,
    Compile,
    Compiled,
    Done,
    Exited,
    Failed,
    Fork,
    Forked,
    Frame,
    Load,
    Reader,
    Ready,
    Rejected,
    Run,
    Warm,
)
from executor.errors import ExecutorError
from executor.model import KIB, PAYLOAD_MAX

BIG: Final = 2**53 - 1
RUN: Final = Run(1, 0, b"in", 1, 2, 3, 100, 5, 6, 7, 2)
READY: Final = Ready(("seccomp", "landlock"), "wasmtime 50")
CALL: Final = Call(1, 0, "kv_get", b"key", b"")
ANSWER: Final = Answer(1, 0, 5, b"value")
DONE: Final = Done(
    1, "", "", False, -1, b"out", ((1, "line"),), 0, 1, 2, 3, 4, 5, (("a", "b"),)
)  # fmt: skip
SMALL: Final[tuple[Frame, ...]] = (
    Load(((3, ("kv_get", "log_write")), (4, ()))),
    RUN, ANSWER, READY, CALL, DONE,
    Compile(4, large=False),
    Compiled((("m", "n", "->i32"),), (("run", "->i32"),), 1, 2, "wasmtime 50"),
    Rejected("module.invalid", "no"),
    Failed("sandbox.start-failed", "no"),
    Warm("wasmtime 50", ("namespaces",), "raw"),
    Fork(1, "sandbox", 0, 1, best_effort=False),
    Forked(1, 2),
    Exited(1, -9),
)  # fmt: skip
LARGEST: Final[tuple[Frame, ...]] = (
    Load(tuple((63, ("f" * 128,) * 11) for _ in range(64))),
    Run(BIG, 63, bytes(PAYLOAD_MAX), *[BIG] * 10),
    Answer(BIG, BIG, PAYLOAD_MAX, bytes(PAYLOAD_MAX)),
    Ready(("l" * 128,) * 32, "e" * 128),
    Call(BIG, BIG, "f" * 128, bytes(512), bytes(PAYLOAD_MAX)),
    Done(BIG, "c" * 64, "😀" * (8 * KIB), True, BIG, bytes(PAYLOAD_MAX),
         ((3, "😀" * 128),) * 256, BIG, BIG, BIG, BIG, BIG, BIG, (("n" * 64, "é" * 512),) * 32,
         (("clock_now_ns", -16),) * 8, 2 ** len(abi.FUNCTIONS) - 1),
    Compile(BIG, large=True),
    Compiled((("m" * 128, "n" * 128, "s" * 256),) * 1_000, (("e" * 128, "s" * 256),) * 256,
             BIG, BIG, "e" * 128),
    Rejected("c" * 64, "m" * 1_024),
    Failed("c" * 64, "m" * 1_024),
    Warm("e" * 128, ("l" * 128,) * 32, "p" * 16),
    Fork(BIG, "r" * 16, 65_535, BIG, True, BIG, "a" * 128),
    Forked(BIG, BIG),
    Exited(BIG, -255),
)  # fmt: skip


def body_of(frame: Frame) -> bytes:
    """The frame without its length."""
    return frames.encode(frame)[4:]


def violation(data: bytes) -> str:
    """The detail with which a frame's body is refused."""
    with pytest.raises(ExecutorError) as caught:
        frames.decode(data)
    assert caught.value.code == "sandbox.protocol-violation"
    return caught.value.detail


@pytest.mark.parametrize("frame", SMALL + LARGEST, ids=lambda frame: type(frame).__name__)
def test_frames_read_back(frame: Frame) -> None:
    """Every frame, the largest of its kind too, arrives as it was sent and fits its bound."""
    wire = frames.encode(frame)
    (size,) = struct.unpack(">I", wire[:4])
    assert size == len(wire) - 4 <= frames.FRAME_MAX
    assert list(Reader().feed(wire)) == [frame]


def test_kinds_have_their_numbers() -> None:
    """The number of each kind is wire format between two processes."""
    kinds = [msgpack.unpackb(body_of(frame))[0] for frame in SMALL]
    assert kinds == [*range(14)]


COUNT_BAD: Final[list[Any]] = [-1, 2**53, 2**63, 2**64 - 1, 1.0, True, None, "1", b"1", [], {}]
TEXT_BAD: Final[list[Any]] = [1, None, b"x", [], True, {}]
BOOL_BAD: Final[list[Any]] = [0, 1, None, "true"]
BYTES_BAD: Final[list[Any]] = [1, None, "x", [], True]


def text(size: int) -> list[Any]:
    """What is no text of at most `size`."""
    return ["x" * (size + 1), *TEXT_BAD]


def data(size: int) -> list[Any]:
    """What is no bytes of at most `size`."""
    return [bytes(size + 1), *BYTES_BAD]


SEQ_BAD: Final = [*COUNT_BAD, 0]
NAMES_BAD: Final[list[Any]] = ["x", None, {}, ["l"] * 33, [1], [["l"]], ["x" * 129]]
RESOURCES: Final = (
    "fuel", "memory_bytes", "table_elements", "output_bytes", "log_bytes", "log_lines", "calls",
    "mediated_calls", "call_bytes", "host_ms",
)  # fmt: skip
USED: Final = ("log_dropped", "fuel_used", "memory_bytes", "guest_us", "host_us", "host_calls")

OUT_OF_BOUNDS: Final[dict[type, dict[str, list[Any]]]] = {
    Load: {
        "modules": [1, [[3]], [[64, []]], [[3, ["f"] * 12]], [[3, [1]]], [[3, []]] * 65, ["ab"]],
    },
    Run: {
        "seq": SEQ_BAD, "module": [*COUNT_BAD, 64], "input": data(PAYLOAD_MAX),
        **dict.fromkeys(RESOURCES, COUNT_BAD),
    },
    Answer: {
        "seq": SEQ_BAD, "ordinal": COUNT_BAD, "status": [-17, PAYLOAD_MAX + 1, 1.0, None],
        "data": data(PAYLOAD_MAX),
    },
    Ready: {"layers": NAMES_BAD, "engine": text(128)},
    Call: {
        "seq": SEQ_BAD, "ordinal": COUNT_BAD, "function": text(128), "key": data(512),
        "value": data(PAYLOAD_MAX),
    },
    Done: {
        "seq": SEQ_BAD, "code": text(64), "message": text(8 * KIB),
        "transient": BOOL_BAD, "retry_after_ms": [-2, 2**63, 1.0, None],
        "output": data(PAYLOAD_MAX),
        "logs": [1, [[1]], [[4, "x"]], [[-1, "x"]], [[1, b"x"]], [[1, "x" * 4097]],
                 [[1, "x"]] * 257, [[1, "x", 2]]],
        **dict.fromkeys(USED, COUNT_BAD),
        "facts": [1, [["a"]], [["a", 1]], [["a" * 65, "b"]], [["a", "b" * 513]], [["a", "b"]] * 33],
        "last_calls": [1, [["take"]], [["take", "0"]], [["take", True]], [["take", 2]],
                       [["take", -17]], [["open", 0]], [[["take"], 0]], [[1, 0]],
                       [["take", 0]] * 9],
        "used": [-1, 2 ** len(abi.FUNCTIONS), 1.0, None],
    },
    Compile: {"memory_max": COUNT_BAD, "large": BOOL_BAD},
    Compiled: {
        "imports": [1, [["m", "n"]], [["m", "n", 1]], [["m" * 129, "n", "s"]],
                    [["m", "n", "s" * 257]], [["m", "n", "s"]] * 1_001],
        "exports": [1, [["n"]], [["n" * 129, "s"]], [["n", "s" * 257]], [["n", "s"]] * 1_001],
        "memory_min": COUNT_BAD, "artifact_bytes": COUNT_BAD, "engine": text(128),
    },
    Rejected: {"code": text(64), "message": text(1_024)},
    Failed: {"code": text(64), "message": text(1_024)},
    Warm: {"engine": text(128), "layers": NAMES_BAD, "path": text(16)},
    Fork: {
        "number": SEQ_BAD, "role": text(16), "slot": [*COUNT_BAD, 65_536], "data": COUNT_BAD,
        "best_effort": BOOL_BAD, "cpu_seconds": COUNT_BAD, "attack": text(128),
    },
    Forked: {"number": SEQ_BAD, "pid": SEQ_BAD},
    Exited: {"number": SEQ_BAD, "status": [-256, 256, 1.0, None]},
}  # fmt: skip


def test_every_field_has_bad_cases() -> None:
    """No field of any frame is left out below."""
    assert {cls: set(bad) for cls, bad in OUT_OF_BOUNDS.items()} == {
        type(frame): {field.name for field in fields(frame)} for frame in SMALL
    }


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize("frame", SMALL, ids=lambda frame: type(frame).__name__)
def test_every_field_is_bounded(frame: Frame) -> None:
    """A field of another type, or one step outside its bound, is a violation."""
    for place, field in enumerate(fields(frame), 1):
        for bad in OUT_OF_BOUNDS[type(frame)][field.name]:
            values = msgpack.unpackb(body_of(frame))
            values[place] = bad
            detail = violation(msgpack.packb(values))
            # Either our check names the field, or the decoder refused it before it was built.
            assert detail in {
                f"{type(frame).__name__}.{field.name} is out of bounds",
                "not a frame",
            }


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize("frame", SMALL, ids=lambda frame: type(frame).__name__)
def test_the_number_of_fields_is_fixed(frame: Frame) -> None:
    """A field more or less is a violation, not a default."""
    values = msgpack.unpackb(body_of(frame))
    for other in ([*values, 0], values[:-1], values[:1]):
        assert "fields" in violation(msgpack.packb(other))


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize(
    "data_",
    [
        b"", b"\xc1", b"\xc0", b"\x01", b"\x80", b"\x90", b"\x91\xc0", b"\x91\xc3", b"\x91\xa11",
        b"\x91\x90", body_of(RUN)[:-1], body_of(RUN) + b"\0", b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff", b"\x91\xc6\xff\xff\xff\xff", b"\x92\x00\x81\x01\x01",
        b"\x92\x00\xd4\x01\x00", b"\x93\x08\xa1\xff\xa0", b"\x91" + b"\xcf" + b"\xff" * 8,
        b"\x91\xff", b"\x91\x09",
    ],
    ids=[
        "empty", "never used byte", "nil", "number", "map", "empty list", "nil as kind",
        "true as kind", "text as kind", "list as kind", "cut short", "trailing byte", "deep",
        "4 G items", "4 GB of bytes", "map inside", "ext type", "not UTF-8", "huge kind",
        "negative kind", "first unknown kind",
    ],
)  # fmt: skip
def test_other_bytes_are_no_frame(data_: bytes) -> None:
    """Bytes of any other shape end the sandbox, never the supervisor."""
    assert violation(data_)


@pytest.mark.parametrize("frame", LARGEST, ids=lambda frame: type(frame).__name__)
def test_the_largest_frames_have_the_shape_of_a_frame(frame: Frame) -> None:
    """The pass before the decoder lets through all that is legal, small frames too."""
    frames._check_shape(body_of(frame))


def large(*values: bytes) -> bytes:
    """A body of these values that is not small, by an input of 8 KiB at its end."""
    return bytes([0x90 + len(values) + 1]) + b"".join(values) + b"\xc5\x20\x00" + bytes(8 * KIB)


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize(
    "body",
    [
        large(b"\x04", b"\x91" * 4 + b"\x01"), large(b"\x05", b"\xdc\x03\xe8" + b"\x01" * 1000),
        large(b"\x04", b"\x81\x01\x01"), large(b"\x04", b"\xd4\x01\x01"),
        large(b"\x04", b"\xc1"), large(b"\x04", b"\xdd\xff\xff\xff\xff"),
        large(b"\x04", b"\xc6\xff\xff\xff\xff"), large(b"\x04", b"\xdb\xff\xff\xff\xff"),
        large(b"\x0e"), large(b"\x04", b"\x01") + b"\0", large(b"\x04", b"\x01")[:-1],
        large(b"\xcc\x04"), large(b"\x05", b"\x99" + (b"\xda\x80\x00" + b"x" * 32 * KIB) * 9),
        b"\xc1" * 5_000, b"\x00" * 5_000, b"\xdd\xff\xff\xff\xff\x05" + b"\x90" * 5_000,
    ],
    ids=[
        "deep", "many", "map", "ext type", "never used byte", "4 G items", "4 GB of bytes",
        "4 GB of text", "unknown kind", "trailing byte", "cut short", "kind of another spelling",
        "much text", "no array", "a number", "4 G items around it",
    ],
)  # fmt: skip
def test_a_large_body_is_judged_before_it_is_built(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no frame can look like costs the supervisor a look at it and no object."""

    def unpackb(*_: object, **__: object) -> None:
        raise AssertionError("it reached the decoder")

    monkeypatch.setattr(msgpack, "unpackb", unpackb)
    assert len(body) > 4 * KIB
    assert violation(body) == "not a frame"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100, 10_000])
def test_chunks_do_not_matter(size: int) -> None:
    """Frames are the same however the stream is cut."""
    wire = b"".join(map(frames.encode, SMALL))
    reader = Reader()
    chunks = [wire[start : start + size] for start in range(0, len(wire), size)]
    assert [frame for chunk in chunks for frame in reader.feed(chunk)] == list(SMALL)


@pytest.mark.covers("sandbox.protocol-violation")
def test_an_oversized_frame_is_refused_by_its_length() -> None:
    """Four bytes are enough to refuse: nothing of the frame is waited for or kept."""
    with pytest.raises(ExecutorError, match="a frame of 786433 bytes"):
        list(Reader().feed(struct.pack(">I", frames.FRAME_MAX + 1)))
    reader = Reader()
    assert list(reader.feed(struct.pack(">I", frames.FRAME_MAX) + b"x")) == []


def test_what_came_before_a_violation_still_counts() -> None:
    """Frames in front of a bad one are delivered, and the bad one ends the stream."""
    events = Reader().feed(frames.encode(RUN) + b"\0\0\0\0" + frames.encode(RUN))
    assert next(events) == RUN
    with pytest.raises(ExecutorError, match=r"sandbox\.protocol-violation"):
        next(events)


def test_a_reader_that_is_left_early_loses_nothing() -> None:
    """A frame that nobody fetched yet comes with the next bytes."""
    reader = Reader()
    events = reader.feed(frames.encode(RUN) + frames.encode(DONE))
    assert next(events) == RUN
    assert isinstance(events, Generator)
    events.close()
    assert list(reader.feed(b"")) == [DONE]


# Conversations.


def starting() -> Conversation:
    """Nothing was heard of the sandbox yet."""
    return Conversation()


def ready() -> Conversation:
    """The sandbox is locked down and idle."""
    talk = Conversation()
    assert list(talk.receive(frames.encode(READY))) == [READY]
    return talk


def running() -> Conversation:
    """Attempt 1 runs, attempt 2 waits behind it."""
    talk = ready()
    assert talk.run(RUN) == frames.encode(RUN)
    talk.run(replace(RUN, seq=2))
    return talk


def calling() -> Conversation:
    """Attempt 1 waits for the answer to its first call."""
    talk = running()
    assert list(talk.receive(frames.encode(CALL))) == [CALL]
    return talk


def answered() -> Conversation:
    """Attempt 1 runs on after its first call."""
    talk = calling()
    assert talk.answer(ANSWER) == frames.encode(ANSWER)
    return talk


STATES: Final = (starting, ready, running, calling, answered)
NEXT_CALL: Final = replace(CALL, ordinal=1)
# Every event of a sandbox, and the states in which it is legal.
LEGAL: Final[dict[str, tuple[Frame, tuple[Callable[[], Conversation], ...]]]] = {
    "ready": (READY, (starting,)),
    "first call": (CALL, (running,)),
    "second call": (NEXT_CALL, (answered,)),
    "call out of order": (replace(CALL, ordinal=2), ()),
    "call of the attempt behind": (replace(CALL, seq=2), ()),
    "call of nobody": (replace(CALL, seq=9), ()),
    "call that is not mediated": (replace(CALL, function="log_write"), ()),
    "call that does not exist": (replace(CALL, function="kv_steal"), ()),
    "result": (DONE, (running, answered)),
    "failure": (replace(DONE, code="guest.trap"), (running, answered)),
    "end of the attempt behind": (replace(DONE, seq=2), ()),
    "end of nobody": (replace(DONE, seq=9), ()),
    "code of the supervisor": (replace(DONE, code="sandbox.crashed"), ()),
    "code of nobody": (replace(DONE, code="guest.unheard"), ()),
    "output at its limit": (replace(DONE, output=bytes(100)), (running, answered)),
    "output above its limit": (replace(DONE, output=bytes(101)), ()),
    "fuel above its limit": (replace(DONE, fuel_used=2), ()),
    "memory above its limit": (replace(DONE, memory_bytes=3), ()),
    "host calls at their limit": (replace(DONE, host_calls=7), (running, answered)),
    "host calls above their limit": (replace(DONE, host_calls=8), ()),
    "log at its limits": (
        replace(DONE, logs=((1, "\N{POUND SIGN}x"), (1, "xx"), *[(0, "")] * 4), log_dropped=7),
        (running, answered),
    ),
    "more lines of log": (replace(DONE, logs=((0, ""),) * 7), ()),
    "more bytes of log": (replace(DONE, logs=((1, "\N{POUND SIGN}xx"), (1, "xx"))), ()),
    "more dropped lines than calls": (replace(DONE, log_dropped=8), ()),
    "failure with its last calls": (
        replace(DONE, code="guest.trap", last_calls=(("take", 0),)),
        (running, answered),
    ),
    "result with last calls": (replace(DONE, last_calls=(("take", 0),)), ()),
    "load": (SMALL[0], ()),
    "run": (RUN, ()),
    "answer": (ANSWER, ()),
    "compile": (SMALL[6], ()),
    "compiled": (SMALL[7], ()),
    "rejected": (SMALL[8], ()),
}


@pytest.mark.covers("sandbox.protocol-violation")
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("event", LEGAL)
def test_every_frame_in_every_state(event: str, state: Callable[[], Conversation]) -> None:
    """A frame is an event in the states of the table and a violation in all others."""
    frame, legal = LEGAL[event]
    talk = state()
    if state in legal:
        assert list(talk.receive(frames.encode(frame))) == [frame]
    else:
        with pytest.raises(ExecutorError) as caught:
            list(talk.receive(frames.encode(frame)))
        assert caught.value.code == "sandbox.protocol-violation"


def test_attempts_end_in_their_order() -> None:
    """The queue is what was sent and not ended, and its head is what runs."""
    talk = running()
    assert (talk.head, talk.outstanding, talk.outstanding_bytes) == (RUN, 2, 4)
    assert talk.pending() == (1, 2)
    list(talk.receive(frames.encode(DONE)))
    assert talk.pending() == (2,)
    list(talk.receive(frames.encode(replace(DONE, seq=2))))
    assert (talk.head, talk.outstanding, talk.outstanding_bytes, talk.pending()) == (None, 0, 0, ())


@pytest.mark.covers("sandbox.protocol-violation")
def test_calls_are_counted_per_attempt() -> None:
    """An attempt makes as many calls as its limit, and the next one counts from 0 again."""
    talk = answered()
    list(talk.receive(frames.encode(NEXT_CALL)))
    talk.answer(replace(ANSWER, ordinal=1))
    with pytest.raises(ExecutorError, match="over its number"):
        list(talk.receive(frames.encode(replace(CALL, ordinal=2))))
    talk = answered()
    list(talk.receive(frames.encode(DONE)))
    second = replace(CALL, seq=2)
    assert list(talk.receive(frames.encode(second))) == [second]


@pytest.mark.covers("sandbox.protocol-violation")
def test_bytes_of_calls_are_counted_per_attempt() -> None:
    """An attempt sends as many bytes as its limit; the next one counts from 0 again."""
    run = replace(RUN, call_bytes=10, mediated_calls=9)
    put = replace(CALL, function="kv_put", value=bytes(5))
    talk = ready()
    talk.run(run)
    talk.run(replace(run, seq=2))
    for seq, count in ((1, 2), (2, 2)):
        for ordinal in range(count):
            assert list(talk.receive(frames.encode(replace(put, seq=seq, ordinal=ordinal))))
            talk.answer(Answer(seq, ordinal, 0, b""))
        if seq == 1:
            list(talk.receive(frames.encode(DONE)))
    with pytest.raises(ExecutorError, match="more bytes of calls"):
        list(talk.receive(frames.encode(replace(put, seq=2, ordinal=2, value=b"x"))))


def test_bytes_of_answers_are_bounded() -> None:
    """The answer that goes beyond the limit is the last one with a value; others still come."""
    talk = ready()
    talk.run(replace(RUN, call_bytes=10, mediated_calls=9))
    spent = frames.encode(Answer(1, 2, abi.TOO_LARGE, b"the bytes of its calls are spent"))
    for ordinal, answer in enumerate((
        Answer(1, 0, 6, bytes(6)), Answer(1, 1, 6, bytes(6)), Answer(1, 2, 6, bytes(6)),
        Answer(1, 3, 0, b""), Answer(1, 4, abi.NOT_FOUND, b"not found"),
    )):  # fmt: skip
        list(talk.receive(frames.encode(replace(CALL, ordinal=ordinal))))
        assert talk.answer(answer) == (spent if ordinal == 2 else frames.encode(answer))


def test_an_attempt_without_calls_may_make_none() -> None:
    """With a limit of 0 the first call is a violation."""
    talk = ready()
    talk.run(replace(RUN, mediated_calls=0))
    with pytest.raises(ExecutorError, match="over its number"):
        list(talk.receive(frames.encode(CALL)))


def test_our_own_mistakes_are_no_violations() -> None:
    """Numbering backwards, or answering what was not asked, is a bug of the supervisor."""
    with pytest.raises(RuntimeError, match="numbered upwards"):
        running().run(replace(RUN, seq=2))
    for state, answer in (
        (starting, ANSWER), (running, ANSWER), (answered, ANSWER), (calling, replace(ANSWER, seq=2))
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="no such call"):
            state().answer(answer)


def test_what_a_sandbox_may_claim() -> None:
    """A sandbox judges its guest; deadlines, deaths and policy are the supervisor's to find."""
    stages = {code.partition(".")[0] for code in frames.GUEST_CODES}
    assert stages == {"limit", "guest", "capability"}
    assert "limit.deadline-exceeded" not in frames.GUEST_CODES
    for code in frames.GUEST_CODES:
        assert list(running().receive(frames.encode(replace(DONE, code=code))))


def test_after_a_failed_start_nothing_is_said() -> None:
    """One reason why it could not begin is its last word; a code of another kind is none."""
    failed = frames.encode(Failed("sandbox.start-failed", "no"))
    for more in (failed, frames.encode(READY)):
        talk = Conversation()
        assert list(talk.receive(failed)) == [Failed("sandbox.start-failed", "no")]
        with pytest.raises(ExecutorError):
            list(talk.receive(more))
    with pytest.raises(ExecutorError):
        list(Conversation().receive(frames.encode(Failed("guest.trap", "no"))))
