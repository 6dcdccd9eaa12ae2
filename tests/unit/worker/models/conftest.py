"""Fixtures only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.model_server import ModelServer, run_model_server


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    """A provider whose script each test uses up."""
    async with run_model_server() as running:
        yield running
        assert running.left_over == 0
