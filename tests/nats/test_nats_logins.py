"""Logins of minutes: minted, renewed, expired, revoked; and TLS of both sides."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from executor.cli.nats_folder import Folder
from executor.client import Client
from executor.core import subjects
from executor.core.seal import Opener
from executor.errors import ExecutorError
from executor.transport import jwt, mint
from executor.transport.connection import Connection, Settings
from executor.transport.jwt import Key
from executor.transport.mint import Mint
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support import guests
from tests.support.realm import TENANT, Realm
from tests.support.served import ROOT


@pytest.fixture
def jwts(tmp_path: Path) -> Iterator[Realm]:
    """A server in operator mode."""
    with Realm(tmp_path / "realm", with_jwt=True) as made:
        yield made


@pytest.fixture(params=["static", "jwt"])
def realm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Realm]:
    """A server in either form, with certificates of both sides."""
    with Realm(tmp_path / "realm", with_jwt=request.param == "jwt", tls=True) as made:
        yield made


async def _code(settings: Settings) -> str:
    with pytest.raises(ExecutorError) as caught:
        await Connection.open(settings, Events())
    return caught.value.code


@contextlib.asynccontextmanager
async def _minting(realm: Realm, seconds: int, notes: Events) -> AsyncIterator[None]:
    service = Mint(realm.issuer(seconds), notes)
    await service.start(f"unix:{realm.folder / 'mint.sock'}", None)
    try:
        yield
    finally:
        await service.stop()


def _minted(realm: Realm, login: str) -> Settings:
    """As executor.toml with `nats.mint` has it."""
    return Settings(
        realm.server.url, nkey_file=str(realm.nats.users / f"{login}.nk"), login=login,
        mint=f"unix:{realm.folder / 'mint.sock'}", inbox_prefix=f"_INBOX_{login}",
    )  # fmt: skip


def test_an_expired_login_is_out(jwts: Realm) -> None:
    """The server ends its connection, which is an event, and refuses it from then on."""

    async def test() -> None:
        events = Events()
        settings = jwts.settings("reader_acme", seconds=2)
        await connect(jwts.server, events, settings)
        await events.wait("login-refused")

        async def refused() -> bool:
            try:
                await (await Connection.open(settings, Events())).close()
            except ExecutorError as error:
                return "Authorization Violation" in error.message
            return False

        # The server counts whole seconds: in the first it lets in, and out again at once.
        await eventually(refused)
        assert await _code(settings) == "transport.permission-denied"

    run(test())


def test_the_mint_wants_the_key(jwts: Realm) -> None:
    """Another key, an unknown login, one that is revoked, one that policy forbids: all refused."""

    async def test() -> None:
        notes = Events()
        async with _minting(jwts, 60, notes):
            stranger = Key.generate(jwt.USER)
            held = Folder.held(jwts.nats.users / "reader_acme.nk")
            cases = [
                ("reader_acme", stranger), ("client_acme", held), ("nobody_x", held),
                ("reader_../../x", held), ("reader_nobody", held),
            ]  # fmt: skip
            for login, key in cases:
                with pytest.raises(ExecutorError) as caught:
                    await mint.fetch(replace(_minted(jwts, "reader_acme"), login=login), key)
                assert caught.value.code == "transport.permission-denied"
            good = await mint.fetch(_minted(jwts, "reader_acme"), held)
            assert good.jwt
            jwts.write(without='[[tenant]]\nname = "zebra"\nqueue_max_mib = 16\n')
            zebra = Folder.held(jwts.nats.users / "reader_zebra.nk")
            with pytest.raises(ExecutorError, match="no such"):
                await mint.fetch(_minted(jwts, "reader_zebra"), zebra)
            jwts.nats.revoke(jwts.nats.login("reader_acme"))
            with pytest.raises(ExecutorError, match="revoked"):
                await mint.fetch(_minted(jwts, "reader_acme"), held)
            assert (notes.count("minted"), notes.count("mint-refused")) == (1, len(cases) + 2)

    run(test())


def test_idle_talks_keep_nobody_from_the_mint(jwts: Realm) -> None:
    """More connections than it serves at once, none of which says a word: a holder is served."""

    async def test() -> None:
        async with _minting(jwts, 60, Events()):
            settings = _minted(jwts, "reader_acme")
            path = settings.mint.removeprefix("unix:")
            idle = [await asyncio.open_unix_connection(path) for _ in range(mint._AT_ONCE + 9)]
            key = Folder.held(jwts.nats.users / "reader_acme.nk")
            assert (await mint.fetch(settings, key)).jwt
            for _, writer in idle:
                writer.close()

    run(test())


def test_a_scope_fixes_the_rights(jwts: Realm) -> None:
    """Whoever has a signing key cannot sign more than its scope, nor for another account."""

    async def test() -> None:
        keys, seed = jwts.nats.path / "keys", Key.generate(jwt.USER)
        scope = Folder.held(keys / "scope_reader_acme.nk")
        now = 1_700_000_000
        account = Folder.held(keys / "account_tenant_acme.nk").public
        other = Folder.held(keys / "account_executors.nk").public
        own: dict[str, object] = {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}, "subs": -1,
                                  "data": -1, "payload": -1}  # fmt: skip

        def token(where: str, **claims: object) -> str:
            return jwt.encode(scope, seed.public, "x", "user",
                              {"issuer_account": where, **claims}, now=now)  # fmt: skip

        file = jwts.folder / "x.creds"
        for text in (token(account, **own), token(other), token(other, **own)):
            file.write_bytes(jwt.credentials(text, seed.seed))
            assert await _code(Settings(jwts.server.url, str(file))) == (
                "transport.permission-denied"
            )
        file.write_bytes(jwt.credentials(token(account), seed.seed))
        settings = Settings(jwts.server.url, str(file), inbox_prefix="_INBOX_reader_acme")
        reader = await connect(jwts.server, settings=settings)
        with pytest.raises(ExecutorError) as caught:
            await reader.request("task.acme.x")
        assert caught.value.code == "transport.permission-denied"

    run(test())


def test_renewal_under_load_loses_nothing(jwts: Realm) -> None:
    """An executor and a client whose logins live 3 s: every task has its result, none comes twice.

    No lease lapses in the time, so a message that a renewal lost would never end.
    """

    async def test() -> None:
        notes = Events()
        async with _minting(jwts, 3, notes):
            jwts.write('mint = "unix:mint.sock"')
            await jwts.call("nats", "apply")
            life = await jwts.serve()
            (jwts.folder / "kv.wasm").write_bytes(guests.signed(guests.COUNTER, "kv"))
            await jwts.call("publish", "kv.wasm", "--tenant", TENANT)
            settings = _minted(jwts, "client_acme")
            opener = Opener("test", {e.key.key_id.hex(): e for e in jwts.config().executors})
            client = await Client.open(tenant=TENANT, opener=opener, environment="test",
                                       settings=settings)  # fmt: skip
            ran = 0
            async with client:
                while notes.count("minted") < 12:
                    ended = await asyncio.gather(*(
                        client.run("kv", f"n{ran + i}", timeout_s=25) for i in range(20)
                    ))  # fmt: skip
                    # A counter of its own key: 1 says that it ran once.
                    assert [outcome.output for outcome in ended] == [b"\x01"] * 20
                    ran += 20
            assert len(life.events("nats.disconnected")) >= 2
            deployer = await jwts.connect("deployer_main")
            found = await deployer.api(f"CONSUMER.INFO.{subjects.tasks_stream(TENANT)}.executor")
            assert found["num_redelivered"] == 0
            assert found["delivered"]["consumer_seq"] == ran
            assert not life.events("security-event")

    run(test(), bound_s=110)


def test_revocation_drops_a_live_client(realm: Realm) -> None:
    """`executor nats revoke` ends the connection at once; others stay; the key stays out."""

    async def test() -> None:
        events, others = Events(), Events()
        settings = realm.settings("client_acme")
        await connect(realm.server, events, settings)
        other = await connect(realm.server, others, realm.settings("reader_acme"))
        await realm.call("nats", "revoke", "client_acme", "--yes")
        await events.wait("login-refused")
        assert await _code(settings) == "transport.permission-denied"
        with pytest.raises(ExecutorError, match="revoked"):
            realm.nats.login("client_acme")
        await other.flush()
        assert others.count("disconnected") == 0
        # Another key for the same login is welcome.
        for file in realm.nats.users.glob("client_acme.*"):
            file.unlink()
        await realm.call("nats", "config", "--make-tls")
        await realm.call("nats", "reload")
        await connect(realm.server, settings=realm.settings("client_acme"))

    run(test())


def test_a_new_tenant_is_put_in_force(realm: Realm) -> None:
    """A tenant that is added gets its account in the running server, one that goes loses it."""

    async def test() -> None:
        text = realm.path.read_text()
        realm.path.write_text(f'{text}\n[[tenant]]\nname = "new"\n')
        await realm.call("nats", "config", "--make-tls")
        await realm.call("nats", "reload")
        events = Events()
        await realm.connect("client_new", events)
        realm.path.write_text(text)
        await realm.call("nats", "config")
        await realm.call("nats", "reload")
        await events.wait("login-refused")

    run(test())


def test_tls_is_of_both_sides_and_1_3(realm: Realm) -> None:
    """No certificate, another CA's, TLS 1.2, or none at all: no connection."""

    async def test() -> None:
        good = realm.settings("reader_acme")
        assert (await connect(realm.server, settings=good)).connected
        other = Folder(realm.folder / "other")
        other.users.mkdir(parents=True)
        (other.users / "reader_acme.nk").touch()
        other.make_tls("nats://127.0.0.1", [realm.nats.login("reader_acme")])
        theirs = str(other.users / "reader_acme")
        bad = {
            "no certificate": replace(good, cert_file="", key_file=""),
            "another CA's": replace(good, cert_file=f"{theirs}.pem", key_file=f"{theirs}.key"),
            "a server of another CA": replace(good, ca_file=str(other.path / "tls" / "ca.pem")),
        }
        for what, settings in bad.items():
            assert await _code(settings) == "transport.disconnected", what
        old = ssl.create_default_context(cafile=good.ca_file)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.load_cert_chain(good.cert_file, good.key_file)
        port = int(realm.server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"INFO ")
        with pytest.raises(ssl.SSLError):
            await writer.start_tls(old, server_hostname="127.0.0.1")
        writer.close()

    run(test())


