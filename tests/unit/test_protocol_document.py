"""docs/protocol.md against the code, both ways: what stands there exists, and what exists stands there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

import common.catalog
import common.chat_errors
import common.errors
import common.job_errors
import common.schema
import gateway.import_errors
import gateway.problem
import worker.chat.errors
import worker.errors
import worker.files_errors
import worker.models.errors
from common import headers, streams, subjects
from common.errors import (
    CallerError,
    Fenced,
    InvalidParams,
    NotClustered,
    ServiceError,
    StreamConflict,
    UndecodableMessage,
)
from common.feed import StoredEvent
from common.job_errors import JobError
from common.schema import Event, EventType, Message, Outcome
from gateway import jsonrpc
from gateway.app import create_app
from gateway.codec import CODECS
from gateway.http import RESOURCES
from gateway.methods import METHODS
from gateway.settings import GatewaySettings

DOCUMENT = (Path(__file__).parents[2] / "docs/protocol.md").read_text()

NEVER_SENT: dict[type[ServiceError], str] = {
    Fenced: "whoever is fenced decides anew",
    StreamConflict: "the process that meets it does not start",
    NotClustered: "the process that meets it does not start",
    common.catalog.CatalogFault: "told to who applies the catalog",
}
NOT_OURS = ("$JS.", "$KV.", "$O.")
"""NATS's own addresses; the streams and buckets behind them stand in the document."""
NO_SUBJECTS = (
    "token",
    "segment_key",
    "segments_of_session",
    "new_part_id",
    "lease_key",
    "idempotency_key",
    "job_of_event",
    "new_object_id",
    "all_objects_of_session",
)
"""What `common.subjects` makes beside subjects: keys, and ids."""


def tables() -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Each table: the section it stands in, its head, its rows."""
    section, table = "", list[list[str]]()
    for line in [*DOCUMENT.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
        elif table:
            yield section, table[0], table[2:]
            table = []
        if line.startswith("#"):
            section = line.lstrip("# ")


def table(section: str, first: str, second: str) -> list[list[str]]:
    [rows] = [rows for of, head, rows in tables() if of == section and head[:2] == [first, second]]
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def only(cell: str) -> str:
    [name] = quoted(cell)
    return name


# --- doors and methods --------------------------------------------------------------------------------------


def test_every_subprotocol_stands_in_the_table_of_doors() -> None:
    """By its name."""
    [row] = [row for row in table("Doors", "door", "address") if row[0] == "WebSocket"]

    assert [name for name in quoted(row[2]) if name.startswith("mcp.")] == list(CODECS)


def test_the_methods_are_those_of_the_table() -> None:
    """Each once."""
    listed = [only(row[0]) for row in table("Methods", "method", "params")]

    assert sorted(listed) == sorted(METHODS)


@pytest.mark.parametrize("row", table("Methods", "method", "params"), ids=lambda row: only(row[0]))
def test_the_params_of_a_method_are_those_of_its_row(row: list[str]) -> None:
    """A `?` stands behind each that may be left out."""
    fields = METHODS[only(row[0])][0].model_fields
    taken = {(field.alias or name) + ("" if field.is_required() else "?") for name, field in fields.items()}

    assert taken == set(quoted(row[1]))


@pytest.mark.parametrize("row", table("Methods", "method", "params"), ids=lambda row: only(row[0]))
def test_the_http_resource_of_a_method_is_that_of_its_row(row: list[str]) -> None:
    """Verb, path and status."""
    [resource] = [resource for resource in RESOURCES if resource.method == only(row[0])]
    status = row[3].partition("→")[2].strip() or "200"

    assert (f"{resource.verb} /v1{resource.path}", str(resource.status)) == (only(row[3]), status)


def routes_of(routes: list[BaseRoute], prefix: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            yield from routes_of(list(route.routes), prefix + route.path)
        elif isinstance(route, WebSocketRoute):
            yield f"GET {prefix}{route.path}"
        elif isinstance(route, Route):
            yield from (f"{verb} {prefix}{route.path}" for verb in route.methods or () if verb != "HEAD")


def test_the_addresses_are_those_that_the_gateway_serves() -> None:
    """Wherever in the document they stand: doors, resources, events, health."""
    told = set(re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`]*)`", DOCUMENT))

    served = {route.replace(":path}", "}") for route in routes_of(create_app(GatewaySettings()).routes)}

    assert told == served


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        (r"`MAX_REQUEST_BYTES` \(default ([\d,]+) bytes\)", "max_request_bytes"),
        (r"A socket carries at most (\d+) sessions", "max_sessions_per_connection"),
    ],
)
def test_a_number_that_is_told_is_the_default_of_its_setting(said: str, setting: str) -> None:
    """It is told once."""
    [number] = re.findall(said, DOCUMENT)

    assert int(number.replace(",", "")) == GatewaySettings.model_fields[setting].default


# --- events ---------------------------------------------------------------------------------------------------


def test_the_fields_of_a_notification_are_those_of_the_table() -> None:
    """In the order in which they are sent."""
    event = Event(job="j", session="s", attempt=1, type="queued", time_ms=1, data={})
    notification = jsonrpc.notification(StoredEvent(1, event))
    listed = [name for row in table("Events", "field", "meaning") for name in quoted(row[0])]

    assert sorted(listed) == sorted(notification["params"])
    assert f'"method": "{notification["method"]}"' in DOCUMENT


def test_the_types_of_events_are_those_of_the_table() -> None:
    """In the order of a job's life."""
    assert [only(row[0]) for row in table("Events", "type", "data")] == list(get_args(EventType))


