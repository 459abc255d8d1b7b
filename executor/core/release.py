"""A release in CONTROL: which digest a task's name stands for, bound to its key.

The record is typed and bound, not yet signed: it can only choose among modules that a publisher
trusted for this very task has signed, and the module's own manifest must agree with it.
"""

from __future__ import annotations

import re
from typing import Final

from executor.core import subjects
from executor.core.envelope import to_msgpack, unpack
from executor.errors import ExecutorError
from executor.model import Digest, Release

VERSION: Final = 1
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_FIELDS: Final = {"v", "typ", "aud", "digest", "version"}


def encode(release: Release, environment: str) -> bytes:
    """The value under `subjects.release_key`."""
    key = subjects.release_key(release.tenant, release.task)
    return to_msgpack({
        "v": VERSION, "typ": "release", "aud": subjects.audience(environment, key),
        "digest": release.digest, "version": release.version,
    })  # fmt: skip


def decode(data: bytes, tenant: str, task: str, *, environment: str) -> Release:
    """The release in a value read from its key. Errors  `message.*`."""
    fields = unpack(data, lists=False)
    key = subjects.release_key(tenant, task)
    if fields.get("v") != VERSION:
        raise ExecutorError("message.version-unknown", f"this host reads version {VERSION}")
    if fields.get("typ") != "release" or fields.keys() != _FIELDS:
        raise ExecutorError("message.malformed", "not a release")
    if fields["aud"] != subjects.audience(environment, key):
        raise ExecutorError("message.audience-mismatch", f"read from `{key}`")
    digest, version = fields["digest"], fields["version"]
    if not isinstance(digest, str) or not _DIGEST.match(digest) or not isinstance(version, str):
        raise ExecutorError("message.malformed", "not a release")
    return Release(tenant, task, Digest(digest), version)
