"""`python -I -m executor.sandbox (sandbox SOCKET_FD STATUS_FD | compiler SOCKET_FD)`."""

from __future__ import annotations

import sys

from executor.sandbox.main import main

if __name__ == "__main__":
    main(sys.argv[1:])
