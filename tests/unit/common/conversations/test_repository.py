"""Conversations on a real store: every message once, in order, whoever writes, merges or dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from string import ascii_lowercase
from typing import Any

import pytest

from common import subjects
from common.buckets import Change
from common.bus import Bus
from common.conversations import merging
from common.conversations.codec import Format, encode, joined
from common.conversations.message import Part, pack_message
from common.conversations.parts import content_of
from common.conversations.repository import Conversations
from common.conversations.segments import HEAD, SEALED_BYTES, TAIL_BYTES, key_of
from common.errors import ConversationMoved, ConversationUnreadable, Fenced, TooFewMessages
from common.streams import CONVERSATIONS_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import open_bus, until
from tests.unit.common.conversations.rig import (
    DEADLINE_S,
    SESSION,
    TTL_S,
    assert_complete,
    conversations_on,
    everything,
    filled,
    message,
    numbers,
)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with open_bus(nats_server) as opened:
        yield opened


@pytest.fixture
async def conversations(bus: Bus) -> AsyncIterator[Conversations]:
    async with conversations_on(bus) as opened:
        yield opened


async def keys(bus: Bus) -> list[str]:
    """Of the segments that are there."""
    found = await bus.keys(CONVERSATIONS_BUCKET, subjects.segments_of_session(SESSION))
    found.remove(key_of(SESSION, HEAD))
    return sorted([key for key in found if (await bus.get(CONVERSATIONS_BUCKET, key)).value is not None])


async def overwritten(bus: Bus, first: int, value: bytes) -> int:
    """Revision of the segment that has another value now."""
    key = key_of(SESSION, first)
    entry = await bus.get(CONVERSATIONS_BUCKET, key)
    return await bus.replace(CONVERSATIONS_BUCKET, key, value, entry.revision)


# --- adding and reading -----------------------------------------------------------------------------------


async def test_what_was_added_is_read_in_order_with_its_numbers(conversations: Conversations) -> None:
    """Across many segments, merged ones among them."""
    await filled(conversations, 300, size=1_500)
    await conversations.merged()

    assert_complete(await everything(conversations), 300, size=1_500)
    stats = await conversations.stats(SESSION)
    assert stats.messages == 300
    assert stats.segments >= 300 * 1_500 // SEALED_BYTES
    assert stats.stored_bytes < stats.plain_bytes / 4
    assert stats.faults == []


async def test_a_page_holds_what_was_asked_for_and_says_whether_there_is_more(conversations: Conversations) -> None:
    """Pages that follow one another are the conversation."""
    await filled(conversations, 100, size=1_500)
    await conversations.merged()

    after, seen = 0, []
    while True:
        page = await conversations.messages(SESSION, after=after, limit=30)
        seen += numbers(page)
        assert page.faults == []
        if not page.more:
            break
        after = seen[-1]
    assert seen == list(range(1, 101))
    assert numbers(await conversations.messages(SESSION, after=99)) == [100]
    assert numbers(await conversations.messages(SESSION, after=100)) == []


async def test_a_page_reads_only_the_segments_that_it_is_made_of(
    conversations: Conversations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And looks at the places of those that were merged into one of them, which the store remembers for a while."""
    await filled(conversations, 400, size=3_000)
    await conversations.merged()
    read = 0
    get = Bus.get

    async def counted(self: Bus, bucket: str, key: str) -> Any:
        nonlocal read
        read += 1
        return await get(self, bucket, key)

    monkeypatch.setattr(Bus, "get", counted)
    assert len(await conversations._segments.firsts(SESSION)) > 30
    read = 0
    page = await conversations.messages(SESSION, after=200, limit=5)

    assert numbers(page) == [201, 202, 203, 204, 205]
    assert read <= 2 * SEALED_BYTES // TAIL_BYTES


async def test_a_conversation_that_never_was_is_empty(conversations: Conversations) -> None:
    """No error: a session that has said nothing has an empty one."""
    page = await conversations.messages(SESSION)

    assert (page.messages, page.faults, page.more) == ([], [], False)
    assert await conversations.last_number(SESSION) == 0
    assert (await conversations.stats(SESSION)).segments == 0


