"""The artifact cache: what was compiled once on this host is not compiled again.

An artifact is native code, and the engine loads an altered one without a word. So each file begins
with a MAC under a key that never leaves this host, over what it was made from and all its bytes; it
is checked on every read, into a memory file that is then sealed. A file that does not hold is a
miss, is removed and is reported. The cache may be deleted at any time.

    MAC 32 · size of the description 4 · description (a Compiled frame) · native code
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import struct
from collections.abc import Callable
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
            size = path.stat().st_size
            # Larger than any artifact: no MAC is worth reading it.
            data = path.read_bytes() if size <= _FILE_MAX else b""
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
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
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
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
        part = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._mac(digest, engine, body))
                file.write(body)
            part.replace(path)
            self._evict()
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _evict(self) -> None:
        found = sorted(
            ((entry.stat(), entry) for entry in self.folder.glob(f"*{_SUFFIX}")),
            key=lambda pair: pair[0].st_mtime_ns, reverse=True,
        )  # fmt: skip
        total = 0
        for status, entry in found:
            total += status.st_size
            if total > self.max_bytes:
                entry.unlink(missing_ok=True)

    def _forged(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        self.on_forged(path.name)


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
