"""What a sandbox may say now, seen from the supervisor: the states of `core.frames`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from executor.core import abi
from executor.core.frames import (
    GUEST_CODES,
    START_CODES,
    Answer,
    Call,
    Done,
    Failed,
    Reader,
    Ready,
    Run,
    encode,
    violation,
)

# The text of an answer that would go beyond `Run.call_bytes`.
_SPENT: Final = b"the bytes of its calls are spent"


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
        self.outstanding_bytes = 0  # of inputs of the attempts that were sent and not ended
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

    def pending(self) -> tuple[int, ...]:
        """Sequence numbers of the attempts that were sent and not ended, in order."""
        return tuple(run.seq for run in self._queue)

    def run(self, run: Run) -> bytes:
        """The bytes that start `run`; it must come after every one before it."""
        if self._queue and run.seq <= self._queue[-1].seq:
            raise RuntimeError("attempts must be numbered upwards")
        self._queue.append(run)
        self.outstanding_bytes += len(run.input)
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
                # Nothing is started after a failure.
                case Done() if self._started:
                    self._check_done(frame)
                    yield frame
                case Call() if self._started:
                    self._check_call(frame)
                    yield frame
                case _ if self._failed:
                    raise violation(f"{type(frame).__name__} after its last word")
                case Ready() if not self._started:
                    self._started = True
                    yield frame
                case Failed() if not self._started and frame.code in START_CODES:
                    self._failed = True
                    yield frame
                case _:
                    raise violation(f"{type(frame).__name__} is not legal now")

    def _check_call(self, call: Call) -> None:
        head = self.head
        if head is None or call.seq != head.seq or self._call_open:
            raise violation("a call without its attempt")
        function = abi.FUNCTIONS.get(call.function)
        if function is None or not function.mediated:
            raise violation("a call that is not mediated")
        if call.ordinal != self._calls or self._calls >= head.mediated_calls:
            raise violation("a call out of order or over its number")
        # A sandbox counts what it copies before it asks; keys it does not, their number is bound.
        self._said_bytes += len(call.value)
        if self._said_bytes > head.call_bytes:
            raise violation("more bytes of calls than their limit")
        self._calls += 1
        self._call_open = True

    def _check_done(self, done: Done) -> None:
        head = self._queue[0] if self._queue else None
        if head is None or done.seq != head.seq or self._call_open:
            raise violation("an end without its attempt")
        if done.code and done.code not in GUEST_CODES:
            raise violation("a code that a sandbox may not claim")
        if (
            len(done.output) > head.output_bytes
            or done.fuel_used > head.fuel
            or done.memory_bytes > head.memory_bytes
            or done.host_calls > head.calls
        ):
            raise violation("more output, fuel, memory or calls than their limit")
        # A line is a call, whether it is kept or dropped.
        if len(done.logs) > head.log_lines or done.log_dropped > head.calls:
            raise violation("more lines of log than their limit")
        if done.logs and sum([len(text.encode()) for _, text in done.logs]) > head.log_bytes:
            raise violation("more bytes of log than their limit")
        if done.last_calls and not done.code:
            raise violation("last calls of a result")
        self.outstanding_bytes -= len(self._queue.popleft().input)
        self._calls = self._said_bytes = self._told_bytes = 0
