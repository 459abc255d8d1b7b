"""The signed source of trust: what a pinned root, and all that follows from it, says now.

Whatever a store hands over is checked whole before any of it counts: signatures, thresholds,
versions, expiry, environment, the policy's grammar, every release. Only then does it replace the
last good state on this disk, in one rename. That file is signed data and our memory of versions:
losing it falls back to the pinned root, and with it goes the protection against older versions, at
the next start: while a `Source` lives it remembers what it has handed out.

It blocks, like the library: serve calls it in a thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, TargetFile, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from executor import config_document
from executor.config import Config
from executor.config_document import Document
from executor.core import subjects
from executor.core.signature import PublicKey
from executor.errors import ExecutorError
from executor.model import MIB, Digest, Release
from executor.trust import metadata
from executor.trust.metadata import (
    BOUNDS,
    DELEGATED,
    FIELD,
    POLICY,
    POLICY_MAX,
    POLICY_TARGET,
    RELEASE_MAX,
    RELEASES,
    ROLES,
    ROOT,
    ROOTS_MAX,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    file_key,
    invalid,
    metadata_key,
)

# (key of TRUST) → bytes, None for what is not there.
Fetch = Callable[[str], bytes | None]

FILE: Final = "last-good.json"
_LOCK: Final = "lock"
# All that can be in it: every role at its bound, the roots, the policy, thousands of releases.
_FILE_MAX: Final = 16 * MIB
_BASE: Final = "md/"  # of the addresses that the library makes up; nobody resolves them
_NOT_FOUND: Final = 404
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")
_VERSION_MAX: Final = 64
_THIRD: Final = 3


@dataclass(frozen=True, slots=True)
class RoleState:
    """One role's metadata in force; times in ms, `life_ms` as the root says."""

    version: int
    expires_ms: int
    life_ms: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What is in force, whole and checked."""

    environment: str
    document: Document
    policy: bytes
    releases: Mapping[tuple[str, str], Release]  # by tenant and task
    roles: Mapping[str, RoleState]
    granters: frozenset[PublicKey] = frozenset()  # who signs `policy`, or decides who does

    @property
    def expires_ms(self) -> int:
        """When the first part of it is over, and so all of it."""
        return min(role.expires_ms for role in self.roles.values())

    @property
    def warn_at(self) -> dict[str, int]:
        """Role → when a third of its life is left, in ms: time to renew."""
        return {n: role.expires_ms - role.life_ms // _THIRD for n, role in self.roles.items()}


@dataclass
class _State:
    """Signed files as text: what is kept on disk, and what a refresh begins with."""

    roots: dict[str, str] = field(default_factory=dict)  # by version, without the pinned one
    roles: dict[str, str] = field(default_factory=dict)  # but root
    files: dict[str, str] = field(default_factory=dict)  # targets, by SHA-256

    def get(self, key: str) -> bytes | None:
        """As a store of one's own: what a refresh without the network asks."""
        kind, _, rest = key.partition(".")
        role, _, version = rest.partition(".")
        if kind == "target":
            found = self.files.get(rest)
        else:
            found = self.roots.get(version) if role == ROOT else self.roles.get(role)
        return None if found is None else found.encode()


