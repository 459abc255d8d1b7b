"""The zoo: every attack ends in exactly its code, and whoever works beside it does not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from executor.config import Config
from executor.core import abi
from executor.core.envelope import Record
from executor.errors import TABLE
from executor.model import FIELDS, Limits
from tests.support import guests, zoo
from tests.support.rig import OTHER, Rig, make_config
from tests.support.zoo import Row

NEIGHBOUR, TENANT = "acme", OTHER
ROWS = zoo.rows()
COMMENTS = {".wat": ";; ", ".c": "/* ", ".zig": "//! "}
# Modules of so many rows are compiled at once; a sandbox is born with them and runs them in turn.
CHUNK = 16
# What may cost a sandbox its life; everything else ends as an outcome inside it.
DEADLY = {"limit.deadline-exceeded"}


def is_hasty(row: Row) -> bool:
    """Whether a row needs a host that gives the compiler little time."""
    return row.layer == "compile deadline"


class House:
    """One rig for many rows: an attacker's tenant and its neighbour."""

    def __init__(self, **values: int | str) -> None:
        self._runner = asyncio.Runner()
        # The clock is what nobody granted; the rig grants it to all.
        config = make_config(
            replaced=[("\nclock = true", "")], tenants=(NEIGHBOUR, TENANT),
            sandbox__count=2, delivery__attempts_max=1,
            # A fast machine fills 64 MiB before the deadline that a row is about.
            limits__call_max_mib=65_536, **values,
        )  # fmt: skip
        self.rig = self._runner.run(self._open(config))
        self._here: list[Row] = []

    async def _open(self, config: Config) -> Rig:
        rig = Rig(config)
        await rig.__aenter__()
        rig.publish("echo", guests.ECHO, tenant=NEIGHBOUR)
        return rig

    def close(self) -> None:
        """End the rig, which looks for what is left over."""
        try:
            self._runner.run(self.rig.__aexit__(None, None, None))
        finally:
            self._runner.close()

    def ask(self, row: Row) -> tuple[Record, int]:
        """Run an attack; its record, and how many sandboxes died of it."""
        return self._runner.run(self._ask(row))

    async def _ask(self, row: Row) -> tuple[Record, int]:
        if row not in self._here:
            await self._move_in(row)
        died = self.rig.pool.died
        request = self.rig.ask(row.name, b"", tenant=TENANT, limits=tuple(row.limits.items()))
        return await self.rig.record(request), self.rig.pool.died - died

    async def _move_in(self, first: Row) -> None:
        """Release the rows from this one on in place of those before, and compile them."""
        chunk = ROWS[ROWS.index(first) :][:CHUNK]
        chunk = [row for row in chunk if is_hasty(row) == is_hasty(first)]
        modules = {row.name: row.module for row in chunk}
        for row in self._here:
            del self.rig.shelf.live[TENANT, row.name]
        self._here = chunk
        for name, module in modules.items():
            self.rig.store(module, name, tenant=TENANT)
        turns = asyncio.Semaphore(4)

        async def admit(row: Row) -> None:
            async with turns:
                await self.rig.registry.admit(TENANT, row.name)

        await asyncio.gather(*map(admit, self._here), return_exceptions=True)

    def neighbour(self, text: bytes) -> bytes:
        """What the harmless task beside it answers."""

        async def ask() -> bytes:
            record = await self.rig.record(self.rig.ask("echo", text, tenant=NEIGHBOUR))
            assert record.code == "", record.message
            return record.output

        return self._runner.run(ask())


class Street:
    """The one house that stands: rigs share what forks their sandboxes, so two would quarrel."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._house: House | None = None
        self._hasty = False

    def house_for(self, row: Row) -> House:
        """The house for a row, in place of one of the other kind."""
        if self._house is None or self._hasty != is_hasty(row):
            self.clear()
            self._hasty = is_hasty(row)
            values = {"sandbox__compile_deadline_ms": 2_000} if self._hasty else {}
            self._house = House(sandbox__engine_path=self._path, **values)
        return self._house

    def clear(self) -> None:
        """Close what stands."""
        house, self._house = self._house, None
        if house is not None:
            house.close()


@pytest.fixture(scope="module", params=["raw", "public"])
def street(request: pytest.FixtureRequest) -> Iterator[Street]:
    """For all rows, one after the other, on each path to the engine."""
    made = Street(request.param)
    yield made
    made.clear()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_attack_ends_in_its_code(row: Row, street: Street) -> None:
    """The record says what the table says; before it and after it the neighbour has its answer."""
    if row.source.endswith((".c", ".zig")) and find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    house = street.house_for(row)
    assert house.neighbour(b"before") == b"before"
    # What ends in a result runs twice: the second must not find what the first one left.
    for _ in range(1 if row.code else 2):
        record, died = house.ask(row)
        assert record.code == row.code, (record.code, record.message, record.facts)
        assert (died > 0) == (row.code in DEADLY)
        _check_caps(row, record)
    assert house.neighbour(b"after") == b"after"


def _check_caps(row: Row, record: Record) -> None:
    """Whatever an attack says, its record stays small and holds no output of a failure."""
    limits = Limits()
    if record.code:
        assert record.output == b""
    assert len(record.output) <= limits.output_bytes
    assert len(record.logs) <= limits.log_lines
    assert sum(len(text.encode()) for _, text in record.logs) <= 3 * limits.log_bytes
    assert len(record.message) <= abi.FAIL_MESSAGE_MAX
    assert sum(len(f"{name}{value}") for name, value in record.facts) <= 8 * 1024
    if row.code == "limit.fuel-exhausted":
        assert record.receipt.fuel_used <= row.limits["fuel"]


def test_the_table_is_whole() -> None:
    """At least 48 rows, of known codes, layers and limits; each file has a row and says why."""
    assert len(ROWS) >= 48
    for row in ROWS:
        assert row.code in {"", *TABLE}, row.name
        assert {row.layer, *row.also} <= zoo.LAYERS, row.name
        assert row.layer not in row.also, row.name
        assert row.limits.keys() <= FIELDS, row.name
        assert row.attack, row.name
        assert row.kind in {"", "file"}, row.name
    assert {row.layer for row in ROWS} <= zoo.LAYERS
    files = [path for path in zoo.FOLDER.iterdir() if path.suffix in COMMENTS]
    assert sorted(row.source for row in ROWS if row.source) == sorted(p.name for p in files)
    assert sorted(row.made for row in ROWS if row.made) == sorted(zoo.MADE)
    for path in files:
        assert path.read_text(encoding="utf-8").startswith(COMMENTS[path.suffix]), path.name
