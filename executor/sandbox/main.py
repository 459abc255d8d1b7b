"""Start of every process of this room: the zygote by exec, its children by fork.

A sandbox lives until its socket closes. Whatever it cannot explain ends it with a status of its
own and never with an outcome: the supervisor then settles the attempt as a dead sandbox.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import wasmtime

from executor.core.frames import START_CODES, Failed, Fork, Load, Ready, Run, encode
from executor.errors import ExecutorError
from executor.sandbox import attacks, compiler, jail, seccomp, zygote
from executor.sandbox.channel import Channel, Closed
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from executor.sandbox.linker import prepare
from executor.sandbox.machine import Ended, Program
from executor.sandbox.memory import BadPointer
from executor.sandbox.status import StatusPage
from executor.sandbox.warm import Warm

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

# A finished outcome may wait behind short attempts for about so long, so that several travel
# together: the supervisor signs and publishes what arrives together at the price of one.
HOLD_NS: Final = 1_000_000


def main(arguments: Sequence[str]) -> NoReturn:
    """Be the zygote until the control socket closes; leave at once, without clean-up."""
    status = EXIT_BUG
    try:
        status = _zygote(arguments)
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


def _zygote(arguments: Sequence[str]) -> int:
    parent = os.getppid()
    zygote.ignore_signals()
    match list(arguments):
        case [
            "zygote", descriptor, ("pooled" | "on-demand") as memory,
            ("auto" | "raw" | "public") as path,
        ] if descriptor.isdecimal():  # fmt: skip
            zygote.follow_parent(parent)
            control = socket.socket(fileno=int(descriptor))
            try:
                zygote.serve(control, begin, pooled=memory == "pooled", path=path)
            except ExecutorError as error:
                if error.code in START_CODES:
                    control.sendall(encode(Failed(error.code, error.detail[:1024])))
                raise
        case _:
            _say(
                "usage: python -I -m executor.sandbox zygote FD (pooled | on-demand)"
                " (auto | raw | public)"
            )
    return EXIT_USAGE


def begin(order: Fork, fds: Sequence[int], warm: Warm, parent: int) -> NoReturn:
    """A forked child in its role, to its end."""
    status = EXIT_BUG
    channel = None
    try:
        channel = Channel(fds[0])
        _play(order, fds, channel, warm, parent)
        status = EXIT_OK
    except Closed:
        status = EXIT_OK
    except ExecutorError as error:
        status = _EXITS.get(error.code, EXIT_START)
        if channel is not None and error.code in START_CODES:
            channel.send(Failed(error.code, error.detail[:1024]))
    except BaseException as error:  # noqa: BLE001 - the last line: anything else is our bug
        _say(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _play(order: Fork, fds: Sequence[int], channel: Channel, warm: Warm, parent: int) -> None:
    match order.role:
        case "sandbox":
            sandbox(order, fds, channel, warm, parent)
        case "compiler":
            compiler.serve(order, fds, channel, warm, parent)
        case "attack":
            attack(order, fds, warm, parent)
        case _:
            raise ExecutorError("sandbox.protocol-violation", "no such role")


def sandbox(order: Fork, fds: Sequence[int], channel: Channel, warm: Warm, parent: int) -> NoReturn:
    """Lock down while loading, warm up, say Ready, serve until the socket closes (`Closed`).

    An artifact is native code that another process wrote: what reads it has no rights any more,
    and what runs it, be it a start section, has the filter on.
    """
    page = StatusPage(fds[1])
    host = Host(channel.ask)
    load = channel.load()
    plan = _plan(order, fds[0], warm, parent)
    jail.close_others({fds[0], *fds[2:]})
    layers = jail.lock_down(plan, jail.FIRST)
    programs, mapped = _load(load, fds[2:], warm, host, plan)
    jail.close_others({fds[0], *mapped}, plan)
    layers += jail.lock_down(plan, jail.LAST)
    for program in programs:
        warm_up(program, host)
    channel.send(Ready(layers, warm.mark))
    serve(channel, programs, host, page)


def attack(order: Fork, fds: Sequence[int], warm: Warm, parent: int) -> NoReturn:
    """Lock down as a sandbox does, then try what an escaped guest would."""
    jail.close_others({fds[0]})
    jail.lock_down(_plan(order, fds[0], warm, parent))
    attacks.attempt(order.attack)


def _plan(order: Fork, socket_fd: int, warm: Warm, parent: int) -> jail.Plan:
    return jail.Plan(
        parent=parent, rules=seccomp.sandbox_rules(pid=os.getpid(), socket=socket_fd),
        user=jail.user_of_slot(order.slot), data=order.data,
        address_space=order.data + warm.reserved, best_effort=order.best_effort,
    )  # fmt: skip


def _load(
    load: Load, artifacts: Sequence[int], warm: Warm, host: Host, plan: jail.Plan
) -> tuple[list[Program], set[int]]:
    """The programs of the Load frame, none of which has run, and the engine's descriptors."""
    programs: list[Program] = []
    given = jail.descriptors(plan)
    for place, functions in load.modules:
        if place >= len(artifacts):
            raise ExecutorError("sandbox.protocol-violation", "no such artifact")
        try:
            module = wasmtime.Module.deserialize_file(
                warm.engine, f"/proc/self/fd/{artifacts[place]}"
            )
        except wasmtime.WasmtimeError as error:
            raise ExecutorError("sandbox.start-failed", f"artifact: {error}") from error
        programs.append(prepare(warm.engine, module, functions, host, warm.raw))
    # The engine maps the artifact for each instance's data from a read-only descriptor of its
    # own; it stays open, ours does not.
    return programs, jail.descriptors(plan) - given


def warm_up(program: Program, host: Host) -> None:
    """Instantiate once without fuel: the first attempt finds images and trampolines made.

    After the filter, since a start section is code of the artifact; without fuel it ends at once,
    unless the artifact was forged. Making an image needs no call that the filter forbids.
    """
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


def serve(channel: Channel, programs: Sequence[Program], host: Host, page: StatusPage) -> NoReturn:
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