class _Fetcher(FetcherInterface):
    """What the library asks for, from the port; everything is bounded and of our form."""

    def __init__(self, fetch: Fetch, environment: str) -> None:
        self._ask = fetch
        self._environment = environment

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter([self.download_bytes(url, MIB)])

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A role's metadata; not found is the library's own answer."""
        name = url.removeprefix(_BASE).removesuffix(".json")
        version, _, role = name.rpartition(".")
        key = metadata_key(role, int(version) if version else None)
        data = self._ask(key)
        if data is None:
            raise DownloadHTTPError(f"`{key}` is not there", _NOT_FOUND)
        if len(data) > max_length:
            raise invalid(f"`{key}` has {len(data)} bytes, {max_length} were announced")
        metadata.read(data, role, self._environment)
        return data


class Source:
    """See the module. `root` is the pinned file's bytes, `folder` where the last good state is.

    Errors  `trust.invalid` for a root that is of no use, or made for another environment.
    """

    def __init__(self, root: bytes, folder: Path, environment: str) -> None:
        metadata.read(root, ROOT, environment)
        self._root = root
        self._newest: Mapping[str, RoleState] = {}  # what this object has handed out
        self.folder = folder
        self.environment = environment

    @classmethod
    def of(cls, config: Config) -> Source:
        """As a configuration says.

        Errors  `trust.missing` without the root file, `trust.invalid` where others can write.
        """
        path, folder = config.path("trust.root_file"), config.path("trust.folder")
        try:
            if path is None or folder is None:
                raise FileNotFoundError
            with path.open("rb") as file:
                _own("trust.root_file", path, os.fstat(file.fileno()))
                root = file.read(BOUNDS[ROOT] + 1)
            if folder.exists():
                _own("trust.folder", folder, folder.stat())
        except OSError:
            raise ExecutorError(
                "trust.missing", f"no root file `{path}`",
                hint="get root.json from whoever signs, by a way you trust, and name it in "
                "`trust.root_file`; executor trust init makes one",
            ) from None  # fmt: skip
        return cls(root, folder, config.text("host.environment"))

    def load(self) -> Verified:
        """The last good state, verified anew.

        Errors  `trust.missing` if there is none, `trust.expired`, `trust.invalid`.
        """
        state = self._read()
        if not state.roles:
            raise ExecutorError(
                "trust.missing", f"nothing verified in `{self.folder}` yet",
                hint="fetch it: executor trust refresh",
            )  # fmt: skip
        return self._newer(self._verify(state.get, state)[0])

    def refresh(self, fetch: Fetch) -> Verified:
        """What the store has now, in force from here on if it holds.

        Errors  `trust.*`, and whatever `fetch` raises; the last good state stays as it was.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            state = self._read()
            found, new = self._verify(fetch, state)
            self._newer(found)
            if new != state:
                self._write(new)
        return found

    def _newer(self, found: Verified) -> Verified:
        """Refuse what is older than this process has seen, whatever became of the file.

        A newer root may begin its roles' versions again. Errors  `trust.rolled-back`.
        """
        if self._newest and found.roles[ROOT].version <= self._newest[ROOT].version:
            for role, before in self._newest.items():
                if (now := found.roles[role].version) < before.version:
                    raise ExecutorError(
                        "trust.rolled-back", f"`{role}` {now} is older than {before.version}"
                    )
        self._newest = found.roles
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One refresh at a time on this folder: an older state must not replace a newer one."""
        # Not through a link, and nothing in it is touched: it is only held.
        fd = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # The last good state.

    def _read(self) -> _State:
        path = self.folder / FILE
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_MAX + 1)
        except FileNotFoundError:
            return _State()
        except OSError as error:
            # To begin again from the root here would forget the versions, and take older ones.
            raise ExecutorError(
                "trust.missing", f"`{path}`: {(error.strerror or 'unreadable').lower()}",
                hint="it must be this user's own file",
            ) from None  # fmt: skip
        try:
            found = metadata.decode(data, _FILE_MAX, f"`{path}`")
            state = _State(**found)
            for version, text in state.roots.items():
                int(version)
                metadata.read(text.encode(), ROOT, self.environment)
            for role, text in state.roles.items():
                metadata.read(text.encode(), role, self.environment)
            all(text.encode() for text in state.files.values())
        except (TypeError, ValueError, KeyError, AttributeError, ExecutorError) as error:
            raise invalid(
                f"`{path}` was changed", reason=str(error)[:200],
                hint="remove it to begin again from the pinned root; what it remembered of "
                "versions is lost then",
            ) from None  # fmt: skip
        return state

    def _write(self, state: _State) -> None:
        value = {"roots": state.roots, "roles": state.roles, "files": state.files}
        write_whole(self.folder / FILE, metadata.encode(value))

    # Verification.

    def _verify(self, fetch: Fetch, state: _State) -> tuple[Verified, _State]:
        try:
            with tempfile.TemporaryDirectory(prefix="executor-trust-") as folder:
                return self._verify_in(Path(folder), fetch, state)
        except (RepositoryError, DownloadError) as error:
            raise metadata.mapped(error) from None

    def _verify_in(self, at: Path, fetch: Fetch, state: _State) -> tuple[Verified, _State]:
        history = at / "root_history"
        history.mkdir()
        for version, text in state.roots.items():
            (history / f"{version}.root.json").write_text(text, encoding="ascii")
        for role, text in state.roles.items():
            (at / f"{role}.json").write_text(text, encoding="ascii")
        updater = Updater(
            str(at), _BASE, fetcher=_Fetcher(fetch, self.environment), config=_bounds(),
            bootstrap=self._root,
        )  # fmt: skip
        updater.refresh()
        # What the library leaves in its folder after that is what it verified.
        root = Metadata[Root].from_bytes((at / "root.json").read_bytes()).signed
        targets = Metadata[Targets].from_bytes((at / f"{TARGETS}.json").read_bytes()).signed
        lives = _check_delegations(root, targets)
        policy = updater.get_targetinfo(POLICY_TARGET)
        updater.get_targetinfo("releases/_/_")  # which has it load the role, whatever is in it
        if policy is None:
            raise invalid("there is no policy in the metadata of `policy`")
        new, pinned = _State(), _version_of(self._root)
        for number in range(pinned + 1, root.version + 1):
            new.roots[str(number)] = (history / f"{number}.root.json").read_text("ascii")
        new.roles = {
            role: (at / f"{role}.json").read_text(encoding="ascii")
            for role in ROLES
            if role != ROOT
        }
        files = _Files(fetch, state, new)
        data = files.take(policy, POLICY_MAX)
        found = Verified(
            self.environment, _parse(data), data, _releases(at, files), _states(new, root, lives),
            _granters(root, targets),
        )  # fmt: skip
        return found, new


def _own(name: str, path: Path, status: os.stat_result) -> None:
    """Refuse what anybody but this user and root can change. Errors  `trust.invalid`."""
    if status.st_uid not in {0, os.geteuid()}:
        raise invalid(f"`{name}` is another user's", hint=f"chown it to this user: {path}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise invalid(f"others can write `{name}`", hint=f"chmod go-w {path}")


def _bounds() -> UpdaterConfig:
    return UpdaterConfig(
        max_root_rotations=ROOTS_MAX, max_delegations=len(DELEGATED) + 1,
        root_max_length=BOUNDS[ROOT], timestamp_max_length=BOUNDS[TIMESTAMP],
        snapshot_max_length=BOUNDS[SNAPSHOT], targets_max_length=max(BOUNDS.values()),
    )  # fmt: skip


def _check_delegations(root: Root, targets: Targets) -> dict[str, int]:
    """The targets role may delegate, exactly so, and do nothing else; role → life in seconds.

    Whoever holds its key alone could otherwise sign a policy of his own, or lower its threshold:
    keys and threshold of `policy` are said by the root as well.
    """
    ours = root.unrecognized_fields[FIELD]
    lives, said = ours.get("lifetimes_s"), ours.get(POLICY)
    if not isinstance(lives, dict) or lives.keys() != set(ROLES) or not isinstance(said, dict):
        raise invalid("the root does not say what it must of lives and `policy`")
    if not all(type(life) is int and life > 0 for life in lives.values()):
        raise invalid("the root has a life that is no number of seconds")
    delegations = targets.delegations
    roles = (delegations.roles if delegations else None) or {}
    if targets.targets or roles.keys() != DELEGATED.keys() or delegations is None:
        raise invalid("the metadata of `targets` does more than delegate to `policy`, `releases`")
    for name, role in roles.items():
        if not isinstance(role, DelegatedRole) or role.paths != DELEGATED[name]:
            raise invalid(f"`{name}` is delegated other files")
    for key_id, key in (*root.keys.items(), *delegations.keys.items()):
        metadata.check_key(key_id, key)
    policy = roles[POLICY]
    if said != {"keyids": sorted(policy.keyids), "threshold": policy.threshold}:
        raise invalid("`policy` is delegated to other keys than the root says")
    return lives


def _granters(root: Root, targets: Targets) -> frozenset[PublicKey]:
    delegations = targets.delegations
    assert delegations is not None and delegations.roles is not None  # noqa: PT018 - was checked
    keys = {**root.keys, **delegations.keys}
    ids = {*root.roles[ROOT].keyids, *delegations.roles[POLICY].keyids}
    return frozenset(PublicKey(bytes.fromhex(keys[key_id].keyval["public"])) for key_id in ids)


class _Files:
    """Targets: from the last good state where they are the same bytes, else from the store."""

    def __init__(self, fetch: Fetch, old: _State, new: _State) -> None:
        self._fetch, self._old, self._new = fetch, old, new

    def take(self, info: TargetFile, most: int) -> bytes:
        """The bytes of a target. Errors  `trust.*`."""
        digest = info.hashes.get("sha256", "")
        if info.length > most or info.hashes.keys() != {"sha256"}:
            raise invalid(f"`{info.path}` is too large, or not named by its SHA-256 alone")
        kept = self._old.files.get(digest)
        data = self._fetch(file_key(digest)) if kept is None else kept.encode()
        if data is None:
            raise ExecutorError("trust.missing", f"`{info.path}` is not there",
                                hint="put it there: executor trust push")  # fmt: skip
        info.verify_length_and_hashes(data)
        try:
            self._new.files[digest] = data.decode()
        except UnicodeDecodeError:
            raise invalid(f"`{info.path}` is no text") from None
        return data


def _releases(at: Path, files: _Files) -> dict[tuple[str, str], Release]:
    signed = Metadata[Targets].from_bytes((at / f"{RELEASES}.json").read_bytes()).signed
    found = {}
    for path, info in signed.targets.items():
        _, *tokens = path.split("/")
        if path != f"releases/{'/'.join(tokens)}" or len(tokens) != 2 or not all(  # noqa: PLR2004
            map(subjects.is_token, tokens)
        ):  # fmt: skip
            raise invalid("the metadata of `releases` has a file that is no release", path=path)
        tenant, task = tokens
        found[tenant, task] = decode_release(files.take(info, RELEASE_MAX), tenant, task)
    return found


def encode_release(release: Release) -> bytes:
    """The file of a release."""
    return metadata.encode({"v": 1, "digest": release.digest, "version": release.version})


def decode_release(data: bytes, tenant: str, task: str) -> Release:
    """A release from its file. Errors  `trust.invalid`."""
    what = f"the release of `{tenant}/{task}`"
    found = metadata.decode(data, RELEASE_MAX, what)
    digest, version = found.get("digest"), found.get("version")
    if (
        found.keys() != {"v", "digest", "version"} or found["v"] != 1
        or not isinstance(digest, str) or not _DIGEST.match(digest)
        or not isinstance(version, str) or not 0 < len(version) <= _VERSION_MAX
    ):  # fmt: skip
        raise invalid(f"{what} is of another form")
    return Release(tenant, task, Digest(digest), version)


def _parse(text: bytes) -> Document:
    """The policy. Errors  `trust.invalid`, though everyone has signed it."""
    try:
        return config_document.parse(text, name=POLICY_TARGET, folder=None)
    except ExecutorError as error:
        raise invalid(f"the policy is signed, and wrong: {error.detail}") from None


def _states(state: _State, root: Root, lives: Mapping[str, int]) -> dict[str, RoleState]:
    found = {ROOT: RoleState(root.version, _ms(root), lives[ROOT] * 1000)}
    for role, text in state.roles.items():
        signed = Metadata.from_bytes(text.encode()).signed
        found[role] = RoleState(signed.version, _ms(signed), lives[role] * 1000)
    return found


def _ms(signed: Any) -> int:
    return int(signed.expires.timestamp() * 1000)


def _version_of(root: bytes) -> int:
    return int(json.loads(root)["signed"]["version"])


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step, on the disk when it returns."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process that was killed, or a link that somebody left
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name, too, or the old file may be back after a power cut
    finally:
        os.close(folder)
