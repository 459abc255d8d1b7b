"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Unset (0 or empty) means the scenario's own value, smaller with `quick`."""

    quick: bool = False
    rounds: int = 0
    tasks: int = 0
    seconds: float = 0.0  # of each measured part of `throughput`
    minutes: float = 0.0  # of soak
    seed: int = 1
    peers: tuple[str, ...] | None = None  # None: all
    compare: str = ""  # a revision

    def pick(self, given: float, full: float, quick: float) -> float:
        """What was asked for, else the scenario's own value."""
        return given or (quick if self.quick else full)

    def count(self, given: int, full: int, quick: int) -> int:
        """The same of a whole number."""
        return given or (quick if self.quick else full)
