"""Everything dies while tasks flow, for minutes: is there one outcome for each task.

Three nats-servers with three copies of every stream, two `executor serve`, a submitter that keeps
a bounded backlog, and a killer with seeded dice: kill -9 of sandboxes, of supervisors, which are
started again, and of nodes, one at a time, which come back before the next one dies.

    python -m benchmarks soak --minutes 10 --tasks 100000

How often a task really ran is counted by the tasks that count: each adds one to a key of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.options import Options
from benchmarks.section import Goal, Section
from executor.client import Client
from executor.core import subjects
from executor.core.seal import NotAuthenticError
from executor.errors import ExecutorError
from executor.model import TaskRequest
from executor.transport import direct, records
from executor.transport.api import ApiError
from executor.transport.connection import Connection, Settings
from executor.trust.file import FileTrust
from tests.servers import run
from tests.support import aftermath, guests
from tests.support.cluster import Cluster
from tests.support.guests import COUNTER, ONCE_MORE
from tests.support.served import TENANT, Serve, Site

LATER: Final = subjects.later_stream(TENANT)
BACKLOG: Final = 2_000
BATCH: Final = 200
REST_S: Final = 600.0  # for what is left when the last task is submitted
# Seconds between two deaths of a kind, on average.
PERIODS: Final = {"sandbox": 2.0, "supervisor": 15.0, "node": 30.0}
# Name → share in percent.
MIX: Final = {"wordcount": 70, "count": 20, "flaky": 6, "dead": 4}
WORDS: Final = b"the quick brown fox jumps over the lazy dog " * 8
# How a task may end that was killed along with its sandbox, twice.
KILLED: Final = frozenset({"sandbox.killed", "sandbox.crashed"})


@dataclass
class Soak:
    """One run; `report` is what came out."""

    folder: Path
    tasks: int
    minutes: float
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    sent: dict[str, str] = field(default_factory=dict)  # id → task
    repeats: int = 0
    gave_up: Counter[str] = field(default_factory=Counter)  # by what it said
    report: dict[str, Any] = field(default_factory=dict)

    async def play(self) -> None:
        """All of it."""
        with Cluster(self.folder / "nats") as self.cluster:
            await self.cluster.ready()
            self.site = Site(self.folder / "site", self.cluster, ack_wait_ms=5_000, replicas=3)
            with self.site:
                await self.site.prepare(count=COUNTER, flaky=ONCE_MORE, dead=guests.FAIL)
                await self.site.release(guests.sample("wordcount"), "wordcount")
                await self._flow()
                await self._judge()

    async def _flow(self) -> None:
        """Submit while things die; then let the rest end in peace."""
        self.lives = [self._serve(), self._serve()]
        started = time.monotonic()
        self.over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for kind in PERIODS:
                group.create_task(self._murder(kind, random.Random(f"{self.seed} {kind}")))
            try:
                await self._submit()
            finally:
                self.over.set()
        self._revive()
        await self._whole()
        await self._ended()
        took = time.monotonic() - started
        self.report |= {"seconds": round(took, 1), "tasks/s": round(self.tasks / took, 1)}

    def _serve(self) -> Serve:
        life = Serve(self.site, len(self.site.lives))
        self.site.lives.append(life)
        return life

    def _revive(self) -> None:
        """Start what ended of itself, as a service manager does."""
        for place, life in enumerate(self.lives):
            if life.process.poll() is not None:
                said = [line for line in life.log().splitlines() if line.startswith("error[")]
                self.gave_up[said[-1] if said else f"exit {life.process.returncode}"] += 1
                self.lives[place] = self._serve()

    # Submitting.

    def _requests(self, client: Client) -> list[TaskRequest]:
        names = random.Random(self.seed).choices(list(MIX), list(MIX.values()), k=self.tasks)
        return [
            client.request(name, WORDS if name == "wordcount" else b"k%d" % number)
            for number, name in enumerate(names)
        ]

    async def _submit(self) -> None:
        """At an even pace over the minutes, and never more than the backlog ahead of records."""
        async with await self.site.client() as client:
            requests = self._requests(client)
            started, at = time.monotonic(), 0
            while at < len(requests):
                due = (time.monotonic() - started) / (self.minutes * 60) * len(requests)
                if at >= due or at - await self._records() > BACKLOG:
                    await asyncio.sleep(0.2)
                    continue
                batch = requests[at : at + BATCH]
                try:
                    await client.submit_many(batch)
                except ExecutorError:
                    self.repeats += 1  # the same bytes once more: the queue knows them
                    await asyncio.sleep(0.5)
                    continue
                self.sent |= {request.id: request.task for request in batch}
                at += len(batch)
            # Each minute has its deaths, even if the last task was early.
            await asyncio.sleep(max(0.0, started + self.minutes * 60 - time.monotonic()))

    async def _ask(self, call: str) -> dict[str, int]:
        """The state of a stream, nothing while nobody answers."""
        try:
            connection = await Connection.open(Settings(self.cluster.url), lambda _n, _f: None)
        except ExecutorError:
            return {}
        try:
            state: dict[str, int] = (await connection.api(f"STREAM.INFO.{call}"))["state"]
        except (ExecutorError, ApiError):
            return {}
        else:
            return state
        finally:
            await connection.close()

    async def _records(self) -> int:
        return (await self._ask(subjects.outcomes_stream(TENANT))).get("messages", 0)

    async def _ended(self) -> None:
        """Until queue and LATER are empty, or the time is up: then what is missing is lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                for stream in (LATER, subjects.tasks_stream(TENANT), LATER):
                    while (await self._ask(stream)).get("messages", 1):
                        await asyncio.sleep(0.2)
        self.report["left over"] = {
            stream: (await self._ask(stream)).get("messages", -1)
            for stream in (LATER, subjects.tasks_stream(TENANT))
        }

    # Killing.

    async def _murder(self, kind: str, dice: random.Random) -> None:
        deaths = {"sandbox": self._sandbox, "supervisor": self._supervisor, "node": self._node}
        while not self.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), dice.uniform(0.5, 1.5) * PERIODS[kind])
                return
            self.kills[kind] += await deaths[kind](dice)

    async def _sandbox(self, dice: random.Random) -> int:
        self._revive()
        pids = aftermath.sandboxes(dice.choice(self.lives).process.pid)
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)
                return 1
        return 0

    async def _supervisor(self, dice: random.Random) -> int:
        place = dice.randrange(len(self.lives))
        self.lives[place].process.kill()
        await asyncio.to_thread(self.lives[place].process.wait)
        self.lives[place] = self._serve()
        return 1

    async def _node(self, dice: random.Random) -> int:
        node = self.cluster.nodes[dice.choice(sorted(self.cluster.nodes))]
        await asyncio.to_thread(node.stop, signal.SIGKILL)
        await asyncio.sleep(dice.uniform(1.0, 5.0))
        await asyncio.to_thread(node.start)
        await self._whole()
        return 1

    async def _whole(self) -> None:
        """Until every stream has a leader and all its copies are current."""
        streams = [LATER, f"KV_{subjects.tenant_bucket(TENANT)}",
                   subjects.tasks_stream(TENANT), subjects.outcomes_stream(TENANT)]  # fmt: skip
        for stream in streams:
            await self.cluster.leader(stream)

    # Judging.

    async def _judge(self) -> None:
        connection = await Connection.open(Settings(self.cluster.url), lambda _n, _f: None)
        opener = FileTrust(self.site.config()).opener()
        seen: Counter[str] = Counter()
        codes: Counter[str] = Counter()
        forged = deaths = 0
        attempts: dict[str, int] = {}
        wrong: Counter[str] = Counter()
        async for message in records.iterate(connection, TENANT, f"*.{TENANT}.>"):
            try:
                record = opener.record(
                    message.subject, message.body, stored_at=message.stored_at_ms
                )
            except NotAuthenticError:
                forged += 1
                continue
            task_id = message.subject.split(".")[3]
            seen[task_id] += 1
            codes[record.code or "ok"] += 1
            attempts[task_id] = record.attempt
            deaths += sum(past.code in KILLED for past in record.history)
            expected = "guest.failed" if self.sent.get(task_id) == "dead" else ""
            if record.code not in KILLED and record.code != expected:
                wrong[f"{self.sent.get(task_id)}: {record.code or 'ok'}"] += 1
        counted = await self._counted(connection)
        await connection.close()
        sample = [task_id for task_id, name in self.sent.items() if name == "count"]
        self.report |= {
            "tasks": len(self.sent), "lost": len(self.sent.keys() - seen.keys()),
            "twice": sum(n > 1 for n in seen.values()), "strange ids": len(seen.keys() - self.sent),
            "not authentic": forged, "codes": dict(codes), "ended otherwise": dict(wrong),
            "attempts/task": round(sum(attempts.values()) / max(len(seen), 1), 4),
            "died with a sandbox": deaths,
            "tasks that count": len(sample), "never counted": len(sample) - len(counted),
            "executions/task": round(sum(counted.values()) / max(len(counted), 1), 4),
            "executions beyond attempts": sum(
                max(0, counted.get(task_id, 0) - attempts.get(task_id, 0)) for task_id in sample
            ),
            "submits repeated": self.repeats, "kills": dict(self.kills),
            "gave up": dict(self.gave_up), "seed": self.seed,
        }  # fmt: skip

    async def _counted(self, connection: Connection) -> dict[str, int]:
        """How often each task that counts ran."""
        bucket = subjects.tenant_bucket(TENANT)
        ids = {f"k{n}": task_id for n, task_id in enumerate(self.sent)}
        counted = {}
        async for entry in direct.scan(connection, f"KV_{bucket}", f"$KV.{bucket}.>"):
            task_id = ids[entry.subject.rpartition("own/")[2]]
            if self.sent[task_id] == "count":  # the one that retries leaves a mark too
                counted[task_id] = entry.body[0]
        return counted


def soak(tasks: int, minutes: float, seed: int) -> dict[str, Any]:
    """Run it; the report."""
    with tempfile.TemporaryDirectory(prefix="executor-soak-") as folder:
        made = Soak(Path(folder), tasks, minutes, seed)
        run(made.play(), bound_s=minutes * 60 + REST_S + 300)
    return made.report


async def play(options: Options) -> list[Section]:
    """Run it in a loop of its own; a section of what came out."""
    tasks = options.count(options.tasks, 100_000, 3_000)
    minutes = options.pick(options.minutes, 10.0, 0.5)
    report = await asyncio.to_thread(soak, tasks, minutes, options.seed)
    section = Section("soak", "Everything dies, for minutes", "python -m benchmarks soak")
    for name, value in report.items():
        if isinstance(value, (int, float)):
            section.add("soak", name, "", value)
        else:
            section.remarks.append(f"{name}: {json.dumps(value)}")
    section.goals = [
        Goal("no task is lost, whatever dies", "soak", "lost", "≤", 0),
        Goal("no task has two records, whatever dies", "soak", "twice", "≤", 0),
    ]
    return [section]
