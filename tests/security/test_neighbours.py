"""Beside the zoo: a tenant whose tasks all succeed, and a supervisor that does not grow."""

from __future__ import annotations

from pathlib import Path

from executor.model import MIB
from tests.support import guests, zoo
from tests.support.rig import OTHER, Rig, make_config

# Of each way to end, without those that outlive a compiler's or an attempt's clock on purpose.
SLOW = {"compile deadline", "compiler rlimits", "deadline"}
NEIGHBOURS = 32
GROWTH_MAX = 20 * MIB


def resident() -> int:
    """Bytes of this process, which is the supervisor, in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def test_32_neighbours_all_succeed() -> None:
    """Attacks of every layer run at once with 32 tasks of another tenant: all of those succeed."""
    chosen = [row for row in zoo.rows() if row.layer not in SLOW and row.kind != "file"][::3]
    assert len({row.layer for row in chosen}) >= 8
    config = make_config(
        replaced=[("\nclock = true", "")], sandbox__count=2, delivery__attempts_max=1
    )
    async with Rig(config) as rig:
        rig.publish("echo", guests.ECHO)
        for row in chosen:
            rig.store(row.module, row.name, tenant=OTHER)
        assert (await rig.record(rig.ask("echo", b"first"))).output == b"first"
        before = resident()
        attacks, neighbours = [], []
        for number in range(max(NEIGHBOURS, len(chosen))):
            if number < len(chosen):
                row = chosen[number]
                limits = tuple(row.limits.items())
                attacks.append((row, rig.ask(row.name, tenant=OTHER, limits=limits)))
            if number < NEIGHBOURS:
                neighbours.append(rig.ask("echo", str(number).encode()))
        for number, request in enumerate(neighbours):
            record = await rig.record(request)
            assert (record.code, record.output) == ("", str(number).encode())
        ended = {row.name: (await rig.record(request)).code for row, request in attacks}
        assert ended == {row.name: row.code for row, _ in attacks}
        assert resident() - before < GROWTH_MAX


async def test_costly_modules_cost_the_supervisor_nothing() -> None:
    """Modules that no compiler can afford are refused, and the supervisor's memory stays as it was.

    A neighbour's task is compiled and run among them.
    """
    bombs = [row for row in zoo.rows() if row.layer in {"compile deadline", "compiler rlimits"}]
    assert len(bombs) >= 2
    config = make_config(
        sandbox__count=2, sandbox__compile_deadline_ms=2_000, delivery__attempts_max=1
    )
    async with Rig(config) as rig:
        rig.publish("echo", guests.ECHO)
        for row in bombs:
            rig.store(row.module, row.name, tenant=OTHER)
        before = resident()
        attacks = [(row, rig.ask(row.name, tenant=OTHER)) for row in bombs]
        assert (await rig.record(rig.ask("echo", b"x"))).output == b"x"
        for row, request in attacks:
            assert (await rig.record(request)).code == row.code
        assert resident() - before < GROWTH_MAX
