"""What a conversation takes in the store, and what an append costs, against the old way: all of it, gzip'd, each time.

`python -m benchmarks.conversations --json` calls the tools of `servers.yaml` for real, makes conversations of their
results and of texts of this machine (benchmarks/corpus.py), trains a dictionary on one part and measures another.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

from benchmarks import command
from benchmarks.corpus import Conversation, chats, texts, tool_heavy, tool_results
from client import connect as connect_client
from common.bus import Bus, connect
from common.conversations.repository import Conversations
from common.settings import BusSettings
from common.streams import CONVERSATIONS_BUCKET, bucket_stream
from standalone.nats_server import run_nats_server
from standalone.settings import StandaloneSettings
from standalone.stack import run_stack

ROOT = Path(__file__).parent.parent
TTL_S = 3_600.0
CHATS, TOOL_HEAVY = 120, 40
FEW, MANY = 10, 10_000
TIMED = 400
REWRITES = 5
OLD_KEY = "old.whole"


class LoopWatch:
    """The longest call of an event loop, in CPU time of its thread: what else the machine does is none of ours."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        run = asyncio.Handle._run
        watching = True

        def timed(handle: Any) -> None:
            begun = thread_time()
            run(handle)
            if watching:  # the call that leaves the watch goes on with what is not watched
                self.longest_s = max(self.longest_s, thread_time() - begun)

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - mypy does not let a method be assigned
        try:
            yield
        finally:
            watching = False
            setattr(asyncio.Handle, "_run", run)  # noqa: B010


def as_json(conversation: Conversation) -> bytes:
    return json.dumps(conversation, ensure_ascii=False, separators=(",", ":")).encode()


async def corpus(folder: Path) -> tuple[list[Any], list[str]]:
    settings = StandaloneSettings(port=0, state_dir=folder, servers_file=ROOT / "servers.yaml", log_level="warning")
    async with run_stack(settings) as stack, connect_client(stack.url) as session:
        return await tool_results(session), texts()


async def stored_bytes(bus: Bus) -> int:
    """All that the bucket takes: keys, headers, dictionaries and markers of deleted keys too."""
    info = await bus.client.jetstream().stream_info(bucket_stream(CONVERSATIONS_BUCKET))
    return int(info.state.bytes)


async def store(conversations: Conversations, said: dict[str, Conversation]) -> None:
    """Message by message, as they come."""
    for session, messages in said.items():
        for message in messages:
            await conversations.append(session, [message], ttl_s=TTL_S)
    await conversations.merged()


async def timed_appends(conversations: Conversations, session: str, messages: Iterator[Any], count: int) -> list[float]:
    """Microseconds of each."""
    took = []
    for message in islice(messages, count):
        begun = perf_counter()
        await conversations.append(session, [message], ttl_s=TTL_S)
        took.append((perf_counter() - begun) * 1e6)
    return took


def endless(said: list[Conversation]) -> Iterator[Any]:
    while True:
        for conversation in said:
            yield from conversation


async def costs(conversations: Conversations, said: list[Conversation]) -> dict[str, int]:
    """Of an append to a short conversation and to a long one, by turns."""
    supply = endless(said)
    for start in range(0, MANY - TIMED // 2, 100):
        await conversations.append("long", list(islice(supply, min(100, MANY - TIMED // 2 - start))), ttl_s=TTL_S)
    await conversations.merged()
    short, long = [], []
    for number in range(TIMED // FEW):
        session = f"short-{number}"
        await conversations.append(session, list(islice(supply, FEW // 2)), ttl_s=TTL_S)
        short += await timed_appends(conversations, session, supply, FEW)
        long += await timed_appends(conversations, "long", supply, FEW)
    await conversations.merged()
    whole = [item async for item in conversations.export("long")]
    if [getattr(item, "number", 0) for item in whole] != list(range(1, len(whole) + 1)):
        raise SystemExit("messages of the long conversation are missing")
    return {"append_us_at_10": round(median(short)), "append_us_at_10000": round(median(long))}


async def whole_rewrite_us(bus: Bus, said: list[Conversation]) -> int:
    """The old way, at 10,000 messages: the whole as JSON, gzip'd, written anew."""
    whole = list(islice(endless(said), MANY))
    took, revision = [], 0
    for _ in range(REWRITES):
        begun = perf_counter()
        value = gzip.compress(as_json(whole), 6)
        revision = await bus.replace(CONVERSATIONS_BUCKET, OLD_KEY, value, revision)
        took.append((perf_counter() - begun) * 1e6)
    return round(median(took))


async def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as name:
        folder = Path(name)
        results, paragraphs = await corpus(folder / "stack")
        # Every other one: what is measured has other results and other texts than what the dictionary is trained on.
        training = [*chats(paragraphs[::2], CHATS, 1), *tool_heavy(results[::2], paragraphs[::2], TOOL_HEAVY, 2)]
        chat = {f"c{n}": said for n, said in enumerate(chats(paragraphs[1::2], CHATS, 3))}
        tools = {f"t{n}": said for n, said in enumerate(tool_heavy(results[1::2], paragraphs[1::2], TOOL_HEAVY, 4))}
        watch = LoopWatch()
        (folder / "nats").mkdir()
        async with (
            run_nats_server(folder / "nats") as nats,
            connect(BusSettings(nats_url=nats.url), "benchmark") as bus,
            asyncio.TaskGroup() as tasks,
        ):
            conversations = Conversations(bus, compress=True)
            merging = tasks.create_task(conversations.run())
            await store(conversations, {f"train{n}": said for n, said in enumerate(training)})
            await conversations.train_dictionary()
            for number in range(len(training)):
                subject = f"$KV.{CONVERSATIONS_BUCKET}.train{number}.>"
                await bus.client.jetstream().purge_stream(bucket_stream(CONVERSATIONS_BUCKET), subject=subject)
            dictionary_bytes = await stored_bytes(bus)
            with watch.watching():
                await store(conversations, chat)
                chat_bytes = await stored_bytes(bus)
                await store(conversations, tools)
                all_bytes = await stored_bytes(bus)
                figures = await costs(conversations, list(chat.values()))
            rewrite = await whole_rewrite_us(bus, list(chat.values()))
            merging.cancel()
    everything = [*chat.values(), *tools.values()]
    json_bytes = sum(len(as_json(said)) for said in everything)
    gzip_bytes = sum(len(gzip.compress(as_json(said), 6)) for said in everything)
    tools_json = sum(len(as_json(said)) for said in tools.values())
    return {
        "json_bytes": json_bytes,
        "gzip_bytes": gzip_bytes,
        "stored_bytes": all_bytes,
        "dictionary_bytes": dictionary_bytes,
        "saved_vs_json": round(1 - all_bytes / json_bytes, 3),
        "saved_vs_json_tools": round(1 - (all_bytes - chat_bytes) / tools_json, 3),
        "saved_vs_gzip": round(1 - all_bytes / gzip_bytes, 3),
        "append_us_at_10": figures["append_us_at_10"],
        "append_us_at_10000": figures["append_us_at_10000"],
        "append_ratio": round(figures["append_us_at_10000"] / figures["append_us_at_10"], 2),
        "whole_rewrite_us_at_10000": rewrite,
        "max_loop_block_ms": round(watch.longest_s * 1000, 2),
    }


def main() -> None:
    parser = command.parser("conversations", __doc__)
    options = parser.parse_args()
    figures = asyncio.run(measure())  # not uvloop, whose calls cannot be timed
    command.print_figures(figures, options)


if __name__ == "__main__":
    main()
