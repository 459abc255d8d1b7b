"""A release in CONTROL: which digest a task's name stands for, bound to its key.

The record is typed and bound, not yet signed: it can only choose among modules that a publisher
trusted for this very task has signed, and the module's own manifest must agree with it.
"""

from __future__ import annotations

import re
from typing import Final

from executor.core import control, subjects
from executor.errors import ExecutorError
from executor.model import Digest, Release

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


def encode(release: Release, environment: str) -> bytes:
    """The value under `subjects.release_key`."""
    key = subjects.release_key(release.tenant, release.task)
    return control.encode(
        "release", key, environment, digest=release.digest, version=release.version
    )


def decode(data: bytes, tenant: str, task: str, *, environment: str) -> Release:
    """The release in a value read from its key. Errors  `message.*`."""
    fields = control.decode(data, "release", subjects.release_key(tenant, task), environment)
    digest = str(fields["digest"])
    if not _DIGEST.match(digest):
        raise ExecutorError("message.malformed", "not a release")
    return Release(tenant, task, Digest(digest), str(fields["version"]))
