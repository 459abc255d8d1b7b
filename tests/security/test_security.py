"""The zoo, forged signatures, forged records: each attack is refused, its harmless twin passes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from executor import config as configs
from executor.cli.operate import publish_module, store
from executor.cli.serving import Host, queue, settings, stream_options
from executor.client import Client
from executor.config import Config
from executor.core import envelope, manifest, seal, signature, subjects
from executor.core.envelope import Draft, Record
from executor.core.manifest import Manifest
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.model import Digest, Receipt, Release
from executor.supervisor.vouching import verify
from executor.telemetry import Log, Telemetry
from executor.transport import streams
from executor.transport.connection import Connection
from executor.transport.control import Control
from executor.transport.objects import Objects
from executor.transport.server import PrivateServer
from executor.trust.file import FileTrust
from tests.support import guests, speech

TASKS = Path(__file__).parents[2] / "tasks_wasm"
AUTHOR, STRANGER, HOST = SecretKey(b"a" * 32), SecretKey(b"s" * 32), SecretKey(b"h" * 32)
BOSS = guests.OPERATOR

CONFIG = f"""
[host]
name = "local"
[delivery]
attempts_max = 1
[limits]
fuel = 50_000_000_000
memory_max_mib = 16
deadline_ms = 10_000
[[tenant]]
name = "mallory"
ceiling = {{ capabilities = ["log"] }}
[[tenant]]
name = "neighbour"
ceiling = {{ capabilities = ["log"] }}
[[grant]]
tenant = "mallory"
why = "bounded"
log = true
[[grant]]
tenant = "neighbour"
why = "bounded"
log = true
[[publisher]]
name = "author"
key = "{AUTHOR.public.text}"
tasks = ["mallory/*", "neighbour/wordcount"]
[[executor]]
name = "local"
key = "{HOST.public.text}"
{speech.TABLES}"""

# module, request options, how it ends; "" is a result
ZOO: dict[str, tuple[dict[str, int], str]] = {
    "spin": ({"fuel": 10_000_000}, "limit.fuel-exhausted"),
    "slow": ({"deadline_ms": 150}, "limit.deadline-exceeded"),
    "balloon": ({}, "limit.memory-exceeded"),
    "recursion": ({}, "limit.stack-exhausted"),
    "trap": ({}, "guest.trap"),
    "bad-pointer": ({}, "guest.bad-pointer"),
    "huge-output": ({}, "limit.output-too-large"),
    "start-loop": ({"fuel": 10_000_000}, "limit.fuel-exhausted"),
    "unknown-import": ({}, "module.import-unknown"),
    "log-flood": ({}, ""),
}


def _parse(text: str, folder: Path) -> Config:
    return configs.parse(text, folder=folder, name="test.toml", environ={})


def _module(name: str) -> bytes:
    found = next(iter(TASKS.glob(f"**/{name}/{name}.wasm")))
    return found.read_bytes()


class Stage:
    """A server, a running executor in this process, and both tenants' clients."""

    def __init__(self, config: Config, connection: Connection, host: Host) -> None:
        self.config, self.connection, self.host = config, connection, host

    async def release(self, data: bytes, tenant: str, task: str, version: str = "1.0.0",
                      digest: Digest | None = None) -> None:  # fmt: skip
        """Put bytes into the store and release them, behind the back of `publish`."""
        live = Release(tenant, task, digest or signature.digest(data), version)
        await store(self.connection, self.config, live, data, BOSS)

    def client(self, tenant: str) -> contextlib.AbstractAsyncContextManager[Client]:
        """A client of one tenant."""
        return _client(self.config, tenant)


@contextlib.asynccontextmanager
async def _client(config: Config, tenant: str) -> AsyncIterator[Client]:
    client = await Client.from_config(config, tenant)
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def _stage(folder: Path, text: str = CONFIG) -> AsyncIterator[Stage]:
    async with PrivateServer(folder / "nats") as server:
        config = _parse(text, folder).with_values(nats__url=server.url)
        connection = await Connection.open(settings(config, "test"), lambda _n, _f: None)
        queues = [queue(tenant) for tenant in config.policy.tenants]
        await streams.apply(connection, queues, stream_options(config))
        host = Host(config, Telemetry(Log(quiet=True)), key=HOST)
        await host.start()
        try:
            yield Stage(config, connection, host)
        finally:
            await host.close(drain_ms=5_000)
            await connection.close()


def _run(test: object) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(100):
            assert asyncio.iscoroutine(test)
            await test

    asyncio.run(bounded())


