"""The price of safety: each guard on and off, in turn, everything else the same.

The product has no switch for any of these. What is off here was put together here from the same
parts: an engine of the library without fuel, a sandbox whose children skip the lock-down, an
instance that is used again, a key whose signatures are zeros, a publish without its condition.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import nats
from nats.js import JetStreamContext
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks import containment
from benchmarks.environments import ROOT
from benchmarks.note import note
from benchmarks.options import Options
from benchmarks.peers.blocks import measure
from benchmarks.peers.in_wasmtime import inside, linked, reused
from benchmarks.peers.work import WORDS
from benchmarks.section import Section
from executor.core import envelope, seal, signature
from executor.core.envelope import Draft, Record
from executor.core.signature import SecretKey
from executor.model import Finished, Receipt, Result, TaskId, TaskRequest
from executor.telemetry import AttemptFacts, Log, Telemetry
from executor.transport.server import PrivateServer
from tests.support import guests

Pair = tuple[Callable[[], object], Callable[[], object], int]  # on, off, calls in one
Inside = Callable[[float], list[float]]  # seconds to µs of each

_ARITHMETIC: Final = (
    guests.RUN.replace("(result i32) ", "(result i32) (local $n i32) (local $x i32) ", 1)
    + "(local.set $n (i32.const 100000)) (loop $l"
    " (local.set $x (i32.add (i32.mul (local.get $x) (i32.const 31)) (local.get $n)))"
    " (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
    " (i32.store (i32.const 0) (local.get $x))"
    " (call $output_write (i32.const 0) (i32.const 4)) (i32.const 0))"
)
_WORDCOUNT: Final = ROOT / "tasks_wasm" / "wordcount" / "wordcount.wasm"
_BATCHES: Final = (1, 8, 64)
_NOTES: Final = {
    "fuel, word count": "an engine of the library with and without fuel; what runs in a fresh "
    "instance alone, without what makes it",
    "fuel, arithmetic": "the same with a loop of 100,000 multiplications",
    "jail": "sandboxes of a fork server whose children skip the lock-down, 1 KB echo, 64 in flight",
    "fresh instance": "a Store and Instance for each call beside one that is kept; no pool",
    "telemetry": "spans and metrics to providers whose exporter drops them, beside none",
    "once-only outcome": "publish with its condition on *.tenant.task.id beside without, 256 ahead",
    "durable outcome": "publish to a file stream with PubAck beside a core publish",
    "module signature": "hash and signature of the word count, once for each digest; then cached",
}  # fmt: skip


class Unsigned(SecretKey):
    """A key whose signatures are zeros: what remains is everything about sealing but signing."""

    __slots__ = ()

    def sign(self, message: bytes) -> bytes:
        """No signature."""
        del message
        return bytes(64)


class _Dropping(SpanExporter):
    """Spans are made, batched and dropped."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Drop them."""
        del spans
        return SpanExportResult.SUCCESS


def _drafts(count: int) -> list[Draft]:
    record = Record(task="wordcount", attempt=1, attempts_max=3, submitted_at=1, finished_at=2,
                    receipt=Receipt(), output=b'{"words":160,"distinct":97}')  # fmt: skip
    payload = envelope.encode_record(record)
    return [Draft("result", f"dev/result.acme.wordcount.{i}", str(i), payload)
            for i in range(count)]  # fmt: skip


def _telemetry() -> tuple[Telemetry, Telemetry, list[TracerProvider | MeterProvider]]:
    traces, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
    traces.add_span_processor(BatchSpanProcessor(_Dropping()))
    log = Log(quiet=True)
    return Telemetry(log, traces, meters), Telemetry(log), [traces, meters]


def pairs(listening: Telemetry, silent: Telemetry) -> dict[str, Pair]:
    """What is measured in this process."""
    words = _WORDCOUNT.read_bytes()
    echo = guests.assemble(guests.ECHO)
    seed = guests.seed("benchmark")
    key, stub = SecretKey(seed), Unsigned(seed)
    drafts = {count: _drafts(count) for count in _BATCHES}
    signed = signature.sign_module(words, key)
    request = TaskRequest("acme", "wordcount", TaskId("1"), WORDS)
    finished = Finished(Result(b"{}"), Receipt(digest="0" * 64))
    facts = AttemptFacts(1, 1, 2, 3, "result")
    return {
        "fresh instance": (linked(echo), reused(echo), 1),
        **{f"signed outcome, {n} in a batch": (
            lambda d=drafts[n]: seal.seal(key, d, at=1),  # type: ignore[misc]
            lambda d=drafts[n]: seal.seal(stub, d, at=1), n)  # type: ignore[misc]
           for n in _BATCHES},
        "telemetry": (lambda: listening.attempt(request, finished, facts),
                      lambda: silent.attempt(request, finished, facts), 1),
        "module signature": (lambda: signature.verify_module(signed, [key.public]),
                             lambda: None, 1),
    }  # fmt: skip


