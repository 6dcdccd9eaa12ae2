"""The wire: exact bytes, strict reading, tolerant of what is newer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import common.schema
from common.errors import UndecodableMessage
from common.schema import (
    MAX_TIMEOUT_MS,
    AttemptRecord,
    DeadLetter,
    Event,
    IdempotencyRecord,
    Job,
    LeaseRecord,
    Message,
    RoleRecord,
    SessionRecord,
    ToolListing,
)

GOLDEN = Path(__file__).parents[2] / "golden"

ATTEMPT = AttemptRecord(
    attempt=2,
    worker="w-0a1b2c3d",
    engine="EKZ4:PQ7A",
    container="0123456789ab",
    image_digest="sha256:" + "1" * 64,
    started_ms=1_700_000_000_100,
    ended_ms=1_700_000_000_300,
    error={"type": "server_gone", "message": "exit code 3", "exit_code": 3},
)
MESSAGES: dict[str, Message] = {
    "job": Job(
        id="0192f0c1e5a0a1b2c3d4e5f6",
        session="5e5510",
        tenant="acme",
        server="time",
        tool="convert_time",
        arguments={"time": "12:30", "zones": ["UTC", "Asia/Tokyo"], "rounds": -3, "exact": True, "weight": 0.5},
        meta={"note": None},
        created_ms=1_700_000_000_000,
        start_by_ms=1_700_000_600_000,
        timeout_ms=300_000,
        heartbeat_ms=20_000,
        kind="files",
        artifact=True,
        record=True,
        redrive_of="0192f0c1e5a0a1b2c3d4e5f0",
        attempts_before=[ATTEMPT, ATTEMPT | {"attempt": 3, "ended_ms": None, "error": None}],
    ),
    "event": Event(
        job="0192f0c1e5a0a1b2c3d4e5f6",
        session="5e5510",
        attempt=2,
        type="result",
        time_ms=1_700_000_000_123,
        data={"outcome": "succeeded", "result": {"content": [{"type": "text", "text": "21:30 東京"}]}},
    ),
    "dead_letter": DeadLetter(
        job="0192f0c1e5a0a1b2c3d4e5f6",
        tenant="acme",
        server="time",
        session="5e5510",
        tool="convert_time",
        redrive_of="0192f0c1e5a0a1b2c3d4e5f0",
        reason="the job was given up on after 3 attempts",
        error={"type": "too_many_attempts", "message": "the job was given up on after 3 attempts", "attempts": 3},
        stderr="no memory\nleaving",
        image_digest="sha256:" + "1" * 64,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        attempts=[ATTEMPT],
        subject="jobs.time.5e5510",
        payload=b"\x81\xa1v\x01\xff",
        size=6,
        deliveries=4,
        time_ms=1_700_000_000_456,
    ),
    "session_record": SessionRecord(
        tenant="acme",
        created_ms=1_700_000_000_000,
        conversation_ttl_s=600.0,
        record=True,
        allow=["git", "time/convert_time"],
    ),
    "idempotency_record": IdempotencyRecord(
        job="0192f0c1e5a0a1b2c3d4e5f6", fingerprint="8f14e45fceea167a", created_ms=1_700_000_000_000
    ),
    "role_record": RoleRecord(holder="g-0a1b2c3d"),
    "lease_record": LeaseRecord(worker="w-0a1b2c3d", container="f" * 64),
    "tool_listing": ToolListing(
        entry="0011223344556677",
        status="failed",
        reason="no such image",
        image_digest="sha256:" + "0" * 64,
        era="modern",
        server_info={"name": "time", "version": "1.0"},
        tools=[{"name": "convert_time", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}],
        time_ms=1_700_000_000_789,
    ),
}
EACH = pytest.mark.parametrize("name", MESSAGES)
WRONG: dict[Any, Any] = {list: "no list"}
"""A value that a field of that type cannot have; a list for every other type."""

# What msgpack can say: whole numbers have 64 bits, text no half surrogates (hypothesis makes none).
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)
DICTS = st.dictionaries(st.text(max_size=8), VALUES, max_size=5)
NUMBERS = st.integers(0, 2**63)
DERANDOMIZED = settings(derandomize=True, deadline=None)


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.v1.hex").read_text())


def fields_of(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(golden(name))
    return fields


def refusal(name: str, raw: bytes) -> str:
    with pytest.raises(UndecodableMessage) as refused:
        type(MESSAGES[name]).decode(raw)
    return refused.value.message


# --- bytes ------------------------------------------------------------------------------------------------


def test_every_message_of_the_schema_has_its_bytes_pinned_with_every_field_set() -> None:
    """A message that is new to the schema needs a file here; a field must not hide behind its default."""
    classes = {cls for cls in vars(common.schema).values() if isinstance(cls, type) and issubclass(cls, Message)}
    leaves = {cls for cls in classes if not cls.__subclasses__()}

    assert {type(message) for message in MESSAGES.values()} == leaves
    assert {f"{name}.v1.hex" for name in MESSAGES} == {file.name for file in GOLDEN.iterdir()}
    for message in MESSAGES.values():
        unset = {n for n, field in type(message).model_fields.items() if getattr(message, n) == field.get_default()}
        assert unset == {"v"}


@EACH
def test_a_message_encodes_to_exactly_its_golden_bytes(name: str) -> None:
    """A process of another version reads what this one writes."""
    assert MESSAGES[name].encode() == golden(name)


@EACH
def test_the_golden_bytes_decode_to_exactly_the_message(name: str) -> None:
    """What any process of version 1 has stored stays readable."""
    assert type(MESSAGES[name]).decode(golden(name)) == MESSAGES[name]


@EACH
def test_a_message_cannot_be_changed(name: str) -> None:
    """It is passed between tasks."""
    with pytest.raises(ValidationError):
        MESSAGES[name].v = 1  # type: ignore[misc]


@DERANDOMIZED
@given(
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.text(max_size=30),
    NUMBERS,
    st.integers(1, MAX_TIMEOUT_MS),
    DICTS,
    DICTS,
)
def test_a_job_comes_back_as_it_went(
    id_: str, text: str, number: int, timeout: int, arguments: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Whatever its arguments are."""
    job = Job(
        id=id_,
        session=id_,
        tenant=text,
        server=id_,
        tool=text,
        arguments=arguments,
        meta=meta,
        created_ms=number,
        start_by_ms=number,
        timeout_ms=timeout,
    )

    assert Job.decode(job.encode()) == job


