"""Who takes part, with pinned versions, and one turn of a contender: worker, driver, CPU times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import nats

from benchmarks import processes
from benchmarks.environments import ROOT, RedisServer, UnavailableError, python
from executor.transport.server import PrivateServer

TENANT: Final = "bench"
_PART_S: Final = 120.0  # for each part of a turn, beyond its own length
_STOP_S: Final = 15.0
_UVLOOP: Final = "uvloop==0.22.1"
_HIREDIS: Final = "hiredis==3.5.0"


@dataclass(frozen=True, slots=True)
class Contender:
    """How to start its worker and its driver, and what it guarantees."""

    name: str
    module: str  # of benchmarks.peers
    guarantee: str
    worker: tuple[str, ...] = ()  # arguments of its interpreter
    requirements: tuple[str, ...] = ()
    redis: bool = False
    prepares: bool = False  # its file makes streams before the first turn
    results: str = ""  # a stream to empty after each turn
    driver: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()
    interpreter: str = ""  # instead of that of the requirements


_ONCE: Final = "task and result in files, acked after the result is stored"
_SERVE: Final = ("-m", "executor.cli.main", "serve", "-q")
EXECUTOR: Final = Contender(
    "executor", "on_executor",
    f"one signed record a task, {_ONCE}; sandboxed, jailed, capped, module signature checked",
    worker=_SERVE, results=f"OUTCOMES_{TENANT}",
)  # fmt: skip
RAW: Final = replace(
    EXECUTOR, name="executor, raw bodies", driver=("raw",),
    guarantee="the same from any NATS client; the id is looked up before it runs",
)  # fmt: skip
BARE: Final = Contender(
    "bare nats-py loop", "on_bare", f"at least once, {_ONCE}; no sandbox, no signature",
    worker=("-m", "benchmarks.peers.on_bare", "work"), prepares=True, results="BARE_OUT",
)  # fmt: skip
PEERS: Final = (
    Contender(
        "FastStream", "on_faststream", f"at least once, {_ONCE}",
        worker=("-m", "faststream", "run", "benchmarks.peers.on_faststream:app", "--workers", "2",
                "--log-level", "error"),
        requirements=("faststream[nats,cli]==0.7.8", "nats-py==2.16.0", _UVLOOP),
        prepares=True, results="FS_OUT",
    ),
    Contender(
        "taskiq-nats", "on_taskiq", "at least once, task in a file stream, result in Redis, acked "
        "after it is saved",
        worker=("-m", "taskiq", "worker", "benchmarks.peers.on_taskiq:broker", "--workers", "2",
                "--max-async-tasks", "256", "--ack-type", "when_saved", "--log-level", "ERROR"),
        requirements=("taskiq-nats==0.7.0", "taskiq==0.13.0", "taskiq-redis==1.2.4",
                      "redis==8.1.0", _HIREDIS, _UVLOOP),
        redis=True,
    ),
    Contender(
        "Dramatiq", "on_dramatiq", "at least once, task and result in Redis with a log in a file",
        worker=("-m", "dramatiq", "benchmarks.peers.on_dramatiq", "--processes", "2",
                "--threads", "8", "--skip-logging"),
        requirements=("dramatiq[redis]==2.2.1", "redis==8.1.0", _HIREDIS),
        redis=True,
    ),
    Contender(
        "arq", "on_arq", "at least once, task and result in Redis with a log in a file",
        worker=("-m", "benchmarks.peers.on_arq", "work"),
        requirements=("arq==0.28.0", "redis==5.3.1", _HIREDIS),
        redis=True,
    ),
    Contender(
        "Celery", "on_celery", "at least once (acked late), task and result in Redis with a log in "
        "a file",
        worker=("-m", "celery", "-A", "benchmarks.peers.on_celery", "worker", "--concurrency", "2",
                "--without-gossip", "--without-mingle", "--without-heartbeat",
                "--loglevel", "CRITICAL"),
        requirements=("celery==5.7.0", "redis==8.1.0", "packaging==26.3", _HIREDIS),
        redis=True,
    ),
)  # fmt: skip


@dataclass
class Turn:
    """What one turn saw."""

    tasks: int = 0
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    arrived_ms: list[float] = field(default_factory=list)  # of who verifies: without that
    cpu_us: dict[str, float] = field(default_factory=dict)  # a task, by role

    @property
    def rate(self) -> float:
        """Tasks per second, submitted, done and read."""
        return self.tasks / self.seconds


def cli(
    folder: Path, *arguments: str, interpreter: str = sys.executable, **options: str
) -> subprocess.CompletedProcess[bytes]:
    """One call of the command in a folder; it must succeed."""
    return subprocess.run(
        [interpreter, "-m", "executor.cli.main", *arguments],
        cwd=folder, check=True, capture_output=True, env={**os.environ, **options},
    )  # fmt: skip


def prepare(folder: Path, url: str, *, interpreter: str = sys.executable) -> Path:
    """A folder with configuration, keys and a published word count."""
    cli(folder, "init", ".", "--tenant", TENANT, interpreter=interpreter)
    config = folder / "executor.toml"
    config.write_text(config.read_text().replace("nats://127.0.0.1:4222", url))
    cli(folder, "nats", "apply", interpreter=interpreter)
    module = ROOT / "tasks_wasm" / "wordcount" / "wordcount.wasm"
    signing = ("sign", str(module), "--key", "keys/author.key", "-o", "wordcount.wasm")
    cli(folder, *signing, interpreter=interpreter)
    cli(folder, "publish", "wordcount.wasm", interpreter=interpreter)
    return config


@contextlib.asynccontextmanager
async def hosted() -> AsyncIterator[tuple[Path, PrivateServer]]:
    """A server, and a folder with configuration, keys and a published module."""
    with tempfile.TemporaryDirectory(prefix="executor-bench-") as name:
        folder = Path(name)
        async with PrivateServer(folder / "nats") as server:
            prepare(folder, server.url)
            yield folder, server


async def purge(url: str, stream: str) -> None:
    """Empty a stream."""
    client = await nats.connect(url)
    await client.jetstream().purge_stream(stream)
    await client.close()


class Stage:
    """A contender's servers, folder and interpreter; idle while others take their turn."""

    def __init__(self, contender: Contender, folder: Path, environ: Mapping[str, str],
                 servers: list[int], interpreter: str) -> None:  # fmt: skip
        self.contender = contender
        self.folder = folder
        self._environ = dict(environ)
        self._servers = servers
        self._python = interpreter

    async def turn(self, flow_s: float, latency_s: float) -> Turn:
        """Start worker and driver, let both parts pass, stop them.

        Errors  `UnavailableError` with what the driver said when it fails.
        """
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [self._python, *self.contender.worker], cwd=self.folder, env=self._environ,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            )  # fmt: skip
        try:
            return await self._drive(worker.pid, flow_s, latency_s)
        finally:
            await asyncio.to_thread(_stop, worker)
            if self.contender.results:
                await purge(self._environ["BENCH_NATS"], self.contender.results)

    async def _drive(self, worker: int, flow_s: float, latency_s: float) -> Turn:
        module = f"benchmarks.peers.{self.contender.module}"
        driver = await asyncio.create_subprocess_exec(
            self._python, "-m", module, "drive", str(flow_s), str(latency_s),
            *self.contender.driver, cwd=self.folder, env=self._environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, limit=2**26,
        )  # fmt: skip
        try:
            turn = Turn()
            await self._part(driver, "ready", flow_s)
            before = self._cpu(worker, driver.pid)
            _go(driver)
            flow = await self._part(driver, "flow", flow_s)
            after = self._cpu(worker, driver.pid)
            turn.tasks, turn.seconds = flow["tasks"], flow["seconds"]
            turn.cpu_us = {r: (after[r] - before[r]) * 1e6 / turn.tasks for r in after}
            _go(driver)
            latency = await self._part(driver, "latency", latency_s)
            turn.latency_ms, turn.arrived_ms = latency["values"], latency["arrived"]
            _go(driver)
            await asyncio.wait_for(driver.wait(), _STOP_S)
            return turn
        finally:
            if driver.returncode is None:
                driver.kill()
                await driver.wait()

    async def _part(
        self, driver: asyncio.subprocess.Process, part: str, seconds: float
    ) -> dict[str, Any]:
        assert driver.stdout is not None
        assert driver.stderr is not None
        try:
            line = await asyncio.wait_for(driver.stdout.readline(), seconds + _PART_S)
        except TimeoutError:
            raise UnavailableError(f"`{part}` took too long") from None
        if not line:
            said = (await driver.stderr.read()).decode("utf-8", "replace").strip().splitlines()
            raise UnavailableError(f"its driver failed: {said[-1] if said else 'silently'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _cpu(self, worker: int, driver: int) -> dict[str, float]:
        return {
            "submitter": processes.cpu_s([driver]), "server": processes.cpu_s(self._servers),
            "supervisor": processes.own_cpu_s(worker),
            "sandboxes": processes.cpu_s(processes.tree(worker))
            - processes.own_cpu_s(worker),
        }  # fmt: skip


def _go(driver: asyncio.subprocess.Process) -> None:
    assert driver.stdin is not None
    driver.stdin.write(b"go\n")


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to its whole group if that is not heard or leaves anything behind."""
    worker.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@contextlib.asynccontextmanager
async def stage(contender: Contender) -> AsyncIterator[Stage]:
    """A stage, made ready. Errors  `UnavailableError`."""
    interpreter = contender.interpreter or python(contender.requirements)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="executor-bench-")))
        # Only the benchmarks are found there, so that no contender runs code that lies beside them.
        (folder / "lib").mkdir()
        (folder / "lib" / "benchmarks").symlink_to(ROOT / "benchmarks")
        server = await stack.enter_async_context(PrivateServer(folder / "nats"))
        servers = [server.pid]
        environ = {**os.environ, "PYTHONPATH": str(folder / "lib"), "BENCH_NATS": server.url,
                   **dict(contender.environ)}  # fmt: skip
        if contender.redis:
            redis = stack.enter_context(RedisServer())
            servers.append(redis.pid)
            environ["BENCH_REDIS"] = redis.url
        if contender.module == "on_executor":
            prepare(folder, server.url, interpreter=interpreter)
        elif contender.prepares:
            module = f"benchmarks.peers.{contender.module}"
            await asyncio.to_thread(
                subprocess.run, [interpreter, "-m", module, "prepare"], cwd=folder, env=environ,
                check=True,
            )  # fmt: skip
        yield Stage(contender, folder, environ, servers, interpreter)
