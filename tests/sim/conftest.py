"""Options of the simulation."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--sim-runs N --sim-seed S` where this folder is named on the command line."""
    parser.addoption("--sim-runs", type=int, default=1_000, help="histories of the simulation")
    parser.addoption("--sim-seed", type=int, default=1, help="seed of the first history")