def test_the_outcomes_are_those_of_the_table() -> None:
    """Each with its meaning."""
    rows = table("Events", "outcome", "meaning")

    assert [only(row[0]) for row in rows] == list(get_args(Outcome))
    assert all(row[1] for row in rows)


# --- errors ---------------------------------------------------------------------------------------------------


def errors() -> set[type[ServiceError]]:
    """Every error of the services that can be raised: those that others derive from only group them."""
    modules = (
        common.errors,
        common.chat_errors,
        common.job_errors,
        common.catalog,
        gateway.import_errors,
        gateway.problem,
        worker.errors,
        worker.files_errors,
        worker.chat.errors,
        worker.models.errors,
    )
    found = {
        cls
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, ServiceError) and cls.__module__ == module.__name__
    }
    groups = {base for cls in found for base in cls.__mro__[1:] if base is not InvalidParams}
    return found - groups


def test_the_errors_of_requests_are_those_of_the_table() -> None:
    """Each type once, with its code and its status."""
    rows = table("Errors", "type", "code")
    sent = [cls for cls in errors() if not issubclass(cls, JobError) and cls not in NEVER_SENT]

    assert sorted((only(row[0]), int(row[1]), int(row[2])) for row in rows) == sorted(
        (cls.type, cls.code, cls.status) for cls in sent
    )


def test_the_errors_of_jobs_are_those_of_the_table() -> None:
    """Each type once, with the outcome that it ends a job with."""
    rows = table("Errors", "type", "outcome")
    raised = {(cls.type, cls.outcome) for cls in errors() if issubclass(cls, JobError)}

    assert sorted((only(row[0]), only(row[1])) for row in rows) == sorted(
        raised | {(UndecodableMessage.type, "dead_lettered")}
    )


def test_errors_that_are_never_sent_are_not_in_the_document() -> None:
    """Nobody should wait for them; each has its reason here."""
    assert NEVER_SENT.keys() <= errors()
    assert [cls for cls in NEVER_SENT if issubclass(cls, CallerError)] == []
    told = {only(row[0]) for section, head, rows in tables() if head[0] == "type" for row in rows}
    assert told.isdisjoint({cls.type for cls in NEVER_SENT})


# --- on NATS --------------------------------------------------------------------------------------------------


def on_nats(kind: str) -> list[list[str]]:
    return [row for row in table("On NATS", "kind", "name") if row[0] == kind]


