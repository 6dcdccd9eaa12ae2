"""What is asked of an engine. Everything else is tested with a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from worker.docker_engine import open_docker_engine


@pytest.mark.parametrize(
    ("oldest", "spoken"),
    [("1.12", "1.41"), ("1.44", "1.44"), ("1.100", "1.100")],
)
async def test_the_oldest_version_of_the_api_is_spoken_that_both_sides_know(
    tmp_path: Path, oldest: str, spoken: str
) -> None:
    """Docker 29 refuses what Docker 20.10 speaks; there is one of them on this machine, so both are played."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        known = {"ApiVersion": "1.150", "MinAPIVersion": oldest}
        if request.path.endswith("/containers/json"):
            return web.json_response([])
        return web.json_response(known if request.path == "/version" else {"ID": "engine"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
        async with open_docker_engine(f"unix://{tmp_path / 'engine.sock'}") as engine:
            assert await engine.identity() == "engine"
            await engine.containers({})
    finally:
        await runner.cleanup()

    assert asked == ["/version", f"/v{spoken}/info", f"/v{spoken}/containers/json"]
