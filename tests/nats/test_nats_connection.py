"""The connection: first connect, requests, refused permissions, and coming back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nats.errors
import pytest

from executor.errors import ExecutorError
from executor.model import Answer, Delivery, Outgoing, Refused
from executor.transport import link, streams
from executor.transport.connection import Connection, Message, Settings
from executor.transport.outbox import Outbox
from executor.transport.pull import Pull
from executor.transport.server import PrivateServer
from executor.transport.streams import TenantQueue
from tests.servers import Events, NatsServer, connect, eventually, run
from tests.support.proxy import Proxy

ROLES = """
authorization {
  users = [
    { user: deployer, password: canary-d }
    { user: executor, password: canary-x, permissions: {
        publish: [ "$JS.API.CONSUMER.MSG.NEXT.TASKS_acme.executor", "$JS.ACK.TASKS_acme.executor.>",
                   "result.acme.>", "$JS.API.DIRECT.GET.OUTCOMES_acme.>" ]
        subscribe: [ "_INBOX_exec_x.>" ] } }
  ]
}
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with two roles."""
    with NatsServer(tmp_path / "nats", ROLES) as running:
        yield running


def _as(server: NatsServer, user: str, password: str, prefix: str = "_INBOX") -> Settings:
    url = server.url.replace("nats://", f"nats://{user}:{password}@")
    return Settings(url, inbox_prefix=prefix)


@pytest.mark.covers("transport.disconnected")
def test_a_first_connect_that_fails_says_where_without_the_login() -> None:
    """Nothing listens: `transport.disconnected` at once, with the url but not the password."""

    async def body() -> None:
        settings = Settings("nats://someone:canary-secret@127.0.0.1:1", connect_timeout_ms=20_000)
        with pytest.raises(ExecutorError) as caught:
            await Connection.open(settings, Events())
        assert caught.value.code == "transport.disconnected"
        assert caught.value.facts["url"] == "nats://127.0.0.1:1"
        assert "canary" not in f"{caught.value} {caught.value.facts}"

    run(body())


def test_a_wrong_login_is_refused(guarded: NatsServer) -> None:
    """The server's reason is in the error; nothing is tried again."""

    async def body() -> None:
        with pytest.raises(ExecutorError) as caught:
            await Connection.open(_as(guarded, "executor", "wrong"), Events())
        assert caught.value.code == "transport.permission-denied"
        assert "Authorization Violation" in caught.value.message

    run(body())


def test_one_of_several_servers_is_enough(server: NatsServer) -> None:
    """A list of urls connects to the one that answers."""

    async def body() -> None:
        events = Events()
        settings = Settings(f"nats://127.0.0.1:1, {server.url}", connect_timeout_ms=5_000)
        connection = await connect(server, events, settings)
        assert connection.connected
        assert events.count("connected") == 1
        assert connection.server_version.count(".") == 2
        assert connection.max_payload == 1024 * 1024

    run(body())


def test_a_request_that_nobody_hears_fails_at_once(server: NatsServer) -> None:
    """No responders is `transport.stream-missing`, not a timeout."""

    async def body() -> None:
        connection = await connect(server)
        with pytest.raises(ExecutorError) as caught:
            await connection.request("nobody.home", b"x", timeout_s=60)
        assert caught.value.code == "transport.stream-missing"
        with pytest.raises(ExecutorError) as caught:
            await connection.request("two words", b"x")
        assert caught.value.code == "transport.stream-missing"

    run(body())


def test_a_request_without_answer_times_out(server: NatsServer) -> None:
    """A subscriber that never answers is `transport.disconnected` with subject and time."""

    async def body() -> None:
        connection = await connect(server)
        await connection.subscribe("silent", lambda _: None)
        with pytest.raises(ExecutorError) as caught:
            await connection.request("silent", b"x", timeout_s=0.05)
        assert caught.value.code == "transport.disconnected"
        assert caught.value.facts["waited_ms"] == 50
        assert connection.statistics()["requests"] == 0

    run(body())