async def test_an_append_writes_one_value_which_stays_small(bus: Bus, conversations: Conversations) -> None:
    """Whatever the length of the conversation: the tail is at most one message above its bound."""
    size = 1_000
    await filled(conversations, 200, size=size)
    tail = await conversations._segments.read(SESSION, (await conversations._segments.firsts(SESSION))[-1])

    assert not isinstance(tail, int)
    assert len(tail.plain) < TAIL_BYTES + 2 * size


async def test_messages_that_are_added_together_are_numbered_together(conversations: Conversations) -> None:
    """Also where one value could not hold them."""
    together = [message(number, 50_000) for number in range(1, 21)]
    assert await conversations.append(SESSION, together, ttl_s=TTL_S) == 20
    await conversations.merged()

    assert_complete(await everything(conversations), 20, size=50_000)


@pytest.mark.parametrize("size", [60, 9_000], ids=["one segment", "many segments"])
async def test_two_writers_at_once_lose_nothing(bus: Bus, nats_server: NatsServer, size: int) -> None:
    """Each in a process of its own, as far as the store can tell, and each keeps its order."""
    each = 60

    async def write(writer: Conversations, name: str) -> None:
        for number in range(each):
            await writer.append(SESSION, [message(number, size) | {"by": name}], ttl_s=TTL_S)

    async with open_bus(nats_server) as other, conversations_on(bus) as one, conversations_on(other) as two:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(write(one, "one"))
            tasks.create_task(write(two, "two"))
        await one.merged()
        await two.merged()
        found = await everything(one)

    assert [item.number for item in found] == list(range(1, 2 * each + 1))
    for name in ("one", "two"):
        mine = [item.message for item in found if item.message["by"] == name]
        assert mine == [message(number, size) | {"by": name} for number in range(each)]


async def test_a_writer_that_knows_an_older_state_is_told_so(conversations: Conversations) -> None:
    """`expected` is how many messages it has seen."""
    await filled(conversations, 2)
    assert await conversations.append(SESSION, [message(3)], ttl_s=TTL_S, expected=2) == 3
    with pytest.raises(ConversationMoved) as moved:
        await conversations.append(SESSION, [message(3)], ttl_s=TTL_S, expected=2)

    assert (moved.value.data["expected"], moved.value.data["last"]) == (2, 3)
    assert_complete(await everything(conversations), 3)


@pytest.mark.parametrize("changes", [1, 2], ids=["one value", "two in one step"])
async def test_a_write_whose_answer_was_lost_is_repeated_without_effect(bus: Bus, changes: int) -> None:
    """The store is asked once more under the same id: the revision is the first one's."""
    written = [Change(key_of(SESSION, number), b"\x00", 0, TTL_S) for number in range(changes)]
    first = await bus.replace_all(CONVERSATIONS_BUCKET, written, "an-id")

    assert await bus.replace_all(CONVERSATIONS_BUCKET, written, "an-id") == first
    with pytest.raises(Fenced):
        await bus.replace_all(CONVERSATIONS_BUCKET, written, "another-id")


# --- merging ----------------------------------------------------------------------------------------------


async def test_readers_see_every_message_once_while_segments_are_merged(bus: Bus, conversations: Conversations) -> None:
    """Reading goes on all the while; so does writing."""
    reads = 0

    async def read() -> None:
        nonlocal reads
        while True:
            found = await everything(conversations)
            assert [item.number for item in found] == list(range(1, len(found) + 1))
            reads += 1

    async with asyncio.TaskGroup() as tasks:
        reading = [tasks.create_task(read()) for _ in range(2)]
        await filled(conversations, 250, size=3_000)
        await conversations.merged()
        await until(lambda: reads > 5)
        for task in reading:
            task.cancel()

    assert_complete(await everything(conversations), 250, size=3_000)
    assert len(await keys(bus)) <= 250 * 3_000 // (SEALED_BYTES // 2) + 2


