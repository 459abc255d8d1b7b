"""Frames and conversations over bytes nobody thought of; seeds are fixed."""

from __future__ import annotations

import struct
from typing import Final

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.core import frames
from executor.core.conversation import Conversation
from executor.core.frames import (
    Answer,
    Call,
    Compile,
    Compiled,
    Done,
    Failed,
    Frame,
    Load,
    Reader,
    Ready,
    Rejected,
    Run,
)
from executor.errors import ExecutorError

fixed = settings(
    derandomize=True, deadline=None, max_examples=150, database=None, print_blob=True
)  # fmt: skip

VIOLATION: Final = "sandbox.protocol-violation"

seq = st.integers(1, 2**53 - 1)
count = st.integers(0, 2**53 - 1)
small = st.integers(1, 4)
place = st.integers(0, 63)
text = st.text(st.characters(codec="utf-8"), max_size=30)
data = st.binary(max_size=60)


def rows(*cells: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    """A few rows of these cells."""
    return st.lists(st.tuples(*cells), max_size=3).map(tuple)


dones = st.builds(
    Done, small, st.sampled_from(["", *sorted(frames.GUEST_CODES), "sandbox.crashed"]), text,
    st.booleans(), st.integers(-1, 9), data, rows(st.integers(0, 3), text), count, count, count,
    count, count, count, rows(text, text),
)  # fmt: skip
calls = st.builds(
    Call, small, st.integers(0, 2), st.sampled_from(["kv_get", "kv_put", "log_write", "x"]), data,
    data,
)  # fmt: skip
readies = st.builds(Ready, st.lists(text, max_size=3).map(tuple), text)
runs = st.builds(Run, seq, st.integers(0, 63), data, *[count] * 8)
anything: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Load, rows(place, st.lists(text, max_size=3).map(tuple))), runs,
    st.builds(Answer, seq, count, st.integers(-16, 99), data), readies, calls, dones,
    st.builds(Compile, count, st.booleans()),
    st.builds(Failed, text, text),
    st.builds(Compiled, rows(text, text, text), rows(text, text), count, count, text),
    st.builds(Rejected, text, text),
)  # fmt: skip
# What stands in for a field: right, nearly right and wrong.
cells = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | data,
    lambda inner: st.lists(inner, max_size=3), max_leaves=6,
)  # fmt: skip
bodies: st.SearchStrategy[bytes] = (
    st.binary(max_size=80)
    | cells.map(msgpack.packb)
    | st.tuples(st.integers(-1, 10), st.lists(cells, max_size=16)).map(
        lambda found: msgpack.packb([found[0], *found[1]])
    )
)  # fmt: skip


@fixed
@given(st.lists(anything, max_size=6), st.data())
def test_every_chunking_gives_equal_frames(sent: list[Frame], draw: st.DataObject) -> None:
    """However the stream is cut, the frames that arrive are those that were sent."""
    wire = b"".join(map(frames.encode, sent))
    cuts = draw.draw(st.lists(st.integers(0, len(wire)), max_size=12).map(sorted))
    reader = Reader()
    got = [
        frame
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for frame in reader.feed(wire[start:end])
    ]
    assert got == sent


@fixed
@given(bodies)
def test_any_body_is_a_frame_or_a_violation(body: bytes) -> None:
    """Whatever a sandbox sends, the supervisor gets a bounded frame or one code."""
    try:
        frame = frames.decode(body)
    except ExecutorError as error:
        if error.code != VIOLATION:
            raise
    else:
        assert frames.decode(frames.encode(frame)[4:]) == frame


@fixed
@given(anything)
def test_every_frame_has_the_shape_of_one(frame: Frame) -> None:
    """The pass over large bodies refuses none that is legal."""
    frames._check_shape(frames.encode(frame)[4:])


