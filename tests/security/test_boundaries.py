"""What an attacker on either side of a boundary gets: in the store, on the wire, in a sandbox."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.core import envelope, signature, subjects
from executor.core.seal import seal
from executor.errors import ExecutorError
from executor.model import Receipt
from tests.servers import NatsServer, connect, run
from tests.support import guests
from tests.support.rig import Rig
from tests.support.served import TENANT, Site

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="another user's memory is hidden")
CANARY = "canary-8d1f0c66a2"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with JetStream and no login: every subject is anybody's."""
    with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def site(tmp_path: Path, server: NatsServer) -> Iterator[Site]:
    """A folder with a configuration."""
    with Site(tmp_path / "site", server) as made:
        yield made


async def test_flipped_modules_through_the_store() -> None:
    """Damaged copies, released under their own digest by an attacker, are refused and never run."""
    good = guests.signed(guests.ECHO, "echo")
    places = sorted(random.Random(3).sample(range(8, len(good)), 16))
    async with Rig(delivery__attempts_max=1) as rig:
        for place in places:
            bad = bytearray(good)
            bad[place] ^= 1
            rig.store(bytes(bad), "echo")
            record = await rig.record(rig.ask("echo"))
            assert record.code.startswith("module."), (place, record.code)
            assert record.receipt.digest == ""
        assert rig.pool.started == 0
        assert not rig.registry._products.keys() & {signature.digest(bytes(bad))}
        rig.store(good, "echo")
        assert (await rig.record(rig.ask("echo", b"x"))).output == b"x"


@pytest.mark.covers("module.unsigned", "module.signature-invalid", "module.signer-untrusted")
async def test_nothing_is_compiled_before_its_signature_holds() -> None:
    """The compiler, an attack surface of its own, never sees a module that is not believed."""
    code = guests.described(guests.assemble(guests.TRAP), "task", version="9.9.9")
    tampered = bytearray(signature.sign_module(code, guests.AUTHOR))
    tampered[-1] ^= 1
    refused = {
        "module.unsigned": code, "module.signature-invalid": bytes(tampered),
        "module.signer-untrusted": signature.sign_module(code, guests.FORGER),
    }  # fmt: skip
    async with Rig() as rig:
        known = set(rig.registry._products)
        for expected, module in refused.items():
            rig.store(module, "task", version="9.9.9")
            assert (await rig.record(rig.ask("task"))).code == expected
        assert set(rig.registry._products) == known


async def test_a_claim_of_another_digest() -> None:
    """A release that names a good digest over other bytes is a mismatch, not a way in."""
    async with Rig(delivery__attempts_max=1) as rig:
        release = rig.publish("echo", guests.ECHO)
        rig.shelf.stored[release.digest] = guests.signed(guests.TRAP, "echo")
        assert (await rig.record(rig.ask("echo"))).code == "module.digest-mismatch"
        assert rig.pool.started == 0


def test_reflected_acks_are_no_records(site: Site) -> None:
    """A submitter can make the server write into outcomes: what it writes is never an outcome.

    The server sends a PubAck to whatever reply subject the submitter names, and the stream takes
    it. The task whose place was taken still gets its record.
    """

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        connection = await connect(site.server)
        for kind in ("result", "dead"):
            planted = f"{kind}.{TENANT}.echo.mine"
            connection.send(subjects.task(TENANT, "echo"), b"junk", planted)
        await connection.flush()
        async with await site.client() as client:
            assert await client.outcome("mine") is None
            life = await site.serve()
            found = await client.run("echo", b"true", id="mine", timeout_s=30)
            assert found.output == b"true"
            await site.empty()
            assert await client.outcome("mine") == found
        kinds = {e["kind"] for e in life.events("security-event")}
        assert kinds == {"record-not-authentic"}

    run(test())


