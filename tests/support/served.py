"""`executor serve` as a real process on a real server: a folder with a configuration, and its log.

`Site` is the folder, `Serve` one life of the process. What a test waits for is a line of the log
or a state of the server; processes are ended by their ids.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from executor import config as configs
from executor.cli.operate import store
from executor.cli.serving import queue, stream_options
from executor.client import Client, TaskOutcome
from executor.config import Config
from executor.core import signature, subjects
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import Release, StoredMessage
from executor.transport import records, streams
from executor.transport.connection import Connection, Settings
from executor.trust.file import FileTrust
from tests.servers import HasUrl, connect, eventually
from tests.support import guests, speech

TENANT = "acme"
OTHER = "zebra"
ROOT = Path(__file__).parents[2]

_BASE = """
[host]
environment = "test"
name = "{name}"
key_file = "executor.key"
[keys]
operator_file = "operator.key"
[nats]
url = "{url}"
replicas = {replicas}
[delivery]
backoff_ms = [50]
ack_wait_ms = {ack_wait_ms}
drain_ms = {drain_ms}
deliveries_max = 50
outcomes_max_mib = {outcomes_max_mib}
[limits]
fuel = 1_000_000_000_000
deadline_ms = 60_000
host_max_ms = 60_000
[sandbox]
count = 2
[trust]
revoked = [{revoked}]
[[publisher]]
name = "author"
key = "{author}"
tasks = ["*/*"]
[[publisher]]
name = "second"
key = "{second}"
tasks = ["*/*"]
[[executor]]
name = "{name}"
key = "{host}"
"""
_TENANT = """
[[tenant]]
name = "{name}"
queue_max_mib = {queue_max_mib}
ceiling = {{ capabilities = ["log", "kv"] }}
[[grant]]
tenant = "{name}"
task = "*"
why = "for tests"
log = true
"""
_KV = 'kv = { prefix = "own/", mode = "write" }\n'


class Site:
    """A folder with a configuration, on one server or cluster.

    `url` is where `serve` and clients connect, if not straight to the server: a fault proxy's.
    """

    def __init__(
        self, folder: Path, server: HasUrl, *, ack_wait_ms: int = 30_000, url: str = "",
        replicas: int = 1, queue_max_mib: int = 1024, outcomes_max_mib: int = 1024,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.server = server
        self.ack_wait_ms = ack_wait_ms
        self.url = url or server.url
        self.replicas = replicas
        self.queue_max_mib = queue_max_mib
        self.outcomes_max_mib = outcomes_max_mib
        self.lives: list[Serve] = []
        folder.mkdir(exist_ok=True)
        for name, secret in (("executor", guests.HOST), ("operator", guests.OPERATOR)):
            key = folder / f"{name}.key"
            key.write_bytes(secret.pem())
            key.chmod(0o600)
        self.write()

    @property
    def path(self) -> Path:
        """The configuration's file."""
        return self.folder / "executor.toml"

    def write(
        self, *, tenants: tuple[str, ...] = (TENANT,), kv: bool = True, revoked: str = "",
        drain_ms: int = 20_000,
    ) -> None:  # fmt: skip
        """Write the configuration anew."""
        text = _BASE.format(
            name="local", url=self.url, author=guests.AUTHOR.public.text,
            host=guests.HOST.public.text, second=guests.STRANGER.public.text, drain_ms=drain_ms,
            ack_wait_ms=self.ack_wait_ms, replicas=self.replicas,
            outcomes_max_mib=self.outcomes_max_mib,
            revoked=f'"{revoked}"' if revoked else "",
        )  # fmt: skip
        text += speech.TABLES
        for name in tenants:
            tenant = _TENANT.format(name=name, queue_max_mib=self.queue_max_mib)
            text += tenant + (_KV if kv else "")
        self.path.write_text(text)

    def config(self) -> Config:
        """As `serve` reads it."""
        return configs.load(self.path, environ={}, required=True)

    async def prepare(self, **bodies: str) -> dict[str, Release]:
        """Make the streams and release a guest for each name, for every tenant."""
        config = self.config()
        connection = await connect(self.server)
        tenants = config.policy.tenants
        await streams.apply(connection, [queue(t) for t in tenants], stream_options(config))
        released = {}
        for tenant in tenants:
            for name, body in bodies.items():
                task = name.replace("_", "-")
                module = guests.signed(body, task)
                released[task] = await self.release(module, task, tenant=tenant.name)
        return released

    async def release(
        self, module: bytes, task: str, *, tenant: str = TENANT, version: str = "1.0.0"
    ) -> Release:
        """Store bytes and release them, whatever they are, as `publish` would not."""
        connection = await connect(self.server)
        live = Release(tenant, task, signature.digest(module), version)
        await store(connection, self.config(), live, module, guests.OPERATOR)
        return live

    async def client(self, tenant: str = TENANT) -> Client:
        """A client that believes the host's key."""
        return await Client.from_config(self.path, tenant)

    async def stored(self, tenant: str = TENANT) -> list[StoredMessage]:
        """Every message in the tenant's outcomes, oldest first."""
        connection = await connect(self.server)
        try:
            return [m async for m in records.iterate(connection, tenant, f"*.{tenant}.>")]
        finally:
            await connection.close()

    async def ended(self, tenant: str = TENANT) -> dict[str, TaskOutcome]:
        """The verified outcome of each id; fails if any id has two records."""
        opener = FileTrust(self.config()).opener()
        found: dict[str, TaskOutcome] = {}
        for message in await self.stored(tenant):
            try:
                record = opener.record(
                    message.subject, message.body, stored_at=message.stored_at_ms
                )
            except NotAuthenticError:
                continue
            task_id = message.subject.split(".")[3]
            assert task_id not in found, f"{task_id} has two records"
            found[task_id] = TaskOutcome(
                task_id, tenant, record.task, message.sequence, message.stored_at_ms, record
            )
        return found

    async def all_ended(self, count: int, tenant: str = TENANT) -> dict[str, TaskOutcome]:
        """Wait until so many records are stored; each id's one outcome."""

        async def enough() -> bool:
            try:
                connection = await Connection.open(
                    Settings(self.server.url), lambda _name, _facts: None
                )
            except ExecutorError:
                return False
            try:
                state = await connection.api(f"STREAM.INFO.{subjects.outcomes_stream(tenant)}")
                return int(state["state"].get("num_subjects", 0)) >= count
            except ExecutorError:
                return False
            finally:
                await connection.close()

        try:
            await eventually(enough)
        except TimeoutError:
            raise AssertionError(f"not {count} records:\n{self.log()[-12_000:]}") from None
        return await self.ended(tenant)

    async def state(self, stream: str) -> dict[str, int]:
        """The server's word on a stream: messages, last_seq and so on."""
        connection = await connect(self.server)
        try:
            state: dict[str, int] = (await connection.api(f"STREAM.INFO.{stream}"))["state"]
            return state
        finally:
            await connection.close()

    async def empty(self, tenant: str = TENANT) -> None:
        """Wait until the tenant's queue holds nothing."""

        async def is_empty() -> bool:
            try:
                return not (await self.state(subjects.tasks_stream(tenant)))["messages"]
            except ExecutorError:
                return False  # nobody leads the stream just now

        await eventually(is_empty)

    async def serve(self, *driver: str) -> Serve:
        """Start a process and wait until it takes tasks; `driver` stands in for the module's name.

        Such as `-m tests.support.skewed 3600`, which changes the process before it begins.
        """
        life = Serve(self, len(self.lives), *([driver] if driver else []))
        self.lives.append(life)
        await life.line("serving")
        return life

    def close(self) -> None:
        """End what still runs."""
        for life in self.lives:
            life.close()

    def log(self) -> str:
        """The logs of all lives."""
        return "\n".join(f"--- serve {life.number}\n{life.log()}" for life in self.lives)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