@pytest.mark.covers("config.invalid")
def test_a_certificate_without_a_ca_is_no_tls() -> None:
    """Whoever names its own certificate means TLS: without a CA it is refused, not left out."""
    with pytest.raises(ExecutorError, match="no TLS is demanded"):
        Settings("nats://127.0.0.1:1", cert_file="own.pem").tls()


def test_a_server_without_tls_is_not_spoken_to(realm: Realm, tmp_path: Path) -> None:
    """Where a CA is named, a server that says it has no TLS sees no login."""

    async def test() -> None:
        with NatsServer(tmp_path / "plain") as plain:
            settings = replace(realm.settings("reader_acme"), url=plain.url)
            assert await _code(settings) == "transport.disconnected"

    run(test())


def test_a_mint_over_tls(tmp_path: Path) -> None:
    """Over TCP the mint speaks TLS, and takes only who has a certificate."""

    async def test(realm: Realm) -> None:
        server = replace(
            realm.settings("reader_acme"), cert_file=str(realm.nats.path / "tls" / "server.pem"),
            key_file=str(realm.nats.path / "tls" / "server.key"),
        )  # fmt: skip
        service = Mint(realm.issuer(60), Events())
        address = await service.start("tls://127.0.0.1:0", server.tls(server=True))
        held = Folder.held(realm.nats.users / "reader_acme.nk")
        asking = replace(realm.settings("reader_acme"), mint=address, login="reader_acme",
                         creds_file="")  # fmt: skip
        assert (await mint.fetch(asking, held)).jwt
        with pytest.raises(ExecutorError) as caught:
            await mint.fetch(replace(asking, cert_file="", key_file=""), held)
        assert caught.value.code == "transport.disconnected"
        await service.stop()

    with Realm(tmp_path / "realm", with_jwt=True, tls=True) as made:
        run(test(made))


