"""Fixtures of the fault tier: those of the nats tier. Soak tests are skipped unless asked for."""

from __future__ import annotations

import pytest

from tests.nats.conftest import pytest_runtest_makereport, server

__all__ = ["pytest_runtest_makereport", "server"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skipped, not deselected: a run without them still judges the tables of threats."""
    if "soak" in str(config.option.markexpr):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="soak: run with -m soak"))
