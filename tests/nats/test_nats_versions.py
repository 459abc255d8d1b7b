"""Two versions of the envelope side by side: two executors, one tenant's work, one server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from executor.core import envelope, subjects
from tests.servers import NatsServer, eventually, run
from tests.support import guests
from tests.support.served import TENANT, Site

# Asks for another attempt in 2 s, which is long enough to put another executor in place.
LATER = guests.RUN + (
    "(call $fail (i32.const 1) (i32.const 0) (i32.const 0) (i64.const 2000)) (i32.const 0))"
)


def site_of(folder: Path, server: NatsServer, version: int) -> Site:
    """A configuration that writes one version, and takes few messages at a time."""
    site = Site(folder, server)
    text = site.path.read_text()
    more = f"[delivery]\nwindow = 2\nenvelope_version = {version}"
    site.path.write_text(text.replace("[delivery]", more, 1))
    return site


@pytest.fixture
def sites(tmp_path: Path, server: NatsServer) -> Iterator[dict[int, Site]]:
    """Version → the folder of an executor that writes it."""
    made = {version: site_of(tmp_path / f"v{version}", server, version) for version in (1, 2)}
    with made[1], made[2]:
        yield made


async def versions(site: Site) -> dict[str, int]:
    """Task id → version, of every stored dead letter."""
    return {
        message.subject.split(".")[3]: envelope.decode_sealed(message.body).version
        for message in await site.stored() if message.subject.startswith("dead.")
    }  # fmt: skip


def test_two_versions_share_the_work(sites: dict[int, Site]) -> None:
    """Each writes in its own version; every outcome verifies, and each id has one."""

    async def test() -> None:
        await sites[2].prepare(echo=guests.ECHO, trap=guests.TRAP, retry=guests.RETRY)
        for site in sites.values():
            await site.serve()
        sent: dict[str, str] = {}
        async with await sites[1].client() as client:

            async def both_wrote() -> bool:
                for _ in range(10):
                    for task in ("echo", "trap", "retry"):
                        sent[(await client.submit(task, b"x")).id] = task
                return set((await versions(sites[1])).values()) == {1, 2}

            await eventually(both_wrote)
        codes = {"echo": "", "trap": "guest.trap", "retry": "guest.failed"}
        ended = await sites[1].all_ended(len(sent))
        assert {task_id: found.code for task_id, found in ended.items()} == {
            task_id: codes[task] for task_id, task in sent.items()
        }
        for task_id, version in (await versions(sites[1])).items():
            record = ended[task_id].record
            assert bool(record.limits) is bool(record.signers) is (version == 2)
            assert len(record.history) == (3 if sent[task_id] == "retry" else 1)
        for site in sites.values():
            for life in site.lives:
                assert life.events("security-event") == []
                assert life.events("bug") == []

    run(test())


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_retry_is_finished_by_the_other(sites: dict[int, Site], first: int, second: int) -> None:
    """What one executor put off the other picks up with its history, and ends in its own version.

    Neither reports anything: a record or retry of the other version is nobody's forgery.
    """

    async def test() -> None:
        await sites[first].prepare(later=LATER)
        life = await sites[first].serve()
        async with await sites[first].client() as client:
            sent = await client.submit("later", b"x", attempts_max=2)
        await life.line("attempt", settlement="retry")

        async def waits() -> bool:
            return (await sites[first].state(subjects.later_stream(TENANT)))["messages"] == 1

        await eventually(waits)
        life.signal(SIGKILL)
        await life.exit_status()
        other = await sites[second].serve()
        async with await sites[second].client() as client:
            found = await client.wait(sent.id, timeout_s=60)
            record = found.record
            assert (found.code, record.attempt) == ("guest.failed", 2)
            assert [past.attempt for past in record.history] == [1, 2]
            assert await versions(sites[second]) == {sent.id: second}
            # The first is back, and believes what the other has written.
            again = await sites[first].serve()
            assert await client.run("later", b"y", id=sent.id, timeout_s=60) == found
        await sites[first].empty()
        for each in (life, other, again):
            assert each.events("security-event") == []
        assert len(await sites[first].stored(TENANT)) == 1

    run(test())
