"""Fixtures of the fault tier: those of the nats tier."""

from __future__ import annotations

from tests.nats.conftest import pytest_runtest_makereport, server

__all__ = ["pytest_runtest_makereport", "server"]
