"""The start of `serve` on a real server, beside what other tenants released."""

from __future__ import annotations

import os
from pathlib import Path

from tests.servers import NatsServer, run
from tests.support import guests, zoo
from tests.support.served import OTHER, TENANT, Site


def test_bombs_of_a_tenant_hold_up_no_start(tmp_path: Path, server: NatsServer) -> None:
    """It serves after the time of one compilation, while another tenant's bombs still compile."""
    # More rounds than one, however many compilers run at once.
    names = [f"bomb-{number}" for number in range(1 + 2 * len(os.sched_getaffinity(0)))]

    async def test() -> None:
        with Site(tmp_path / "site", server) as site:
            site.write(tenants=(OTHER, TENANT))
            text = site.path.read_text(encoding="utf-8")
            quick = text.replace("[sandbox]\n", "[sandbox]\ncompile_deadline_ms = 1000\n")
            site.path.write_text(quick, encoding="utf-8")
            await site.prepare()
            for name in names:
                bomb = zoo._sign(zoo.MADE["values_time"](name), name)
                await site.release(bomb, name, tenant=OTHER)
            await site.release(guests.signed(guests.ECHO, "echo"), "echo")
            life = await site.serve()
            async with await site.client() as client:
                await client.submit("echo", b"x", id="first")
                assert (await client.wait("first")).output == b"x"
            # In the end each is judged, for what it is, and the last of them after the start.
            await life.line("release-refused", len(names), code="module.too-complex")
            log = life.log()
            assert log.index(" serving ") < log.rindex(" release-refused ")

    run(test())
