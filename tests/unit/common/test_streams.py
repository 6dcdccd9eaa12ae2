"""What is made on a store, and what is refused to be made over."""

from __future__ import annotations

import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from common import subjects
from common.bus import Bus
from common.errors import StreamConflict
from common.streams import ARTIFACTS, DEAD_LETTERS, JOBS, SESSIONS, Limits, stream_configs
from tests.nats_server import NatsServer
from tests.unit.common.bus_rig import SERVER, flushed, make_job, open_bus

BUCKETS = ["servers", "tools", "leases", "sessions", "idempotency", "roles", "conversations"]
NAMES = [JOBS, SESSIONS, DEAD_LETTERS, ARTIFACTS, *(f"KV_{bucket}" for bucket in BUCKETS)]


def jetstream(bus: Bus) -> JetStreamContext:
    return bus.client.jetstream()


async def made(bus: Bus) -> dict[str, str]:
    """Every stream of the store, with the moment of its making."""
    return {str(info.config.name): str(info.created) for info in await jetstream(bus).streams_info()}


@pytest.mark.parametrize("config", stream_configs(Limits()), ids=lambda config: str(config.name))
def test_every_stream_is_bounded_and_kept_on_disk(config: StreamConfig) -> None:
    """In bytes, whatever else bounds it."""
    assert config.max_bytes
    assert config.storage == "file"
    assert len(config.name or "") < 32


def test_the_numbers_of_a_production_store_can_be_asked_for() -> None:
    """Every stream has as many copies as NATS_REPLICAS says."""
    assert {config.num_replicas for config in stream_configs(Limits(replicas=3))} == {3}


async def test_what_is_missing_is_made_and_what_is_there_is_left(bus: Bus, nats_server: NatsServer) -> None:
    """A second process finds the first one's streams, its messages and its epoch."""
    first = await made(bus)
    await bus.put("servers", "a", b"1")
    await bus.ensure()
    async with open_bus(nats_server) as other:
        assert sorted(first) == sorted(NAMES)
        assert await made(other) == first
        assert other.epoch == bus.epoch != ""
        assert (await other.get("servers", "a")).value == b"1"


async def test_one_missing_stream_is_made_beside_the_others(bus: Bus) -> None:
    """An operator may have removed it."""
    before = await made(bus)
    await jetstream(bus).delete_stream(DEAD_LETTERS)
    await bus.ensure()
    after = await made(bus)

    assert sorted(after) == sorted(before)
    assert {name for name in NAMES if after[name] != before[name]} == {DEAD_LETTERS}


async def test_the_epoch_changes_when_the_events_are_numbered_anew(bus: Bus) -> None:
    """A client's number from before means nothing then."""
    before = bus.epoch
    await jetstream(bus).delete_stream(SESSIONS)
    await bus.ensure()

    assert bus.epoch != before


@pytest.mark.parametrize(
    ("setting", "stream", "field", "had", "wanted"),
    [
        ({"queue_limit": 5}, JOBS, "max_msgs_per_subject", "100", "5"),
        ({"resume_window_s": 60.0}, SESSIONS, "max_age", "3600.0", "60.0"),
        ({"session_ttl_s": 60.0}, "KV_sessions", "max_age", "86400.0", "60.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_stream_with_other_settings_is_a_conflict_that_says_which(
    bus: Bus, nats_server: NatsServer, setting: dict[str, float], stream: str, field: str, had: str, wanted: str
) -> None:
    """It is not changed under those who use it: the process that asks for something else does not start."""
    with pytest.raises(StreamConflict) as refused:
        async with open_bus(nats_server, **setting):
            pass

    assert f"stream {stream} exists with other settings" in refused.value.message
    assert f"{field} is {had}, wanted {wanted}" in refused.value.message
    await bus.ensure()


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_that_somebody_else_made_differently_is_a_conflict(nats_server: NatsServer, name: str) -> None:
    """Any setting that we state counts; here its size."""
    async with open_bus(nats_server) as bus:
        js = jetstream(bus)
        config = next(config for config in stream_configs(bus.limits) if config.name == name)
        await js.delete_stream(name)
        await js.add_stream(config.evolve(max_bytes=1024 * 1024))

        with pytest.raises(StreamConflict, match=rf"stream {name} .* max_bytes is 1048576, wanted {config.max_bytes}"):
            await bus.ensure()


async def test_the_smallest_settings_can_be_made_and_found_again(nats_server: NatsServer) -> None:
    """What the settings allow the store takes, and reports back as it was asked for."""
    smallest = {"queue_limit": 1, "resume_window_s": 1, "session_ttl_s": 1, "lease_ttl_s": 1, "ack_wait_s": 1}
    smallest |= {"artifact_ttl_s": 1, "artifact_store_bytes": 1024**2}
    async with open_bus(nats_server, **smallest) as bus:
        await bus.ensure()

        assert sorted(await made(bus)) == sorted(NAMES)


async def test_a_servers_limit_is_brought_up_to_date_and_its_place_in_the_queue_is_kept(bus: Bus) -> None:
    """The durable consumer stays the one that it was."""
    await bus.ensure_server(SERVER, 5)
    for _ in range(2):
        await bus.enqueue_job(make_job())
    async with bus.consume_jobs(SERVER, lambda: 1) as consumer:
        delivery = await anext(aiter(consumer))
        await delivery.ack()
        await flushed(bus)
    await bus.ensure_server(SERVER, 6)
    info = await jetstream(bus).consumer_info(JOBS, SERVER)

    assert info.config.max_ack_pending == 6
    assert info.config.filter_subject == subjects.jobs_of_server(SERVER)
    assert info.delivered is not None
    assert info.delivered.stream_seq >= 1


async def test_a_removed_server_leaves_its_jobs_to_the_one_that_comes_back(bus: Bus) -> None:
    """Removing it twice is no error."""
    await bus.ensure_server(SERVER, 5)
    job = make_job()
    await bus.enqueue_job(job)
    await bus.remove_server(SERVER)
    await bus.remove_server(SERVER)
    assert await bus.queue_depth(SERVER) == (0, 0)
    await bus.ensure_server(SERVER, 5)

    assert await bus.queue_depth(SERVER) == (1, 0)
    assert await bus.unfinished_jobs(job.session) == [job.id]


async def test_other_numbers_of_copies_are_no_conflict(bus: Bus, nats_server: NatsServer) -> None:
    """They are changed while services run, in either order; too few of them are told by `common.durability`."""
    async with open_bus(nats_server, nats_replicas=3) as other:
        assert await made(other) == await made(bus)
