"""Ten thousand hostile byte strings from a sandbox: it dies of them, the supervisor does not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator

import msgpack

from executor.core import frames
from executor.core.breaker import BreakerRules
from executor.core.conversation import Conversation
from executor.core.frames import FRAME_MAX, Ready, Run
from executor.errors import ExecutorError
from executor.model import MIB
from tests.fuzz.fuzz import STATES, conversation, converse, frames_corpus, mutate
from tests.support import guests
from tests.support.puppet import Puppet, Puppets, done
from tests.support.rig import Rig

TASKS = 20  # each one takes two sandboxes with it
DIRECT = 10_000 - 2 * TASKS
VIOLATION = "sandbox.protocol-violation"


def _legal(rng: random.Random) -> bytes:
    return rng.choice(frames_corpus())[2:]


def _mutated(rng: random.Random) -> bytes:
    return mutate(rng, frames_corpus())[2:]


def _cell(rng: random.Random, depth: int = 0) -> object:
    kinds = (
        None, True, rng.randrange(-(2**63), 2**64), rng.random(), float("nan"), -1, 0, 1,
        rng.randbytes(rng.randrange(20)), "kv_get", "x" * rng.randrange(40),
        msgpack.ExtType(1, b"x"),
    )  # fmt: skip
    if depth < 3 and rng.random() < 0.3:
        inner = [_cell(rng, depth + 1) for _ in range(rng.randrange(5))]
        return inner if rng.random() < 0.8 else {str(n): cell for n, cell in enumerate(inner)}
    return rng.choice(kinds)


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _msgpack(rng: random.Random) -> bytes:
    cells = [_cell(rng) for _ in range(rng.randrange(16))]
    return _framed(msgpack.packb([rng.randrange(-1, 16), *cells]))


def _oversized(rng: random.Random) -> bytes:
    # A length that is refused on sight, or an inner one that the bytes do not hold.
    if rng.random() < 0.5:
        return rng.randrange(FRAME_MAX + 1, 2**32).to_bytes(4, "big") + rng.randbytes(20)
    liar = rng.choice((b"\xdd", b"\xc6", b"\xdb", b"\xdf", b"\xc9"))
    return _framed(b"\x92\x05" + liar + rng.randrange(2**16, 2**32).to_bytes(4, "big"))


def _large(rng: random.Random) -> bytes:
    """A body of the largest size, of as many values as it holds: each one would be an object."""
    kind, count = rng.randrange(14), rng.randrange(1, 1001)
    value = rng.choice((
        b"\x90", b"\x91\x90", b"\x01", b"\xa0", b"\xc4\x00", b"\x80", b"\xc0",
        b"\xcf" + b"\xff" * 8, b"\xa8\xf0\x9f\x98\x80" + b"text",
    ))  # fmt: skip
    array = b"\xdc" + count.to_bytes(2, "big") + value * count
    arrays = max((FRAME_MAX - 16) // len(array), 1)
    while arrays > 1000:  # deeper instead of longer than the decoder would take
        array = b"\xdc" + (1000).to_bytes(2, "big") + array * 1000
        arrays = (FRAME_MAX - 16) // len(array)
    body = bytes([0x92, kind, 0xDC]) + arrays.to_bytes(2, "big") + array * arrays
    assert len(body) <= FRAME_MAX
    return _framed(body)


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 200))


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _mutated, _mutated, _msgpack, _oversized, _legal, _noise, _large,
)  # fmt: skip


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` cut at up to three places, in the middle of a length as readily as anywhere."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def feed_all(rng: random.Random, count: int) -> Counter[str]:
    """Each of `count` strings to a conversation of its own: how many of a kind were refused."""
    refused: Counter[str] = Counter()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        try:
            converse(conversation(rng.choice(STATES)), pieces(rng, kind(rng)))
        except ExecutorError as error:
            if error.code != VIOLATION:
                raise
            refused[kind.__name__] += 1
    return refused


def is_illegal(data: bytes, run: Run) -> bool:
    """Whether `data`, while `run` is all there is, is refused before it says anything legal."""
    talk = Conversation()
    list(talk.receive(frames.encode(Ready((), ""))))
    talk.run(run)
    try:
        next(talk.receive(data), None)
    except ExecutorError:
        return True
    return False


def illegal(rng: random.Random, run: Run) -> Iterator[bytes]:
    """Strings of each kind in turn, without those that only wait for more or say what is legal."""
    number = 0
    while True:
        data = KINDS[number % len(KINDS)](rng)
        if is_illegal(data, run):
            number += 1
            yield data


async def attack(puppet: Puppet, sent: list[bytes]) -> None:
    """Say it piece by piece, until the process is dead."""
    with contextlib.suppress(OSError):
        for piece in sent:
            await puppet.send(piece)
            await asyncio.sleep(0)
    await puppet.ended.wait()


async def test_ten_thousand_hostile_frames(puppets: Puppets) -> None:
    """Whatever a sandbox sends ends it alone, in bounded memory; its task gets one record."""
    rng = random.Random(16)
    tracemalloc.start()
    refused = feed_all(rng, DIRECT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MIB
    assert refused.keys() == {kind.__name__ for kind in KINDS}
    assert refused["_large"] == len(range(len(KINDS) - 1, DIRECT, len(KINDS)))
    assert refused.total() > DIRECT // 2
    async with Rig() as rig:
        rig.publish("echo", guests.ECHO)
        # The frames are the test's, not the module's: nothing is to be learned about it.
        rig.guards.breakers.rules = BreakerRules(threshold=10**9)
        for number in range(TASKS):
            request = rig.ask("echo")
            for death in range(2):
                puppet = await puppets.ready()
                hostile = illegal(rng, await puppet.run())
                for _ in range(rng.randrange(len(KINDS))):
                    next(hostile)
                await attack(puppet, pieces(rng, next(hostile)))
                if death == 0:
                    assert (await rig.put_off(number + 1)).id == request.id
                    rig.retry(rig.wire.published("later")[-1])
            await rig.settle_down()
            assert rig.records()[request.id].code == VIOLATION
            rig.guards.quarantined.clear()
        # The harmless twin, served by the same supervisor.
        request = rig.ask("echo", b"x")
        puppet = await puppets.ready()
        run = await puppet.run()
        await puppet.send(done(run.seq, run.input))
        await rig.settle_down()
        ended = [out.subject.split(".")[3] for out in rig.wire.published() if out.once]
        assert len(ended) == len(set(ended)) == TASKS + 1
        assert rig.records()[request.id].output == b"x"
        assert rig.journal.security() == ["illegal-frame"] * 2 * TASKS
        assert puppets.count == 2 * TASKS + 1
