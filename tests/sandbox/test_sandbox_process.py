"""Real sandbox processes: what they hold, how they serve, how they end."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from executor.core import abi, layers
from executor.core.conversation import Conversation
from executor.core.frames import (
    Answer,
    Call,
    Compiled,
    Done,
    Failed,
    Load,
    Ready,
    encode,
)

if TYPE_CHECKING:
    from tests.sandbox.conftest import Lab, Room, Rooms

RUN = '(func $run (export "run") (result i32) '
ECHO = (
    RUN + "(drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))"
    "(call $output_write (i32.const 0) (call $input_len)) (i32.const 0))"
)
SPIN = RUN + "(loop $l (br $l)) (i32.const 0))"
ASK = (
    '(data (i32.const 0) "key")' + RUN
    + "(i32.wrap_i64 (call $kv_get (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 0))))"
)  # fmt: skip
FOREVER = 2**53 - 1

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="another user's descriptors are hidden")


def wait_for_page(room: Room, seq: int) -> int:
    """Wait until the status page names this attempt; when it started."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        running, start = room.page()
        if running == seq:
            return start
        os.sched_yield()
    raise AssertionError("the attempt never showed")


def test_ready_names_its_layers(rooms: Rooms, lab: Lab) -> None:
    """Ready comes after the lock-down, with the layers and the engine that it claims."""
    room = rooms.sandbox(rooms.artifact(lab.text(ECHO)))
    frame = room.next()
    assert isinstance(frame, Ready)
    optional = {layers.USER, layers.LANDLOCK_TCP, layers.LANDLOCK_SCOPES}
    expected = [name for name in layers.LAYERS if name != layers.NAMESPACES]
    assert [name for name in expected if name in frame.layers] == list(frame.layers)
    assert set(frame.layers) >= layers.REQUIRED
    assert set(expected) - set(frame.layers) <= optional
    assert frame.engine.startswith("wasmtime 50.")