@fixed
@given(bodies)
def test_any_body_has_a_shape_or_is_a_violation(body: bytes) -> None:
    """That pass over any bytes raises the one code or nothing."""
    try:
        frames._check_shape(body.ljust(8, b"\xc1"))
    except ExecutorError as error:
        if error.code != VIOLATION:
            raise


@fixed
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_stream_is_frames_or_a_violation(chunks: list[bytes]) -> None:
    """No stream makes the reader keep more than a frame or raise anything else."""
    reader = Reader()
    try:
        for chunk in chunks:
            list(reader.feed(chunk))
    except ExecutorError as error:
        if error.code != VIOLATION:
            raise


@fixed
@given(st.integers(frames.FRAME_MAX + 1, 2**32 - 1), st.binary(max_size=20))
def test_an_oversized_length_is_refused_at_once(size: int, tail: bytes) -> None:
    """No length above the bound is waited for."""
    with pytest.raises(ExecutorError) as caught:
        list(Reader().feed(struct.pack(">I", size) + tail))
    assert caught.value.code == VIOLATION


# A step of a conversation: what is said, one thing that is off, and whether a call is answered.
steps = st.tuples(
    st.sampled_from(["call", "done", "call", "done", "any"]),
    st.sampled_from([*[""] * 15, "seq", "ordinal", "code", "function", "size"]),
    st.sampled_from([*[True] * 7, False]),
)


def said_now(talk: Conversation, kind: str, off: str, made: int) -> Frame:
    """The call or end that is due, but for one thing."""
    seq_ = (talk.head.seq if talk.head else 1) + (off == "seq")
    if kind == "call":
        function = "log_write" if off == "function" else "kv_get"
        return Call(seq_, made + (off == "ordinal"), function, b"", b"")
    code = "sandbox.crashed" if off == "code" else ""
    output = bytes(31 if off == "size" else 30)
    return Done(seq_, code, "", False, -1, output, (), 0, 0, 0, 0, 0, 0, ())


@fixed
@given(st.lists(steps, max_size=12), st.integers(0, 4), st.data())
def test_a_conversation_keeps_its_bounds(
    story: list[tuple[str, str, bool]], sent: int, draw: st.DataObject
) -> None:
    """Whatever is said, each attempt ends at most once, in order, with bounded calls."""
    talk = Conversation()
    list(talk.receive(frames.encode(Ready((), ""))))
    for number in range(1, sent + 1):
        talk.run(Run(number, 0, b"", 1, 1, 1, 30, 1, 1, 1, 2))
    ended: list[int] = []
    made, asking = 0, False
    for kind, off, answers in story:
        due = not asking and talk.head is not None and (kind == "done" or made < 2)
        frame = draw.draw(anything) if kind == "any" else said_now(talk, kind, off, made)
        try:
            (event,) = talk.receive(frames.encode(frame))
        except ExecutorError as error:
            if error.code != VIOLATION or (due and not off and kind != "any"):
                raise
            break
        assert not asking
        if isinstance(event, Done):
            ended.append(event.seq)
            made = 0
            assert len(event.output) <= 30
            assert event.code in {"", *frames.GUEST_CODES}
        elif isinstance(event, Call):
            assert event.function in {"kv_get", "kv_put", "kv_delete"}
            assert event.ordinal == made < 2
            made, asking = made + 1, not answers
            if answers:
                talk.answer(Answer(event.seq, event.ordinal, 0, b""))
    assert ended == list(range(1, len(ended) + 1))
    assert len(ended) <= sent


@fixed
@given(st.lists(readies | anything, max_size=4))
def test_nothing_is_said_before_ready(said: list[Frame]) -> None:
    """Until a sandbox says that it is locked down, whatever else it says ends it."""
    talk = Conversation()
    talk.run(Run(1, 0, b"", 1, 1, 1, 30, 1, 1, 1, 2))
    try:
        events = list(talk.receive(b"".join(map(frames.encode, said))))
    except ExecutorError as error:
        if error.code != VIOLATION:
            raise
    else:
        assert not events or isinstance(events[0], Ready | Failed)
