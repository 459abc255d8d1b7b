"""The artifact cache: what was compiled once on this host is not compiled again.

An artifact is native code, and the engine loads an altered one without a word. So each file begins
with a MAC under a key that never leaves this host, over what it was made from and all its bytes; it
is checked on every read, into a memory file that is then sealed. A file that does not hold is a
miss, is removed and is reported. What stands under its names is not believed to be a file either:
nothing is followed, waited for, or read beyond the size of an artifact; and a folder that others
can write is none. The cache may be deleted at any time.

    MAC 32 · size of the description 4 · description (a Compiled frame) · native code
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
import re
import secrets
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from executor.core import frames
from executor.core.frames import Compiled
from executor.errors import ExecutorError
from executor.supervisor.compiling import Product
from executor.supervisor.job import Artifact
from executor.supervisor.process import sealed_memfd

_SUFFIX: Final = ".artifact"
_MAC_BYTES: Final = 32
_SIZE: Final = struct.Struct(">I")
_FILE_MAX: Final = 192 * 1024 * 1024
# Artifacts, and parts of them while they are written; whatever else lies in the folder is not ours.
_OURS: Final = re.compile(r"[0-9a-f]{64}\.(artifact|[0-9a-f]+)")
# Writing the largest takes seconds: a part as old as this was left by a process that died.
_PART_S: Final = 600.0
# Not there, or nothing to be had now: says nothing about what stands there.
_ABSENT: Final = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArtifactCache:
    """See the module. Its methods block: call them in a thread.

    `key`        32 secret bytes of this host.
    `max_bytes`  of all files; the ones used longest ago go first.
    `on_forged`  told the name of a file that did not hold.
    """

    folder: Path
    key: bytes
    max_bytes: int
    on_forged: Callable[[str], None]

    def _path(self, digest: str, engine: str) -> Path:
        name = hashlib.sha256(f"{digest}\0{engine}".encode()).hexdigest()
        return self.folder / f"{name}{_SUFFIX}"

    def _mac(self, digest: str, engine: str, body: bytes | memoryview) -> bytes:
        mac = hmac.new(self.key, f"executor/artifact/1\0{digest}\0{engine}\0".encode(), "sha256")
        mac.update(body)
        return mac.digest()

    def get(self, digest: str, engine: str) -> Product | None:
        """What was made of this module by this engine, if it is here and holds."""
        path = self._path(digest, engine)
        try:
            with self._opened() as folder:
                data = _read(path.name, folder)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            data = b""
        body = memoryview(data)[_MAC_BYTES:]
        # Nothing is looked at before the MAC holds.
        if not hmac.compare_digest(data[:_MAC_BYTES], self._mac(digest, engine, body)):
            self._forged(path)
            return None
        (size,) = _SIZE.unpack_from(body)
        described = frames.decode(bytes(body[_SIZE.size : _SIZE.size + size]))
        assert isinstance(described, Compiled)
        code = body[_SIZE.size + size :]
        artifact = Artifact(sealed_memfd("artifact", code), len(code), described.engine)
        return Product(artifact, described.imports, described.exports, described.memory_min)

    def put(self, digest: str, engine: str, product: Product) -> None:
        """Keep what was made. A disk that is full or read-only costs a compilation, no more."""
        described = frames.encode(Compiled(
            product.imports, product.exports, product.memory_min, product.artifact.size,
            product.artifact.engine,
        ))[4:]  # fmt: skip
        code = os.pread(product.artifact.fd, product.artifact.size, 0)
        body = _SIZE.pack(len(described)) + described + code
        path = self._path(digest, engine)
        part = path.with_suffix(f".{secrets.token_hex(8)}").name
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened() as folder:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(part, flags, 0o600, dir_fd=folder)
                try:
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(self._mac(digest, engine, body))
                        file.write(body)
                    os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    os.unlink(part, dir_fd=folder)
                    raise
                self._evict(folder)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The folder, for as long as it is used. Raises `OSError` when it is not ours alone."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _shared(os.fstat(descriptor)):
                raise NotADirectoryError(errno.ENOTDIR, "others can write it")
            yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, folder: int) -> None:
        """Until what is left fits: parts that nobody writes any more, then what is oldest."""
        now = time.time()
        found: list[tuple[bool, float, int, str]] = []
        for name in filter(_OURS.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                wanted = name.endswith(_SUFFIX) or now - status.st_mtime <= _PART_S
                found.append((wanted, status.st_mtime, status.st_size, name))
        total = 0
        for wanted, _, size, name in sorted(found, reverse=True):
            total += size
            if total > self.max_bytes or not wanted:
                with contextlib.suppress(OSError):  # another executor was faster, or it is a folder
                    os.unlink(name, dir_fd=folder)

    def _forged(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        self.on_forged(path.name)


def _shared(status: os.stat_result) -> bool:
    """Whether anybody but this user and root can put something into this folder."""
    return status.st_uid not in {0, os.geteuid()} or bool(status.st_mode & 0o022)


def _read(name: str, folder: int) -> bytes:
    """The bytes of a file of ours, b"" if it is none; it counts as used now. Raises `OSError`."""
    # A pipe would block the open, a link would lead elsewhere.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        mine = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        # Larger than any artifact: no MAC is worth reading it.
        if not mine or status.st_size > _FILE_MAX:
            return b""
        with contextlib.suppress(OSError):
            os.utime(descriptor)  # used now
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Refuse a cache that others can fill. Errors  `config.invalid`."""
    with contextlib.suppress(OSError):
        if _shared(folder.stat()):
            raise ExecutorError("config.invalid", f"others can write into `{folder}`",
                                hint=f"chmod 700 {folder}, or name another `sandbox.cache_folder`"
                                )  # fmt: skip


def read_key(path: Path) -> bytes:
    """The host's key, 64 hex digits in a file of mode 0600.

    Errors  `config.missing`, `config.invalid`.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ExecutorError("config.invalid", f"others can use the key in `{path}`",
                                hint=f"chmod 600 {path}")  # fmt: skip
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise ExecutorError("config.missing", f"no file `{path}`",
                            hint="run `executor init`, or unset `host.cache_key_file`"
                            ) from None  # fmt: skip
    except (OSError, ValueError):
        key = b""
    if len(key) != _MAC_BYTES:
        raise ExecutorError("config.invalid", f"`{path}` does not hold 64 hex digits")
    return key