@DERANDOMIZED
@given(st.text(max_size=30), NUMBERS, st.sampled_from(["queued", "started", "progress", "output", "result"]), DICTS)
def test_an_event_comes_back_as_it_went(text: str, number: int, type_: Any, data: dict[str, Any]) -> None:
    """Whatever its data is."""
    event = Event(job=text, session=text, attempt=number, type=type_, time_ms=number, data=data)

    assert Event.decode(event.encode()) == event


# --- what cannot be read ------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_version_is_refused(name: str, version: Any) -> None:
    """Never a guess."""
    assert "v: Input should be 1" in refusal(name, msgpack.packb(fields_of(name) | {"v": version}))


@EACH
def test_a_message_without_a_version_is_refused(name: str) -> None:
    """It is not taken for the current one."""
    fields = fields_of(name)
    del fields["v"]

    assert "v: " in refusal(name, msgpack.packb(fields))


@EACH
def test_a_missing_field_is_refused_by_its_name(name: str) -> None:
    """Each field that has no default."""
    fields = fields_of(name)
    required = [field for field, info in type(MESSAGES[name]).model_fields.items() if info.is_required()]
    assert required

    for field in required:
        without = {key: value for key, value in fields.items() if key != field}
        assert f"{field}: Field required" in refusal(name, msgpack.packb(without))


@EACH
def test_a_field_of_the_wrong_type_is_refused_by_its_name(name: str) -> None:
    """Each field; nothing is converted."""
    fields = fields_of(name)
    for field, value in fields.items():
        wrong = WRONG.get(type(value), [value])
        assert f"{field}: " in refusal(name, msgpack.packb(fields | {field: wrong}))
        if isinstance(value, int):
            assert f"{field}: " in refusal(name, msgpack.packb(fields | {field: str(value)}))


@EACH
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02",
        b"\x80\x80",
        b"\xa5hello",
        b"\xa2\xff\xfe",
        b"\x90",
        b"\xc0",
        b'{"v": 1}',
        msgpack.packb({"v": 1})[:-1],
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        b"\xd4\x7f\x00",
    ],
    ids=[
        "empty", "reserved byte", "cut list", "two values", "text", "no UTF-8", "list", "nil", "JSON", "cut map",
        "a list as key", "a map as key", "extension type",
    ],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(name: str, raw: bytes) -> None:
    """With our error, whatever msgpack or the schema makes of them."""
    assert refusal(name, raw)