def test_secrets_are_for_their_owner(jwts: Realm) -> None:
    """A seed that others can read is refused before it is used."""

    async def test() -> None:
        seed = jwts.nats.users / "reader_acme.nk"
        seed.chmod(0o640)
        with pytest.raises(ExecutorError) as caught:
            jwts.settings("reader_acme")
        assert caught.value.code == "config.invalid"
        with pytest.raises(ExecutorError, match="others can use"):
            await Connection.open(Settings(jwts.server.url, nkey_file=str(seed)), Events())

    run(test())


def test_credentials_are_written_where_others_write_too(jwts: Realm) -> None:
    """A file that somebody laid in the way, open to all, does not become the one with the seed."""

    async def test() -> None:
        for name in ("mine.creds", ".mine.creds.new"):
            (jwts.folder / name).touch()
            (jwts.folder / name).chmod(0o666)
        await jwts.call("nats", "mint", "reader_acme", "--credentials", "mine.creds")
        assert (jwts.folder / "mine.creds").stat().st_mode & 0o777 == 0o600
        assert (jwts.folder / ".mine.creds.new").read_bytes() == b""

    run(test())


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "nats.example.com", "[::]"])  # noqa: S104
def test_without_tls_only_on_loopback(tmp_path: Path, host: str) -> None:
    """`--plain` writes no file for a server that others reach."""
    realm = Realm(tmp_path / "realm")
    realm.server.url = f"nats://{host}:4222"

    async def test() -> None:
        told = await realm.call("nats", "config", "--plain", "--out", "elsewhere", code=15)
        assert "no TLS beyond loopback" in told
        assert not (realm.folder / "elsewhere").exists()

    run(test())


def test_the_service_as_a_process(jwts: Realm) -> None:
    """`executor nats mint --listen` hands out a JWT with which the server lets its holder in."""
    socket = jwts.folder / "mint.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "executor.cli.main", "--config", str(jwts.path), "nats", "mint",
         "--out", str(jwts.nats.path), "--listen", f"unix:{socket}"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0,
    )  # fmt: skip

    async def test() -> None:
        async def there() -> bool:
            return socket.exists()

        await eventually(there)
        assert (await connect(jwts.server, settings=_minted(jwts, "reader_acme"))).connected

    try:
        run(test())
    finally:
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 0
    assert b"minted" in said


def test_an_executor_that_is_revoked_says_so(jwts: Realm) -> None:
    """Its connection ends, nothing lets it in again, and that is a security event in its log."""

    async def test() -> None:
        for login in ("deployer_main", "executor_local"):
            await jwts.call("nats", "mint", login, "--credentials", f"nats/users/{login}.creds")
        await jwts.call("nats", "apply")
        life = await jwts.serve()
        await jwts.call("nats", "revoke", "executor_local", "--yes")
        await life.line("security-event", kind="login-refused")

    run(test())