def test_a_forged_record_is_not_heard_live(site: Site) -> None:
    """Who waits for an outcome is told nothing by a forgery that arrives first, then the truth."""

    async def test() -> None:
        await site.prepare(echo=guests.ECHO)
        connection = await connect(site.server)
        subject = subjects.result(TENANT, "echo", "mine")
        record = envelope.Record(
            task="echo", attempt=1, attempts_max=1, submitted_at=1, finished_at=2,
            receipt=Receipt(), output=b"x",
        )  # fmt: skip
        draft = envelope.Draft("result", f"test/{subject}", "mine", envelope.encode_record(record))
        async with await site.client() as client:
            waiting = asyncio.create_task(client.wait("mine", timeout_s=30))
            for key in (guests.FORGER, guests.AUTHOR):
                await connection.store(subject, seal(key, [draft], at=1)[0])
                with pytest.raises(ExecutorError) as pending:
                    await client.wait("mine", timeout_s=0.1)
                assert pending.value.code == "transport.outcome-pending"
            assert not waiting.done()
            await connection.store(subject, seal(guests.HOST, [draft], at=1)[0])
            assert (await waiting).output == b"x"

    run(test())


def test_the_code_of_a_sandbox_has_no_way_to_a_key() -> None:
    """What a sandbox imports, all of it, holds no client, no transport and no cryptography."""
    script = "import sys, executor.sandbox.main; print(chr(10).join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, env={},
        cwd="/",
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "executor.sandbox.main" in loaded
    ours = {name for name in loaded if name.startswith("executor.")}
    rooms = {name.split(".")[1] for name in ours}
    assert rooms <= {"capabilities", "core", "errors", "sandbox", "sizes", "values"}, rooms
    assert not {name.split(".")[0] for name in loaded} & {
        "nats", "cryptography", "click", "opentelemetry", "ssl", "_ssl", "multiprocessing",
        "pickle",
    }  # fmt: skip
    assert not ours & {"executor.core.signature", "executor.core.seal", "executor.core.envelope"}


@root_only
async def test_a_sandbox_holds_nothing_worth_stealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a guest runs: no environment, no file, no library and no memory with a secret in it."""
    monkeypatch.setenv("EXECUTOR_TEST_SECRET", CANARY)
    secret = guests.seed("host")
    assert signature.SecretKey(secret).public == guests.HOST.public
    async with Rig() as rig:
        rig.publish("hold", guests.HOLD)
        rig.ask("hold", b"needle-in-the-input")
        await rig.until(rig.buckets.at_gate)
        process = Path(f"/proc/{rig.sandboxes()[0].pid}")
        assert (process / "environ").read_bytes() == b""
        held = sorted(str(fd.readlink()).partition(":")[0] for fd in (process / "fd").iterdir())
        assert held == ["/dev/null"] * 3 + ["/memfd", "socket"]
        mapped = (process / "maps").read_text()
        assert "_libwasmtime" in mapped
        assert re.search(r"cryptography|_ssl|nkeys|nats", mapped) is None
        memory = b"".join(_memory(process))
        pem = guests.HOST.pem().split(b"\n")[1]
        needles = {"seed": secret, "pem": pem, "environment": CANARY.encode(),
                   "input": b"needle-in-the-input"}  # fmt: skip
        # The twin: what a sandbox must hold is found by the same search.
        assert [name for name, needle in needles.items() if needle in memory] == ["input"]
        rig.buckets.gate.set()
        await rig.settle_down()


def _memory(process: Path) -> Iterator[bytes]:
    """Every readable private page of a process, shared reservations aside."""
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if not rights.startswith("r") or end - start > 1 << 28:
                continue
            try:
                memory.seek(start)
                yield memory.read(end - start)
            except (OSError, OverflowError):
                continue


async def test_one_tenants_input_is_not_in_anothers_sandbox() -> None:
    """A process that served one tenant never serves another, however the slots are fought over."""
    async with Rig() as rig:
        for tenant in ("acme", "zebra"):
            rig.publish("echo", guests.ECHO, tenant=tenant)
        for number in range(6):
            tenant = ("acme", "zebra")[number % 2]
            assert (await rig.record(rig.ask("echo", b"x", tenant=tenant))).code == ""
        pids = [(facts["pid"], facts["tenant"]) for facts in rig.journal.of("sandbox.started")]
        assert len(pids) == 6
        assert len({pid for pid, _ in pids}) == 6