@pytest.mark.parametrize("unit", [b"\x91", b"\x81\xa1a", b"\x81\xa4data"], ids=["lists", "maps", "maps in data"])
def test_bytes_nested_too_deeply_are_refused(unit: bytes) -> None:
    """A hundred thousand levels must not end the process."""
    assert refusal("event", unit * 100_000 + b"\x01")


@EACH
@DERANDOMIZED
@given(st.binary(max_size=80))
def test_any_bytes_are_either_a_message_or_refused(name: str, raw: bytes) -> None:
    """No other error ever comes out of reading."""
    assert refusal(name, raw)


@DERANDOMIZED
@given(st.data())
def test_golden_bytes_with_one_byte_changed_are_either_a_message_or_refused(data: st.DataObject) -> None:
    """Damage in the middle of a message is met by every layer of the reading."""
    name = data.draw(st.sampled_from(sorted(MESSAGES)))
    raw = bytearray(golden(name))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))

    try:
        read = type(MESSAGES[name]).decode(bytes(raw))
    except UndecodableMessage:
        return
    assert isinstance(read, Message)


# --- what may be there besides -----------------------------------------------------------------------------------


@EACH
def test_a_field_of_a_newer_writer_is_ignored(name: str) -> None:
    """So that a fleet can be updated one process at a time."""
    raw = msgpack.packb(fields_of(name) | {"added_in_2030": {"any": ["thing"]}})

    assert type(MESSAGES[name]).decode(raw) == MESSAGES[name]


def test_fields_with_a_default_may_be_left_out() -> None:
    """A listing of an older writer, a job without `_meta`."""
    assert ToolListing.decode(msgpack.packb({"v": 1, "entry": "e", "status": "ready"})).tools == []
    fields = fields_of("job")
    del fields["meta"]
    assert Job.decode(msgpack.packb(fields)).meta == {}


def test_only_a_result_is_terminal() -> None:
    """`result` is the one type after which nothing comes."""
    event = MESSAGES["event"]
    assert isinstance(event, Event)
    terminal = {
        type_: event.model_copy(update={"type": type_}).terminal
        for type_ in ("queued", "started", "progress", "output", "result")
    }

    assert [type_ for type_, is_terminal in terminal.items() if is_terminal] == ["result"]


# --- what a tool says -------------------------------------------------------------------------------------


def telling_event(value: Any) -> Message:
    return Event(job="j", session="s", attempt=1, type="result", time_ms=1, data={"result": value})


def telling_listing(value: Any) -> Message:
    return ToolListing(entry="e", status="ready", tools=[{"name": "t", "inputSchema": value}])


@pytest.mark.parametrize("telling", [telling_event, telling_listing])
@pytest.mark.parametrize(
    ("said", "stored"),
    [
        (2**64, float(2**64)),
        (-(2**63) - 1, float(-(2**63))),
        (10**400, None),
        ("half a pair: \ud83d", "half a pair: \ufffd"),
        ("\ud83dx \udc00\ud800 \ud83d\ude00", "\ufffdx \ufffd\ufffd 😀"),
        ({"\udc00": [{"deep": "\ud800"}]}, {"\ufffd": [{"deep": "\ufffd"}]}),
        ([1, "kept", 2**70], [1, "kept", float(2**70)]),
    ],
    ids=["large", "small", "beyond floats", "surrogate", "surrogates", "surrogate in a key", "in a list"],
)
def test_what_a_tool_says_is_stored_as_the_nearest_that_a_message_can_hold(
    telling: Callable[[Any], Message], said: Any, stored: Any
) -> None:
    """JSON may say more than msgpack; a job must end with its answer all the same."""
    message = telling(said)

    assert type(message).decode(message.encode()) == telling(stored)


@pytest.mark.parametrize("said", [2**64, "\ud83d"])
def test_what_a_caller_says_is_refused_instead_of_changed(said: Any) -> None:
    """The gateway answers `invalid_arguments`; a tool is never called with other arguments than were given."""
    job = MESSAGES["job"].model_copy(update={"arguments": {"a": said}})

    with pytest.raises((ValueError, OverflowError)):
        job.encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a.b"),
        ("session", ""),
        ("server", "x" * 65),
        ("id", "line\n"),
        ("tool", "x" * 257),
        ("timeout_ms", 0),
        ("timeout_ms", MAX_TIMEOUT_MS + 1),
        ("heartbeat_ms", -1),
    ],
)
def test_a_job_beyond_its_limits_is_not_read(field: str, value: object) -> None:
    """Nobody could address it, or wait for its end."""
    raw = msgpack.packb({**fields_of("job"), field: value})

    assert f"not a Job of version 1: {field}" in refusal("job", raw)