@pytest.mark.covers("transport.permission-denied")
def test_refused_permissions_fail_fast(guarded: NatsServer) -> None:
    """Request, subscription, publish and pull each learn of a violation, and an event tells."""

    async def body() -> None:
        deployer = await connect(guarded, None, _as(guarded, "deployer", "canary-d"))
        await streams.apply(deployer, [TenantQueue("acme"), TenantQueue("beta")])
        events = Events()
        settings = _as(guarded, "executor", "canary-x", "_INBOX_exec_x")
        connection = await connect(guarded, events, settings)
        with pytest.raises(ExecutorError) as caught:
            await connection.request("$JS.API.STREAM.INFO.TASKS_acme", timeout_s=60)
        assert caught.value.code == "transport.permission-denied"
        with pytest.raises(ExecutorError) as caught:
            await connection.subscribe("stored.>", lambda _: None)
        assert caught.value.code == "transport.permission-denied"
        outbox = Outbox(connection)
        await outbox.start()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        outbox.publish(Outgoing("result.beta.Work.id1", b"x"), answer.set_result, 60)
        assert await answer == Refused(403, "the permission is missing")
        pull = Pull(connection, "beta", window=1, on_delivery=lambda _: None, on_event=events)
        await pull.start()
        assert (await events.wait("pull-reset"))["reason"] == "permission-denied"
        await pull.stop()
        await outbox.stop()
        assert events.count("permission-violation") >= 4

    run(body())


def test_the_roles_rights_suffice(guarded: NatsServer) -> None:
    """With an executor's rights alone a task is pulled, recorded once and acknowledged."""

    async def body() -> None:
        deployer = await connect(guarded, None, _as(guarded, "deployer", "canary-d"))
        await streams.apply(deployer, [TenantQueue("acme")])
        await deployer.store("task.acme.work", b"x")
        events = Events()
        settings = _as(guarded, "executor", "canary-x", "_INBOX_exec_x")
        connection = await connect(guarded, events, settings)
        outbox = Outbox(connection)
        await outbox.start()
        leases: asyncio.Queue[str] = asyncio.Queue()
        pull = Pull(
            connection,
            "acme",
            window=4,
            on_delivery=lambda delivery: leases.put_nowait(delivery.lease),
            on_event=events,
        )
        await pull.start()
        lease = await leases.get()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        outgoing = Outgoing("result.acme.work.id1", b"r", once="*.acme.work.id1")
        outbox.publish(outgoing, answer.set_result, 60)
        await answer
        outbox.ack(lease)
        assert await outbox.drain(5)

        async def acknowledged() -> bool:
            info = await deployer.api("STREAM.INFO.TASKS_acme")
            return bool(info["state"]["messages"] == 0)

        await eventually(acknowledged)
        await pull.stop()
        await outbox.stop()
        assert events.count("permission-violation") == 0

    run(body())


def test_a_connection_that_nats_py_gives_up_comes_back(server: NatsServer) -> None:
    """The server hangs up with a reason, nats-py closes for good; subscriptions live on."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        await connection.subscribe("ear", heard.put_nowait)
        # Past our own check and nats-py's, which counts no headers.
        connection.send("x", bytes(connection.max_payload), headers={"A": "b"})
        await events.wait("disconnected")
        await events.wait("reconnected")
        connection.send("ear", b"still there")
        assert (await heard.get()).data == b"still there"
        assert (await connection.api("INFO"))["streams"] == 0

    run(body())


def test_subscriptions_and_requests_survive_a_restart(server: NatsServer) -> None:
    """After a crash of the server and its return everything works as before."""

    async def body() -> None:
        events = Events()
        connection = await connect(server, events)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        await connection.subscribe("ear", heard.put_nowait)
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        await events.wait("disconnected")
        connection.send("ear", b"said while away")
        await asyncio.to_thread(server.start)
        await events.wait("reconnected")
        assert (await heard.get()).data == b"said while away"
        assert (await connection.api("INFO"))["streams"] == 0

    run(body())


def test_a_half_open_connection_that_takes_nothing_more_is_left(server: NatsServer) -> None:
    """What lies unsent in a socket whose other end stands still holds up no reconnect, no end."""

    async def body() -> None:
        async with Proxy(server) as proxy:
            events = Events()
            short = Settings(proxy.url, ping_s=0.2, connect_timeout_ms=500)
            staying = await connect(proxy, events, short)
            leaving = await connect(proxy, settings=replace(short, ping_s=60))
            proxy.freeze()
            for connection in (staying, leaving):
                for _ in range(40):  # more than the kernel holds
                    connection.send("ear", bytes(500_000))
            await events.wait("reconnected")
            assert (await staying.api("INFO"))["streams"] == 0
            await leaving.close()

    run(body(), bound_s=20)


def test_an_event_sink_that_raises_stops_nothing(server: NatsServer) -> None:
    """A broken log ends no reconnect and no pull; the loop's exception handler hears of it."""

    async def body() -> None:
        broken = asyncio.Event()

        def sink(name: str, facts: dict[str, str | int]) -> None:
            raise BrokenPipeError(name, facts)

        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: broken.set())
        connection = await Connection.open(Settings(server.url), sink)
        await streams.apply(connection, [TenantQueue("acme")])
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        pull = Pull(connection, "acme", window=1, on_delivery=arrived.put_nowait, on_event=sink)
        await pull.start()
        await asyncio.to_thread(server.restart)
        other = await connect(server)
        await other.store("task.acme.work", b"x")
        assert (await arrived.get()).data == b"x"
        assert broken.is_set()
        await pull.stop()
        await connection.close()

    run(body())


