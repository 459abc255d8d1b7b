"""A `Site` whose policy and releases are signed by a `Team`, in its server's TRUST bucket."""

from __future__ import annotations

from pathlib import Path

from executor import config as configs
from executor.cli.serving import queue, stream_options
from executor.cli.signing import push
from executor.config import Config
from executor.core import signature
from executor.model import Release
from executor.transport import streams
from executor.transport.objects import Objects
from executor.transport.trust import TrustBucket
from executor.trust import believed
from tests.servers import HasUrl, connect
from tests.support import guests, speech
from tests.support.served import TENANT, Site
from tests.support.signers import ENVIRONMENT, Team

_HOST = """
[host]
environment = "{environment}"
mode = "production"
name = "local"
key_file = "executor.key"
health_file = "health.json"
[nats]
url = "{url}"
[delivery]
backoff_ms = [50]
ack_wait_ms = {ack_wait_ms}
drain_ms = 20_000
deliveries_max = 50
[limits]
fuel = 1_000_000_000_000
deadline_ms = 60_000
host_max_ms = 60_000
[trust]
source = "tuf"
root_file = "root.json"
refresh_s = 3600
"""
_POLICY = """
revoked = [{revoked}]
[[publisher]]
name = "author"
key = "{author}"
tasks = ["{author_tasks}"]
[[publisher]]
name = "second"
key = "{second}"
tasks = ["*/*"]
[[executor]]
name = "local"
key = "{host}"
"""
_TENANT = """
[[tenant]]
name = "{name}"
ceiling = {{ capabilities = ["log", "kv"] }}
[[grant]]
tenant = "{name}"
task = "*"
why = "for tests"
log = true
kv = {{ prefix = "own/", mode = "write" }}
"""


def policy(
    *, tenants: tuple[str, ...] = (TENANT,), revoked: str = "", author_tasks: str = "*/*",
    host: str = guests.HOST.public.text,
) -> bytes:  # fmt: skip
    """The policy that the team signs."""
    text = _POLICY.format(
        author=guests.AUTHOR.public.text, second=guests.STRANGER.public.text, host=host,
        revoked=f'"{revoked}"' if revoked else "", author_tasks=author_tasks,
    )  # fmt: skip
    text += "".join(_TENANT.format(name=name) for name in tenants)
    return (text + speech.TABLES).encode()


class SignedSite(Site):
    """See the module; refreshes on hints alone."""

    def __init__(self, folder: Path, server: HasUrl, **lives_s: int) -> None:
        self.team = Team(folder / "repository", policy(), lives_s=lives_s)
        super().__init__(folder, server)
        root = self.team.repository.get("md.root.1")
        assert root is not None
        (folder / "root.json").write_bytes(root)

    def write(self, *, environment: str = ENVIRONMENT, more: str = "") -> None:  # type: ignore[override]
        """Write what a host may say of itself, and `more`."""
        text = _HOST.format(environment=environment, url=self.url, ack_wait_ms=self.ack_wait_ms)
        self.path.write_text(text + more)

    def config(self) -> Config:
        """As `serve` has it, under what is in force in this folder."""
        return believed(configs.load(self.path, environ={}, required=True))

    async def prepare(self, **bodies: str) -> dict[str, Release]:
        """Make the streams, push what is signed, release a guest for each name."""
        connection = await connect(self.server)
        config = configs.load(self.path, environ={}, required=True)
        queues = [queue(t) for t in self.team.repository.verify().document.tenants]
        await streams.apply(connection, queues, stream_options(config))
        released = {
            name: await self.release(guests.signed(body, name), name)
            for name, body in bodies.items()
        }
        await self.push()
        return released

    async def release(
        self, module: bytes, task: str, *, tenant: str = TENANT, version: str = "1.0.0"
    ) -> Release:
        """Store bytes, sign their release and push it."""
        live = Release(tenant, task, signature.digest(module), version)
        await Objects(await connect(self.server)).put(live.digest, module)
        self.team.repository.stage_release(live)
        self.team.sign()
        await self.push()
        return live

    async def put(self, text: bytes) -> None:
        """Sign another policy and push it."""
        self.team.repository.stage_policy(text)
        self.team.sign()
        await self.push()

    async def push(self, store: dict[str, bytes] | None = None) -> None:
        """Write what is in force, or a store of one's own, to the bucket."""
        connection = await connect(self.server)
        if store is None:
            await push(connection, self.team.repository)
        else:
            for key, data in store.items():
                await TrustBucket(connection).put(key, data)
            await TrustBucket(connection).put("md.timestamp", store["md.timestamp"])
