"""Frozen values that are cheap to make: immutable for the type checker, plain slots at run time.

A frozen dataclass sets each field through `object.__setattr__`, which costs as much as a call: a
task makes some twenty values with a hundred fields on its way, a tenth of the supervisor's time.
What never reaches a hostile hand (a sandbox has no reference to any of it) needs no guard at run
time; mypy refuses every assignment. Values that are made rarely stay frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as light_dataclass
else:
    from dataclasses import dataclass

    def light_dataclass(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """As `dataclasses.dataclass`, but frozen in the types alone; equal values hash equally."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["light_dataclass"]
