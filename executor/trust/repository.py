"""The signers' side: a folder of metadata, what is staged in it, and who has signed what.

Every change is staged first, collects signatures on as many machines as it needs, and is put in
force whole, with a new snapshot and timestamp, after it was verified as an executor would. An
executor never needs this folder, nor a key.
"""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    VerificationResult,
)

from executor import config_document
from executor.core.signature import PublicKey, SecretKey
from executor.errors import ExecutorError
from executor.model import Release
from executor.trust.locking import alone
from executor.trust.metadata import (
    BOUNDS,
    DELEGATED,
    FIELD,
    KEYS_MAX,
    ONLINE,
    POLICY,
    POLICY_MAX,
    POLICY_TARGET,
    RELEASES,
    ROLES,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    LocalSigner,
    file_key,
    key_id_of,
    metadata_key,
    tuf_key,
)
from executor.trust.source import Source, Verified, decode_release, encode_release, write_whole

_DAY: Final = 24 * 3600
# security.md's table: two people for what all trust comes from and for what grants. A deployer
# releases alone, since a release only chooses among modules that publishers have signed.
THRESHOLDS: Final = {ROOT: 2, TARGETS: 1, POLICY: 2, RELEASES: 1, SNAPSHOT: 1, TIMESTAMP: 1}
DAYS: Final = {ROOT: 365, TARGETS: 90, POLICY: 30, RELEASES: 30, SNAPSHOT: 7, TIMESTAMP: 1}
# Of one operator, whose commands renew the last two as they go.
SINGLE_DAYS: Final = {**DAYS, POLICY: 365, RELEASES: 365, TARGETS: 365, SNAPSHOT: 30, TIMESTAMP: 30}
STAGED: Final = (ROOT, TARGETS, POLICY, RELEASES)
ROOT_FILE: Final = "root.json"
_PUBLIC: Final = 0o644
_NAME: Final = re.compile(r"(\d+)\.([a-z]+)\.json\Z")


@dataclass(frozen=True, slots=True)
class Rule:
    """Who signs a role: keys, how many of them, for how long a signature is good."""

    keys: tuple[PublicKey, ...]
    threshold: int
    life_s: int


@dataclass(frozen=True, slots=True)
class Signing:
    """How far one role's metadata is: `by` and `open` are key ids, `needs` more signatures."""

    role: str
    version: int
    expires_ms: int
    staged: bool
    by: tuple[str, ...]
    open: tuple[str, ...]
    needs: int


def _now() -> datetime:
    return datetime.now(UTC)


