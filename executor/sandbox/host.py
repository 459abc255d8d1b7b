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
from typing import Final

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
Act = Callable[..., int | None]


class Attempt:
    """Everything one attempt has said and used so far."""

    __slots__ = (
        "_mediate", "_unpaid", "calls", "copied", "failure", "host_ns", "last_call", "log",
        "machine", "mediated", "memory", "output", "park", "park_counted", "recent", "run",
        "unavailable", "used",
    )  # fmt: skip

    def __init__(self, run: Run, machine: Machine, mediate: Mediate) -> None:
        self.run = run
        self.machine = machine
        self.memory: GuestMemory | None = None  # known once the start section has run
        self.output = bytearray()
        self.log = LogBook(bytes_max=run.log_bytes, lines_max=run.log_lines)
        self.failure: tuple[int, str, int] | None = None  # kind, text, retry_after_ms
        self.park = b""
        self.park_counted = False  # it counted when it arrived: taking it counts no more
        self.calls = 0
        self.copied = 0
        self.mediated = 0
        self.host_ns = 0
        self.last_call = ""
        self.recent: deque[tuple[str, int]] = deque(maxlen=LAST_CALLS_MAX)
        self.unavailable = False
        self.used = 0
        self._unpaid = 0
        self._mediate = mediate

    def enter(self, name: str) -> GuestMemory:
        """Count one host call and charge it when a step is full. Errors  `Ended`."""
        self.last_call = name
        if self.memory is None:
            raise Ended("guest.trap", f"{name} called from the start section")
        if self.calls >= self.run.calls:
            raise Ended("limit.calls-exceeded", f"{self.run.calls} host calls are allowed")
        self.calls += 1
        self._unpaid += CALL_FUEL
        if self.calls % CALLS_PER_CHARGE == 0:
            due, self._unpaid = self._unpaid, 0
            self._charge(due)
        return self.memory

    def charge_copy(self, length: int, *, byte_fuel: int = BYTE_FUEL) -> None:
        """Count a copy between guest and host; charge it, if it is a long one. Errors  `Ended`."""
        self.count(length)
        self.pay_copy(length, byte_fuel=byte_fuel)

    def count(self, length: int) -> None:
        """Count bytes that go between guest and host, or came for the guest. Errors  `Ended`."""
        self.copied += length
        if self.copied > self.run.call_bytes:
            raise Ended("limit.calls-exceeded", f"{self.run.call_bytes} bytes of calls are allowed")

    def pay_copy(self, length: int, *, byte_fuel: int = BYTE_FUEL) -> None:
        """Charge a copy that was counted, if it is a long one. Errors  `Ended`."""
        if length > FREE_COPY_BYTES:
            self._charge(length * byte_fuel)

    def _charge(self, fuel: int) -> None:
        left = self.machine.fuel()
        if fuel > left:
            self.machine.set_fuel(0)
            raise Ended("limit.fuel-exhausted", f"in the host call {self.last_call}")
        self.machine.set_fuel(left - fuel)

    def fuel_used(self) -> int:
        """Exact: what the engine counted and what host calls cost, never above the budget."""
        return min(self.run.fuel, self.run.fuel - self.machine.fuel() + self._unpaid)

    def write_output(self, data_length: int, read: Callable[[], bytes]) -> None:
        """Append to the output. Errors  `Ended`, and then nothing was copied."""
        limit = min(self.run.output_bytes, PAYLOAD_MAX)
        if len(self.output) + data_length > limit:
            raise Ended("limit.output-too-large", f"{limit} bytes are allowed")
        self.charge_copy(data_length)
        self.output += read()

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

    def begin(self, run: Run, machine: Machine) -> Attempt:
        """Open the slot. Errors  `Bug` if it is taken: one guest runs at a time."""
        if self._attempt is not None:
            raise Bug("two attempts at once")
        self._attempt = Attempt(run, machine, self._mediate)
        return self._attempt

    def end(self) -> None:
        """Close the slot; a host call from now on is a bug of ours."""
        self._attempt = None

    def function(self, name: str) -> Callable[..., int | None]:
        """The host function `name` of `core.abi`, taking integers as the engine gives them."""
        act = _ACTS[name]
        empties_park = abi.FUNCTIONS[name].module != abi.TASK
        # Made once: every call notes itself, and most of them return well.
        began, returned, bit = (name, UNRETURNED), (name, 0), abi.BITS[name]

        def call(*arguments: int) -> int | None:
            begin = perf_counter_ns()
            attempt = self._attempt
            if attempt is None:
                raise Bug("a host call without an attempt")
            attempt.recent.append(began)
            attempt.used |= bit
            try:
                memory = attempt.enter(name)
                if empties_park:
                    attempt.park = b""
                result = act(attempt, memory, *arguments)
                refused = result is not None and result in abi.ERRORS
                attempt.recent[-1] = (name, result or 0) if refused else returned
            finally:
                attempt.host_ns += perf_counter_ns() - begin
            if attempt.host_ns > attempt.run.host_ms * 1_000_000:
                allowed = f"{attempt.run.host_ms} ms in host calls are allowed"
                raise Ended("capability.deadline-exceeded", allowed)
            return result

        return call


