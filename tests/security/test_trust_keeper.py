"""A running executor's hold on signed trust: no store, and no failure, may put off its end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from executor import config as configs
from executor.cli.trusting import Keeper
from executor.errors import ExecutorError
from executor.telemetry import Log, Telemetry
from executor.trust.source import Source, Verified
from tests.servers import eventually, run
from tests.support.signers import Team

_HOST = """
[host]
environment = "test"
[trust]
source = "tuf"
refresh_s = 1
"""
_OTHER = b'[[tenant]]\nname = "zebra"\n'

Get = Callable[[str], Awaitable[bytes | None]]


class _Bucket:
    """TRUST, as bad as a test wants it."""

    def __init__(self, get: Get) -> None:
        self.get = get

    async def hints(self, _on_hint: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        async def end() -> None:
            pass

        return end


class _Host:
    """What a keeper tells its host."""

    def __init__(self) -> None:
        self.put_in_force: list[bytes] = []
        self.held: list[str] = []
        self.refusals: list[ExecutorError] = []

    async def put(self, state: Verified) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.put_in_force.append(state.policy)

    async def hold(self, why: str) -> None:
        self.held.append(why)


def _configured(folder: Path, root: bytes | None) -> configs.Config:
    (folder / "trust").mkdir(parents=True)
    (folder / "trust" / "root.json").write_bytes(root or b"")
    return configs.parse(_HOST, folder=folder, name="executor.toml", environ={})


@pytest.mark.parametrize("name", ["trust/root.json", "trusted"])
def test_what_others_can_write_is_no_trust(name: str, tmp_path: Path) -> None:
    """The pinned root and the folder of the last good state are this user's own to change."""
    team = Team(tmp_path / "repository")
    config = _configured(tmp_path / "host", team.repository.get("md.root.1"))
    Source.of(config).refresh(team.repository.get)
    path = tmp_path / "host" / name
    for mode in (0o020, 0o002):
        path.chmod(path.stat().st_mode & 0o755 | mode)
        with pytest.raises(ExecutorError, match="others can write") as caught:
            Source.of(config)
        assert (caught.value.code, "chmod go-w" in caught.value.hint) == ("trust.invalid", True)
    path.chmod(0o700)
    assert Source.of(config).load().policy


def test_another_users_trust_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that its owner may change at any time is believed from this user and root alone."""
    team = Team(tmp_path / "repository")
    config = _configured(tmp_path / "host", team.repository.get("md.root.1"))
    owner = (tmp_path / "host" / "trust" / "root.json").stat().st_uid
    if owner:
        monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    else:
        os.chown(tmp_path / "host" / "trust" / "root.json", 12345, -1)
    with pytest.raises(ExecutorError, match="another user's") as caught:
        Source.of(config)
    assert caught.value.code == "trust.invalid"


@asynccontextmanager
async def keeping(
    team: Team, folder: Path, host: _Host, get: Get, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Keeper]:
    """A keeper that began with what is in force, and asks `get` from then on."""
    config = _configured(folder, team.repository.get("md.root.1"))
    keeper = Keeper(config, Telemetry(Log(quiet=True)), host.put, host.hold)

    async def honest(key: str) -> bytes | None:
        return team.repository.get(key)

    bucket = _Bucket(honest)
    monkeypatch.setattr("executor.cli.trusting.TrustBucket", lambda _connection: bucket)
    await keeper.first(None)  # type: ignore[arg-type]  # nothing is asked of it
    bucket.get = get
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


async def _late(_key: str) -> bytes | None:
    await asyncio.Event().wait()  # until whoever asks gives up
    return None


async def _broken(_key: str) -> bytes | None:
    raise ValueError("nobody expects that")


@pytest.mark.parametrize("get", [_late, _broken])
def test_the_end_waits_for_no_store(
    get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that answers late, or in a way that breaks the look: trust is over when it is."""

    async def test() -> None:
        team, host = Team(tmp_path / "repository", lives_s={"timestamp": 3}), _Host()
        async with keeping(team, tmp_path / "host", host, get, monkeypatch):
            assert host.held == []

            async def held() -> bool:
                return host.held == ["trust expired"]

            await eventually(held)

    run(test())


@pytest.mark.parametrize("code", ["transport.disconnected", "config.missing"])
def test_what_was_not_put_in_force_is_tried_again(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that could not be taken is taken with the next look; meanwhile nobody is judged."""

    async def test() -> None:
        team, host = Team(tmp_path / "repository"), _Host()

        async def honest(key: str) -> bytes | None:
            return team.repository.get(key)

        host.refusals.append(ExecutorError(code, "for once"))
        team_state = team.repository
        async with keeping(team, tmp_path / "host", host, honest, monkeypatch) as keeper:
            team_state.stage_policy(_OTHER)
            team.sign()
            keeper._hint.set()

            async def taken() -> bool:
                return host.put_in_force == [_OTHER]

            await eventually(taken)

            async def as_it_should() -> bool:
                return host.held[-1:] == ([] if code.startswith("transport.") else [""])

            await eventually(as_it_should)

    run(test())
