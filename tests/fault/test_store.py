"""The server has no room: nothing is acked before its record is stored, and all ends with room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.errors import ExecutorError
from executor.transport.api import ApiError
from tests.servers import NatsServer, connect, run
from tests.support import guests, load
from tests.support.proxy import Frame, Proxy, is_ack, is_delivery
from tests.support.served import Site, until

# The buckets reserve 192 MiB and the queue 1; what is over is for outcomes and for the filler.
LIMIT_MIB = 204
SERVER = f"jetstream {{ max_file_store: {LIMIT_MIB}MB }}"

ACCOUNT = f"""
jetstream {{ max_file_store: 1GB }}
accounts {{ APP {{
  jetstream {{ max_file: {LIMIT_MIB}MB }}
  users: [{{ user: app, password: app }}]
}} }}
no_auth_user: app
"""


def refused(frame: Frame) -> bool:
    """The server's word that it could not store."""
    return frame.direction == "down" and b'"error"' in frame.payload[:20]


async def fill(server: NatsServer) -> None:
    """Store filler until the server takes no more."""
    connection = await connect(server)
    await connection.api(
        "STREAM.CREATE.FILL", {"name": "FILL", "subjects": ["fill"], "storage": "file"}
    )
    size = 512 * 1024
    while size > 16:
        try:
            await connection.store("fill", b"f" * size)
        except ApiError:
            size //= 2
    await connection.close()


async def drop_filler(server: NatsServer) -> None:
    """Make room."""
    connection = await connect(server)
    await connection.api("STREAM.DELETE.FILL")
    await connection.close()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(SERVER, marks=pytest.mark.soak, id="server"),
        pytest.param(ACCOUNT, id="account"),
    ],
)
def test_the_store_is_full(tmp_path: Path, config: str) -> None:
    """Attacks *nothing is acked before its record is stored*: server or account are at their limit.

    A submitter is told. What was queued before runs, and its records are refused; with room they
    are stored, by a repeat of the publish, and each task was handed over once.
    """

    async def test(server: NatsServer) -> None:
        async with Proxy(server) as proxy:
            with Site(
                tmp_path / "site", server, url=proxy.url, queue_max_mib=1, outcomes_max_mib=0
            ) as site:
                await site.prepare(echo=guests.ECHO)
                ids = await load.submit(site, "echo", 10)
                await fill(server)
                with pytest.raises(ExecutorError, match=r"^transport\.stream-full"):
                    await load.submit(site, "echo", 1)
                await site.serve()
                await proxy.wait(refused, len(ids))
                assert proxy.count(is_ack) == 0
                assert not await site.stored()
                await drop_filler(server)
                ended = await load.each_once(site, ids)
                assert all(outcome.ok for outcome in ended.values())
                load.acked_after_stored(proxy, len(ids))
                assert proxy.count(is_delivery) == len(ids)
                await load.stopped(site)

    with NatsServer(tmp_path / "nats", config) as server:
        run(test(server))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB for the streams alone: the server's log is elsewhere."""
    folder = tmp_path / "nats" / "jetstream"
    folder.mkdir(parents=True)
    command = ["/bin/mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(tmp_path: Path, small_disk: Path) -> None:
    """Attacks *nothing is acked before its record is stored*: the disk under the server is full.

    The server answers nothing, and its stream is broken until a restart; then every task ends once.
    """

    async def test(server: NatsServer) -> None:
        async with Proxy(server) as proxy:
            with Site(
                tmp_path / "site", server, url=proxy.url, queue_max_mib=1, outcomes_max_mib=0
            ) as site:
                await site.prepare(echo=guests.ECHO)
                ids = await load.submit(site, "echo", 40)
                filler = small_disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(b"f" * 4096)
                await site.serve()
                await until(lambda: "critical write error" in server.log())
                assert len(await site.stored()) < len(ids)
                load.acked_after_stored(proxy, 0)
                filler.unlink()
                server.restart()  # without, the stream stays broken, with all the room there is
                await load.each_once(site, ids)
                await load.stopped(site)

    with NatsServer(small_disk.parent, SERVER) as server:
        run(test(server))
