"""Fixtures of the documentation tests."""

from __future__ import annotations

import pytest

from tests.e2e import command


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago, for a page that names one."""
    return command.free_port()
