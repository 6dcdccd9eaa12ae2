"""Dead letters in a real store: stored once, with the job's history; read newest first; removed."""

from __future__ import annotations

from typing import Any

import pytest

import common.dead_letters
from common import headers, subjects
from common.bus import Bus
from common.dead_letters import GivenUp, StoredLetter
from common.errors import Fenced
from common.schema import Event, Job, SessionRecord, now_ms
from common.streams import DEAD_LETTERS, JOBS, SESSIONS_BUCKET
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import SERVER, SESSION, counted, make_event, make_job, open_bus

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GONE = {"type": "server_gone", "message": "exit code 3", "stderr": "no memory"}
ERROR = {"type": "too_many_attempts", "message": "given up after 2 attempts", "cause": GONE}


def given_up(job: Job, seq: int = 1, **fields: Any) -> GivenUp:
    facts = {"error": ERROR, "seq": seq, "job": job.id, "deliveries": 4, "traceparent": TRACEPARENT, **fields}
    return GivenUp(subject=subjects.jobs(job.server, job.session), payload=job.encode(), **facts)


def poison(seq: int = 1, payload: bytes = b"\xc1", **fields: Any) -> GivenUp:
    facts = {"error": {"type": "undecodable_message", "message": "not msgpack"}, "seq": seq, **fields}
    return GivenUp(subject=subjects.jobs(SERVER, SESSION), payload=payload, **facts)


async def run_twice(bus: Bus, job: Job) -> None:
    """The events of two attempts, of which the second has not told its end."""
    started: dict[str, Any] = {"worker": "w-1", "engine": "e", "container": "c", "image_digest": "sha256:1"}
    seq = await bus.publish_event(make_event(job.id, "started", **started), expected=0)
    seq = await bus.publish_event(make_event(job.id, "output", text="x"), expected=seq)
    seq = await bus.publish_event(make_event(job.id, "retrying", error=GONE), expected=seq)
    await bus.publish_event(make_event(job.id, "started", attempt=2, **started), expected=seq)


async def all_letters(bus: Bus, **options: Any) -> list[StoredLetter]:
    page = await bus.letters(lambda stored: stored, limit=1_000, **options)
    assert page.before is None
    return page.items


async def numbers(bus: Bus, **options: Any) -> list[int]:
    return [stored.number for stored in await all_letters(bus, **options)]


# --- storing ----------------------------------------------------------------------------------------------------


async def test_a_letter_tells_the_job_its_attempts_and_why_it_was_given_up(bus: Bus) -> None:
    """All that an operator needs stands in it: the events of the job go with the resume window."""
    job = make_job(tenant="acme", tool="read")
    await run_twice(bus, job)
    await bus.dead_letter(given_up(job))
    [(stored)] = await all_letters(bus)
    letter = stored.letter

    assert (letter.job, letter.tenant, letter.server, letter.session, letter.tool) == (
        job.id, "acme", SERVER, SESSION, "read",
    )  # fmt: skip
    assert (letter.reason, letter.error, letter.deliveries) == ("given up after 2 attempts", ERROR, 4)
    assert (letter.stderr, letter.image_digest, letter.traceparent) == ("no memory", "sha256:1", TRACEPARENT)
    assert [(each["attempt"], each["worker"], each["error"]) for each in letter.attempts] == [
        (1, "w-1", GONE),
        (2, "w-1", GONE),
    ]
    assert (letter.subject, letter.payload, letter.size) == (
        subjects.jobs(SERVER, SESSION), job.encode(), len(job.encode()),
    )  # fmt: skip
    assert await bus.letter(stored.number) == letter


async def test_a_letter_is_stored_once_for_a_job_and_attempt(bus: Bus, nats_server: NatsServer) -> None:
    """A worker that died between the letter and the end of the job writes it again, whichever and whenever."""
    dead = counted("dead_letters_total", server=SERVER)
    job = make_job()
    await run_twice(bus, job)
    await bus.dead_letter(given_up(job))
    async with open_bus(nats_server) as other:
        await other.dead_letter(given_up(job, deliveries=5))

    assert len(await all_letters(bus)) == 1
    assert counted("dead_letters_total", server=SERVER) == dead + 1


async def test_the_store_knows_a_letter_again_for_as_long_as_it_keeps_any(bus: Bus) -> None:
    """The job may come again after days of silence."""
    config = (await bus.client.jetstream().stream_info(DEAD_LETTERS)).config

    assert config.duplicate_window == config.max_age == 7 * 24 * 3600


