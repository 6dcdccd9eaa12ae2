"""Makes real calls through a gateway, and says of each what came back. Ends with status 1 at the first that fails.

Its arguments are the address of the gateway and an API key. The catalog must have the servers `time` and `exec`, as
servers.yaml has.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing

from client import Session, connect

DEADLINE_S = 300.0
"""For everything: the first call may wait until a worker has its containers."""


class VerifyError(Exception):
    """What did not come back as it should."""


def check(what: str, holds: bool, got: object) -> None:
    """Raises VerifyError: if it does not hold."""
    if not holds:
        raise VerifyError(f"{what}: got {got}")
    print(f"verify: {what}: ok", flush=True)


async def answers(session: Session) -> None:
    result = await session.run("time", "get_current_time", {"timezone": "UTC"})
    check("a tool answers", result.succeeded and "UTC" in result.text, result)


async def streams(session: Session) -> None:
    """Output must come while the command runs: the second line is written after the first was read."""
    seen = []
    command = "echo one; sleep 2; echo two"
    async with aclosing(session.call("exec", "run", {"command": command})) as events:
        async for event in events:
            if event.type == "output":
                seen.append((event.time_ms, event.output_bytes))
    check("output is streamed", b"".join(text for _, text in seen) == b"one\ntwo\n", seen)
    check("output comes as it is written", seen[-1][0] - seen[0][0] >= 1_000, seen)


async def cancels(session: Session) -> None:
    async with aclosing(session.call("exec", "run", {"command": "sleep 120"})) as events:
        async for event in events:
            if event.type == "started":
                await session.cancel(event.job)
    check("a running call is cancelled", event.data.get("outcome") == "cancelled", event)


async def resumes(url: str, key: str) -> None:
    """A call that was made over one connection is followed over another one, from its first event on."""
    job = ""
    async with connect(url, key=key, keep=True) as first:
        async with aclosing(first.call("exec", "run", {"command": "echo before; sleep 2; echo after"})) as events:
            async for event in events:
                if event.type == "output":
                    job = event.job
                    break
        session = first.id
    async with connect(url, key=key, session=session) as second:
        async with aclosing(second.follow(job)) as events:
            output = b"".join([event.output_bytes async for event in events])
        await second.close()
    check("a session is resumed", output == b"before\nafter\n", output)


async def main(url: str, key: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async with connect(url, key=key) as session:
            await answers(session)
            await streams(session)
            await cancels(session)
        await resumes(url, key)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