def test_the_kernel_confirms_the_layers(rooms: Rooms, lab: Lab) -> None:
    """What /proc says: a filter, no new privileges, no capabilities, one thread, not root."""
    room = rooms.ready(lab.text(ECHO))
    assert room.proc("NoNewPrivs") == "1"
    assert room.proc("Seccomp") == "2"
    assert [int(room.proc(name), 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")] == [
        0
    ] * 4
    assert room.proc("Threads") == "1"
    for name in ("Uid", "Gid"):
        assert "0" not in room.proc(name).split("\t")
    if os.geteuid() == 0:
        assert room.proc("Groups") == ""


@root_only
def test_no_descriptor_but_the_socket_and_the_artifact(rooms: Rooms, lab: Lab) -> None:
    """0-2 are the null device, then the socket, and one read-only artifact that the engine maps."""
    room = rooms.ready(lab.text(ECHO))
    folder = f"/proc/{room.process.pid}/fd"
    held = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}  # noqa: PTH208, PTH115
    assert [held.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
    kinds = sorted(target.partition(":")[0] for target in held.values())
    assert kinds == ["/memfd", "socket"]
    for number, target in held.items():
        if target.startswith("/memfd"):
            with open(f"/proc/{room.process.pid}/fdinfo/{number}", encoding="ascii") as lines:  # noqa: PTH123
                flags = next(line for line in lines if line.startswith("flags:"))
            assert int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY


@root_only
def test_the_environment_is_empty(rooms: Rooms, lab: Lab) -> None:
    """Nothing of the supervisor's environment arrives."""
    room = rooms.ready(lab.text(ECHO))
    with open(f"/proc/{room.process.pid}/environ", "rb") as environment:  # noqa: PTH123
        assert environment.read() == b""


@root_only
def test_no_library_with_keys_or_network_is_loaded(rooms: Rooms, lab: Lab) -> None:
    """The process has mapped no cryptography and the engine as its only big library."""
    room = rooms.ready(lab.text(ECHO))
    with open(f"/proc/{room.process.pid}/maps", encoding="utf-8") as maps:  # noqa: PTH123
        mapped = maps.read()
    assert "_libwasmtime" in mapped
    assert "cryptography" not in mapped
    assert "_ssl" not in mapped


def test_an_attempt_in_a_locked_sandbox(rooms: Rooms, lab: Lab) -> None:
    """Input goes in, output comes out, the page is idle again."""
    room = rooms.ready(lab.text(ECHO))
    room.send(lab.again(input=b"\0hello\xff"))
    done = room.done()
    assert (done.seq, done.code, done.output) == (1, "", b"\0hello\xff")
    assert done.host_calls == 4
    assert done.host_us > 0
    assert room.page()[0] == 0


def test_every_frame_is_legal_for_the_supervisor(rooms: Rooms, lab: Lab) -> None:
    """A whole conversation, seen through the supervisor's own table of what is legal."""
    talk = Conversation()
    room = rooms.sandbox(rooms.artifact(lab.text(ASK)), rooms.artifact(lab.text(ECHO)))
    attempts = [
        lab.again(seq=seq, module=module, input=b"x")
        for seq, module in ((1, 0), (2, 1), (3, 0), (4, 1))
    ]
    ended: list[Done] = []
    sent = False
    while len(ended) < len(attempts):
        data = room.socket.recv(65_536)
        assert data
        for event in talk.receive(data):
            match event:
                case Ready():
                    room.socket.sendall(b"".join(talk.run(run) for run in attempts))
                    sent = True
                case Call():
                    room.socket.sendall(talk.answer(Answer(event.seq, event.ordinal, 0, b"")))
                case Done():
                    ended.append(event)
    assert sent
    assert [(done.seq, done.code) for done in ended] == [(1, ""), (2, ""), (3, ""), (4, "")]


def test_attempts_that_come_during_a_call_wait(rooms: Rooms, lab: Lab) -> None:
    """Run frames that arrive while a call waits for its answer are served after it, in order."""
    room = rooms.ready(lab.text(ASK))
    room.send(lab.again(seq=1))
    assert room.next() == Call(1, 0, "kv_get", b"key", b"")
    room.send(lab.again(seq=2), lab.again(seq=3))
    room.send(Answer(1, 0, 5, b"value"), lab.again(seq=4))
    for seq in (2, 3, 4):
        assert room.done().message == "run returned 5"
        assert room.next() == Call(seq, 0, "kv_get", b"key", b"")
        room.send(Answer(seq, 0, 5, b"value"))
    assert room.done().seq == 4


def test_finished_attempts_do_not_wait_behind_a_call(rooms: Rooms, lab: Lab) -> None:
    """An outcome that waits for company travels with a call at the latest."""
    room = rooms.ready(lab.text(ECHO), lab.text(ASK))
    room.send(lab.again(seq=1), lab.again(seq=2), lab.again(seq=3, module=1))
    assert (room.done().seq, room.done().seq) == (1, 2)
    assert isinstance(room.next(), Call)


def test_finished_attempts_do_not_wait_behind_an_unknown_module(rooms: Rooms, lab: Lab) -> None:
    """Before a module whose time is not known to be short, everything finished is sent."""
    room = rooms.ready(lab.text(ECHO), lab.text(SPIN))
    room.send(lab.again(seq=1), lab.again(seq=2, module=1, fuel=FOREVER))
    assert room.done().seq == 1
    wait_for_page(room, 2)


def test_large_frames_both_ways(rooms: Rooms, lab: Lab) -> None:
    """An input and an output of 512 KiB cross whole, again and again."""
    body = lab.text(ECHO).replace('(memory (export "memory") 1)', '(memory (export "memory") 9)')
    room = rooms.ready(body)
    data = os.urandom(512 * 1024)
    for seq in (1, 2, 3):
        room.send(lab.again(seq=seq, input=data))
        assert room.done().output == data


def test_the_page_shows_what_runs_and_a_kill_is_the_end(rooms: Rooms, lab: Lab) -> None:
    """A spinning guest shows its number and start; SIGKILL gives the end of the stream."""
    room = rooms.ready(lab.text(SPIN))
    assert room.page()[0] == 0
    before = time.monotonic_ns()
    room.send(lab.again(seq=77, fuel=FOREVER))
    start = wait_for_page(room, 77)
    assert before <= start <= time.monotonic_ns()
    room.process.kill()
    assert room.next() is None
    assert room.exit_status() == -signal.SIGKILL
    assert room.page() == (77, start)


def test_every_kind_of_failure_in_a_locked_sandbox(rooms: Rooms, lab: Lab) -> None:
    """Each ending works without a file: nothing is imported or opened late."""
    guests = {
        "guest.trap": RUN + "unreachable)",
        "limit.fuel-exhausted": SPIN,
        "limit.stack-exhausted": "(func $d (call $d))" + RUN + "(call $d) (i32.const 0))",
        "limit.memory-exceeded": RUN + "(drop (memory.grow (i32.const 15))) unreachable)",
        "guest.bad-pointer": RUN
        + "(call $output_write (i32.const -1) (i32.const 2)) (i32.const 0))",
        "guest.failed": RUN + "(i32.const 1))",
        "limit.output-too-large": RUN
        + "(call $output_write (i32.const 0) (i32.const 9)) (i32.const 0))",
        "capability.unavailable": '(data (i32.const 0) "key\\ff")' + RUN
        + "(drop (call $kv_delete (i32.const 0) (i32.const 3)))"
        "(call $log_write (i32.const 9) (i32.const 2) (i32.const 2))"
        "(call $random_fill (i32.const 0) (i32.const 70))"
        "(drop (call $clock_now_ns))"
        "(call $fail (i32.const 1) (i32.const 0) (i32.const 4) (i64.const 1)) (i32.const 0))",
        "": ECHO,
    }  # fmt: skip
    room = rooms.ready(*(lab.text(body) for body in guests.values()))
    codes: list[str] = []
    for _ in range(2):
        for index in range(len(guests)):
            room.send(lab.again(seq=len(codes) + 1, module=index, output_bytes=8, input=b"x"))
            frame = room.next()
            if isinstance(frame, Call):
                room.send(Answer(frame.seq, 0, abi.UNAVAILABLE, b"down"))
                frame = room.next()
            assert isinstance(frame, Done)
            codes.append(frame.code)
    assert codes == [*guests] * 2


def test_a_start_section_that_traps_can_be_loaded(rooms: Rooms, lab: Lab) -> None:
    """The warm-up has no fuel; what the start section does shows in the attempt."""
    room = rooms.ready(lab.text("(func $s unreachable) (start $s)" + RUN + "(i32.const 0))"))
    room.send(lab.again())
    assert room.done().code == "guest.trap"


def test_the_end_of_the_socket_is_the_end(rooms: Rooms, lab: Lab) -> None:
    """When the supervisor closes, the sandbox leaves with status 0: idle, or inside a call."""
    idle, calling = rooms.ready(lab.text(ECHO)), rooms.ready(lab.text(ASK))
    idle.socket.close()
    calling.send(lab.again())
    assert isinstance(calling.next(), Call)
    calling.socket.close()
    assert (idle.exit_status(), calling.exit_status()) == (0, 0)


def test_signals_meant_for_the_supervisor_are_ignored(rooms: Rooms, lab: Lab) -> None:
    """Ctrl-C and a service manager's stop reach the whole group; attempts go on."""
    room = rooms.ready(lab.text(ECHO))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        room.process.send_signal(number)
    room.send(lab.again(input=b"x"))
    assert room.done().output == b"x"


@pytest.mark.parametrize("junk", [b"\0\0\0\x01\xc1", b"\xff\xff\xff\xff", encode(Load(()))])
def test_an_illegal_frame_ends_the_process(rooms: Rooms, lab: Lab, junk: bytes) -> None:
    """A frame that is not legal now is answered with an exit, never with an outcome."""
    room = rooms.ready(lab.text(ECHO))
    room.socket.sendall(junk)
    assert room.next() is None
    assert room.exit_status() == 73


def test_an_unknown_module_ends_the_process(rooms: Rooms, lab: Lab) -> None:
    """An index that was not loaded is no attempt."""
    room = rooms.ready(lab.text(ECHO))
    room.send(lab.again(module=1))
    assert (room.next(), room.exit_status()) == (None, 73)


def test_a_wrong_answer_is_our_bug(rooms: Rooms, lab: Lab) -> None:
    """Our own failure inside a host call ends the process with its own status."""
    room = rooms.ready(lab.text(ASK))
    room.send(lab.again())
    assert isinstance(room.next(), Call)
    room.send(Answer(1, 7, 0, b""))
    assert (room.next(), room.exit_status()) == (None, 70)


def test_an_artifact_that_is_none_does_not_start(rooms: Rooms, lab: Lab) -> None:
    """A file that the engine does not take ends the start."""
    room = rooms.sandbox(lab.memfd(b"no artifact"))
    frame = room.next()
    assert isinstance(frame, Failed)
    assert (frame.code, room.exit_status()) == ("sandbox.start-failed", 71)


def test_an_ungranted_import_does_not_start(rooms: Rooms, lab: Lab) -> None:
    """A module that imports what its grant does not name is never run."""
    room = rooms.sandbox(rooms.artifact(lab.text(ASK)), functions=("kv_put",))
    assert (room.next(), room.exit_status()) == (None, 71)


def test_memory_stays_flat(rooms: Rooms, lab: Lab) -> None:
    """After 10,000 attempts, half of them traps, the process is as large as after 1,000."""
    room = rooms.ready(lab.text(ECHO), lab.text(RUN + "unreachable)"))
    sizes = []
    seq = 0
    for _ in range(11):
        for _ in range(20):
            room.send(
                *(lab.again(seq=seq + n + 1, module=n % 2, input=b"x" * 1000) for n in range(50))
            )
            seq += 50
            codes = [room.done().code for _ in range(50)]
            assert codes == ["", "guest.trap"] * 25
        sizes.append(int(room.proc("VmRSS").split()[0]))
    assert sizes[-1] - sizes[0] < 1024, sizes


def test_the_compilers_answer_says_what_a_sandbox_says(rooms: Rooms, lab: Lab) -> None:
    """Compiler and sandbox have the same fingerprint: the artifact's key."""
    answer, artifact, status = rooms.compile(lab.binary(ECHO))
    assert isinstance(answer, Compiled)
    ready = rooms.sandbox(artifact).next()
    assert isinstance(ready, Ready)
    assert (ready.engine, status) == (answer.engine, 0)
