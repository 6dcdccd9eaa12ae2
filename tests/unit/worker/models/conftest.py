"""Fixtures only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.model_server import ModelServer, run_model_server


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with run_model_server() as running:
        yield running