class Repository:
    """See the module. Times come from `now`."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = _now) -> None:
        self.folder = folder
        self._now = now
        self._metadata, self._files = folder / "metadata", folder / "files"
        self._stage_folder = folder / "staged"

    @property
    def made(self) -> bool:
        """Whether there is one, in force or staged."""
        return self._effective(ROOT) is not None

    @property
    def in_force(self) -> bool:
        """Whether anything was put in force yet."""
        return self._file(TIMESTAMP, None).is_file()

    @property
    def environment(self) -> str:
        """What it is made for."""
        return str(self._signed(ROOT).unrecognized_fields[FIELD]["environment"])

    @contextlib.contextmanager
    def locked(self, *, new: bool = False) -> Iterator[None]:
        """One changing command at a time, for its whole length; `new` makes the folder.

        Two that add a signature each to one file would lose one.

        Errors  `trust.missing` without a folder, `config.invalid` while another changes it.
        """
        if new:
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not self.folder.is_dir():
            raise no_repository(self.folder)
        with alone(self.folder):
            yield

    # Making and changing: everything is staged.

    def make(self, environment: str, rules: Mapping[str, Rule], policy: bytes) -> None:
        """Stage the first version of every role. Errors  `config.invalid`."""
        if self.made:
            raise ExecutorError("config.invalid", f"`{self.folder}` has a repository",
                                hint="name another folder")  # fmt: skip
        for role in ROLES:
            _check_rule(role, rules[role])
        for folder in (self._metadata, self._files, self._stage_folder):
            folder.mkdir(parents=True, exist_ok=True)
        top = {r: Role(_ids(rules[r]), rules[r].threshold) for r in ROLES if r not in DELEGATED}
        fields = {FIELD: {"environment": environment, "lifetimes_s": {}}}
        root = Root(roles=top, consistent_snapshot=True, unrecognized_fields=fields)
        targets = Targets(
            delegations=Delegations({}, {}),
            unrecognized_fields={FIELD: {"environment": environment}},
        )
        self._apply(root, targets, rules)
        for role in DELEGATED:
            signed = Targets(unrecognized_fields={FIELD: {"environment": environment}})
            self._stage(role, Metadata(signed), life_s=rules[role].life_s)
        self.stage_policy(policy)

    def stage_keys(self, rules: Mapping[str, Rule]) -> list[str]:
        """Stage other keys, thresholds or lives; returns the roles that have to be signed.

        A change of who signs `policy` is the root's to make, as is all but `releases`.

        Errors  `config.invalid`.
        """
        for role, rule in rules.items():
            _check_rule(role, rule)
        self._apply(self._edit(ROOT).signed, self._edit(TARGETS).signed, rules)
        for role in DELEGATED.keys() & rules.keys():
            self._stage(role, self._edit(role), life_s=rules[role].life_s)
        return [role for role in STAGED if self._staged(role) is not None]

    def _apply(self, root: Any, targets: Any, rules: Mapping[str, Rule]) -> None:
        """Write rules into root and targets, and stage what changed."""
        before = copy.deepcopy(root.to_dict()), copy.deepcopy(targets.to_dict())
        ours = root.unrecognized_fields[FIELD]
        for role, rule in rules.items():
            ours["lifetimes_s"][role] = rule.life_s
            keys = [tuf_key(key) for key in rule.keys]
            if role in DELEGATED:
                targets.delegations.roles[role] = DelegatedRole(
                    role, [key.keyid for key in keys], rule.threshold, terminating=True,
                    paths=DELEGATED[role],
                )  # fmt: skip
                targets.delegations.keys |= {key.keyid: key for key in keys}
            else:
                root.roles[role] = Role([key.keyid for key in keys], rule.threshold)
                root.keys |= {key.keyid: key for key in keys}
        roles = targets.delegations.roles
        # In the order of security: a dict keeps it, and the library looks in this order.
        targets.delegations.roles = {role: roles[role] for role in DELEGATED}
        for delegator, held in ((root, root.roles), (targets.delegations, roles)):
            used = {key_id for role in held.values() for key_id in role.keyids}
            delegator.keys = {key_id: delegator.keys[key_id] for key_id in sorted(used)}
        policy = roles[POLICY]
        ours[POLICY] = {"keyids": sorted(policy.keyids), "threshold": policy.threshold}
        lives = ours["lifetimes_s"]
        if root.to_dict() != before[0]:
            self._stage(ROOT, Metadata(root), life_s=lives[ROOT])
        if targets.to_dict() != before[1] or TARGETS in rules:
            self._stage(TARGETS, Metadata(targets), life_s=lives[TARGETS])

    def rules(self) -> dict[str, Rule]:
        """Who signs what, as staged or in force."""
        root, targets = self._signed(ROOT), self._signed(TARGETS)
        lives = root.unrecognized_fields[FIELD]["lifetimes_s"]
        found = {}
        for role in ROLES:
            delegator = targets if role in DELEGATED else root
            held = delegator.get_delegated_role(role)
            keys = tuple(_public(delegator.get_key(key_id)) for key_id in held.keyids)
            found[role] = Rule(keys, held.threshold, lives[role])
        return found

    def stage_policy(self, policy: bytes) -> None:
        """Stage another policy. Errors  `config.*` for one that no executor would take."""
        if len(policy) > POLICY_MAX:
            raise ExecutorError("config.invalid", f"the policy has {len(policy)} bytes, "
                                f"at most {POLICY_MAX}")  # fmt: skip
        config_document.parse(policy, name="policy.toml", folder=None)
        self._stage_target(POLICY, POLICY_TARGET, policy)

    def policy(self) -> bytes:
        """The policy that is staged, or in force."""
        return self._target(self._signed(POLICY).targets[POLICY_TARGET])

    def stage_release(self, release: Release) -> bool:
        """Stage a release, unless it is known; whether any waits to be put in force.

        Errors  `module.manifest-invalid` for other bytes under a version that is released.
        """
        path = f"releases/{release.tenant}/{release.task}"
        known = self._signed(RELEASES).targets.get(path)
        before = (
            decode_release(self._target(known), release.tenant, release.task) if known else None
        )
        if before is not None and before != release and before.version == release.version:
            raise ExecutorError(
                "module.manifest-invalid",
                f"{release.version} of `{release.tenant}/{release.task}` is other bytes, and "
                "released", hint="raise `version` in task.toml and build again",
                released=before.digest,
            )  # fmt: skip
        if before != release:
            self._stage_target(RELEASES, path, encode_release(release))
        return self._staged(RELEASES) is not None

    def renew(self, roles: Iterable[str]) -> None:
        """Stage the same again under a new date; snapshot and timestamp are made new anyway.

        Errors  `config.invalid` where a change is staged: that is to be signed, not renewed.
        """
        for role in roles:
            if role in ONLINE:
                continue
            if self._changes(role):
                raise ExecutorError(
                    "config.invalid", f"a change of `{role}` is staged, which is more than a date",
                    hint="look at it and sign it: executor trust sign",
                )  # fmt: skip
            self._stage(role, self._edit(role))

    def _changes(self, role: str) -> bool:
        """Whether more than version and date are staged of a role."""
        staged, current = self._staged(role), self._current(role)
        if staged is None:
            return False
        said = staged.signed.to_dict()
        before = {} if current is None else current.signed.to_dict()
        for each in (said, before):
            each.pop("version", None)
            each.pop("expires", None)
        return bool(said != before)

    def _stage_target(self, role: str, path: str, data: bytes) -> None:
        edited = self._edit(role)
        info = TargetFile.from_data(path, data, ["sha256"])
        edited.signed.targets[path] = info
        edited.signed.targets = dict(sorted(edited.signed.targets.items()))
        write_whole(self._files / info.hashes["sha256"], data, mode=_PUBLIC)
        self._stage(role, edited)

    def _edit(self, role: str) -> Metadata[Any]:
        """The next version of a role, to be changed; one that is staged already is changed."""
        found = self._effective(role)
        if found is None:
            raise no_repository(self.folder)
        current = self._current(role)
        found.signed.version = 1 if current is None else current.signed.version + 1
        return found

    def _stage(self, role: str, made: Metadata[Any], *, life_s: int = 0) -> None:
        """Write it without signatures: whatever was signed before was another text."""
        made.signatures.clear()
        made.signed.expires = self._until(role, life_s)
        data = made.to_bytes()
        if len(data) > BOUNDS[role]:
            raise ExecutorError("config.invalid", f"the metadata of `{role}` would have "
                                f"{len(data)} bytes, at most {BOUNDS[role]}")  # fmt: skip
        write_whole(self._staged_file(role), data, mode=_PUBLIC)

    def _until(self, role: str, life_s: int = 0) -> datetime:
        if not life_s:
            life_s = self._signed(ROOT).unrecognized_fields[FIELD]["lifetimes_s"][role]
        return self._now().replace(microsecond=0) + timedelta(seconds=life_s)

    def withdraw(self, roles: Collection[str] = STAGED) -> list[str]:
        """Let go of what is staged of these roles; returns which were."""
        gone = [role for role in STAGED if role in roles and self._staged_file(role).is_file()]
        for role in gone:
            self._staged_file(role).unlink()
        return gone

    def _staged_file(self, role: str) -> Path:
        return self._stage_folder / f"{role}.json"

    # Signing and putting in force.

    def sign(self, secrets: Collection[SecretKey], roles: Collection[str] = STAGED) -> int:
        """Add the signatures that these keys may give to what is staged; how many were new.

        Of `roles` alone: whoever asks for one thing has not looked at what others staged beside it.
        """
        added = 0
        for role in (role for role in STAGED if role in roles):
            staged = self._staged(role)
            if staged is None:
                continue
            wanted = {k for result in self._results(role, staged) for k in result.unsigned}
            for secret in secrets:
                signer = LocalSigner(secret)
                if signer.public_key.keyid in wanted - staged.signatures.keys():
                    staged.sign(signer, append=True)
                    added += 1
            write_whole(self._staged_file(role), staged.to_bytes(), mode=_PUBLIC)
        return added

    def _results(self, role: str, found: Metadata[Any]) -> list[VerificationResult]:
        """Who signed, as each of those sees it who has to be content; of a root, also the old."""
        delegators = [self._signed(TARGETS if role in DELEGATED else ROOT)]
        if role == ROOT:
            current = self._current(ROOT)
            delegators = [found.signed, *([current.signed] if current else [])]
        return [
            delegator.get_verification_result(role, found.signed_bytes, found.signatures)
            for delegator in delegators
        ]

    def signings(self) -> list[Signing]:
        """How far every role is: what is in force, and what is staged beside it."""
        rows = []
        for role in ROLES:
            for found, staged in ((self._current(role), False), (self._staged(role), True)):
                if found is None:
                    continue
                results = self._results(role, found) if staged else self._results_now(role, found)
                by = {k: key for r in results for k, key in r.signed.items()}
                still = {k: key for r in results for k, key in r.unsigned.items()}
                rows.append(Signing(
                    role, found.signed.version, int(found.signed.expires.timestamp() * 1000),
                    staged, tuple(map(key_id_of, by.values())),
                    tuple(key_id_of(key) for k, key in still.items() if k not in by),
                    max(result.missing for result in results),
                ))  # fmt: skip
        return rows

    def _results_now(self, role: str, found: Metadata[Any]) -> list[VerificationResult]:
        delegator = self._current(TARGETS if role in DELEGATED else ROOT)
        assert delegator is not None
        return [delegator.signed.get_verification_result(
            role, found.signed_bytes, found.signatures)]  # fmt: skip

    def ready(self) -> list[str]:
        """The staged roles that can be put in force: they have the signatures they need.

        A change of keys goes whole or not at all; what it does not touch need not wait for it.
        """
        needs = {signing.role: signing.needs for signing in self.signings() if signing.staged}
        keys_change = ROOT in needs or TARGETS in needs
        if not keys_change or not any(needs.values()):
            return [role for role, missing in needs.items() if not missing]
        return [role for role in DELEGATED if needs.get(role) == 0 and self._same_keys(role)]

    def _same_keys(self, role: str) -> bool:
        current = self._current(TARGETS)
        if current is None:
            return False
        now = current.signed.get_delegated_role(role)
        return bool(now == self._signed(TARGETS).get_delegated_role(role))

    def put_in_force(self, secrets: Collection[SecretKey]) -> Verified:
        """Put what is ready in force, with a new snapshot and timestamp.

        Errors  `trust.threshold-unmet` without the keys of snapshot and timestamp, and whatever an
                executor would refuse; then everything stays staged.
        """
        new = {role: staged for role in self.ready() if (staged := self._staged(role))}
        if not self.in_force and new.keys() != set(STAGED):
            raise no_repository(self.folder)
        files = {metadata_key(r, made.signed.version): made.to_bytes() for r, made in new.items()}
        root = (new.get(ROOT) or self._current(ROOT)).signed  # type: ignore[union-attr]  # in force
        snapshot = self._snapshot(new)
        self._sign_online(SNAPSHOT, snapshot, root, secrets)
        files[metadata_key(SNAPSHOT, snapshot.signed.version)] = snapshot.to_bytes()
        timestamp = self._timestamp(snapshot)
        self._sign_online(TIMESTAMP, timestamp, root, secrets)
        files[metadata_key(TIMESTAMP, None)] = timestamp.to_bytes()
        verified = self.verify(files)
        for key, data in files.items():  # the timestamp is the last
            _, role, *version = key.split(".")
            at = self._file(role, int(version[0]) if version else None)
            write_whole(at, data, mode=_PUBLIC)
        if ROOT in new:
            write_whole(self.folder / ROOT_FILE, new[ROOT].to_bytes(), mode=_PUBLIC)
        self.withdraw(new)
        return verified

    def _snapshot(self, new: Mapping[str, Metadata[Any]]) -> Metadata[Snapshot]:
        current = self._current(SNAPSHOT)
        signed = current.signed if current else Snapshot(
            meta={}, unrecognized_fields={FIELD: {"environment": self.environment}}
        )  # fmt: skip
        signed.version = signed.version + 1 if current else 1
        for role, made in new.items():
            if role != ROOT:
                signed.meta[f"{role}.json"] = MetaFile.from_data(
                    made.signed.version, made.to_bytes(), ["sha256"]
                )
        return Metadata(signed)

    def _timestamp(self, snapshot: Metadata[Snapshot]) -> Metadata[Timestamp]:
        current = self._current(TIMESTAMP)
        signed = current.signed if current else Timestamp(
            unrecognized_fields={FIELD: {"environment": self.environment}}
        )  # fmt: skip
        signed.version = signed.version + 1 if current else 1
        signed.snapshot_meta = MetaFile.from_data(
            snapshot.signed.version, snapshot.to_bytes(), ["sha256"]
        )
        return Metadata(signed)

    def _sign_online(
        self, role: str, made: Metadata[Any], root: Any, secrets: Collection[SecretKey]
    ) -> None:
        life_s = root.unrecognized_fields[FIELD]["lifetimes_s"][role]
        made.signatures.clear()
        made.signed.expires = self._until(role, life_s)
        for secret in secrets:
            signer = LocalSigner(secret)
            if signer.public_key.keyid in root.roles[role].keyids:
                made.sign(signer, append=True)
        result = root.get_verification_result(role, made.signed_bytes, made.signatures)
        if not result.verified:
            keys = ", ".join(key_id_of(key) for key in result.unsigned.values())
            raise ExecutorError(
                "trust.threshold-unmet", f"`{role}` needs {result.missing} more of {keys}",
                hint="all else is signed; where that key is: executor trust renew",
            )  # fmt: skip

    def verify(self, over: Mapping[str, bytes] | None = None) -> Verified:
        """Check the whole as an executor would that has nothing but the first root.

        `over` lies over what is in force. Errors  `trust.*`.
        """
        files = over or {}

        def fetch(key: str) -> bytes | None:
            return files.get(key) or self.get(key)

        root = fetch(metadata_key(ROOT, 1))
        if root is None:
            raise no_repository(self.folder)
        with tempfile.TemporaryDirectory(prefix="executor-trust-") as folder:
            return Source(root, Path(folder), self.environment).refresh(fetch)

    # What is there.

    def get(self, key: str) -> bytes | None:
        """A file in force by its key in TRUST."""
        kind, _, rest = key.partition(".")
        role, _, version = rest.partition(".")
        path = self._files / rest if kind == "target" else self._file(
            role, int(version) if version else None
        )  # fmt: skip
        return path.read_bytes() if path.is_file() else None

    def listing(self) -> list[str]:
        """The keys in TRUST of all that is in force, the timestamp last."""
        found = [metadata_key(ROOT, n) for n in range(1, self._signed_now(ROOT).version + 1)]
        for role in (*DELEGATED, TARGETS):
            signed = self._signed_now(role)
            found += [file_key(info.hashes["sha256"]) for info in signed.targets.values()]
            found.append(metadata_key(role, signed.version))
        found.append(metadata_key(SNAPSHOT, self._signed_now(SNAPSHOT).version))
        return [*found, metadata_key(TIMESTAMP, None)]

    @property
    def next_root(self) -> str:
        """The key in TRUST where nothing may stand yet."""
        return metadata_key(ROOT, self._signed_now(ROOT).version + 1)

    def _file(self, role: str, version: int | None) -> Path:
        return self._metadata / (f"{role}.json" if version is None else f"{version}.{role}.json")

    def _read(self, path: Path) -> Metadata[Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return Metadata.from_bytes(path.read_bytes())
        return None

    def _current(self, role: str) -> Metadata[Any] | None:
        """What is in force, as the timestamp says: a newer file is a half-finished change."""
        if role == ROOT:
            versions = [int(m[1]) for p in self._metadata.glob("*.root.json")
                        if (m := _NAME.match(p.name))]  # fmt: skip
            return self._read(self._file(ROOT, max(versions))) if versions else None
        timestamp = self._read(self._file(TIMESTAMP, None))
        if timestamp is None or role == TIMESTAMP:
            return timestamp
        snapshot = self._read(self._file(SNAPSHOT, timestamp.signed.snapshot_meta.version))
        if snapshot is None or role == SNAPSHOT:
            return snapshot
        return self._read(self._file(role, snapshot.signed.meta[f"{role}.json"].version))

    def _staged(self, role: str) -> Metadata[Any] | None:
        found = self._read(self._staged_file(role))
        current = self._current(role)
        done = found and current and found.signed.version <= current.signed.version
        return None if done else found

    def _effective(self, role: str) -> Metadata[Any] | None:
        return self._staged(role) or self._current(role)

    def _signed(self, role: str) -> Any:
        found = self._effective(role)
        if found is None:
            raise no_repository(self.folder)
        return found.signed

    def _signed_now(self, role: str) -> Any:
        found = self._current(role)
        if found is None:
            raise no_repository(self.folder)
        return found.signed

    def _target(self, info: TargetFile) -> bytes:
        data = (self._files / info.hashes["sha256"]).read_bytes()
        info.verify_length_and_hashes(data)
        return data


def no_repository(folder: Path) -> ExecutorError:
    """There is none, or nothing of it is in force yet."""
    return ExecutorError(
        "trust.missing", f"nothing is in force in `{folder}`",
        hint="make one: executor trust init; or have it signed: executor trust sign",
    )  # fmt: skip


def _ids(rule: Rule) -> list[str]:
    return [tuf_key(key).keyid for key in rule.keys]


def _public(key: Any) -> PublicKey:
    return PublicKey(bytes.fromhex(key.keyval["public"]))


def _check_rule(role: str, rule: Rule) -> None:
    """Refuse a rule that nobody could meet. Errors  `config.invalid`."""
    if len(set(rule.keys)) != len(rule.keys) or not 0 < len(rule.keys) <= KEYS_MAX:
        raise ExecutorError("config.invalid", f"`{role}` needs 1 to {KEYS_MAX} different keys")
    if not 0 < rule.threshold <= len(rule.keys):
        raise ExecutorError(
            "config.invalid", f"`{role}` has {len(rule.keys)} keys, and needs {rule.threshold}",
            hint=f"name more keys of `{role}`, or --threshold {role}={len(rule.keys)}",
        )  # fmt: skip
    if rule.life_s < 1:
        raise ExecutorError("config.invalid", f"`{role}` would be over at once")


def rule(keys: Sequence[PublicKey], role: str, days: Mapping[str, int], most: int = 0) -> Rule:
    """The rule of security.md for a role; `most` lowers its threshold."""
    threshold = min(THRESHOLDS[role], most) if most else THRESHOLDS[role]
    return Rule(tuple(keys), threshold, days[role] * _DAY)
