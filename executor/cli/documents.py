"""Policy from a file: one that only grants, or a whole executor.toml; and the shadow of a host."""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path

from executor import config as configs
from executor import config_document
from executor.cli.base import read_file
from executor.config import Config
from executor.config_document import BYTES_MAX, TABLES
from executor.core.review import Statement
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.supervisor.usage import Shadow
from executor.trust import believed


def under(path: Path, host: Config) -> Config:
    """The configuration that a file stands for; one that only grants holds for `host`.

    Errors  `config.*`, all of them in one message.
    """
    text = read_file(path, most=BYTES_MAX + 1)
    try:
        names = tomllib.loads(text.decode()).keys()
    except (ValueError, RecursionError):
        names = {}.keys()  # whoever parses it says what is wrong
    if names <= {*TABLES, "revoked"}:
        document = config_document.parse(text, name=path.name, folder=path.parent)
        return host.granting(document)
    found = configs.parse(text.decode(), folder=path.parent, name=path.name, environ=os.environ)
    return believed(found)


def shadow_of(host: Config) -> Shadow | None:
    """What `policy.shadow_file` names. Errors  `config.*`."""
    path = host.path("policy.shadow_file")
    if path is None:
        return None
    beside = under(path, host)
    name = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Shadow(name, beside.policy, beside.publishers)


def granters_of(host: Config) -> frozenset[PublicKey]:
    """Whose keys sign policy here, as far as was verified; none where it is no signed one."""
    if not host.signed:
        return frozenset()
    from executor.trust.source import Source  # the library takes as long to load as click

    try:
        return Source.of(host).load().granters
    except ExecutorError:
        return frozenset()  # then nothing is in force either


def statement_of(config: Config, granters: frozenset[PublicKey] = frozenset()) -> Statement:
    """A configuration as `core.review` looks at it."""
    document = config.document
    return Statement(
        config.policy, document.publishers, (*document.operators, *document.submitters),
        document.executors, document.revoked, document.builders, granters,
    )  # fmt: skip