async def test_a_merge_that_is_cut_off_leaves_what_was_there(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its changes are stored in one step: the store refuses all of them where one segment is another by now."""
    stale = Conversations(bus, compress=True)
    async with conversations_on(bus) as conversations:
        monkeypatch.setattr(merging.Merging, "want", lambda *args, **kwargs: None)
        await filled(conversations, 40, size=3_000)
        before = await keys(bus)
        run = await stale._merging._run(SESSION)
        assert len(run) > 1
        last = await bus.get(CONVERSATIONS_BUCKET, key_of(SESSION, run[-1].first))
        encoded = stale._segments.encoded

        async def meanwhile(plain: bytes, level: int) -> bytes:
            assert last.value is not None
            await bus.replace(CONVERSATIONS_BUCKET, last.key, last.value, last.revision)
            return await encoded(plain, level)

        monkeypatch.setattr(stale._segments, "encoded", meanwhile)
        with pytest.raises(Fenced):
            await stale._merging.merge(SESSION, TTL_S)

        assert await keys(bus) == before
        assert_complete(await everything(conversations), 40, size=3_000)


async def test_a_segment_that_is_in_a_merged_one_too_is_not_read_twice(bus: Bus) -> None:
    """As a store may show it that answers from a replica that is behind."""
    await bus.replace(CONVERSATIONS_BUCKET, key_of(SESSION, 1), value_of(1, 30), 0)
    await bus.replace(CONVERSATIONS_BUCKET, key_of(SESSION, 11), value_of(11, 20), 0)
    await bus.replace(CONVERSATIONS_BUCKET, key_of(SESSION, 21), value_of(21, 40), 0)
    async with conversations_on(bus) as conversations:
        assert_complete(await everything(conversations), 40)


def value_of(first: int, last: int) -> bytes:
    return encode(joined([pack_message(message(number)) for number in range(first, last + 1)]), None, None)


# --- taking back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 57, 119, 120])
async def test_what_was_truncated_is_gone_and_the_conversation_goes_on_from_there(
    bus: Bus, conversations: Conversations, after: int
) -> None:
    """Across segments; another writer that knew the old end finds the new one."""
    await filled(conversations, 120, size=3_000)
    await conversations.merged()
    async with conversations_on(bus) as other:
        await other.append(SESSION, [message(121, 3_000)], ttl_s=TTL_S)
        await conversations.truncate(SESSION, after, ttl_s=TTL_S)
        assert_complete(await everything(other), after, size=3_000)
        assert await other.append(SESSION, [message(after + 1, 3_000)], ttl_s=TTL_S) == after + 1
        assert await conversations.append(SESSION, [message(after + 2, 3_000)], ttl_s=TTL_S) == after + 2

    assert_complete(await everything(conversations), after + 2, size=3_000)


async def test_a_deleted_conversation_is_empty_and_can_begin_anew(bus: Bus, conversations: Conversations) -> None:
    """Another session's stays."""
    await conversations.append("other", [message(1)], ttl_s=TTL_S)
    await filled(conversations, 60, size=3_000)
    await conversations.delete(SESSION)

    assert await everything(conversations) == []
    await filled(conversations, 2)
    assert_complete(await everything(conversations), 2)
    assert numbers(await conversations.messages("other")) == [1]


async def test_a_conversation_is_forgotten_when_its_time_is_over(bus: Bus, conversations: Conversations) -> None:
    """Per session: another one, kept for longer, is still there."""
    await conversations.append("brief", [message(1)], ttl_s=1)
    await conversations.append(SESSION, [message(1)], ttl_s=TTL_S)
    async with asyncio.timeout(DEADLINE_S):
        while (await conversations.messages("brief")).messages:
            await asyncio.sleep(0.1)

    assert_complete(await everything(conversations), 1)


async def test_old_segments_of_a_conversation_in_use_are_kept_with_it(bus: Bus, conversations: Conversations) -> None:
    """They are written again before the store forgets them."""
    await filled(conversations, 30, size=3_000)
    await conversations.merged()
    first = (await bus.get(CONVERSATIONS_BUCKET, key_of(SESSION, 1))).revision
    await conversations._merging.renew(SESSION, TTL_S)
    assert (await bus.get(CONVERSATIONS_BUCKET, key_of(SESSION, 1))).revision == first
    await conversations._merging.renew(SESSION, 0.001)

    assert (await bus.get(CONVERSATIONS_BUCKET, key_of(SESSION, 1))).revision > first


# --- formats ----------------------------------------------------------------------------------------------


async def test_compression_is_switched_at_any_time_without_a_migration(bus: Bus) -> None:
    """All forms stand mixed in one conversation and are read alike."""
    seen: set[int] = set()
    for round_ in range(4):
        async with conversations_on(bus, compress=round_ % 2 == 0) as conversations:
            await filled(conversations, 25, size=3_000, first=1 + 25 * round_)
            await conversations.merged()
            seen |= set((await conversations.stats(SESSION)).formats)
            assert_complete(await everything(conversations), 25 * (round_ + 1), size=3_000)

    assert {Format.PLAIN, Format.ZSTD} <= seen


async def test_a_trained_dictionary_is_used_from_then_on_and_makes_values_smaller(bus: Bus) -> None:
    """What was written without it, or with another, stays readable."""
    random = Random(1)
    words = ["".join(random.choices(ascii_lowercase, k=8)) for _ in range(300)]

    def varied() -> dict[str, Any]:
        return {"role": "user", "content": " ".join(random.choices(words, k=12))}

    some = [varied() for _ in range(8)]
    async with conversations_on(bus) as conversations:
        await conversations.append(SESSION, some, ttl_s=TTL_S)
        before = (await conversations.stats(SESSION)).stored_bytes
        samples = [pack_message(varied()) for _ in range(2_000)]
        assert await conversations.dictionaries.train(samples) == 1
        await conversations.truncate(SESSION, 0, ttl_s=TTL_S)
        await conversations.append(SESSION, some, ttl_s=TTL_S)
        after = await conversations.stats(SESSION)
        assert await conversations.dictionaries.train(samples[::-1]) == 2
        await filled(conversations, 40, size=3_000, first=9)
    async with conversations_on(bus) as fresh:
        found = await everything(fresh)

    assert set(after.formats) == {Format.ZSTD_DICTIONARY}
    assert after.stored_bytes < before
    assert [each.message for each in found] == [*some, *(message(number, 3_000) for number in range(9, 49))]


async def test_a_dictionary_is_trained_from_what_is_stored(bus: Bus, conversations: Conversations) -> None:
    """Of all sessions; with too little stored it says so, and nothing changes."""
    with pytest.raises(TooFewMessages):
        await conversations.train_dictionary()
    random = Random(2)
    words = ["".join(random.choices(ascii_lowercase, k=8)) for _ in range(300)]
    for session in range(20):
        said = [{"role": "user", "content": " ".join(random.choices(words, k=60))} for _ in range(40)]
        await conversations.append(f"s{session}", said, ttl_s=TTL_S)
    await overwritten(bus, 1, b"\x09")

    assert await conversations.train_dictionary() == 1
    await conversations.append("new", [{"role": "user", "content": " ".join(words[:30])}], ttl_s=TTL_S)
    assert set((await conversations.stats("new")).formats) == {Format.ZSTD_DICTIONARY}


async def test_large_parts_are_kept_in_the_object_store(bus: Bus, conversations: Conversations) -> None:
    """An image, a tool's result of several megabytes, and a message that is large all over."""
    image, text = bytes(range(256)) * 4_000, "line of a log\n" * 200_000
    many = {"role": "tool", "content": [{"type": "text", "text": "x" * 10_000 + str(n)} for n in range(60)]}
    await conversations.append(
        SESSION,
        [
            {"role": "user", "content": [{"type": "image", "data": image}]},
            {"role": "tool", "content": [{"type": "text", "text": text}]},
            many,
        ],
        ttl_s=TTL_S,
    )
    await conversations.merged()
    first, second, third = (each.message for each in await everything(conversations))
    assert isinstance(first["content"][0]["data"], Part)
    assert await content_of(bus, first["content"][0]["data"]) == image
    assert second["content"][0]["text"].start == text[:200]
    assert await content_of(bus, second["content"][0]["text"]) == text
    assert await content_of(bus, third["packed"]) == pack_message(many)
    assert (await conversations.stats(SESSION)).stored_bytes < 2_000


# --- what cannot be read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (encode(joined([pack_message(message(1, 3_000))]), 3, None)[:-9], "corrupt zstd"),
        (b"\x02\x28\xb5\x2f\xfd" + b"\0" * 20, "does not say how large"),
        (b"\x09whatever", "unknown format byte 9"),
        (b"\x00not an array", "not an array"),
        (b"\x01no gzip", "corrupt gzip"),
    ],
    ids=["corrupt", "no size", "unknown format", "no array", "no gzip"],
)
async def test_the_readable_rest_comes_with_an_error_that_names_key_and_revision(
    bus: Bus, conversations: Conversations, value: bytes, reason: str
) -> None:
    """Nothing is overwritten."""
    await filled(conversations, 300, size=3_000)
    await conversations.merged()
    firsts = [int(key.rsplit(".", 1)[-1]) for key in await keys(bus)]
    broken = firsts[1]
    revision = await overwritten(bus, broken, value)
    page = await conversations.messages(SESSION, limit=1_000)

    assert numbers(page) == [*range(1, broken), *range(firsts[2], 301)]
    [fault] = page.faults
    assert (fault.key, fault.revision) == (key_of(SESSION, broken), revision)
    assert reason in fault.reason
    assert (await bus.get(CONVERSATIONS_BUCKET, fault.key)).value == value


