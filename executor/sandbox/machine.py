"""What an attempt needs of the engine: the seam between the host functions and wasmtime.

`linker.py` implements it over wasmtime's public API. A faster implementation goes beside it and
changes neither the host functions nor the rules of an outcome.
"""

from __future__ import annotations

from typing import Final, Protocol

# Toolchains emit one table; each may hold `table_elements` of 8 bytes.
TABLES_MAX: Final = 4

Facts = tuple[tuple[str, str], ...]


class Ended(Exception):  # noqa: N818 - an ending of an attempt, not an error of ours
    """The attempt ends here, with a code that a sandbox may claim."""

    def __init__(self, code: str, message: str = "", facts: Facts = ()) -> None:
        self.code = code
        self.message = message
        self.facts = facts
        super().__init__(code)


class Bug(Exception):  # noqa: N818 - the process ends with it; nobody recovers
    """Our own side met a state it does not know: the process must end, no guest is to blame."""


class Machine(Protocol):
    """One fresh Store and its Instance. Guest code runs in `instantiate` and `call` alone."""

    def instantiate(self) -> None:
        """Run the start section. Errors  `Ended`, `BadPointer`, or what a host call raised."""

    def call(self, name: str) -> int | None:
        """Call an export without parameters. Errors  as `instantiate`."""

    def locate(self) -> tuple[int, int]:
        """Address and size of the exported memory, now."""

    def size(self) -> int:
        """Bytes of the exported memory, now; it only ever grows."""

    def fuel(self) -> int:
        """Fuel left."""

    def set_fuel(self, fuel: int) -> None:
        """Replace the fuel left."""

    def close(self) -> None:
        """Free the Store; never called from inside a host call, which would be a crash."""


class Program(Protocol):
    """A module prepared with the functions it was granted."""

    @property
    def memory_min(self) -> int:
        """Bytes of memory it asks for at the start."""

    @property
    def initializes(self) -> bool:
        """Whether it exports `_initialize`."""

    def machine(self, *, fuel: int, memory_bytes: int, table_elements: int) -> Machine:
        """A fresh Store with these limits."""