def _input_len(attempt: Attempt, _memory: GuestMemory) -> int:
    return len(attempt.run.input)


def _input_read(attempt: Attempt, memory: GuestMemory, dst: int, off: int, length: int) -> int:
    length = memory.check(dst, length)
    start = off & U32_MASK
    data = attempt.run.input[start : start + length]
    attempt.charge_copy(len(data))
    memory.write(dst, data)
    return len(data)


def _output_write(attempt: Attempt, memory: GuestMemory, ptr: int, length: int) -> None:
    length = memory.check(ptr, length)
    attempt.write_output(length, lambda: memory.read(ptr, length))


def _fail(
    attempt: Attempt, memory: GuestMemory, kind: int, ptr: int, length: int, retry_after_ms: int
) -> None:
    length = memory.check(ptr, length)
    kept = min(length, abi.FAIL_MESSAGE_MAX)
    attempt.charge_copy(kept)
    data = memory.read(ptr, kept)
    # Not final when cut: half a character at the end is left out, not shown as a damaged one.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, length <= abi.FAIL_MESSAGE_MAX)
    attempt.failure = (kind, text, retry_after_ms)


def _take(attempt: Attempt, memory: GuestMemory, dst: int, length: int) -> int:
    length = memory.check(dst, length)
    data = attempt.park[:length]
    if not attempt.park_counted:
        attempt.count(len(data))
    attempt.pay_copy(len(data))
    attempt.park = b""
    memory.write(dst, data)
    return len(data)


def _log_write(attempt: Attempt, memory: GuestMemory, level: int, ptr: int, length: int) -> None:
    length = memory.check(ptr, length)
    if length > abi.LOG_LINE_MAX:
        attempt.log.drop()
    else:
        attempt.charge_copy(length)
        attempt.log.add(level, memory.read(ptr, length))


def _clock_now_ns(_attempt: Attempt, _memory: GuestMemory) -> int:
    return clock.now_ns()


def _random_fill(attempt: Attempt, memory: GuestMemory, dst: int, length: int) -> None:
    length = memory.check(dst, length)
    attempt.charge_copy(length, byte_fuel=RANDOM_BYTE_FUEL)
    start = dst & U32_MASK
    for offset in range(0, length, RANDOM_CHUNK):
        memory.write(start + offset, random.fill(min(RANDOM_CHUNK, length - offset)))


def _key(attempt: Attempt, memory: GuestMemory, ptr: int, length: int) -> bytes | None:
    """The key, or None if it is not one. Its range was checked."""
    if length > abi.KV_KEY_MAX:
        return None
    attempt.charge_copy(length)
    key = memory.read(ptr, length)
    return key if _KEY.fullmatch(key) else None


def _kv_get(attempt: Attempt, memory: GuestMemory, kptr: int, klen: int, buf: int, cap: int) -> int:
    klen = memory.check(kptr, klen)
    cap = memory.check(buf, cap)
    key = _key(attempt, memory, kptr, klen)
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    answer = attempt.ask("kv_get", key)
    if answer.status < 0:
        return answer.status
    if answer.status != len(answer.data):
        raise Bug("an answer that is not as long as it says")
    if answer.status > cap:
        attempt.park, attempt.park_counted = answer.data, True
    else:
        attempt.pay_copy(answer.status)
        memory.write(buf, answer.data)
    return answer.status


def _kv_put(
    attempt: Attempt, memory: GuestMemory, kptr: int, klen: int, vptr: int, vlen: int
) -> int:
    klen = memory.check(kptr, klen)
    vlen = memory.check(vptr, vlen)
    key = _key(attempt, memory, kptr, klen)
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    if vlen > PAYLOAD_MAX:
        return attempt.refuse(abi.TOO_LARGE)
    attempt.charge_copy(vlen)
    return min(attempt.ask("kv_put", key, memory.read(vptr, vlen)).status, 0)


def _kv_delete(attempt: Attempt, memory: GuestMemory, kptr: int, klen: int) -> int:
    klen = memory.check(kptr, klen)
    key = _key(attempt, memory, kptr, klen)
    if key is None:
        return attempt.refuse(abi.BAD_ARGUMENT)
    return min(attempt.ask("kv_delete", key).status, 0)


_ACTS: Final[dict[str, Act]] = {
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
