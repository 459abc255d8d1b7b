"""Grants of a running executor: what is of no use, the least that still passes, a shadow."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from executor.core import abi, control, seal, subjects, usage
from executor.core.usage import TaskUse, Usage
from executor.transport.control import Control
from tests.servers import NatsServer, connect, eventually, run
from tests.support import guests
from tests.support.served import ROOT, TENANT, Site

_HELD: Final = "log = true\n"
# Imports the log and never calls it.
BOX: Final = guests.KV.replace(
    "(i64.store (i32.const 8000)",
    "(if (i32.const 0) (then (call $log_write (i32.const 1) (i32.const 0) (i32.const 1))))"
    "(i64.store (i32.const 8000)",
)
RUNS: Final = (b"pa", b"ga", b"pd/1", b"gd/2", b"da")
DENIED: Final = 11  # exit status


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration that grants `clock` too, which nobody needs."""
    with Site(tmp_path / "site", server) as made:
        text = made.path.read_text().replace('["log", "kv"]', '["log", "kv", "clock"]')
        made.path.write_text(text.replace(_HELD, f"{_HELD}clock = true\n"))
        yield made


def call(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One call of the command in the site's folder."""
    return subprocess.run(
        [sys.executable, "-m", "executor.cli.main", "--config", str(site.path), *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def report(site: Site) -> dict[str, dict[str, Any]]:
    """`grant report`, by capability."""
    said = json.loads(call(site, "--json", "grant", "report").stdout)
    return {row["capability"]: row for row in said["capabilities"]}


async def answers(site: Site, *asked: bytes) -> list[int]:
    """What the box says to each call, in order."""
    found = []
    async with await site.client() as client:
        for what in asked:
            outcome = await client.run("box", what, timeout_s=30)
            assert outcome.ok, outcome.record
            found.append(int(struct.unpack("<q", outcome.output)[0]))
    return found


def test_the_least_grant_still_passes(site: Site) -> None:
    """After some runs what is unused is reported; the least grant passes the same runs, no more."""

    async def test() -> None:
        await site.prepare(box=BOX)
        life = await site.serve()
        before = await answers(site, *RUNS)
        assert before == [0, 1, 0, abi.NOT_FOUND, 0]
        life.signal(signal.SIGTERM)  # it says what it saw before it leaves
        assert await life.exit_status() == 0
        found = report(site)
        assert {name: row["state"] for name, row in found.items()} == {
            "kv": "used", "log": "never called", "clock": "not imported"
        }  # fmt: skip
        assert found["kv"]["runs"] == len(RUNS)
        least = site.folder / "least.toml"
        assert call(site, "grant", "report", "--write", str(least)).returncode == 0
        assert 'keys = ["a", "d/1"]' in least.read_text()
        text = site.path.read_text()
        site.path.write_text(text[: text.index("[[grant]]")] + least.read_text())
        await site.serve()
        assert await answers(site, *RUNS) == before
        assert await answers(site, b"pz", b"gz", b"pd/2", b"gd/2") == [
            abi.DENIED, abi.DENIED, abi.DENIED, abi.NOT_FOUND
        ]  # fmt: skip

    run(test())


def test_unused_days(site: Site) -> None:
    """A grant that was of no use for 91 days fails the report, one that is used does not."""

    async def test() -> None:
        await site.prepare()
        (grant,) = site.config().policy.grants
        now, past = time.time_ns() // 1_000_000, 91 * 86_400_000
        use = TaskUse(now - past, now, 9, imports=("kv_get",), used={"kv_get": (9, now)},
                      prefix="own/", read=("a",))  # fmt: skip
        seen = Usage({"box": use}, {usage.name_of(grant): now - past})
        key = subjects.usage_key("local_1", TENANT)
        payload = control.encode("usage", key, "test", at=now, report=usage.encode(seen))
        bucket = Control(await connect(site.server))
        await bucket.put(key, seal.say(guests.HOST, "test", key, payload, at=now))
        found = report(site)
        assert {name: row["unused_days"] for name, row in found.items()} == {
            "kv": 0, "log": 91, "clock": 91
        }  # fmt: skip
        for days, status in (("90", DENIED), ("91", DENIED), ("92", 0)):
            done = call(site, "grant", "report", "--fail-unused-days", days)
            assert done.returncode == status
        # What no executor said counts for nobody.
        other = subjects.usage_key("junk", TENANT)
        await bucket.put(other, b"junk")
        assert report(site) == found
        payload = control.encode("usage", other, "test", at=now, report=usage.encode(seen))
        await bucket.put(other, seal.say(guests.FORGER, "test", other, payload, at=now))
        assert report(site) == found

    run(test())


def test_a_shadow_beside_the_work(site: Site) -> None:
    """A stricter policy denies nothing while it is a shadow; SIGHUP takes it up and drops it."""

    async def test() -> None:
        await site.prepare(box=BOX)
        life = await site.serve()
        await answers(site, b"pa")
        assert "no executor has a shadow" in call(site, "grant", "shadow").stdout
        text = site.path.read_text()
        strict = text[text.index("[[publisher]]") :].replace(
            'mode = "write" }', 'mode = "write", keys = ["a"] }'
        )
        (site.folder / "strict.toml").write_text(strict)
        site.path.write_text(f'[policy]\nshadow_file = "strict.toml"\n{text}')
        life.signal(signal.SIGHUP)
        await life.line("reloaded")
        assert await answers(site, b"pa", b"pb", b"gc") == [0, 0, abi.NOT_FOUND]
        await life.line("shadow-denies", task=f"{TENANT}/box", what="kv_put of other keys")

        async def told() -> bool:
            said = json.loads(call(site, "--json", "grant", "shadow").stdout)
            found = {row["what"]: (row["times"], row["runs"]) for row in said["denied"]}
            return found == {"kv_put of other keys": (1, 4), "kv_get of other keys": (1, 4)}

        await eventually(told)
        site.path.write_text(site.path.read_text().replace("strict.toml", "missing.toml"))
        life.signal(signal.SIGHUP)
        await life.line("reload-refused", code="config.missing")

    run(test())


def test_a_new_life_goes_on(site: Site) -> None:
    """What a killed executor saw counts once, and the next one of its name takes it over."""

    async def test() -> None:
        await site.prepare(box=BOX)
        first = await site.serve()
        await answers(site, b"pa")
        first.signal(signal.SIGTERM)
        assert await first.exit_status() == 0
        since = report(site)["log"]["seen_since"]
        second = await site.serve()
        await answers(site, b"pb")
        second.signal(signal.SIGTERM)
        assert await second.exit_status() == 0
        found = report(site)
        assert (found["kv"]["runs"], found["log"]["seen_since"]) == (2, since)

    run(test())