class HasFolder(Protocol):
    """A place with a configuration."""

    folder: Path

    @property
    def path(self) -> Path:
        """The configuration's file."""


class Serve:
    """One `executor serve`."""

    def __init__(
        self, site: HasFolder, number: int, program: tuple[str, ...] = ("-m", "executor.cli.main")
    ) -> None:
        self.number = number
        self._path = site.folder / f"serve-{number}.log"
        with self._path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, *program, "--config", str(site.path), "serve",
                    "--ready-file", str(site.folder / f"ready-{number}"),
                ],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            )  # fmt: skip

    def log(self) -> str:
        """What it said so far."""
        return self._path.read_text("utf-8", "replace")

    def events(self, name: str) -> list[dict[str, str]]:
        """The facts of its events of a name."""
        found = []
        for line in self.log().splitlines():
            words = line.split(" ", 2)
            if len(words) > 1 and words[1] == name:
                pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', words[2] if words[2:] else "")
                found.append({key: value.strip('"') for key, value in pairs})
        return found

    async def line(self, name: str, count: int = 1, **facts: str) -> dict[str, str]:
        """Wait for the `count`th event of a name with these facts."""
        seen: list[dict[str, str]] = []

        async def there() -> bool:
            seen[:] = [e for e in self.events(name) if facts.items() <= e.items()]
            assert seen or self.process.poll() is None, f"serve ended:\n{self.log()}"
            return len(seen) >= count

        await eventually(there)
        return seen[count - 1]

    def sandboxes(self) -> list[int]:
        """The sandboxes that it started, that are locked down and still exist."""
        pids = [int(e["pid"]) for e in self.events("sandbox.started")]
        return [pid for pid in pids if _is_sandbox(pid)]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def exit_status(self) -> int:
        """Wait for its end."""
        await eventually(self._ended)
        return int(self.process.returncode)

    async def _ended(self) -> bool:
        return self.process.poll() is not None

    async def no_orphans(self) -> None:
        """Wait until none of its sandboxes exists, which takes no time after a proper end."""
        pids = [int(e["pid"]) for e in self.events("sandbox.started")]

        async def gone() -> bool:
            return not any(_exists(pid) for pid in pids)

        await eventually(gone)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _exists(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "executor" in status or "python" in status


def _is_sandbox(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "Seccomp:\t2\n" in status and "State:\tZ" not in status


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a state that nobody announces."""

    async def look() -> bool:
        return holds()

    await eventually(look)