def told_subjects() -> set[str]:
    """Subjects, not keys: those of streams, and those of core NATS."""
    streamed = [name for row in on_nats("stream") for name in quoted(row[2]) if not name.startswith(NOT_OURS)]
    return {*streamed, *(name for row in on_nats("core") for name in quoted(row[1]))}


def covers(pattern: str, subject: str) -> bool:
    """Whether a NATS filter takes a subject: `*` stands for one token, a last `>` for one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">" and len(tokens) >= len(wanted):
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1]
    return len(wanted) == len(tokens) and all(w in ("*", t) for w, t in zip(wanted, tokens, strict=True))


def built_subjects() -> dict[str, str]:
    """What each function and constant of `common.subjects` spells, with `<param>` for its params."""
    spelled: dict[str, str] = {}
    for name, member in vars(subjects).items():
        if name.startswith("ALL_"):
            spelled[name] = member
        elif inspect.isfunction(member) and member.__module__ == subjects.__name__:
            params = list(inspect.signature(member).parameters)
            if params and name not in NO_SUBJECTS:
                given = {"service": "worker"}
                spelled[name] = member(*(given.get(param, f"<{param}>") for param in params))
    return {name: subject for name, subject in spelled.items() if not subject.startswith(NOT_OURS)}


def test_every_subject_that_is_built_is_told() -> None:
    """A filter takes in at least one that is."""
    untold = {
        name: subject
        for name, subject in built_subjects().items()
        if not any(covers(subject, told) for told in told_subjects())
    }

    assert untold == {}


def test_every_subject_that_is_told_is_built() -> None:
    """By one function, and heard by a filter. What is live is the store's own copy of what is stored."""
    built = built_subjects().values()
    told = {subject for subject in told_subjects() if not subject.startswith("live.")}

    assert told <= set(built)
    assert {subject.replace("live.", "sessions.") for subject in told_subjects() - told} <= set(built)


def test_the_streams_are_those_of_the_table() -> None:
    """Each with subjects that it stores, all of them."""
    configs = {config.name: config for config in streams.stream_configs(streams.Limits())}
    rows = {only(row[1]): quoted(row[2]) for row in on_nats("stream")}

    assert rows.keys() == {name for name in configs if name and not name.startswith("KV_")}
    assert rows.pop(streams.ARTIFACTS) == configs[streams.ARTIFACTS].subjects
    for name, stored in rows.items():
        [pattern] = configs[name].subjects or []
        assert [subject for subject in told_subjects() if covers(pattern, subject)] != []
        assert {subject for subject in built_subjects().values() if covers(pattern, subject)} - {pattern} >= set(stored)


def test_the_buckets_are_those_of_the_table() -> None:
    """By their names."""
    named = {value for name, value in vars(streams).items() if name.endswith("_BUCKET")}

    assert {only(row[1]) for row in on_nats("bucket")} == named


def test_the_key_of_a_lease_is_told_as_it_is_built() -> None:
    """Session first: an operator looks for a session's leases."""
    [row] = [row for row in on_nats("bucket") if only(row[1]) == streams.LEASES_BUCKET]

    assert only(row[2]) == subjects.lease_key("<session>", "<server>")


def test_the_messages_are_those_of_the_schema() -> None:
    """All that travels on the bus."""
    [told] = re.findall(r"Messages are msgpack maps with a version `v` \(1\): (.*?)\.", DOCUMENT, re.DOTALL)
    classes = [cls for cls in vars(common.schema).values() if isinstance(cls, type) and issubclass(cls, Message)]
    leaves = {cls.__name__ for cls in classes if not cls.__subclasses__()}

    assert set(quoted(told)) == leaves


def test_the_headers_of_ours_are_told() -> None:
    """Those that are not NATS's."""
    [told] = re.findall(r"Headers of ours: (.*?)\.\n", DOCUMENT, re.DOTALL)
    spelled = {value for name, value in vars(headers).items() if name.isupper()}
    of_nats = {headers.STATUS, headers.DESCRIPTION, headers.KV_OPERATION} | {
        name for name in spelled if name.startswith("Nats-")
    }

    assert set(quoted(told)) == spelled - of_nats
