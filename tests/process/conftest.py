"""Fixtures of the process tier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.puppet import Puppets


@pytest.fixture
def puppets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Puppets]:
    """Sandboxes in the hands of the test."""
    made = Puppets(monkeypatch)
    yield made
    made.close()
