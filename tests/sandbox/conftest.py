"""A laboratory for guests written as text: in this process, and in real ones."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import wasmtime

from executor.core import abi
from executor.core.frames import (
    Answer,
    Call,
    Compile,
    Compiled,
    Done,
    Frame,
    Load,
    Reader,
    Ready,
    Run,
    encode,
)
from executor.model import KIB, MIB, PAYLOAD_MAX
from executor.sandbox.engine import RESERVED_BYTES, build, installed_version
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import prepare
from executor.sandbox.machine import Program
from executor.sandbox.raw import Raw
from tests.support.nursery import Nursery

ALL = tuple(abi.FUNCTIONS)
MEMORY = '(memory (export "memory") 1)'
WAIT_SECONDS = 30.0
GIB = 1024 * MIB
RUN = Run(
    seq=1, module=0, input=b"", fuel=10_000_000, memory_bytes=MIB, table_elements=1_000,
    output_bytes=PAYLOAD_MAX, log_bytes=64 * KIB, log_lines=256, calls=10_000, mediated_calls=64,
)  # fmt: skip


def text(body: str, *, memory: str = MEMORY) -> str:
    """A module that imports what `body` calls as `$name` and has one page of memory."""
    imports = []
    for function in abi.FUNCTIONS.values():
        if f"${function.name} " in body or f"${function.name})" in body:
            params = f"(param {' '.join(function.params)})" if function.params else ""
            results = f"(result {' '.join(function.results)})" if function.results else ""
            imports.append(
                f'(import "{function.module}" "{function.name}"'
                f" (func ${function.name} {params} {results}))"
            )
    return f"(module {' '.join(imports)} {memory} {body})"


def entry(code: str) -> str:
    """The function `run` with this body, which leaves its status on the stack."""
    return f'(func $run (export "run") (result i32) {code})'


def end(work: Callable[[], bool]) -> int:
    """How a child ends that does this: 0 for True, 1 for False, else its signal."""
    child = os.fork()
    if child == 0:
        answer = False
        faulthandler.disable()  # some die of what they try
        try:
            answer = work()
        finally:
            os._exit(0 if answer else 1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@dataclass
class Kv:
    """A mediator that keeps a dictionary, and records what it was asked."""

    data: dict[bytes, bytes] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    status: int | None = None  # answered to everything, when set
    error_text: bytes = b""

    def __call__(self, call: Call) -> Answer:
        """Serve one call as the supervisor would."""
        self.calls.append(call)
        if self.status is not None:
            return Answer(call.seq, call.ordinal, self.status, self.error_text)
        if call.function == "kv_put":
            self.data[call.key] = call.value
        elif call.function == "kv_delete":
            self.data.pop(call.key, None)
        elif call.key in self.data:
            value = self.data[call.key]
            return Answer(call.seq, call.ordinal, len(value), value)
        else:
            return Answer(call.seq, call.ordinal, abi.NOT_FOUND, b"not found")
        return Answer(call.seq, call.ordinal, 0, b"")


class Lab:
    """Compiles and runs guests in this process."""

    def __init__(self, engine: wasmtime.Engine, raw: Raw | None = None) -> None:
        self.engine = engine
        self.raw = raw
        self.kv = Kv()

    def program(
        self, wat: str, *, functions: tuple[str, ...] = ALL,
        mediate: Callable[[Call], Answer] | None = None,
    ) -> tuple[Program, Host]:  # fmt: skip
        """A prepared module and the host it is linked to."""
        host = Host(mediate or self.kv)
        module = wasmtime.Module(self.engine, bytes(wasmtime.wat2wasm(wat)))
        return prepare(self.engine, module, functions, host, self.raw), host

    def run(
        self, body: str, *, memory: str = MEMORY, functions: tuple[str, ...] = ALL,
        mediate: Callable[[Call], Answer] | None = None, **fields: Any,
    ) -> Done:  # fmt: skip
        """One attempt of a module with this body; `fields` replace those of the Run frame."""
        prepared = self.program(text(body, memory=memory), functions=functions, mediate=mediate)
        return self.attempt(*prepared, **fields)

    @staticmethod
    def text(body: str) -> str:
        """The whole module with this body."""
        return text(body)

    @staticmethod
    def binary(body: str) -> bytes:
        """The whole module with this body, in bytes."""
        return bytes(wasmtime.wat2wasm(text(body)))

    @staticmethod
    def memfd(data: bytes) -> int:
        """A sealed anonymous file; closed with the process that tests."""
        return memfd(data)

    @staticmethod
    def again(**fields: Any) -> Run:
        """A Run frame with the limits of these tests."""
        return replace(RUN, **fields)

    def prepared(self, body: str) -> tuple[Program, Host]:
        """A module with this body, for more than one attempt."""
        return self.program(text(body))

    def attempt(self, program: Program, host: Host, **fields: Any) -> Done:
        """One more attempt of a prepared module."""
        return execute(program, replace(RUN, **fields), host)

    def status(self, code: str, **fields: Any) -> Done:
        """One attempt of a module whose `run` has this code."""
        return self.run(entry(code), **fields)


# Where instances get their memory, and how attempts reach the engine.
KINDS = ["pooled raw", "on-demand raw", "pooled public"]


@pytest.fixture(scope="session", params=KINDS)
def engine_kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A kind of memory and a path to the engine."""
    memory, path = request.param.split()
    return memory, path


