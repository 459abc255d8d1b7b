"""The host functions of `core.abi`, over the one attempt that runs now.

Rules, each with a hostile guest in the tests: every range of a call, the answer's buffer included,
is checked before the call acts; every cap is by bytes and by count; what a call may cost the host
is paid in fuel; a strange argument is data (an answer of -3, a clamped level), never an exception.
Knows nothing of the engine: memory and fuel come through `machine.Machine`.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final, NoReturn

from executor.capabilities import clock, random
from executor.capabilities.log import LogBook
from executor.core import abi
from executor.core.frames import LAST_CALLS_MAX, UNRETURNED, Answer, Call, Run
from executor.sandbox.machine import Bug, Ended, Machine
from executor.sandbox.memory import U32_MASK, GuestMemory
from executor.sizes import PAYLOAD_MAX

# Fuel for host calls. A call takes the host about 2 µs on the fastest path, and a guest burns
# 1 to 10 fuel a nanosecond: 2,000 makes 10,000 calls cost 2 % of the default budget.
CALL_FUEL: Final = 2_000
# Reading and setting fuel takes 0.7 µs, so calls are counted and charged in steps; what is left
# over at the end is added to the bill.
CALLS_PER_CHARGE: Final = 16
# Copies up to here are in the price of a call; longer ones are charged at once and whole, a byte
# like the engine's own bulk instructions.
FREE_COPY_BYTES: Final = 4 * 1024
BYTE_FUEL: Final = 1
# The kernel's generator takes about 2.5 ns a byte; filled in pieces, so that a guest cannot make
# the host hold a second copy of its memory.
RANDOM_BYTE_FUEL: Final = 4
RANDOM_CHUNK: Final = 64 * 1024

I64_MAX: Final = 2**63 - 1
# What NATS takes as a key, a token for a token: an empty one would be an illegal subject.
_KEY: Final = re.compile(rb"[-/_=a-zA-Z0-9]+(?:\.[-/_=a-zA-Z0-9]+)*")

Mediate = Callable[[Call], Answer]
# A host function; its arguments stay the one tuple that was read from the engine.
Act = Callable[[tuple[int, ...]], int | None]


class Attempt:
    """Everything one attempt has said and used so far."""

    __slots__ = (
        "_mediate", "calls", "calls_max", "copied", "copied_max", "failure", "host_ns",
        "host_ns_max", "log", "machine", "mediated", "memory", "output", "output_max", "park",
        "park_counted", "recent", "run", "unavailable", "used",
    )  # fmt: skip

    def __init__(
        self, run: Run, machine: Machine, mediate: Mediate, recent: deque[tuple[str, int]]
    ) -> None:
        self.run = run
        self.machine = machine
        self.memory: GuestMemory | None = None  # known once the start section has run
        self.output = bytearray()
        self.output_max = min(run.output_bytes, PAYLOAD_MAX)
        self.log: LogBook | None = None  # most attempts say nothing
        self.failure: tuple[int, str, int] | None = None  # kind, text, retry_after_ms
        self.park = b""
        self.park_counted = False  # it counted when it arrived: taking it counts no more
        self.calls = 0
        self.calls_max = run.calls
        self.copied = 0
        self.copied_max = run.call_bytes
        self.mediated = 0
        self.host_ns = 0
        self.host_ns_max = run.host_ms * 1_000_000
        self.recent = recent
        self.unavailable = False
        self.used = 0
        self._mediate = mediate

    @property
    def last_call(self) -> str:
        """The host call that is being made, or was made last; empty before the first."""
        return self.recent[-1][0] if self.recent else ""

    def book(self) -> LogBook:
        """The lines of this attempt, opened at the first."""
        if self.log is None:
            self.log = LogBook(bytes_max=self.run.log_bytes, lines_max=self.run.log_lines)
        return self.log

    def refuse_call(self, name: str) -> NoReturn:
        """Say why no host call may be made now. Errors  `Ended`."""
        if self.memory is None:
            raise Ended("guest.trap", f"{name} called from the start section")
        raise Ended("limit.calls-exceeded", f"{self.calls_max} host calls are allowed")

    def charge_copy(self, length: int, *, byte_fuel: int = BYTE_FUEL) -> None:
        """Count a copy between guest and host; charge it, if it is a long one. Errors  `Ended`."""
        self.copied += length
        if self.copied > self.copied_max:
            raise self._copied_too_much()
        if length > FREE_COPY_BYTES:
            self.charge(length * byte_fuel)

    def count(self, length: int) -> None:
        """Count bytes that go between guest and host, or came for the guest. Errors  `Ended`."""
        self.copied += length
        if self.copied > self.copied_max:
            raise self._copied_too_much()

    def _copied_too_much(self) -> Ended:
        return Ended("limit.calls-exceeded", f"{self.copied_max} bytes of calls are allowed")

    def pay_copy(self, length: int) -> None:
        """Charge a copy that was counted, if it is a long one. Errors  `Ended`."""
        if length > FREE_COPY_BYTES:
            self.charge(length * BYTE_FUEL)

    def charge(self, fuel: int) -> None:
        """Take fuel for a host call. Errors  `Ended`, when it is more than what is left."""
        left = self.machine.fuel()
        if fuel > left:
            self.machine.set_fuel(0)
            raise Ended("limit.fuel-exhausted", f"in the host call {self.last_call}")
        self.machine.set_fuel(left - fuel)

    def fuel_used(self) -> int:
        """Exact: what the engine counted and what host calls cost, never above the budget."""
        over = self.calls % CALLS_PER_CHARGE * CALL_FUEL - self.machine.fuel()
        return self.run.fuel + over if over < 0 else self.run.fuel

    def write_output(self, data: memoryview) -> None:
        """Append to the output. Errors  `Ended`, and then nothing was copied."""
        if len(self.output) + len(data) > self.output_max:
            raise Ended("limit.output-too-large", f"{self.output_max} bytes are allowed")
        self.charge_copy(len(data))
        self.output += data

    def refuse(self, number: int) -> int:
        """Answer with an error of our own, its text parked."""
        self.park, self.park_counted = abi.ERRORS[number].encode(), False
        return number

    def ask(self, function: str, key: bytes, value: bytes = b"") -> Answer:
        """Let the mediator serve one call. Errors  `Ended`; `Bug` on an answer to another call."""
        if self.mediated >= self.run.mediated_calls:
            raise Ended(
                "limit.calls-exceeded", f"{self.run.mediated_calls} mediated calls are allowed"
            )
        call = Call(self.run.seq, self.mediated, function, key, value)
        self.mediated += 1
        answer = self._mediate(call)
        if (answer.seq, answer.ordinal) != (call.seq, call.ordinal):
            raise Bug("an answer to another call")
        # Now, and not when the guest takes it: it may ask for much and take nothing.
        self.count(len(answer.data))
        if answer.status < 0:
            if answer.status not in abi.ERRORS:
                raise Bug("an answer with an unknown error")
            self.unavailable |= answer.status == abi.UNAVAILABLE
            self.park, self.park_counted = answer.data[: abi.ERROR_TEXT_MAX], True
        return answer


class Host:
    """One slot for the current attempt, and the functions that act on it."""

    def __init__(self, mediate: Mediate) -> None:
        self._mediate = mediate
        self._attempt: Attempt | None = None
        self._recent: deque[tuple[str, int]] = deque(maxlen=LAST_CALLS_MAX)  # emptied, not remade
        self._memory: GuestMemory | None = None

    def begin(self, run: Run, machine: Machine) -> Attempt:
        """Open the slot. Errors  `Bug` if it is taken: one guest runs at a time."""
        if self._attempt is not None:
            raise Bug("two attempts at once")
        self._recent.clear()
        attempt = self._attempt = Attempt(run, machine, self._mediate, self._recent)
        return attempt

    def memory_of(self, machine: Machine) -> GuestMemory:
        """The memory of the instance that runs now."""
        memory = self._memory
        if memory is None:
            memory = self._memory = GuestMemory(machine.locate)
        else:
            memory.begin(machine.locate)
        return memory

    def end(self) -> None:
        """Close the slot; a host call from now on is a bug of ours."""
        self._attempt = None

    def function(self, name: str) -> Act:
        """The host function `name` of `core.abi`."""
        act = _ACTS[name]
        empties_park = abi.FUNCTIONS[name].module != abi.TASK
        # Made once: every call notes itself, and most of them return well.
        returned, unreturned = (name, 0), (name, UNRETURNED)
        errors = abi.ERRORS
        bit = abi.BITS[name]

        def call(arguments: tuple[int, ...]) -> int | None:
            begin = perf_counter_ns()
            attempt = self._attempt
            if attempt is None:
                raise Bug("a host call without an attempt")
            attempt.recent.append(returned)
            attempt.used |= bit
            try:
                memory, calls = attempt.memory, attempt.calls
                if memory is None or calls >= attempt.calls_max:
                    attempt.refuse_call(name)
                attempt.calls = calls = calls + 1
                if not calls % CALLS_PER_CHARGE:
                    attempt.charge(CALLS_PER_CHARGE * CALL_FUEL)
                if empties_park:
                    attempt.park = b""
                result = act(attempt, memory, arguments)
                if result in errors:
                    attempt.recent[-1] = (name, result or 0)
            except BaseException:
                attempt.recent[-1] = unreturned
                raise
            finally:
                attempt.host_ns += perf_counter_ns() - begin
            if attempt.host_ns > attempt.host_ns_max:
                allowed = f"{attempt.run.host_ms} ms in host calls are allowed"
                raise Ended("capability.deadline-exceeded", allowed)
            return result

        return call


Two = tuple[int, int]
Three = tuple[int, int, int]
Four = tuple[int, int, int, int]


def _input_len(attempt: Attempt, _memory: GuestMemory, _arguments: tuple[()]) -> int:
    return len(attempt.run.input)


def _input_read(attempt: Attempt, memory: GuestMemory, arguments: Three) -> int:
    dst, off, length = arguments
    room = memory.range(dst, length)
    start = off & U32_MASK
    data = attempt.run.input[start : start + len(room)]
    attempt.charge_copy(len(data))
    room[: len(data)] = data
    return len(data)


def _output_write(attempt: Attempt, memory: GuestMemory, arguments: Two) -> None:
    attempt.write_output(memory.range(*arguments))


def _fail(attempt: Attempt, memory: GuestMemory, arguments: Four) -> None:
    kind, ptr, length, retry_after_ms = arguments
    said = memory.range(ptr, length)
    data = said[: abi.FAIL_MESSAGE_MAX]
    attempt.charge_copy(len(data))
    # Not final when cut: half a character at the end is left out, not shown as a damaged one.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data.tobytes(), len(data) == len(said))
    attempt.failure = (kind, text, retry_after_ms)


def _take(attempt: Attempt, memory: GuestMemory, arguments: Two) -> int:
    room = memory.range(*arguments)
    data = attempt.park[: len(room)]
    if not attempt.park_counted:
        attempt.count(len(data))
    attempt.pay_copy(len(data))
    attempt.park = b""
    room[: len(data)] = data
    return len(data)


def _log_write(attempt: Attempt, memory: GuestMemory, arguments: Three) -> None:
    level, ptr, length = arguments
    line = memory.range(ptr, length)
    if len(line) > abi.LOG_LINE_MAX:
        attempt.book().drop()
    else:
        attempt.charge_copy(len(line))
        attempt.book().add(level, line.tobytes())


def _clock_now_ns(_attempt: Attempt, _memory: GuestMemory, _arguments: tuple[()]) -> int:
    return clock.now_ns()


def _random_fill(attempt: Attempt, memory: GuestMemory, arguments: Two) -> None:
    room = memory.range(*arguments)
    attempt.charge_copy(len(room), byte_fuel=RANDOM_BYTE_FUEL)
    for offset in range(0, len(room), RANDOM_CHUNK):
        piece = room[offset : offset + RANDOM_CHUNK]
        piece[:] = random.fill(len(piece))


def _key(attempt: Attempt, said: memoryview) -> bytes | None:
    """The key, or None if it is not one."""
    if len(said) > abi.KV_KEY_MAX:
        return None
    attempt.charge_copy(len(said))
    key = said.tobytes()
    return key if _KEY.fullmatch(key) else None


def _kv_get(attempt: Attempt, memory: GuestMemory, arguments: Four) -> int:
    kptr, klen, buf, cap = arguments
    said, room = memory.range(kptr, klen), memory.range(buf, cap)
    key = _key(attempt, said)
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    answer = attempt.ask("kv_get", key)
    if answer.status < 0:
        return answer.status
    if answer.status != len(answer.data):
        raise Bug("an answer that is not as long as it says")
    if answer.status > len(room):
        attempt.park, attempt.park_counted = answer.data, True
    else:
        attempt.pay_copy(answer.status)
        room[: answer.status] = answer.data
    return answer.status


def _kv_put(attempt: Attempt, memory: GuestMemory, arguments: Four) -> int:
    kptr, klen, vptr, vlen = arguments
    said, value = memory.range(kptr, klen), memory.range(vptr, vlen)
    key = _key(attempt, said)
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    if len(value) > PAYLOAD_MAX:
        return attempt.refuse(abi.TOO_LARGE)
    attempt.charge_copy(len(value))
    return min(attempt.ask("kv_put", key, value.tobytes()).status, 0)


def _kv_delete(attempt: Attempt, memory: GuestMemory, arguments: Two) -> int:
    key = _key(attempt, memory.range(*arguments))
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    return min(attempt.ask("kv_delete", key).status, 0)


_ACTS: Final[dict[str, Callable[[Attempt, GuestMemory, Any], int | None]]] = {
    "input_len": _input_len,
    "input_read": _input_read,
    "output_write": _output_write,
    "fail": _fail,
    "take": _take,
    "log_write": _log_write,
    "clock_now_ns": _clock_now_ns,
    "random_fill": _random_fill,
    "kv_get": _kv_get,
    "kv_put": _kv_put,
    "kv_delete": _kv_delete,
}
