"""Start of both processes: read the descriptors, take the roles apart, end with a status.

A sandbox lives until its socket closes. Whatever it cannot explain ends it with a status of its
own and never with an outcome: the supervisor then settles the attempt as a dead sandbox.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import wasmtime

from executor.core.frames import Ready, Run
from executor.errors import ExecutorError
from executor.model import MIB
from executor.sandbox import compiler, jail
from executor.sandbox.channel import Channel, Closed
from executor.sandbox.engine import build, fingerprint
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import PublicProgram, prepare
from executor.sandbox.machine import Ended
from executor.sandbox.memory import BadPointer
from executor.sandbox.status import StatusPage

# How these processes end. A killed or crashed one has a signal instead.
EXIT_OK: Final = 0
EXIT_USAGE: Final = 64
EXIT_BUG: Final = 70
EXIT_START: Final = 71  # sandbox.start-failed: version, stack, or an artifact that does not load
EXIT_CONTAINMENT: Final = 72  # sandbox.containment-missing
EXIT_PROTOCOL: Final = 73  # the supervisor's frame was not legal
_EXITS: Final = {
    "sandbox.containment-missing": EXIT_CONTAINMENT,
    "sandbox.protocol-violation": EXIT_PROTOCOL,
}

# Below this the main thread could overflow before the guest's own stack limit is met.
STACK_MIN: Final = 2 * MIB
# A finished outcome may wait behind short attempts for about so long, so that several travel
# together: the supervisor signs and publishes what arrives together at the price of one.
HOLD_NS: Final = 1_000_000


def main(arguments: Sequence[str]) -> NoReturn:
    """Run one role to its end and leave at once, without the interpreter's clean-up."""
    status = EXIT_BUG
    try:
        status = _dispatch(arguments)
    except Closed:
        status = EXIT_OK
    except ExecutorError as error:
        status = _EXITS.get(error.code, EXIT_START)
        _say(str(error))
    except BaseException as error:  # noqa: BLE001 - the last line: anything else is our bug
        _say(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _say(text: str) -> None:
    """For a human who starts this by hand; in service stderr is the null device."""
    sys.stderr.write(f"executor.sandbox: {text}\n")


def _dispatch(arguments: Sequence[str]) -> int:
    parent = os.getppid()
    # Ctrl-C, a hang-up and a service manager's stop reach the whole group; while the supervisor
    # drains, attempts go on. It ends this process by closing the socket, by SIGKILL, or by dying.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    match list(arguments):
        case ["sandbox", socket_fd, status_fd] if socket_fd.isdecimal() and status_fd.isdecimal():
            _check_stack()
            sandbox(int(socket_fd), int(status_fd), parent)
        case ["compiler", socket_fd] if socket_fd.isdecimal():
            _check_stack()
            compiler.serve(Channel(int(socket_fd)), int(socket_fd), parent)
        case _:
            _say("usage: python -I -m executor.sandbox (sandbox SOCKET STATUS | compiler SOCKET)")
            return EXIT_USAGE
    return EXIT_OK


def _check_stack() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != resource.RLIM_INFINITY and soft < STACK_MIN:
        raise ExecutorError("sandbox.start-failed", f"a stack of {soft} bytes is too small")


def sandbox(socket_fd: int, status_fd: int, parent: int) -> NoReturn:
    """Load, lock down, say Ready, serve until the socket closes (`Closed`)."""
    channel = Channel(socket_fd)
    page = StatusPage(status_fd)
    host = Host(channel.ask)
    engine = build()
    mark = fingerprint(engine)
    programs, mapped = _load(channel, engine, host)
    jail.close_others({socket_fd, *mapped})
    gc.collect()
    gc.freeze()  # what exists now lives as long as the process
    layers = jail.lock_down(jail.Plan(parent=parent))
    jail.prove()
    channel.send(Ready(layers, mark))
    serve(channel, programs, host, page)


def _load(
    channel: Channel, engine: wasmtime.Engine, host: Host
) -> tuple[list[PublicProgram], set[int]]:
    """The programs of the Load frame, each instantiated once, and the engine's descriptors."""
    programs: list[PublicProgram] = []
    given = jail.descriptors()
    for artifact_fd, functions in channel.load().modules:
        try:
            module = wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{artifact_fd}")
        except wasmtime.WasmtimeError as error:
            raise ExecutorError("sandbox.start-failed", f"artifact: {error}") from error
        programs.append(prepare(engine, module, functions, host))
        warm_up(programs[-1], host)
    # The engine maps the artifact for each instance's data from a read-only descriptor of its
    # own; it stays open, ours does not.
    return programs, jail.descriptors() - given


def warm_up(program: PublicProgram, host: Host) -> None:
    """Instantiate once without fuel, so that images and trampolines exist before the lock-down."""
    run = Run(
        seq=1, module=0, input=b"", fuel=0, memory_bytes=program.memory_min,
        table_elements=2**31, output_bytes=0, log_bytes=0, log_lines=0, calls=0, mediated_calls=0,
    )  # fmt: skip
    machine = program.machine(
        fuel=run.fuel, memory_bytes=run.memory_bytes, table_elements=run.table_elements
    )
    host.begin(run, machine)
    try:
        machine.instantiate()
    except (Ended, BadPointer):
        pass  # a start section without fuel
    finally:
        host.end()
        machine.close()


def serve(
    channel: Channel, programs: Sequence[PublicProgram], host: Host, page: StatusPage
) -> NoReturn:
    """One attempt after the other. Errors  `Closed` at the end; anything else is a bug."""
    counts = [0] * len(programs)
    times = [0] * len(programs)
    held = 0  # ns of attempts since the oldest outcome that was not sent
    while True:
        if channel.idle:
            channel.flush()
            held = 0
        run = channel.run()
        index = run.module
        if index >= len(programs):
            raise ExecutorError("sandbox.protocol-violation", "no such module")
        if not counts[index] or held + times[index] // counts[index] > HOLD_NS:
            channel.flush()
            held = 0
        page.begin(run.seq)
        done = execute(programs[index], run, host)
        page.end()
        counts[index] += 1
        took = (done.guest_us + done.host_us) * 1_000
        times[index] += took
        held += took
        channel.queue(done)