@pytest.fixture(scope="session")
def engine(engine_kind: tuple[str, str]) -> wasmtime.Engine:
    """One engine of each kind for all tests of this process."""
    return build(pooled=engine_kind[0] == "pooled")


@pytest.fixture(scope="session")
def path(engine_kind: tuple[str, str]) -> Raw | None:
    """The raw path, or None for the public one."""
    return Raw(installed_version()) if engine_kind[1] == "raw" else None


@pytest.fixture
def lab(engine: wasmtime.Engine, path: Raw | None) -> Lab:
    """A laboratory with an empty key-value store."""
    return Lab(engine, path)


def memfd(data: bytes = b"", *, size: int = 0) -> int:
    """An anonymous file, sealed when it has content, as the supervisor makes them."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if size:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    if data:
        os.pwrite(descriptor, data, 0)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL,
        )  # fmt: skip
    return descriptor


class Room:
    """One real process, seen from the supervisor's end of its socket."""

    def __init__(self, nursery: Nursery, role: str, *fds: int, **fields: Any) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = nursery.fork(role, (theirs.fileno(), *fds), **fields)
        ours.settimeout(WAIT_SECONDS)
        self.socket = ours
        self.status_fd = -1
        self._frames = self._read()

    def _read(self) -> Iterator[Frame]:
        reader = Reader()
        while data := self.socket.recv(64 * KIB):
            yield from reader.feed(data)

    def send(self, *frames: Frame) -> None:
        """Send frames in one write."""
        self.socket.sendall(b"".join(map(encode, frames)))

    def next(self) -> Frame | None:
        """The next frame, None at the end."""
        try:
            return next(self._frames, None)
        except ConnectionResetError:
            return None

    def done(self) -> Done:
        """The next frame, which must end an attempt."""
        frame = self.next()
        assert isinstance(frame, Done), frame
        return frame

    def page(self) -> tuple[int, int]:
        """What the status page says: (sequence number, start)."""
        seq, start = struct.unpack("=QQ", os.pread(self.status_fd, 16, 0))
        return seq, start

    def proc(self, name: str) -> str:
        """A line of /proc/<pid>/status."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as lines:  # noqa: PTH123
            return dict(line.rstrip("\n").split(":\t", 1) for line in lines)[name].strip()

    def exit_status(self) -> int:
        """How it ended; waits for that."""
        return self.process.wait()

    def close(self) -> None:
        """End it, if it still lives."""
        self.socket.close()
        self.process.close()
        if self.status_fd >= 0:
            os.close(self.status_fd)


class Rooms:
    """Starts real processes and ends them with the test."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self._open: list[Room] = []
        self._fds: list[int] = []

    def sandbox(self, *artifacts: int, functions: tuple[str, ...] = ALL, load: bool = True) -> Room:
        """A sandbox that was sent its Load frame; its Ready is still to be read."""
        status = memfd(size=4096)
        room = Room(self.nursery, "sandbox", status, *artifacts)
        room.status_fd = status
        self._open.append(room)
        if load:
            room.send(Load(tuple((place, functions) for place in range(len(artifacts)))))
        return room

    def compiler(self, source: int, artifact: int, **fields: Any) -> Room:
        """A compiler that was sent nothing yet; its descriptors are closed with it."""
        self._fds += [artifact, source]
        room = Room(self.nursery, "compiler", source, artifact, **fields)
        self._open.append(room)
        return room

    def ready(self, *wats: str) -> Room:
        """A sandbox with these modules, ready for attempts."""
        room = self.sandbox(*(self.artifact(wat) for wat in wats))
        frame = room.next()
        assert isinstance(frame, Ready), frame
        return room

    def compile(
        self, module: bytes, *, memory_max: int = 64 * MIB, large: bool = False
    ) -> tuple[Frame | None, int, int]:
        """The compiler's answer, the artifact's descriptor, and how the process ended."""
        artifact = memfd()
        source = memfd(module)
        room = self.compiler(source, artifact, data=GIB, cpu_seconds=10)
        room.send(Compile(memory_max, large))
        answer = room.next()
        return answer, artifact, room.exit_status()

    def artifact(self, wat: str) -> int:
        """A descriptor of the artifact made from this text by a real compiler process."""
        answer, descriptor, _ = self.compile(bytes(wasmtime.wat2wasm(wat)))
        assert isinstance(answer, Compiled), answer
        return descriptor

    def close(self) -> None:
        """End what still lives."""
        for room in self._open:
            room.close()
        for descriptor in self._fds:
            os.close(descriptor)


@pytest.fixture(scope="session")
def nursery(engine_kind: tuple[str, str]) -> Iterator[Nursery]:
    """A fork server of each kind for all tests."""
    memory, path = engine_kind
    made = Nursery(pooled=memory == "pooled", path=path)
    yield made
    made.close()


@pytest.fixture
def reserved(nursery: Nursery) -> int:
    """Bytes of address space that an instance takes in the fork server's children."""
    return 0 if nursery.pooled else RESERVED_BYTES


@pytest.fixture
def rooms(nursery: Nursery) -> Iterator[Rooms]:
    """Real sandbox and compiler processes."""
    started = Rooms(nursery)
    yield started
    started.close()
