"""What supervisor and sandbox say to each other: sans-IO, bounded, and legal only in its turn.

A frame on the wire is a 4-byte big-endian length and a msgpack array `[kind, field, …]` with the
fixed fields below. The receiving side knows every bound before it allocates. Whatever else a
sandbox sends is `sandbox.protocol-violation`, and the process dies: its sender may be an attacker
in native code. Guest output is opaque bytes; nobody here decodes them.

    supervisor → sandbox    Load, Run, Answer    sandbox → supervisor    Ready, Failed, Call, Done
    supervisor → compiler   Compile              compiler → supervisor   Compiled, Rejected, Failed
    supervisor → zygote     Fork                 zygote → supervisor     Warm, Forked, Exited

Descriptors travel beside Fork and Forked; in frames they are places in that list.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import msgpack

from executor.core import abi
from executor.errors import ExecutorError
from executor.sizes import KIB, PAYLOAD_MAX

# An input or output, 64 KiB of log, 8 KiB of message and room for the fields round them.
FRAME_MAX: Final = PAYLOAD_MAX + 256 * KIB
# Bound on what lies with one sandbox behind the running attempt.
WINDOW_TASKS: Final = 96
WINDOW_BYTES: Final = 256 * KIB
MODULES_MAX: Final = 64
IMPORTS_MAX: Final = 1_000
# Of a failed attempt: enough to see what the guest was at, a row of a few bytes each.
LAST_CALLS_MAX: Final = 8
# In place of a call's error number: it had not returned.
UNRETURNED: Final = 1

# The text of an answer that would go beyond `Run.call_bytes`.
_SPENT: Final = b"the bytes of its calls are spent"
_LENGTH: Final = struct.Struct(">I")
# What a record can hold: a sandbox must not make a number that nobody can read back.
_INT_MAX: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Load:
    """The modules a sandbox is born with: (place of the artifact's descriptor, functions granted).

    Places count from 0, behind the socket and the status page.
    """

    modules: tuple[tuple[int, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt. `module` is an index into Load.modules; sizes in bytes."""

    seq: int
    module: int
    input: bytes
    fuel: int
    memory_bytes: int
    table_elements: int
    output_bytes: int
    log_bytes: int
    log_lines: int
    calls: int
    mediated_calls: int
    call_bytes: int = 2**53 - 1
    host_ms: int = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Answer:
    """The mediator's answer to a Call: a length ≥ 0 with data, or an error number with a text."""

    seq: int
    ordinal: int
    status: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ready:
    """The sandbox is locked down; `layers` is its claim, the supervisor checks for itself."""

    layers: tuple[str, ...]
    engine: str


@dataclass(frozen=True, slots=True)
class Call:
    """A mediated host call of the running attempt; `ordinal` counts from 0."""

    seq: int
    ordinal: int
    function: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The last frame of an attempt. `code` is "" for a result; `facts` are names and values.

    `last_calls` are the last host calls of a failure, the newest last: function and 0, an error
    number of `core.abi`, or `UNRETURNED`.
    """

    seq: int
    code: str
    message: str
    transient: bool
    retry_after_ms: int
    output: bytes
    logs: tuple[tuple[int, str], ...]
    log_dropped: int
    fuel_used: int
    memory_bytes: int
    guest_us: int
    host_us: int
    host_calls: int
    facts: tuple[tuple[str, str], ...]
    last_calls: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a process could not begin: one of `START_CODES`, and what was missing."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Compile:
    """What to compile: the largest memory it may start with, and whether its caps are `large`."""

    memory_max: int
    large: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler read out of the module, and the artifact's size."""

    imports: tuple[tuple[str, str, str], ...]  # module, name, signature as in core.abi
    exports: tuple[tuple[str, str], ...]  # name, signature
    memory_min: int
    artifact_bytes: int
    engine: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why there is no artifact; `code` is one of `module.*`, `limit.memory-exceeded`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Warm:
    """The zygote can fork: its engine's fingerprint, and the layers that children inherit."""

    engine: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fork:
    """Asks for a child. `data` is its budget of memory, in bytes beyond what it begins with.

    Descriptors beside it: the socket; for a sandbox the status page and the artifacts, for a
    compiler the module and the file for the artifact, for an `attack` nothing.
    """

    number: int
    role: str
    slot: int  # whose user it becomes, as root
    data: int
    best_effort: bool
    cpu_seconds: int = 0  # of a compiler
    attack: str = ""  # by name


@dataclass(frozen=True, slots=True)
class Forked:
    """A child exists; its pidfd comes beside this frame."""

    number: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A child is gone; `status` is minus the signal, or the exit status."""

    number: int
    status: int


Frame = (
    Load | Run | Answer | Ready | Call | Done | Compile | Compiled | Rejected | Failed
    | Warm | Fork | Forked | Exited
)  # fmt: skip

Check = Callable[[Any], bool]
# Of a check of lists: how many values are in one at most, and how deep they nest.
_EXTENTS: Final[dict[Check, tuple[int, int]]] = {}


def _int(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _text(size: int) -> Check:
    return lambda value: type(value) is str and len(value) <= size


def _bytes(size: int) -> Check:
    return lambda value: type(value) is bytes and len(value) <= size


def _function(value: Any) -> bool:
    return type(value) is str and value in abi.FUNCTIONS


def _bool(value: object) -> bool:
    return type(value) is bool


def _list(count: int, *item: Check) -> Check:
    def check(value: Any) -> bool:
        if type(value) is not list or len(value) > count:
            return False
        if len(item) == 1:
            return all(map(item[0], value))
        return all(
            type(row) is list
            and len(row) == len(item)
            and all(ok(cell) for ok, cell in zip(item, row, strict=True))
            for row in value
        )

    inner = [_EXTENTS.get(ok, (1, 0)) for ok in item]
    row = len(item) > 1
    _EXTENTS[check] = (
        1 + count * (sum(items for items, _ in inner) + row),
        1 + row + max(depth for _, depth in inner),
    )
    return check


_SEQ: Final = _int(1, _INT_MAX)
_COUNT: Final = _int(0, _INT_MAX)
_NAME: Final = _text(128)
_PLACE: Final = _int(0, MODULES_MAX - 1)
_LAYERS: Final = _list(32, _NAME)

# One check a field, in the order of the dataclass. The index of a row is the kind on the wire.
_FRAMES: Final[tuple[tuple[type, tuple[Check, ...]], ...]] = (
    (Load, (_list(MODULES_MAX, _PLACE, _list(len(abi.FUNCTIONS), _NAME)),)),
    (Run, (_SEQ, _int(0, MODULES_MAX - 1), _bytes(PAYLOAD_MAX), *[_COUNT] * 10)),
    (Answer, (_SEQ, _COUNT, _int(-16, PAYLOAD_MAX), _bytes(PAYLOAD_MAX))),
    (Ready, (_LAYERS, _NAME)),
    (Call, (_SEQ, _COUNT, _NAME, _bytes(abi.KV_KEY_MAX), _bytes(PAYLOAD_MAX))),
    (Done, (
        _SEQ, _text(64), _text(abi.FAIL_MESSAGE_MAX), _bool, _int(-1, 2**63 - 1),
        _bytes(PAYLOAD_MAX), _list(256, _int(0, 3), _text(abi.LOG_LINE_MAX)), *[_COUNT] * 6,
        _list(32, _text(64), _text(512)),
        _list(LAST_CALLS_MAX, _function, _int(-16, UNRETURNED)),
    )),
    (Compile, (_COUNT, _bool)),
    (Compiled, (
        _list(IMPORTS_MAX, _text(128), _text(128), _text(256)),
        _list(IMPORTS_MAX, _text(128), _text(256)), _COUNT, _COUNT, _NAME,
    )),
    (Rejected, (_text(64), _text(1024))),
    (Failed, (_text(64), _text(1024))),
    (Warm, (_NAME, _LAYERS)),
    (Fork, (_SEQ, _text(16), _int(0, 65_535), _COUNT, _bool, _COUNT, _NAME)),
    (Forked, (_SEQ, _SEQ)),
    (Exited, (_SEQ, _int(-255, 255))),
)  # fmt: skip

# Values in a frame of each kind at most, its own array among them, and how deep arrays nest.
_SHAPES: Final = tuple(
    (
        2 + sum(_EXTENTS.get(check, (1, 0))[0] for check in checks),
        1 + max(_EXTENTS.get(check, (1, 0))[1] for check in checks),
    )
    for _, checks in _FRAMES
)
# Bytes of text in a frame: as Python holds it, one wide character makes them four times as many.
_TEXT_MAX: Final = FRAME_MAX - PAYLOAD_MAX
# Up to here the values that a body can be made of are few enough to be built unseen.
_SMALL: Final = 4 * KIB


def _first_bytes() -> tuple[int, ...]:
    """What each first byte of a value stands for: so many bytes follow, or one of the below."""
    found = [_ILLEGAL] * 256
    for byte in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        found[byte] = 0
    for byte, size in zip((0xCA, 0xCB, *range(0xCC, 0xD4)), (4, 8, *(1, 2, 4, 8) * 2), strict=True):
        found[byte] = size
    for width, data, text in ((1, 0xC4, 0xD9), (2, 0xC5, 0xDA), (4, 0xC6, 0xDB)):
        found[data], found[text] = _DATA - width, _TEXT - width
    for byte in range(0x20):
        found[0xA0 + byte] = _TEXT
    for byte in range(0x10):
        found[0x90 + byte] = _ARRAY
    found[0xDC], found[0xDD] = _ARRAY - 2, _ARRAY - 4
    return tuple(found)


# Minus the bytes of the length that follows; none: it is in the lower bits. Maps and types of
# anybody's own are illegal.
_ILLEGAL: Final = -100
_ARRAY: Final = -30
_TEXT: Final = -20
_DATA: Final = -10
_FIRST_BYTES: Final = _first_bytes()
# Where a frame's kind stands, by the first byte of the frame's array.
_KIND_PLACES: Final = {**dict.fromkeys(range(0x90, 0xA0), 1), 0xDC: 3, 0xDD: 5}


def _check_shape(body: bytes) -> None:
    """Refuse what is no frame by its shape, before any of it is built.

    Errors  `sandbox.protocol-violation`.
    """
    kind = body[_KIND_PLACES.get(body[0], 0)]
    if kind >= len(_FRAMES):
        raise _violation("not a frame")
    items, depth = _SHAPES[kind]
    text = FRAME_MAX if kind == _KINDS[Compiled] else _TEXT_MAX
    place, size = 0, len(body)
    left = [1]  # values to come, in each array that is open
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        items -= 1
        if items < 0 or place >= size:
            raise _violation("not a frame")
        byte = body[place]
        place += 1
        skip = _FIRST_BYTES[byte]
        if skip < 0:
            width = -skip % 10
            if skip == _ILLEGAL:
                raise _violation("not a frame")
            length = (
                int.from_bytes(body[place : place + width], "big")
                if width
                else byte & (0x0F if skip == _ARRAY else 0x1F)
            )
            place += width
            if skip <= _ARRAY:
                left.append(length)
                if length > items or len(left) > depth + 1:
                    raise _violation("not a frame")
                continue
            if skip <= _TEXT:
                text -= length
                if text < 0:
                    raise _violation("not a frame")
            skip = length
        place += skip
    if place != size:
        raise _violation("not a frame")


_KINDS: Final = {cls: kind for kind, (cls, _) in enumerate(_FRAMES)}
_FIELD_NAMES: Final = {cls: tuple(f.name for f in fields(cls)) for cls, _ in _FRAMES}


def encode(frame: Frame) -> bytes:
    """One frame with its length in front."""
    cls = type(frame)
    values = [_KINDS[cls], *(getattr(frame, name) for name in _FIELD_NAMES[cls])]
    body: bytes = msgpack.packb(values)
    return _LENGTH.pack(len(body)) + body


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if type(value) is list else value


def _violation(detail: str) -> ExecutorError:
    return ExecutorError("sandbox.protocol-violation", detail)


def decode(body: bytes) -> Frame:
    """The frame in `body`, every field checked against its bound.

    Errors  `sandbox.protocol-violation`.
    """
    if len(body) > _SMALL:
        _check_shape(body)
    try:
        values = msgpack.unpackb(
            body, raw=False, use_list=True, strict_map_key=True,
            # A message of 8 Ki characters may take four bytes for each.
            max_str_len=4 * abi.FAIL_MESSAGE_MAX, max_bin_len=PAYLOAD_MAX,
            max_array_len=IMPORTS_MAX, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except Exception as error:  # the library raises a dozen types; all mean the same here
        raise _violation("not a frame") from error
    if type(values) is not list or not values or type(values[0]) is not int:
        raise _violation("not a frame")
    kind = values[0]
    if not 0 <= kind < len(_FRAMES):
        raise _violation(f"unknown kind {kind}")
    cls, checks = _FRAMES[kind]
    if len(values) != len(checks) + 1:
        raise _violation(f"{cls.__name__} with {len(values) - 1} fields")
    for name, ok, value in zip(_FIELD_NAMES[cls], checks, values[1:], strict=True):
        if not ok(value):
            raise _violation(f"{cls.__name__}.{name} is out of bounds")
    frame: Frame = cls(*map(_freeze, values[1:]))
    return frame


class Reader:
    """Bytes in, frames out; equal frames for every chunking of the same bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add `data` and yield each frame that is complete. Errors as `decode`."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._buffer, start)
                if size > FRAME_MAX:
                    raise _violation(f"a frame of {size} bytes")
                end = start + _LENGTH.size + size
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:  # a slice of the buffer would be a copy
                    body = bytes(view[start + _LENGTH.size : end])
                start = end
                yield decode(body)
        finally:
            del self._buffer[:start]


class Conversation:
    """What a sandbox may say now, seen from the supervisor.

    Attempts run in the order in which they were sent. A Call must belong to the oldest one without
    an answer, carry the next ordinal and wait for its Answer; a Done must end the oldest one.

        state      legal from the sandbox
        starting   Ready, Failed
        failed     nothing
        ready      Call, Done for the head of the queue
        calling    nothing until the Answer
    """

    def __init__(self) -> None:
        self._reader = Reader()
        self._queue: deque[Run] = deque()
        self._bytes = 0
        self._started = False
        self._failed = False
        self._calls = 0
        self._call_open = False
        self._said_bytes = 0  # values of the head's calls
        self._told_bytes = 0  # and of the answers to them

    @property
    def head(self) -> Run | None:
        """The attempt that must be running, if any was sent."""
        return self._queue[0] if self._queue else None

    @property
    def outstanding(self) -> int:
        """How many attempts were sent and not ended."""
        return len(self._queue)

    @property
    def outstanding_bytes(self) -> int:
        """Input bytes of the attempts that were sent and not ended."""
        return self._bytes

    def pending(self) -> tuple[int, ...]:
        """Sequence numbers of the attempts that were sent and not ended, in order."""
        return tuple(run.seq for run in self._queue)

    def run(self, run: Run) -> bytes:
        """The bytes that start `run`; it must come after every one before it."""
        if self._queue and run.seq <= self._queue[-1].seq:
            raise RuntimeError("attempts must be numbered upwards")
        self._queue.append(run)
        self._bytes += len(run.input)
        return encode(run)

    def answer(self, answer: Answer) -> bytes:
        """The bytes that answer the open Call.

        Once the attempt has had its bytes of answers it gets no more of them. An honest sandbox
        ends it at the answer that goes beyond, unless the guest had no room for that one.
        """
        head = self.head
        if not self._call_open or head is None or answer.seq != head.seq:
            raise RuntimeError("no such call is open")
        self._call_open = False
        if answer.status > 0 and self._said_bytes + self._told_bytes > head.call_bytes:
            answer = Answer(answer.seq, answer.ordinal, abi.TOO_LARGE, _SPENT)
        self._told_bytes += len(answer.data)
        return encode(answer)

    def receive(self, data: bytes) -> Iterator[Ready | Failed | Call | Done]:
        """The events in `data`. Errors  `sandbox.protocol-violation`."""
        for frame in self._reader.feed(data):
            match frame:
                case _ if self._failed:
                    raise _violation(f"{type(frame).__name__} after its last word")
                case Ready() if not self._started:
                    self._started = True
                    yield frame
                case Failed() if not self._started and frame.code in START_CODES:
                    self._failed = True
                    yield frame
                case Call() if self._started:
                    self._check_call(frame)
                    yield frame
                case Done() if self._started:
                    self._check_done(frame)
                    yield frame
                case _:
                    raise _violation(f"{type(frame).__name__} is not legal now")

    def _check_call(self, call: Call) -> None:
        head = self.head
        if head is None or call.seq != head.seq or self._call_open:
            raise _violation("a call without its attempt")
        function = abi.FUNCTIONS.get(call.function)
        if function is None or not function.mediated:
            raise _violation("a call that is not mediated")
        if call.ordinal != self._calls or self._calls >= head.mediated_calls:
            raise _violation("a call out of order or over its number")
        # A sandbox counts what it copies before it asks; keys it does not, their number is bound.
        self._said_bytes += len(call.value)
        if self._said_bytes > head.call_bytes:
            raise _violation("more bytes of calls than their limit")
        self._calls += 1
        self._call_open = True

    def _check_done(self, done: Done) -> None:
        head = self.head
        if head is None or done.seq != head.seq or self._call_open:
            raise _violation("an end without its attempt")
        if done.code and done.code not in GUEST_CODES:
            raise _violation("a code that a sandbox may not claim")
        if (
            len(done.output) > head.output_bytes
            or done.fuel_used > head.fuel
            or done.memory_bytes > head.memory_bytes
            or done.host_calls > head.calls
        ):
            raise _violation("more output, fuel, memory or calls than their limit")
        # A line is a call, whether it is kept or dropped.
        if len(done.logs) > head.log_lines or done.log_dropped > head.calls:
            raise _violation("more lines of log than their limit")
        if done.logs and sum(len(text.encode()) for _, text in done.logs) > head.log_bytes:
            raise _violation("more bytes of log than their limit")
        if done.last_calls and not done.code:
            raise _violation("last calls of a result")
        self._bytes -= len(self._queue.popleft().input)
        self._calls = self._said_bytes = self._told_bytes = 0


# What a process may say of its own beginning.
START_CODES: Final = frozenset({"sandbox.start-failed", "sandbox.containment-missing"})
# What a sandbox may say of an attempt. Everything else is the supervisor's to find.
GUEST_CODES: Final = frozenset({
    "limit.fuel-exhausted", "limit.memory-exceeded", "limit.stack-exhausted",
    "limit.output-too-large", "limit.calls-exceeded",
    "guest.trap", "guest.exited", "guest.bad-pointer", "guest.failed",
    "capability.unavailable", "capability.deadline-exceeded",
})  # fmt: skip