async def test_the_history_of_a_redriven_job_goes_on_with_its_own_attempts(bus: Bus) -> None:
    """A second letter has all of it."""
    first = make_job()
    await run_twice(bus, first)
    await bus.dead_letter(given_up(first))
    [before] = await all_letters(bus)
    again = make_job(redrive_of=first.id, attempts_before=before.letter.attempts)
    assert again.first_attempt == 3
    await bus.publish_event(make_event(again.id, "started", attempt=3, worker="w-2"), expected=0)
    await bus.dead_letter(given_up(again))
    letter = (await all_letters(bus))[0].letter

    assert [(each["attempt"], each["worker"]) for each in letter.attempts] == [(1, "w-1"), (2, "w-1"), (3, "w-2")]
    assert (letter.redrive_of, letter.image_digest) == (first.id, "sha256:1")


async def test_an_unreadable_message_is_a_letter_of_the_tenant_whose_session_it_came_in(bus: Bus) -> None:
    """Where the session is not known any more, it is nobody's."""
    await bus.dead_letter(poison(1))
    record = SessionRecord(tenant="acme", created_ms=now_ms())
    await bus.put(SESSIONS_BUCKET, SESSION, record.encode())
    await bus.dead_letter(poison(2))
    await bus.put(SESSIONS_BUCKET, SESSION, b"\xc1")
    await bus.dead_letter(poison(3))

    assert [stored.letter.tenant for stored in await all_letters(bus)] == ["", "acme", ""]


async def test_an_unreadable_message_is_one_letter_and_hides_no_other(bus: Bus) -> None:
    """Its job id is anybody's word: what tells messages apart is their number and their bytes."""
    for each in (poison(1, job="j1"), poison(1, job="j1"), poison(2, job="j1"), poison(2, b"\xc1\xc1"), poison(3)):
        await bus.dead_letter(each)

    assert len(await all_letters(bus)) == 4


async def test_a_job_under_another_ones_subject_is_an_unreadable_message(bus: Bus) -> None:
    """What it says of its tenant is not believed."""
    forged = make_job(session="elsewhere", tenant="acme")
    await bus.dead_letter(poison(1, forged.encode()))
    [stored] = await all_letters(bus)

    assert (stored.letter.tenant, stored.letter.session, stored.letter.tool) == ("", SESSION, "")


async def test_the_largest_message_that_the_store_takes_has_a_letter(bus: Bus) -> None:
    """Cut, as a letter tells more than the message; its size tells that it was."""
    largest = b"\xc1" * (bus.max_payload - 200)
    await bus.dead_letter(poison(1, largest))
    [stored] = await all_letters(bus)

    assert (len(stored.letter.payload) < len(largest), stored.letter.size) == (True, len(largest))


async def test_a_job_that_is_given_up_has_a_letter_and_then_its_end(bus: Bus) -> None:
    """Behind its newest event, and counted among the jobs that ended."""
    ended = counted("jobs_ended_total", server=SERVER, outcome="dead_lettered")
    job = make_job()
    await bus.enqueue_job(job)
    await bus.give_up(given_up(job, error={"type": "unknown_server", "message": "removed"}))
    last = await bus.last_event(SESSION, job.id)

    assert len(await all_letters(bus)) == 1
    assert last is not None
    assert (last.event.type, last.event.attempt) == ("result", 0)
    assert last.event.data == {"outcome": "dead_lettered", "error": {"type": "unknown_server", "message": "removed"}}
    assert counted("jobs_ended_total", server=SERVER, outcome="dead_lettered") == ended + 1


async def test_giving_up_twice_is_one_letter_and_one_end(bus: Bus, nats_server: NatsServer) -> None:
    """By whichever gateway."""
    job = make_job()
    await bus.enqueue_job(job)
    await bus.give_up(given_up(job))
    async with open_bus(nats_server) as other:
        await other.give_up(given_up(job))
    events = [stored.event.type async for stored in bus.replay_session(SESSION, 0)]

    assert len(await all_letters(bus)) == 1
    assert events == ["queued", "result"]


