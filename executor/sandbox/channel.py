"""The socket to the supervisor: frames in, frames out, blocking."""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from executor.core.frames import (
    WINDOW_TASKS,
    Answer,
    Call,
    Done,
    Frame,
    Load,
    Reader,
    Run,
    encode,
)
from executor.errors import ExecutorError

_RECEIVE_BYTES: Final = 64 * 1024
# Finished attempts travel together up to here, then at once.
SEND_BYTES: Final = 64 * 1024
# The window bounds what waits behind the running attempt; twice that can only be a mistake.
_QUEUE_MAX: Final = 2 * WINDOW_TASKS


class Closed(Exception):  # noqa: N818 - the normal end of this process
    """The supervisor is gone or wants no more."""


class Channel:
    """One end of the socketpair. Frames that come while a call waits are kept in order."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._reader = Reader()
        self._frames: deque[Frame] = deque()
        self._unsent = bytearray()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued here."""
        return not self._frames

    def next(self) -> Frame:
        """The next frame; waits for one. Errors  `Closed`; `sandbox.protocol-violation`."""
        while not self._frames:
            self._receive()
        return self._frames.popleft()

    def load(self) -> Load:
        """The first frame. Errors  as `next`."""
        frame = self.next()
        if not isinstance(frame, Load):
            raise ExecutorError("sandbox.protocol-violation", "no Load")
        return frame

    def run(self) -> Run:
        """The next attempt. Errors  as `next`."""
        frame = self.next()
        if not isinstance(frame, Run):
            raise ExecutorError("sandbox.protocol-violation", "no Run")
        return frame

    def ask(self, call: Call) -> Answer:
        """Send a call with whatever waits, and wait for its answer; new attempts queue behind."""
        self._unsent += encode(call)
        self.flush()
        seen = len(self._frames)
        while True:
            while seen == len(self._frames):
                self._receive()
            if isinstance(self._frames[seen], Answer):
                answer = self._frames[seen]
                assert isinstance(answer, Answer)
                del self._frames[seen]
                return answer
            seen += 1

    def send(self, frame: Frame) -> None:
        """Send one frame now."""
        self._unsent += encode(frame)
        self.flush()

    def queue(self, done: Done) -> None:
        """Keep a finished attempt for the next write, unless enough wait already."""
        self._unsent += encode(done)
        if len(self._unsent) >= SEND_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        if self._unsent:
            try:
                self._socket.sendall(self._unsent)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Closed from error
            self._unsent.clear()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except ConnectionResetError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._frames.extend(self._reader.feed(data))
        if len(self._frames) > _QUEUE_MAX:
            raise ExecutorError("sandbox.protocol-violation", "too many frames at once")
