"""`executor:random@1`, served in the sandbox: bytes from the kernel's random source.

No generator of our own and no seed: nothing that survives an attempt could be learnt by the next.
"""

from __future__ import annotations

import os


def fill(length: int) -> bytes:
    """`length` random bytes. A locked sandbox can still ask: it is a call, not a file."""
    return os.urandom(length)
