"""`python -m executor.sandbox.wat IN OUT`: the text form of Wasm becomes bytes.

For builds and tests, never for a task: what tasks run arrives as bytes. Exit 65: the text is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import wasmtime

EXIT_REFUSED: Final = 65  # EX_DATAERR


def main(source: str, target: str) -> int:
    """Convert one file; the converter's words go to stderr."""
    try:
        module = wasmtime.wat2wasm(Path(source).read_text(encoding="utf-8"))
    except (wasmtime.WasmtimeError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    Path(target).write_bytes(bytes(module))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