def _fuel() -> dict[str, tuple[Inside, Inside]]:
    """What runs in an instance, with fuel and without."""
    words, sums = _WORDCOUNT.read_bytes(), guests.assemble(_ARITHMETIC)
    return {
        "fuel, word count": (inside(words, fuel=True, payload=WORDS),
                             inside(words, fuel=False, payload=WORDS)),
        "fuel, arithmetic": (inside(sums, fuel=True), inside(sums, fuel=False)),
    }  # fmt: skip


async def _publishing(jetstream: JetStreamContext, name: str, count: int, *, once: bool) -> None:
    futures = []
    for number in range(count):
        subject = f"result.acme.wordcount.{name}-{number}"
        headers = {"Nats-Expected-Last-Subject-Sequence": "0",
                   "Nats-Expected-Last-Subject-Sequence-Subject":
                   f"*.acme.wordcount.{name}-{number}"} if once else None  # fmt: skip
        futures.append(await jetstream.publish_async(subject, bytes(325), headers=headers))
    await asyncio.gather(*futures)


async def _timed(call: Awaitable[None], count: int) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await call
    return (loop.time() - began) * 1e6 / count


async def _outcomes(section: Section, round_: int, count: int) -> None:
    """What the stream's condition, and the stream, cost a publish; client and server together."""
    async with PrivateServer() as server:
        client = await nats.connect(server.url)
        jetstream = client.jetstream(publish_async_max_pending=256)
        await jetstream.add_stream(name="OUT", subjects=["result.>", "dead.>"])
        await _publishing(jetstream, "warm", count // 4, once=False)
        took = {}
        for on in (True, False) if round_ % 2 else (False, True):
            took[on] = await _timed(_publishing(jetstream, f"once-{on}", count, once=on), count)

        async def core() -> None:
            for number in range(count):
                await client.publish(f"other.{number}", bytes(325))
            await client.flush()

        _pair(section, "once-only outcome", round_, [took[True]], [took[False]])
        _pair(section, "durable outcome", round_, [took[False]], [await _timed(core(), count)])
        await client.close()


def _pair(section: Section, name: str, round_: int, on: list[float], off: list[float]) -> None:
    """Both sides, and in the same round their difference and ratio."""
    with_, without = statistics.median(on), statistics.median(off)
    section.add(name, "price", "µs", with_ - without, round_=round_)
    section.add(name, "on", "µs", with_, round_=round_)
    section.add(name, "off", "µs", without, round_=round_)
    section.add(name, "on / off", "×", with_ / without, round_=round_)


async def run(options: Options) -> list[Section]:
    """Every guard, round by round; who begins alternates."""
    section = Section("safety", "The price of safety", "python -m benchmarks safety")
    section.notes = dict(_NOTES) | {
        f"signed outcome, {n} in a batch": "beside a key whose signatures are zeros; an outcome"
        for n in _BATCHES
    }
    seconds = options.pick(options.seconds, 0.4, 0.05)
    listening, silent, providers = _telemetry()
    measured, burning = pairs(listening, silent), _fuel()
    for round_ in range(options.count(options.rounds, 5, 1)):
        for name, (on, off, calls) in measured.items():
            note(f"safety, round {round_ + 1}: {name}")
            turns = [on, off] if round_ % 2 == 0 else [off, on]
            found = {call: measure(call, seconds, 4) for call in turns}
            _pair(section, name, round_, [v / calls for v in found[on]],
                  [v / calls for v in found[off]])  # fmt: skip
        note(f"safety, round {round_ + 1}: fuel, jail, outcomes")
        for name, (burns, free) in burning.items():
            if round_ % 2:
                without, with_ = free(seconds), burns(seconds)
            else:
                with_, without = burns(seconds), free(seconds)
            _pair(section, name, round_, with_, without)
        for locked, unlocked in containment.jail_us():
            _pair(section, "jail", round_, [locked], [unlocked])
        await _outcomes(section, round_, options.count(options.tasks, 10_000, 1_000))
    for provider in providers:
        provider.shutdown()
    return [section]