@pytest.mark.covers("module.import-unknown")
def test_the_zoo_fails_alone(tmp_path: Path) -> None:
    """Each hostile module ends with its code while every task of a neighbour tenant succeeds."""

    async def main() -> None:
        async with _stage(tmp_path) as stage:
            for name in ZOO:
                await stage.release(signature.sign_module(_module(name), AUTHOR), "mallory", name)
            innocent = signature.sign_module(_module("wordcount"), AUTHOR)
            await publish_module(stage.config, innocent, "neighbour", key=BOSS)
            async with stage.client("mallory") as mallory, stage.client("neighbour") as neighbour:
                hostile = [mallory.run(name, "x", **ZOO[name][0]) for name in ZOO for _ in range(2)]
                friendly = [neighbour.run("wordcount", f"one two {n}") for n in range(60)]
                ended = await asyncio.gather(*hostile, *friendly)
            codes = {o.task: o.code for o in ended[: len(hostile)]}
            assert codes == {name: code for name, (_, code) in ZOO.items()}
            assert [o.value() for o in ended[len(hostile) :]] == [{"words": 3, "distinct": 3}] * 60

    _run(main())


def test_no_flipped_byte_is_admitted(tmp_path: Path) -> None:
    """A signed module with any one byte changed, every byte in turn, is never verified."""
    trust = FileTrust(_parse(CONFIG, tmp_path))
    good = signature.sign_module(_module("spin"), AUTHOR)
    live = Release("mallory", "spin", signature.digest(good), "1.0.0")
    verify(good, live, trust, 0)  # the harmless twin
    accepted = []
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1
        data = bytes(bad)
        # Under its own digest: as if the release had been changed with the bytes.
        for digest in (live.digest, signature.digest(data)):
            with contextlib.suppress(ExecutorError):
                verify(data, replace(live, digest=digest), trust, 0)
                accepted.append(index)
    assert accepted == []


@pytest.mark.covers("module.signer-untrusted")
@pytest.mark.covers("module.signer-revoked")
def test_modules_that_never_run(tmp_path: Path) -> None:
    """Unsigned, foreign, swapped, renamed, re-labelled and revoked modules are refused by code."""

    async def main() -> None:
        spin = _module("spin")
        good = signature.sign_module(spin, AUTHOR)
        base = spin[: -len(_manifest_section(spin))]
        renamed = signature.sign_module(
            manifest.append(base, Manifest(task="other", version="1.0.0")), AUTHOR
        )
        victim = signature.sign_module(
            manifest.append(base, Manifest(task="victim", version="1.0.0")), AUTHOR
        )
        text = CONFIG + f'\n[trust]\nrevoked = ["{signature.digest(victim)}"]\n'
        async with _stage(tmp_path, text) as stage:
            await stage.release(spin, "mallory", "unsigned")
            await stage.release(signature.sign_module(spin, STRANGER), "mallory", "foreign")
            await stage.release(good, "neighbour", "spin")  # trusted, but for another tenant
            await stage.release(good, "mallory", "swapped", digest=signature.digest(victim))
            await stage.release(renamed, "mallory", "renamed")
            await stage.release(good, "mallory", "spin", version="2.0.0")
            await stage.release(victim, "mallory", "victim")
            expected = {
                "unsigned": "module.unsigned", "foreign": "module.signer-untrusted",
                "renamed": "module.manifest-invalid", "spin": "module.manifest-invalid",
                "victim": "module.signer-revoked",
            }  # fmt: skip
            async with stage.client("mallory") as client, stage.client("neighbour") as other:
                ended = [await client.run(task) for task in expected]
                assert {o.task: o.code for o in ended} == expected
                assert not any(o.receipt.digest for o in ended), "nothing ran"
                assert (await other.run("spin")).code == "module.signer-untrusted"
                swapped = await client.run("swapped")
                assert swapped.code == "module.signer-revoked", "revoked before it is fetched"

    _run(main())


def _manifest_section(module: bytes) -> bytes:
    from executor.core import wasm

    section = next(s for s in wasm.sections(module) if s.name == manifest.SECTION)
    return module[section.start : section.end]


@pytest.mark.covers("module.digest-mismatch")
def test_a_swapped_module_is_not_run(tmp_path: Path) -> None:
    """Bytes that were exchanged in the store under a released digest are noticed."""

    async def main() -> None:
        good = signature.sign_module(_module("trap"), AUTHOR)
        other = signature.sign_module(_module("spin"), AUTHOR)
        async with _stage(tmp_path) as stage:
            await stage.release(other, "mallory", "trap", digest=signature.digest(good))
            async with stage.client("mallory") as client:
                assert (await client.run("trap")).code == "module.digest-mismatch"

    _run(main())


