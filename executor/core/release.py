"""A release in CONTROL: which digest a task's name stands for, bound to its key.

Whoever has the action `release` signs it. It can only choose among modules that a publisher trusted
for this very task has signed, and the module's own manifest must agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from executor.core import control, subjects
from executor.errors import ExecutorError
from executor.model import Digest, Release

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


def encode(release: Release, environment: str) -> bytes:
    """What is said under `subjects.release_key`."""
    key = subjects.release_key(release.tenant, release.task)
    return control.encode(
        "release", key, environment, digest=release.digest, version=release.version
    )


def decode(data: bytes, tenant: str, task: str, *, environment: str) -> Release:
    """The release in what is said under its key. Errors  `message.*`."""
    key = subjects.release_key(tenant, task)
    return from_fields(control.decode(data, "release", key, environment), tenant, task)


def from_fields(fields: Mapping[str, control.Value], tenant: str, task: str) -> Release:
    """The release that an entry says. Errors  `message.malformed`."""
    digest = str(fields["digest"])
    if not _DIGEST.match(digest):
        raise ExecutorError("message.malformed", "not a release")
    return Release(tenant, task, Digest(digest), str(fields["version"]))