async def test_a_missing_segment_is_told_and_the_rest_is_read(bus: Bus, conversations: Conversations) -> None:
    """In the middle: where the next one begins tells that it is missing."""
    await filled(conversations, 300, size=3_000)
    await conversations.merged()
    firsts = [int(key.rsplit(".", 1)[-1]) for key in await keys(bus)]
    await bus.delete(CONVERSATIONS_BUCKET, key_of(SESSION, firsts[1]))
    page = await conversations.messages(SESSION, limit=1_000)

    assert numbers(page) == [*range(1, firsts[1]), *range(firsts[2], 301)]
    [fault] = page.faults
    assert (fault.key, fault.revision) == (key_of(SESSION, firsts[1]), 0)
    assert f"{firsts[1]} to {firsts[2] - 1} are missing" in fault.reason


async def test_a_missing_dictionary_is_told_and_the_rest_is_read(bus: Bus) -> None:
    """It is named."""
    async with conversations_on(bus) as conversations:
        await filled(conversations, 30, size=3_000)
        await conversations.dictionaries.train([pack_message(message(number)) for number in range(2_000)])
        await filled(conversations, 60, size=3_000, first=31)
        await conversations.merged()
    await bus.delete(CONVERSATIONS_BUCKET, "_dictionary.0000000001")
    async with conversations_on(bus) as fresh:
        page = await fresh.messages(SESSION, limit=1_000)

    assert page.faults
    assert all("dictionary 1 is not there" in fault.reason for fault in page.faults)


async def test_behind_a_tail_that_cannot_be_read_nothing_is_added(bus: Bus) -> None:
    """Its number of messages is not known; truncating it away mends the conversation."""
    async with conversations_on(bus) as conversations:
        await filled(conversations, 3)
    revision = await overwritten(bus, 1, b"\x07")
    async with conversations_on(bus) as fresh:
        with pytest.raises(ConversationUnreadable) as refused:
            await fresh.append(SESSION, [message(4)], ttl_s=TTL_S)
        assert refused.value.data["key"] == key_of(SESSION, 1)
        assert refused.value.data["revision"] == revision
        assert (await bus.get(CONVERSATIONS_BUCKET, key_of(SESSION, 1))).value == b"\x07"
        await fresh.delete(SESSION)
        await filled(fresh, 1)