def _forged(key: SecretKey, subject: str, task_id: str, output: bytes) -> bytes:
    record = Record("wordcount", 1, 1, 1, 2, Receipt(), output=output)
    aud = subjects.audience("dev", subject)
    (body,) = seal.seal(key, [Draft("result", aud, task_id, envelope.encode_record(record))], at=1)
    return body


def test_forged_outcomes(tmp_path: Path) -> None:
    """A planted outcome is never shown, and does not keep the real one from being stored."""

    async def main() -> None:
        async with _stage(tmp_path) as stage:
            innocent = signature.sign_module(_module("wordcount"), AUTHOR)
            await publish_module(stage.config, innocent, "neighbour", key=BOSS)
            async with stage.client("neighbour") as client:
                for number, body in enumerate((
                    _forged(STRANGER, _subject("planted0"), "planted0", b"forged"),
                    _forged(HOST, _subject("elsewhere"), "planted1", b"replayed"),
                    b"garbage",
                )):  # fmt: skip
                    task_id = f"planted{number}"
                    await stage.connection.store(_subject(task_id), body, {})
                    assert await client.outcome(task_id) is None
                    real = await client.run("wordcount", "a b", id=task_id, timeout_s=30)
                    assert real.value() == {"words": 2, "distinct": 2}
                    assert await client.outcome(task_id) == real

    _run(main())


def _subject(task_id: str) -> str:
    return subjects.result("neighbour", "wordcount", task_id)


def test_a_copied_message_is_refused(tmp_path: Path) -> None:
    """A task copied to another tenant's subject is refused there, whoever copied it."""

    async def main() -> None:
        async with _stage(tmp_path) as stage:
            innocent = signature.sign_module(_module("wordcount"), AUTHOR)
            await publish_module(stage.config, innocent, "neighbour", key=BOSS)
            async with stage.client("mallory") as mallory, stage.client("neighbour") as neighbour:
                body = envelope.encode_task(mallory.request("wordcount", "mine"), "dev")
                sent = await neighbour.submit_bytes("wordcount", body)
                letter = await neighbour.wait(f"_{sent.sequence}", timeout_s=30)
                assert letter.code == "message.audience-mismatch"
                assert letter.record.origin is not None
                assert letter.record.origin.data == body

    _run(main())


def test_sandboxes_hold_nothing_worth_stealing(tmp_path: Path) -> None:
    """A running sandbox has an empty environment, no key library and no network library."""

    async def main() -> None:
        async with _stage(tmp_path) as stage:
            innocent = signature.sign_module(_module("wordcount"), AUTHOR)
            await publish_module(stage.config, innocent, "neighbour", key=BOSS)
            async with stage.client("neighbour") as client:
                outcome = await client.run("wordcount", "a")
            assert outcome.ok
            (pid, *_) = stage.host.pipeline.pool.pids()
            process = Path(f"/proc/{pid}")
            assert (process / "environ").read_bytes() == b""
            maps = (process / "maps").read_text()
            assert re.search(r"cryptography|_rust\.abi3|libssl|nkeys|nacl", maps) is None
            sockets = [fd for fd in (process / "fd").iterdir()
                       if str(fd.readlink()).startswith("socket:")]  # fmt: skip
            assert len(sockets) == 1

    _run(main())


def test_releases_that_are_none(tmp_path: Path) -> None:
    """Junk and foreign releases in CONTROL leave what was in force."""

    async def main() -> None:
        async with _stage(tmp_path) as stage:
            innocent = signature.sign_module(_module("wordcount"), AUTHOR)
            await publish_module(stage.config, innocent, "neighbour", key=BOSS)
            control = Control(stage.connection)
            key = subjects.release_key("neighbour", "wordcount")
            async with stage.client("neighbour") as client:
                assert (await client.run("wordcount", "a")).ok
                real = await control.get(key)
                assert real is not None
                other = subjects.release_key("neighbour", "other")
                await control.put(other, real.body)  # a copy: bound to another key
                await control.put(key, b"junk")
                assert (await client.run("wordcount", "a b")).ok
                assert (await client.run("other")).code == "policy.task-unknown"
            assert await Objects(stage.connection).get(signature.digest(innocent), 1 << 20)

    _run(main())
