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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import msgpack

from executor.core import abi
from executor.errors import ExecutorError
from executor.sizes import KIB, PAYLOAD_MAX
from executor.values import light_dataclass

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

_LENGTH: Final = struct.Struct(">I")
# What a record can hold: a sandbox must not make a number that nobody can read back.
_INT_MAX: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Load:
    """The modules a sandbox is born with: (place of the artifact's descriptor, functions granted).

    Places count from 0, behind the socket and the status page.
    """

    modules: tuple[tuple[int, tuple[str, ...]], ...]


@light_dataclass(frozen=True, slots=True)
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


@light_dataclass(frozen=True, slots=True)
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


@light_dataclass(frozen=True, slots=True)
class Call:
    """A mediated host call of the running attempt; `ordinal` counts from 0."""

    seq: int
    ordinal: int
    function: str
    key: bytes
    value: bytes


@light_dataclass(frozen=True, slots=True)
class Done:
    """The last frame of an attempt. `code` is "" for a result; `facts` are names and values.

    `last_calls` are the last host calls of a failure, the newest last: function and 0, an error
    number of `core.abi`, or `UNRETURNED`. `used` has the functions that were called, by
    `abi.BITS`.
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
    used: int = 0


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
    """The zygote can fork: its engine's fingerprint, the layers that children inherit, the path.

    `path` is how attempts reach the engine, `raw` or `public`.
    """

    engine: str
    layers: tuple[str, ...]
    path: str


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
_ROWS: Final = 2  # deep: lists of plain values

# Of the plain checks: the type, and the least and most of a number or the longest of the others.
_BOUNDS: Final[dict[Check, tuple[type, int, int]]] = {}


def _int(low: int, high: int) -> Check:
    def check(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    _BOUNDS[check] = int, low, high
    return check


def _sized(kind: type[str | bytes], size: int) -> Check:
    def check(value: Any) -> bool:
        return type(value) is kind and len(value) <= size

    _BOUNDS[check] = kind, 0, size
    return check


def _text(size: int) -> Check:
    return _sized(str, size)


def _bytes(size: int) -> Check:
    return _sized(bytes, size)


def _function(value: Any) -> bool:
    return type(value) is str and value in abi.FUNCTIONS


def _bool(value: object) -> bool:
    return type(value) is bool


def _list(count: int, *item: Check) -> Check:
    def check(value: Any) -> bool:
        if type(value) is not list or len(value) > count:
            return False
        if not row:
            return all(map(item[0], value))
        for cells in value:
            if type(cells) is not list or len(cells) != len(item):
                return False
            for ok, cell in zip(item, cells, strict=True):
                if not ok(cell):
                    return False
        return True

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
        _int(0, (1 << len(abi.FUNCTIONS)) - 1),
    )),
    (Compile, (_COUNT, _bool)),
    (Compiled, (
        _list(IMPORTS_MAX, _text(128), _text(128), _text(256)),
        _list(IMPORTS_MAX, _text(128), _text(256)), _COUNT, _COUNT, _NAME,
    )),
    (Rejected, (_text(64), _text(1024))),
    (Failed, (_text(64), _text(1024))),
    (Warm, (_NAME, _LAYERS, _text(16))),
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
        raise violation("not a frame")
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
            raise violation("not a frame")
        byte = body[place]
        place += 1
        skip = _FIRST_BYTES[byte]
        if skip < 0:
            width = -skip % 10
            if skip == _ILLEGAL:
                raise violation("not a frame")
            length = (
                int.from_bytes(body[place : place + width], "big")
                if width
                else byte & (0x0F if skip == _ARRAY else 0x1F)
            )
            place += width
            if skip <= _ARRAY:
                left.append(length)
                if length > items or len(left) > depth + 1:
                    raise violation("not a frame")
                continue
            if skip <= _TEXT:
                text -= length
                if text < 0:
                    raise violation("not a frame")
            skip = length
        place += skip
    if place != size:
        raise violation("not a frame")


_KINDS: Final = {cls: kind for kind, (cls, _) in enumerate(_FRAMES)}
_FIELD_NAMES: Final = {cls: tuple(f.name for f in fields(cls)) for cls, _ in _FRAMES}


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if type(value) is list else value


def _freeze_rows(rows: list[Any]) -> Any:
    return tuple(map(tuple, rows))


class _Form:
    """One kind of frame, its checks sorted by what they cost: a task meets two frames at least."""

    def __init__(self, cls: type, checks: tuple[Check, ...]) -> None:
        self.cls: Final = cls
        self.kind: Final = _KINDS[cls]
        names = _FIELD_NAMES[cls]
        get = attrgetter(*names)
        # A frame's fields; of one alone an attrgetter makes no tuple.
        self.fields: Final = get if len(names) > 1 else lambda frame: (get(frame),)
        known = {check: _BOUNDS.get(check) for check in checks} | {_bool: (bool, 0, 0)}
        plain = [(place, known[check]) for place, check in enumerate(checks, 1)]
        self._types: Final = [int, *(bound[0] if bound else list for _, bound in plain)]
        numbers = [(place, bound[1:]) for place, bound in plain if bound and bound[0] is int]
        # Neighbours with the same bounds together: most of a frame are counts in a row.
        rows = [
            [number for _, number in row]
            for _, row in groupby(enumerate(numbers), lambda n: (n[1][0] - n[0], n[1][1]))
        ]
        self._rows: Final = tuple(
            (slice(row[0][0], row[-1][0] + 1), *row[0][1]) for row in rows if len(row) > 1
        )
        self._numbers: Final = tuple((*row[0][:1], *row[0][1]) for row in rows if len(row) == 1)
        self._sizes: Final = tuple(
            (place, bound[2]) for place, bound in plain if bound and bound[0] in {str, bytes}
        )
        self._lists: Final = tuple(
            (place, check, _freeze_rows if _EXTENTS[check][1] == _ROWS else _freeze)
            for place, check in enumerate(checks, 1) if not known[check]
        )  # fmt: skip

    def frame(self, values: list[Any]) -> Frame:
        """A frame as it was unpacked, every field checked. Errors  `sandbox.protocol-violation`."""
        # One pass for all types; true is no number here, since its type is another.
        if list(map(type, values)) != self._types:
            if len(values) != len(self._types):
                raise violation(f"{self.cls.__name__} with {len(values) - 1} fields")
            raise self._refused(next(
                place for place, kind in enumerate(self._types) if type(values[place]) is not kind
            ))  # fmt: skip
        for place, low, high in self._numbers:
            if not low <= values[place] <= high:
                raise self._refused(place)
        for places, low, high in self._rows:
            for value in values[places]:
                if not low <= value <= high:
                    raise self._refused(values.index(value, places.start))
        for place, size in self._sizes:
            if len(values[place]) > size:
                raise self._refused(place)
        for place, check, freeze in self._lists:
            value = values[place]
            if not value:
                values[place] = ()
            elif not check(value):
                raise self._refused(place)
            else:
                values[place] = freeze(value)
        frame: Frame = self.cls(*values[1:])
        return frame

    def _refused(self, place: int) -> ExecutorError:
        return violation(
            f"{self.cls.__name__}.{_FIELD_NAMES[self.cls][place - 1]} is out of bounds"
        )


_FORMS: Final = tuple(_Form(cls, checks) for cls, checks in _FRAMES)
_FORM_OF: Final = {form.cls: form for form in _FORMS}
# One for all: to make one costs more than to pack most frames.
_PACKER: Final = msgpack.Packer()


def encode(frame: Frame) -> bytes:
    """One frame with its length in front."""
    form = _FORM_OF[type(frame)]
    body: bytes = _PACKER.pack((form.kind, *form.fields(frame)))
    return _LENGTH.pack(len(body)) + body


def violation(detail: str) -> ExecutorError:
    """What a sandbox dies of that says what it must not."""
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
        raise violation("not a frame") from error
    if type(values) is not list or not values or type(values[0]) is not int:
        raise violation("not a frame")
    kind = values[0]
    if not 0 <= kind < len(_FORMS):
        raise violation(f"unknown kind {kind}")
    return _FORMS[kind].frame(values)


class Reader:
    """Bytes in, frames out; equal frames for every chunking of the same bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add `data` and yield each frame that is complete. Errors as `decode`."""
        buffer = self._buffer
        if buffer:
            buffer += data
        # Mostly all frames are whole, and the buffer stays empty.
        whole = buffer or data
        start, received = 0, len(whole)
        try:
            while received - start >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(whole, start)
                if size > FRAME_MAX:
                    raise violation(f"a frame of {size} bytes")
                first = start + _LENGTH.size
                end = first + size
                if received < end:
                    break
                # A slice of the buffer would be a copy that is copied again.
                body = bytes(memoryview(buffer)[first:end]) if whole is buffer else data[first:end]
                start = end
                yield decode(body)
        finally:
            if whole is buffer:
                del buffer[:start]
            else:
                buffer += data[start:]


# What a process may say of its own beginning.
START_CODES: Final = frozenset({"sandbox.start-failed", "sandbox.containment-missing"})
# What a sandbox may say of an attempt. Everything else is the supervisor's to find.
GUEST_CODES: Final = frozenset({
    "limit.fuel-exhausted", "limit.memory-exceeded", "limit.stack-exhausted",
    "limit.output-too-large", "limit.calls-exceeded",
    "guest.trap", "guest.exited", "guest.bad-pointer", "guest.failed",
    "capability.unavailable", "capability.deadline-exceeded",
})  # fmt: skip
