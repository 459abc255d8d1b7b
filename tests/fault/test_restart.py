"""The server restarts while tasks flow and retries wait in schedules.

Without retries, and faster, this is in `tests/nats/test_serving_faults.py`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from executor.core import subjects
from tests.servers import NatsServer, eventually, run
from tests.support import guests, load
from tests.support.served import TENANT, Site


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_retries_wait_through_a_restart(
    tmp_path: Path, server: NatsServer, number: signal.Signals
) -> None:
    """Attacks *a retry survives every restart*: 30 wait in LATER while the server goes down.

    Its sources rest for some 10 s after it is back; then all retries come, and end once each.
    """
    retry = guests.RETRY.replace("(i64.const 7)", "(i64.const 2000)")

    async def test() -> None:
        with Site(tmp_path / "site", server) as site:
            await site.prepare(retry=retry, work=load.MIDDLE)
            await site.serve()
            retries = await load.submit(site, "retry", 30)
            await eventually(lambda: waits(site, 30))
            ids = await load.submit(site, "work", 60)
            await load.stored(site, 5)
            server.restart(number)
            ended = await load.each_once(site, retries + ids)
            assert {ended[task_id].record.attempt for task_id in retries} == {3}
            assert all(ended[task_id].ok for task_id in ids)
            await load.stopped(site)

    async def waits(site: Site, count: int) -> bool:
        return (await site.state(subjects.later_stream(TENANT)))["messages"] >= count

    run(test())
