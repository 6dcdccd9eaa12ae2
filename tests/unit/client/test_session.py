"""Sessions against a gateway double: what a caller sees, also when gateways and connections go."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from client import ConnectionLost, Event, Position, ProtocolFault, Refused, Session, Unreachable, connect
from client.reader import READ_AHEAD
from tests.unit.client.gateway_double import SESSION, GatewayDouble, Store, run_gateway

DEADLINE_S = 10.0


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def gateway(store: Store) -> AsyncIterator[GatewayDouble]:
    async with run_gateway(store) as double:
        yield double


@pytest.fixture
async def session(gateway: GatewayDouble) -> AsyncIterator[Session]:
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url) as opened:
        yield opened


class Listening:
    """A call that is iterated in a task of its own."""

    def __init__(self, group: asyncio.TaskGroup, events: Any) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()
        self.task = group.create_task(self._listen(events))

    async def _listen(self, events: Any) -> None:
        async with aclosing(events):
            async for event in events:
                self.events.append(event)
                self._more.set()

    async def until(self, count: int) -> list[Event]:
        while len(self.events) < count:
            self._more.clear()
            await self._more.wait()
        return self.events


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def numbers(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


async def accept(gateway: GatewayDouble, job: str) -> None:
    """Take the next call as `job`."""
    request = await gateway.held.get()
    queued = await gateway.store.emit(job, "queued", server=request.params["server"], tool=request.params["name"])
    await request.answer(job=job, seq=queued["seq"])


async def test_a_call_yields_its_events_in_order_and_ends_with_the_result(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """The iterator starts at `queued` and ends by itself after the terminal event."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("time", "now", {"zone": "UTC"}))
        await accept(gateway, "job1")
        await store.emit("job1", "started", worker="w", container="c")
        await store.emit("job1", "result", outcome="succeeded", result={"content": []})

    assert types(listening.events) == ["queued", "started", "result"]
    assert numbers(listening.events) == sorted(numbers(listening.events))


async def test_a_call_sends_server_tool_arguments_and_meta(session: Session, gateway: GatewayDouble) -> None:
    """The request is the one of docs/protocol.md."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(session.run("time", "now", {"zone": "UTC"}, meta={"k": 1}))
        request = await gateway.held.get()
        task.cancel()

    assert request.params == {
        "session": SESSION,
        "server": "time",
        "name": "now",
        "arguments": {"zone": "UTC"},
        "_meta": {"k": 1},
    }


async def test_run_returns_how_the_job_ended(session: Session, gateway: GatewayDouble, store: Store) -> None:
    """The terminal event comes back as a JobResult, with text and timings."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(session.run("time", "now"))
        await accept(gateway, "job1")
        content = [{"type": "text", "text": "noon"}]
        await store.emit(
            "job1", "result", outcome="succeeded", result={"content": content}, timings={"queue_ms": 2, "tool_ms": 3}
        )

    ended = running.result()
    assert ended.succeeded
    assert (ended.job, ended.text, ended.timings["tool_ms"]) == ("job1", "noon", 3)


