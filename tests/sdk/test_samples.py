"""Each example task, as committed, does what its `task.toml` promises: in-process, real host."""

from __future__ import annotations

import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import wasmtime

from executor.core import abi
from executor.core.frames import Answer, Call, Done, Run
from executor.errors import ExecutorError
from executor.sandbox import engine, linker
from executor.sandbox.host import Host
from executor.sandbox.instance import execute
from guest_sdk.build import core

TASKS = Path(__file__).parents[2] / "tasks_wasm"
FOLDERS = {path.parent.name: path.parent for path in sorted(TASKS.rglob("task.toml"))}
MEMORY_MAX = 16 * 1024 * 1024  # what all examples must fit
# Needs a clock outside the process, and dies by a signal.
OUT_OF_REACH = {"slow"}


class Store:
    """A key-value store that outlives an attempt."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def serve(self, call: Call) -> Answer:
        """Answer one mediated call."""
        if call.function == "kv_put":
            self.values[call.key] = call.value
            return Answer(call.seq, call.ordinal, 0, b"")
        value = self.values.get(call.key)
        if value is None:
            return Answer(call.seq, call.ordinal, abi.NOT_FOUND, b"not found")
        return Answer(call.seq, call.ordinal, len(value), value)


def _attempt(folder: Path, data: bytes, store: Store, granted: set[str]) -> Done:
    host = Host(store.serve)
    built = engine.build()
    module = wasmtime.Module(built, (folder / f"{folder.name}.wasm").read_bytes())
    functions = [name for name, f in abi.FUNCTIONS.items() if f.module in granted]
    program = linker.prepare(built, module, functions, host)
    run = Run(
        seq=1, module=0, input=data, fuel=100_000_000, memory_bytes=MEMORY_MAX,
        table_elements=1_000, output_bytes=512 * 1024, log_bytes=64 * 1024, log_lines=256,
        calls=10_000, mediated_calls=64,
    )  # fmt: skip
    return execute(program, run, host)


def _outcome(folder: Path, *, granted: set[str]) -> tuple[str, bytes]:
    """Run a task's sample as often as it asks for; code ("" = result) and output."""
    sample = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))["sample"]
    data = (folder / sample["input"]).read_bytes() if "input" in sample else b""
    store = Store()
    try:
        done = _attempt(folder, data, store, granted)
        if done.transient:
            done = _attempt(folder, data, store, granted)
    except ExecutorError as error:
        return error.code, b""
    return done.code, done.output


@pytest.mark.parametrize("name", sorted(FOLDERS.keys() - OUT_OF_REACH))
def test_sample_ends_as_promised(name: str) -> None:
    """A sample gives exactly its expected bytes, or exactly its error code."""
    folder = FOLDERS[name]
    recipe = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
    sample = recipe["sample"]
    granted = {use["capability"] for use in recipe.get("uses", [])}
    if sample.get("outcome") == "policy.capability-denied":
        granted = set()
    code, output = _outcome(folder, granted=granted)
    assert code == sample.get("outcome", "")
    if "output" in sample:
        assert output == (folder / sample["output"]).read_bytes()


@pytest.mark.parametrize("name", ["ascii-art", "wordcount", "wordcount-zig"])
def test_a_small_attempt_does_not_grow_its_memory(name: str) -> None:
    """A sample fits the memory with which its instance begins: to grow it costs time."""
    folder = FOLDERS[name]
    sample = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))["sample"]
    done = _attempt(folder, (folder / sample["input"]).read_bytes(), Store(), {abi.LOG})
    module = wasmtime.Module(engine.build(), (folder / f"{folder.name}.wasm").read_bytes())
    (pages,) = (
        e.type.limits.min for e in module.exports if isinstance(e.type, wasmtime.MemoryType)
    )
    assert done.memory_bytes == pages * 64 * 1024


INPUTS = {
    "empty": b"",
    "all bytes": bytes(range(256)),
    "one long word": b"a" * 65_536,
    "more words than slots": b" ".join(b"%d" % n for n in range(8_000)),
    "all white space": b"a\tb\nc\x0bd\x0ce\rf g",
}


@pytest.mark.parametrize("data", INPUTS.values(), ids=INPUTS)
def test_two_languages_count_the_same(data: bytes) -> None:
    """The word counts in C and in Zig agree on output and log line, byte for byte."""
    c, zig = (
        _attempt(FOLDERS[name], data, Store(), {abi.LOG}) for name in ("wordcount", "wordcount-zig")
    )
    assert c.code == ""
    assert (c.output, c.logs) == (zig.output, zig.logs)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", b"P5 or P6"),
        (b"P6 3", b"no height"),
        (b"P6 3 3 255\nabc", b"24 bytes"),
        (b"P5 0 1 255 ", b"0 x 1"),
        (b"P5 99999 99999 255\n", b"4096"),
        (b"P5 1 1 65535\n", b"255"),
        (b"P5 1 1 99999999999 ", b"no maximum value"),
        (b"P5 # only a comment", b"no width"),
    ],
)
def test_malformed_image_fails_for_good_and_says_why(image: bytes, words: bytes) -> None:
    """A file that is no image is a permanent failure with a message that names the fault."""
    done = _attempt(FOLDERS["ascii-art"], image, Store(), {abi.LOG})
    assert (done.code, done.transient, done.output) == ("guest.failed", False, b"")
    assert words.decode() in done.message


def test_retry_names_its_delay() -> None:
    """The first attempt of `flaky` asks for another one after 50 ms."""
    done = _attempt(FOLDERS["flaky"], b"x", Store(), {abi.LOG, abi.KV})
    assert (done.code, done.transient, done.retry_after_ms) == ("guest.failed", True, 50)


# Lists that begin in static memory and outgrow it; a length that wrapped; pieces without an end.
HEAP = """
const std = @import("std");
const task = @import("executor_task");
comptime {
    task.exportTask(heap);
}
fn heap(in: []const u8, out: *std.ArrayList(u8)) anyerror!void {
    try out.appendSlice(task.gpa, "kept");
    if (in.len == 1) try out.ensureTotalCapacityPrecise(task.gpa, in.len -% 2);
    while (in.len == 2) _ = try task.gpa.alloc(u8, 5_000);
    var lists: [4]std.ArrayList(usize) = @splat(.empty);
    for (0..40_000) |n| try lists[n % 4].append(task.gpa, n);
    for (&lists, 0..) |*list, first| {
        for (list.items, 0..) |n, at| if (n != at * 4 + first) return task.fail("overwritten");
        list.deinit(task.gpa);
    }
}
"""


@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_memory_of_a_zig_task_grows_until_it_is_refused(tmp_path: Path) -> None:
    """Beyond static memory pages are taken; what no memory can hold is a permanent failure."""
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "task.toml").write_text('name = "t"\nversion = "1.0.0"\nsource = "t.zig"\n')
    (folder / "t.zig").write_text(HEAP)
    (folder / "t.wasm").write_bytes(core.build(folder, None).module)
    done = _attempt(folder, b"", Store(), set())
    assert (done.code, done.message, done.output) == ("", "", b"kept")
    for data in (b"1", b"22"):
        done = _attempt(folder, data, Store(), set())
        assert (done.code, done.transient, done.message) == ("guest.failed", False, "OutOfMemory")
