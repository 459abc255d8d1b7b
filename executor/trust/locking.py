"""One changing command at a time on a folder that people share."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from executor.errors import ExecutorError

# For another command to end; it may ask somebody for a passphrase meanwhile.
_WAIT_S: Final = 10.0
_LOOK_S: Final = 0.05


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder itself: no file of it travels with it, and none can be a link.

    Errors  `config.invalid` while another command holds it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _WAIT_S
        while not _lock(fd):
            if time.monotonic() >= until:
                raise ExecutorError(
                    "config.invalid", f"another command changes `{folder}`",
                    hint="wait until it has ended, then say this again",
                )  # fmt: skip
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
