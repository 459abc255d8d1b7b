"""Extism: its own ABI, the echo of its plug-in kits, a fresh plug-in a call and a reused one.

python -m benchmarks.peers.in_extism SECONDS ECHO, a file of Wasm
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from extism import Plugin
from extism.extism import CompiledPlugin  # not among the names that the package offers

from benchmarks.peers.blocks import PAYLOAD, report


def main(seconds: str, echo: str) -> None:
    """Measure both ways."""
    code = Path(echo).read_bytes()
    compiled = CompiledPlugin({"wasm": [{"data": code}], "memory": {"max_pages": 16}})
    kept = Plugin(compiled)

    def fresh() -> bytes:
        with Plugin(compiled) as plugin:
            return bytes(plugin.call("run", PAYLOAD))

    def reused() -> bytes:
        return bytes(kept.call("run", PAYLOAD))

    ways: dict[str, Callable[[], bytes]] = {"Extism": fresh, "Extism, reused plug-in": reused}
    for way in ways.values():
        if way() != PAYLOAD:
            raise RuntimeError("no echo")
    report({name: ("1 KB echo", way, 1) for name, way in ways.items()}, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