async def test_events_that_come_before_the_answer_are_not_lost(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """A gateway may send the first events of a job, even all of them, before it answers the call."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("time", "now"))
        request = await gateway.held.get()
        queued = await store.emit("job1", "queued", server="time", tool="now")
        await store.emit("job1", "started")
        await store.emit("job1", "result", outcome="succeeded")
        await request.answer(job="job1", seq=queued["seq"])

    assert types(listening.events) == ["queued", "started", "result"]


async def test_events_of_other_jobs_are_not_seen(session: Session, gateway: GatewayDouble, store: Store) -> None:
    """Another client of the session may run jobs of its own."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("time", "now"))
        request = await gateway.held.get()
        await store.emit("foreign", "queued", server="time", tool="now")
        queued = await store.emit("job1", "queued", server="time", tool="now")
        await request.answer(job="job1", seq=queued["seq"])
        await store.emit("foreign", "result", outcome="failed")
        await store.emit("job1", "result", outcome="succeeded")

    assert {event.job for event in listening.events} == {"job1"}


async def test_a_running_call_goes_on_after_a_lost_connection(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """The client reconnects, asks for what it missed, and the iterator sees neither a gap nor a repeat."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("exec", "run"))
        await accept(gateway, "job1")
        await store.emit("job1", "output", text="1")
        await listening.until(2)
        last = listening.events[-1].seq
        gateway.drop()
        store.add("job1", "output", text="2")
        store.add("job1", "output", text="3")
        await listening.until(4)
        await store.emit("job1", "result", outcome="succeeded")

    assert [event.data.get("text") for event in listening.events] == [None, "1", "2", "3", None]
    assert numbers(listening.events) == [event["seq"] for event in store.events]
    assert gateway.opens[1] == {"session": SESSION, "epoch": "e1", "seq": last}


async def test_a_client_that_was_parted_from_comes_back_and_says_why_it_was(
    session: Session, gateway: GatewayDouble, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Code 4008: it read nothing for long. It resumes as after any lost connection."""
    caplog.set_level("INFO", "client")
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("exec", "run"))
        await accept(gateway, "job1")
        await listening.until(1)
        await gateway.close(4008, "nothing was read for 30 s: resume from your last event")
        store.add("job1", "output", text="missed")
        store.add("job1", "result", outcome="succeeded")

    assert types(listening.events) == ["queued", "output", "result"]
    assert gateway.opens[1] == {"session": SESSION, "epoch": "e1", "seq": listening.events[0].seq}
    assert "closed the connection: 4008 nothing was read for 30 s: resume from your last event; trying" in caplog.text


async def test_an_event_that_comes_twice_is_yielded_once(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """A gateway may send an event both live and in the replay."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("exec", "run"))
        await accept(gateway, "job1")
        await gateway.send_event(await store.emit("job1", "output", text="once"))
        await store.emit("job1", "result", outcome="succeeded")

    assert types(listening.events) == ["queued", "output", "result"]


async def test_the_next_gateway_takes_over_when_one_is_gone(store: Store) -> None:
    """With several addresses a session goes on at whichever gateway answers."""
    async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
        second = await stack.enter_async_context(run_gateway(store))
        first_stack = await stack.enter_async_context(AsyncExitStack())
        first = await first_stack.enter_async_context(run_gateway(store))
        session = await stack.enter_async_context(connect([first.url, second.url]))
        async with asyncio.TaskGroup() as group:
            listening = Listening(group, session.call("exec", "run"))
            await accept(first, "job1")
            await listening.until(1)
            first.drop()
            await first_stack.aclose()
            store.add("job1", "result", outcome="succeeded")

        assert types(listening.events) == ["queued", "result"]
        assert second.opens[0]["session"] == SESSION


async def test_a_call_that_lost_its_answer_is_not_sent_again(gateway: GatewayDouble) -> None:
    """It might run twice: ConnectionLost says that it was on its way."""
    async with asyncio.timeout(DEADLINE_S), connect(gateway.url, session=SESSION) as session:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_failure_of(session.run("git", "commit")))
            await gateway.held.get()
            gateway.drop()

        failure = running.result()
        assert isinstance(failure, ConnectionLost)
        assert failure.sent
        assert gateway.requests.count("tools/call") == 1


async def test_a_call_that_lost_its_answer_goes_on_if_events_tell_its_job(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """In a session of its own, the one new job of the one unanswered call must be that call's."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("git", "commit"))
        await gateway.held.get()
        store.add("job1", "queued", server="git", tool="commit")
        gateway.drop()
        store.add("job1", "result", outcome="succeeded")

    assert types(listening.events) == ["queued", "result"]
    assert gateway.requests.count("tools/call") == 1


async def test_a_redriven_job_is_not_taken_for_a_call_that_lost_its_answer(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """An operator may redrive a job of the same tool at that moment."""
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("git", "commit"))
        await gateway.held.get()
        store.add("job0", "queued", server="git", tool="commit", redrive_of="old")
        store.add("job1", "queued", server="git", tool="commit")
        gateway.drop()
        store.add("job1", "result", outcome="succeeded")

    assert [(event.job, event.type) for event in listening.events] == [("job1", "queued"), ("job1", "result")]


async def test_two_calls_that_lost_their_answers_are_not_mixed_up(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """With two unanswered calls of one tool nothing tells which job is whose."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_failure_of(session.run("git", "commit"))) for _ in range(2)]
        await gateway.held.get()
        await gateway.held.get()
        store.add("job1", "queued", server="git", tool="commit")
        gateway.drop()

    assert [type(each.result()) for each in running] == [ConnectionLost, ConnectionLost]


async def test_a_question_that_lost_its_answer_is_asked_again(session: Session, gateway: GatewayDouble) -> None:
    """Reading twice does no harm, so the caller does not notice."""
    gateway.hold.add("servers/list")
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(session.servers())
        await gateway.held.get()
        gateway.drop()
        await (await gateway.held.get()).answer(servers=[{"name": "time"}])

    assert asking.result() == [{"name": "time"}]


async def test_calls_fail_when_no_gateway_comes_back_in_time(store: Store) -> None:
    """After `reconnect_s` the iterator raises ConnectionLost, after the events that did come."""
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(run_gateway(store))
        async with connect(gateway.url, reconnect_s=0.2) as session:
            seen: list[Event] = []

            async def listen() -> None:
                async for event in session.call("exec", "run"):
                    seen.append(event)

            async with asyncio.TaskGroup() as group:
                listening = group.create_task(_failure_of(listen()))
                await accept(gateway, "job1")
                gateway.drop()
                await stack.aclose()

            assert isinstance(listening.result(), ConnectionLost)
            assert types(seen) in ([], ["queued"])
            with pytest.raises(ConnectionLost, match="did not come back"):
                await session.servers()


async def test_a_gap_is_bridged_by_asking_for_the_job(session: Session, gateway: GatewayDouble, store: Store) -> None:
    """Where the store no longer has what was missed, the terminal event comes from job/get."""
    gateway.answers["job/get"] = {
        "job": "job1",
        "state": "result",
        "attempt": 1,
        "seq": 2000,
        "server": "exec",
        "tool": "run",
        "outcome": "succeeded",
        "result": {"content": [{"type": "text", "text": "done"}]},
        "timings": {"tool_ms": 7},
    }
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("exec", "run"))
        await accept(gateway, "job1")
        await listening.until(1)
        store.lost_up_to = 1000
        gateway.drop()

    assert types(listening.events) == ["queued", "result"]
    assert listening.events[-1].data["timings"] == {"tool_ms": 7}


async def test_a_job_that_the_store_forgot_is_reported(session: Session, gateway: GatewayDouble, store: Store) -> None:
    """A wiped store knows no job: the call ends with the gateway's refusal instead of waiting for ever."""
    gateway.hold.add("job/get")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_failure_of(session.run("exec", "run")))
        await accept(gateway, "job1")
        store.restart("e2")
        gateway.drop()
        while (request := await gateway.held.get()).method != "job/get":
            continue
        await request.refuse(404, "unknown_job", "unknown job 'job1' in this session")

    failure = running.result()
    assert isinstance(failure, Refused)
    assert failure.type == "unknown_job"


async def test_calls_after_a_wiped_store_are_numbered_anew(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """Numbers of another epoch start low; they are not taken for repeats."""
    for _ in range(50):
        await store.emit("foreign", "output")
    gateway.answers["servers/list"] = {"servers": []}
    store.restart("e2")
    gateway.drop()
    await session.servers()  # answered over the next connection
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.call("exec", "run"))
        await accept(gateway, "job1")
        await store.emit("job1", "result", outcome="succeeded")

    assert types(listening.events) == ["queued", "result"]


async def test_a_slow_reader_neither_stalls_others_nor_loses_anything(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """More than READ_AHEAD unread events: the rest comes from the store, at the reader's pace."""
    count = READ_AHEAD * 3
    slow = session.call("exec", "run")
    async with asyncio.TaskGroup() as group, aclosing(slow):
        first = group.create_task(anext(slow))
        await accept(gateway, "slow")
        await first
        for number in range(count):
            await store.emit("slow", "output", text=str(number))
        await store.emit("slow", "result", outcome="succeeded")
        quick = group.create_task(session.run("time", "now"))
        await accept(gateway, "quick")
        await store.emit("quick", "result", outcome="succeeded")
        assert (await quick).succeeded
        texts = [event.data.get("text") async for event in slow if event.type == "output"]

    assert texts == [str(number) for number in range(count)]
    assert len(gateway.opens) == 2


async def test_a_followed_job_is_read_from_its_first_event(
    session: Session, gateway: GatewayDouble, store: Store
) -> None:
    """Another process can take up a job by its id."""
    store.add("job1", "queued", server="exec", tool="run")
    store.add("other", "queued", server="exec", tool="run")
    store.add("job1", "result", outcome="succeeded")

    events = [event async for event in session.follow("job1")]

    assert types(events) == ["queued", "result"]
    assert {event.job for event in events} == {"job1"}


async def test_events_of_the_session_can_be_read_from_a_position(session: Session, store: Store) -> None:
    """All jobs, from one number on, then live."""
    first = store.add("job1", "queued", server="exec", tool="run")
    store.add("job1", "started")
    async with asyncio.TaskGroup() as group:
        listening = Listening(group, session.events(after=Position("e1", first["seq"])))
        await listening.until(1)
        await store.emit("job2", "queued", server="exec", tool="run")
        await listening.until(2)
        listening.task.cancel()

    assert [(event.job, event.type) for event in listening.events] == [("job1", "started"), ("job2", "queued")]


async def test_a_refusal_carries_type_message_and_facts(session: Session, gateway: GatewayDouble) -> None:
    """The gateway's error is one exception, told apart by `type`."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_failure_of(session.run("time", "now")))
        request = await gateway.held.get()
        await request.refuse(429, "queue_full", "too many", retryable=True, limit=100, retry_after_s=1.5)

    refused = running.result()
    assert isinstance(refused, Refused)
    assert (refused.code, refused.type, refused.message) == (429, "queue_full", "too many")
    assert refused.retryable
    assert refused.retry_after_s == 1.5
    assert refused.data["limit"] == 100


async def test_a_refusal_without_an_id_goes_to_the_request_of_that_size(
    session: Session, gateway: GatewayDouble
) -> None:
    """A gateway does not read a frame that is too large as far as its id; it tells its size."""
    async with asyncio.TaskGroup() as group:
        large = group.create_task(_failure_of(session.run("exec", "run", {"command": "x" * 5000})))
        small = group.create_task(_failure_of(session.run("exec", "run")))
        requests = [await gateway.held.get(), await gateway.held.get()]
        by_size = sorted(requests, key=lambda request: request.size)
        await by_size[1].refuse(413, "payload_too_large", "too large", id=None, size=by_size[1].size)
        await by_size[0].refuse(404, "unknown_server", "unknown server")

    assert [getattr(each.result(), "type", None) for each in (large, small)] == ["payload_too_large", "unknown_server"]


async def test_a_frame_that_makes_the_gateway_hang_up_is_refused(session: Session, gateway: GatewayDouble) -> None:
    """Close code 1009 is about the largest request, which is not sent again; others go on."""
    gateway.answers["servers/list"] = {"servers": []}

    failure = await _failure_of(session.run("exec", "run", {"command": "x" * 2_000_000}))

    assert isinstance(failure, Refused)
    assert failure.type == "payload_too_large"
    assert await session.servers() == []


async def test_arguments_that_json_cannot_say_fail_before_they_are_sent(
    session: Session, gateway: GatewayDouble
) -> None:
    """The gateway could not tell whose request it was that it cannot read."""
    with pytest.raises(ValueError, match="JSON"):
        await session.run("exec", "run", {"command": float("nan")})

    assert "tools/call" not in gateway.requests


async def test_a_wrong_key_is_refused(gateway: GatewayDouble) -> None:
    """HTTP 401 at the upgrade is a refusal and not a connection problem."""
    with pytest.raises(Refused, match="API key") as refused:
        async with connect(gateway.url, key="wrong"):
            pass

    assert refused.value.type == "unauthenticated"


async def test_an_address_without_a_gateway_is_unreachable() -> None:
    """Each address is tried once; the error names the last."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unreachable, match="no gateway answers at ws://"):
            async with connect(url):
                pass


async def test_a_session_that_is_unknown_after_a_reconnect_ends_its_calls(
    session: Session, gateway: GatewayDouble
) -> None:
    """No gateway will ever serve it again, so nothing is tried again."""

    async def refuse(request: Any) -> None:
        await request.refuse(404, "unknown_session", "unknown session")

    gateway.open = refuse  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_failure_of(session.run("exec", "run")))
        await accept(gateway, "job1")
        gateway.drop()

    failure = running.result()
    assert isinstance(failure, Refused)
    assert failure.type == "unknown_session"


async def test_a_session_of_its_own_is_closed_on_leaving(gateway: GatewayDouble) -> None:
    """So that its containers do not wait for their idle time."""
    async with connect(gateway.url):
        pass

    assert gateway.requests == ["session/open", "session/close"]


@pytest.mark.parametrize("options", [{"session": SESSION}, {"keep": True}])
async def test_a_joined_or_kept_session_stays_on_leaving(gateway: GatewayDouble, options: dict[str, Any]) -> None:
    """Somebody else goes on with it."""
    async with connect(gateway.url, **options):
        pass

    assert gateway.requests == ["session/open"]


async def test_an_exception_of_the_body_comes_out_as_it_is(gateway: GatewayDouble) -> None:
    """The client's own tasks do not turn it into a group."""
    with pytest.raises(LookupError, match="mine"):
        async with connect(gateway.url):
            raise LookupError("mine")


async def test_a_reader_that_outlives_the_session_is_told(gateway: GatewayDouble) -> None:
    """Iterating after leaving raises instead of waiting for ever."""
    async with connect(gateway.url) as session:
        events = session.call("exec", "run")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(anext(events))
            await accept(gateway, "job1")
        assert first.result().type == "queued"

    async with asyncio.timeout(DEADLINE_S), aclosing(events):
        with pytest.raises(ConnectionLost):
            await anext(events)


async def test_an_unknown_notification_is_ignored(session: Session, gateway: GatewayDouble) -> None:
    """A newer gateway may say more than this client knows."""
    gateway.answers["status/get"] = {"gateway": {}, "workers": [], "queues": []}
    await gateway.send_raw('{"jsonrpc": "2.0", "method": "notifications/new", "params": {}}')

    assert (await session.status())["workers"] == []


@pytest.mark.parametrize(
    "frame", ["nonsense", "[]", '{"jsonrpc": "2.0"}', '{"method": "notifications/event", "params": {}}']
)
async def test_what_is_not_the_protocol_ends_the_session(session: Session, gateway: GatewayDouble, frame: str) -> None:
    """Guessing would hide a fault; trying again would meet it again."""
    gateway.hold.add("servers/list")
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(_failure_of(session.servers()))
        await gateway.held.get()
        await gateway.send_raw(frame)

    assert isinstance(asking.result(), ProtocolFault)


async def _failure_of(awaitable: Any) -> Exception | None:
    try:
        await awaitable
    except (ConnectionLost, Refused, ProtocolFault) as exc:
        return exc
    return None
