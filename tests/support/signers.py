"""A team of signers with keys of its own, and what attackers do who hold some of them.

`ada`, `bo` and `cy` hold the root, `ada` the targets, `pia` and `quin` the policy, `rob` releases;
`online` is the key of snapshot and timestamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import Metadata, MetaFile

from executor.core.signature import PublicKey, SecretKey
from executor.trust.metadata import (
    POLICY,
    RELEASES,
    ROLES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    LocalSigner,
    metadata_key,
)
from executor.trust.repository import DAYS, Repository, Rule, rule
from executor.trust.source import Source, Verified

NAMES: Final = ("ada", "bo", "cy", "pia", "quin", "rob", "online", "eve")
KEYS: Final = {name: SecretKey(bytes([n]) * 32) for n, name in enumerate(NAMES, 50)}
HOLDERS: Final = {
    ROOT: ("ada", "bo", "cy"), TARGETS: ("ada",), POLICY: ("pia", "quin"), RELEASES: ("rob",),
    SNAPSHOT: ("online",), TIMESTAMP: ("online",),
}  # fmt: skip
ENVIRONMENT: Final = "test"
PLAIN: Final = b'[[tenant]]\nname = "acme"\n'


def public(*names: str) -> tuple[PublicKey, ...]:
    """The public keys of some of them."""
    return tuple(KEYS[name].public for name in names)


def rules(**lives_s: int) -> dict[str, Rule]:
    """Who signs what in this team, with other lives where they are given."""
    made = {role: rule(public(*HOLDERS[role]), role, DAYS) for role in ROLES}
    for role, life_s in lives_s.items():
        made[role] = Rule(made[role].keys, made[role].threshold, life_s)
    return made


class Team:
    """A repository in a folder, put in force unless told otherwise."""

    def __init__(
        self, folder: Path, policy: bytes = PLAIN, *, environment: str = ENVIRONMENT,
        lives_s: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.repository = Repository(folder)
        self.repository.make(environment, rules(**(lives_s or {})), policy)
        self.sign()

    def sign(self, *names: str) -> Verified | None:
        """Sign what is staged, as many as are needed unless some are named, and put it in force."""
        secrets = [KEYS[name] for name in names or set(NAMES) - {"cy"}]
        self.repository.sign(secrets)
        ready = set(self.repository.ready())
        return self.repository.put_in_force(secrets) if ready == self.staged() else None

    def staged(self) -> set[str]:
        """The roles that wait for signatures."""
        return {signing.role for signing in self.repository.signings() if signing.staged}

    def store(self) -> dict[str, bytes]:
        """What is in force, as a store holds it."""
        found = {key: self.repository.get(key) for key in self.repository.listing()}
        return {key: data for key, data in found.items() if data is not None}

    def source(self, folder: Path, *, environment: str = ENVIRONMENT) -> Source:
        """An executor's view, pinned to the first root."""
        root = self.repository.get(metadata_key(ROOT, 1))
        assert root is not None
        return Source(root, folder, environment)

    # What an attacker does who holds `online`, and whatever keys are named.

    def forged(self, role: str, change: Callable[[Any], None], *names: str) -> dict[str, bytes]:
        """The store with one role changed, as next version, signed by these keys alone."""
        store = self.store()
        made = self.load(role)
        made.signed.version += 1
        made.signatures.clear()
        change(made.signed)
        for name in names:
            made.sign(LocalSigner(KEYS[name]), append=True)
        store[metadata_key(role, made.signed.version)] = made.to_bytes()
        if role != ROOT:
            self.cover(store, {role: made})
        return store

    def load(self, role: str) -> Metadata[Any]:
        """A role's metadata in force."""
        found = self.repository._current(role)
        assert found is not None
        return found

    def cover(self, store: dict[str, bytes], made: dict[str, Metadata[Any]]) -> None:
        """A snapshot and a timestamp, properly signed, over whatever else was made."""
        snapshot, timestamp = self.load(SNAPSHOT), self.load(TIMESTAMP)
        for role, each in made.items():
            snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(
                each.signed.version, each.to_bytes(), ["sha256"]
            )
        snapshot.signed.version += 1
        timestamp.signed.version += 1
        snapshot.sign(LocalSigner(KEYS["online"]))
        timestamp.signed.snapshot_meta = MetaFile.from_data(
            snapshot.signed.version, snapshot.to_bytes(), ["sha256"]
        )
        timestamp.sign(LocalSigner(KEYS["online"]))
        store[metadata_key(SNAPSHOT, snapshot.signed.version)] = snapshot.to_bytes()
        store[metadata_key(TIMESTAMP, None)] = timestamp.to_bytes()
