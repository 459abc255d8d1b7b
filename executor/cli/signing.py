"""What the signing verbs share: the repository, the keys that are here, and putting in force."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from executor.cli.modules import read_key
from executor.cli.serving import settings
from executor.config import Config
from executor.core.signature import SecretKey
from executor.errors import ExecutorError
from executor.transport.connection import Connection
from executor.transport.trust import TrustBucket

if TYPE_CHECKING:  # the library is loaded by the verbs that need it
    from executor.model import Release
    from executor.trust.repository import Repository
    from executor.trust.source import Verified

_KEYS_MAX = 64  # files that are tried


def repository_of(config: Config, folder: Path | None = None) -> Repository:
    """The repository that was named, or executor.toml's."""
    from executor.trust.repository import Repository

    path = folder or config.path("trust.repository")
    if path is None:
        raise ExecutorError("config.missing", "`trust.repository` is not set",
                            hint="name it there, or with --folder")  # fmt: skip
    return Repository(path)


def changing(config: Config, folder: Path | None = None, *, new: bool = False) -> Repository:
    """The same, and nobody else's to change until this command has ended."""
    repository = repository_of(config, folder)
    click.get_current_context().with_resource(repository.locked(new=new))
    return repository


def secrets_of(config: Config, named: Sequence[Path]) -> list[SecretKey]:
    """The keys that were named, or all in `trust.keys_folder`. Errors  `config.*`."""
    folder = config.path("trust.keys_folder")
    paths = list(named)
    if not paths and folder is not None and folder.is_dir():
        paths = sorted(folder.glob("*.key"))[:_KEYS_MAX]
    return [read_key(path, ask=True) for path in paths]


def adopt(config: Config, repository: Repository) -> Verified:
    """Make what the repository has the last good state of this host. Errors  `trust.*`."""
    from executor.trust.source import Source

    return Source.of(config).refresh(repository.get)


async def push(connection: Connection, repository: Repository) -> int:
    """Write what is in force to TRUST, the timestamp last; returns how many files were new."""
    files = [
        (key, data) for key in repository.listing() if (data := repository.get(key)) is not None
    ]
    bucket = TrustBucket(connection)
    # Junk there would be refused as the next root by everyone, for ever.
    await bucket.remove(repository.next_root)
    return await bucket.push(files)


async def push_now(config: Config, repository: Repository) -> int:
    """The same over a connection of its own. Errors  `transport.*`."""
    connection = await Connection.open(
        settings(config, "executor-trust", "trust_"), lambda _n, _f: None
    )
    try:
        return await push(connection, repository)
    finally:
        await connection.close()


async def release(config: Config, connection: Connection, live: Release) -> bool:
    """Sign a release with the keys that are here; False if others still have to sign.

    Errors  `config.missing` without a key of `releases`, `trust.*`, `transport.*`.
    """
    from executor.trust.metadata import RELEASES

    repository, secrets = repository_of(config), secrets_of(config, ())
    with repository.locked():
        if repository.stage_release(live):
            added = repository.sign(secrets, (RELEASES,))
            if RELEASES not in repository.ready():
                if not added:
                    folder = config.text("trust.keys_folder")
                    raise ExecutorError(
                        "config.missing",
                        f"no key of `releases` in `{folder}`",
                        hint="it is staged; whoever holds one: executor trust sign --key FILE",
                    )
                return False
            repository.put_in_force(secrets)
            adopt(config, repository)
        await push(connection, repository)  # also of what was in force, and may not have arrived
        return True