async def test_a_job_that_somebody_starts_meanwhile_is_not_ended(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence decides; the caller leaves the message where it is."""
    job = make_job()
    await bus.enqueue_job(job)
    unfenced = bus.publish_event

    async def overtaken(event: Event, *, expected: int, msg_id: str | None = None) -> int:
        await unfenced(make_event(job.id, "started"), expected=0)
        return await unfenced(event, expected=expected, msg_id=msg_id)

    monkeypatch.setattr(bus, "publish_event", overtaken)
    with pytest.raises(Fenced):
        await bus.give_up(given_up(job))
    last = await bus.last_event(SESSION, job.id)

    assert last is not None
    assert last.event.type == "started"


# --- reading ----------------------------------------------------------------------------------------------------


async def store_letters(bus: Bus, count: int, server: str = SERVER) -> list[int]:
    for _ in range(count):
        await bus.dead_letter(given_up(make_job(server=server)))
    return await numbers(bus, server=server)


async def test_letters_come_newest_first_and_page_by_page(bus: Bus) -> None:
    """Each once: a page goes on below the last one's end."""
    await store_letters(bus, 5)
    seen: list[int] = []
    before: int | None = None
    while True:
        page = await bus.letters(lambda stored: stored.number, limit=2, before=before)
        assert len(page.items) <= 2
        seen += page.items
        before = page.before
        if before is None:
            break

    assert seen == [5, 4, 3, 2, 1]


async def test_letters_of_one_server_are_listed_apart(bus: Bus) -> None:
    """Also of a server whose name begins alike."""
    await store_letters(bus, 2)
    await store_letters(bus, 1, "srv2")
    await store_letters(bus, 1)

    assert await numbers(bus) == [4, 3, 2, 1]
    assert await numbers(bus, server=SERVER) == [4, 2, 1]
    assert await numbers(bus, server="none") == []


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_empty_stream_or_the_end_of_it_is_an_empty_page(bus: Bus, count: int) -> None:
    """Also when everything was deleted, or the number is beyond what there is."""
    for number in await store_letters(bus, count):
        assert await bus.delete_letter(number)

    assert await numbers(bus) == []
    assert await numbers(bus, before=1) == []
    assert await numbers(bus, before=10**17) == []


async def test_a_page_looks_through_a_bounded_number_of_letters(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds nothing of the caller's says where to go on, and the last one ends."""
    await store_letters(bus, 9)
    monkeypatch.setattr(common.dead_letters, "STRETCH", 2)
    monkeypatch.setattr(common.dead_letters, "STRETCHES", 2)
    befores = []
    before: int | None = None
    found: list[int] = []
    while True:
        page = await bus.letters(lambda s: s.number if s.number == 1 else None, limit=5, before=before)
        found += page.items
        before = page.before
        befores.append(before)
        if before is None:
            break

    assert (befores, found) == ([6, 2, None], [1])


async def test_a_letter_that_this_version_cannot_read_is_shown_as_its_bytes(bus: Bus) -> None:
    """Or nobody could ever get rid of it."""
    js = bus.client.jetstream()
    await js.publish(subjects.dead(SERVER, SESSION), b"\xc1 of a later version")
    [stored] = await all_letters(bus)

    assert (stored.letter.server, stored.letter.session, stored.letter.tenant) == (SERVER, SESSION, "")
    assert stored.letter.payload == b"\xc1 of a later version"
    assert await bus.letter(1) == stored.letter
    assert await bus.delete_letter(1)


async def test_a_letter_is_deleted_once(bus: Bus) -> None:
    """The second time there is none."""
    await store_letters(bus, 2)

    assert [await bus.delete_letter(1), await bus.delete_letter(1), await bus.delete_letter(99)] == [True, False, False]
    assert await bus.letter(1) is None
    assert await numbers(bus) == [2]


async def test_a_stream_that_is_made_anew_has_another_identity(bus: Bus) -> None:
    """Its numbers start again, and must not be taken for those of before."""
    before = await bus.letters_identity()
    assert await bus.letters_identity() == before
    await bus.client.jetstream().delete_stream(DEAD_LETTERS)
    await bus.ensure()

    assert await bus.letters_identity() != before


async def test_a_redriven_job_is_queued_with_what_it_was_made_of(bus: Bus) -> None:
    """And is found by its id alone."""
    job = make_job(redrive_of="j1")
    accepted = await bus.enqueue_job(job)
    found = await bus.queued_anywhere(job.id)

    assert found is not None
    assert (found.seq, found.event.session, found.event.data["redrive_of"]) == (accepted.seq, SESSION, "j1")
    assert await bus.queued_anywhere("nosuch") is None
    message = await bus.client.jetstream().get_last_msg(JOBS, subjects.jobs(SERVER, SESSION))
    assert (message.headers or {})[headers.MSG_ID] == job.id