def test_closing_twice_is_harmless_and_leaves_no_coroutine(server: NatsServer) -> None:
    """After `close` nothing of the connection runs."""

    async def body() -> None:
        connection = await connect(server)
        connection.send("somewhere", b"x")
        await connection.close()
        await connection.close()
        assert not connection.connected
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(body())


def test_a_private_server_leaves_nothing_behind(tmp_path: Path) -> None:
    """It runs, answers, and is gone with its directory; a given directory keeps its streams."""

    async def body() -> None:
        async with PrivateServer() as private:
            connection = await Connection.open(Settings(private.url), Events())
            await streams.apply(connection, [TenantQueue("acme")])
            directory = private._directory
            assert directory is not None
            assert directory.is_dir()
            assert private.pid > 0
            await connection.close()
        assert not directory.exists()
        assert private.pid == 0
        for action in ("created", "unchanged"):
            async with PrivateServer(tmp_path / "kept") as private:
                connection = await Connection.open(Settings(private.url), Events())
                changes = await streams.apply(connection, [TenantQueue("acme")])
                assert {change.action for change in changes} == {action}
                await connection.close()

    run(body())


def test_a_private_server_that_cannot_start_shows_its_log(server: NatsServer) -> None:
    """A taken port is `transport.disconnected` with the server's own words."""

    async def body() -> None:
        private = PrivateServer(port=int(server.url.rpartition(":")[2]))
        with pytest.raises(ExecutorError) as caught:
            await private.start()
        assert caught.value.code == "transport.disconnected"
        assert "address already in use" in str(caught.value.facts["log"])

    run(body())


_ENDED = "'user authentication expired'"  # after which nats-py closes its client for good


def _clients(connection: Connection) -> list[link._Client]:
    """The clients that a link has made, of which one may be left."""
    made, make = [connection._link.client], connection._link._new_client

    def new() -> link._Client:
        made.append(make())
        return made[-1]

    connection._link._new_client = new  # type: ignore[method-assign]
    return made


def test_a_client_that_did_not_come_back_whole_is_closed(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connected and subscribed, then no PONG in time: it does not listen beside the next one."""

    async def body() -> None:
        events, got = Events(), asyncio.Event()
        connection = await connect(server, events)
        await connection.subscribe("news", lambda _message: got.set())
        made, whole, tries = _clients(connection), link._Client.flush, iter([False])

        async def flush(self: link._Client, timeout: int = 10) -> None:  # noqa: ASYNC109 - nats-py's
            if not next(tries, True):
                raise nats.errors.TimeoutError
            await whole(self, timeout)

        monkeypatch.setattr(link._Client, "flush", flush)
        await connection._link.client._process_err(_ENDED)
        await events.wait("reconnected")
        assert len(made) > 2
        assert [client for client in made if client.is_connected] == [connection._link.client]
        connection.send("news")
        await got.wait()

    run(body())


def test_a_login_that_ends_while_it_is_renewed_makes_one_client(server: NatsServer) -> None:
    """The server hangs up while the old client is being left: no second one is opened for it."""

    async def body() -> None:
        events, got = Events(), asyncio.Event()
        connection = await connect(server, events)
        await connection.subscribe("news", lambda _message: got.set())
        made, asked, go_on = _clients(connection), asyncio.Event(), asyncio.Event()

        async def quiet() -> None:
            asked.set()
            await go_on.wait()

        connection._link.quiet = quiet
        changing = asyncio.create_task(connection._link._change())
        await asked.wait()
        await made[0]._process_err(_ENDED)
        # The last that it does, behind its callbacks.
        await eventually(lambda: asyncio.sleep(0, made[0]._client_id is None))
        go_on.set()
        await changing
        assert connection._link._reopening is None
        assert [client for client in made if client.is_connected] == [connection._link.client]
        assert events.count("reconnected") == 1
        connection.send("news")
        await got.wait()

    run(body())
