"""Arguments against a tool's own schema."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from common.errors import InvalidArguments, UnknownTool
from common.schema import ToolListing
from gateway.tools import MAX_PROBLEMS, Tools


def tools(schema: Any, name: str = "tool") -> Tools:
    listing = ToolListing(entry="e", status="ready", tools=[{"name": name, "inputSchema": schema}])
    return Tools("server", listing)


def problems(schema: Any, arguments: dict[str, Any]) -> list[dict[str, str]]:
    with pytest.raises(InvalidArguments) as refused:
        tools(schema).check("tool", arguments)
    found: list[dict[str, str]] = refused.value.data["problems"]
    return found


def test_a_tool_that_is_not_listed_is_unknown() -> None:
    """The names that there are stand in the message."""
    with pytest.raises(UnknownTool, match="it has: tool"):
        tools({}).require("other")


def test_a_violation_has_its_path_and_its_reason() -> None:
    """The path leads to the value from the arguments' root."""
    schema = {"properties": {"a": {"type": "array", "items": {"properties": {"b": {"maximum": 1}}}}}}

    assert problems(schema, {"a": [{"b": 1}, {"b": 2}]}) == [
        {"path": "$.a[1].b", "message": "2 is greater than the maximum of 1"}
    ]


def test_violations_are_capped_in_number_and_in_length() -> None:
    """An answer does not grow with the request."""
    schema = {"properties": {"a": {"items": {"type": "integer"}}}}

    found = problems(schema, {"a": ["x" * 10_000] * 100})

    assert len(found) == MAX_PROBLEMS
    assert max(len(problem["message"]) for problem in found) < 400
    assert found[0]["message"].endswith("is not of type 'integer'")


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"$schema": "http://json-schema.org/draft-07/schema#", "properties": {"a": {"items": [{"type": "null"}]}}},
         {"a": [1]}),
        ({"properties": {"a": {"prefixItems": [{"type": "null"}]}}}, {"a": [1]}),
    ],
)  # fmt: skip
def test_a_schema_is_read_as_the_draft_that_it_names(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Without `$schema` it is 2020-12, as MCP says; `items` as a list means something in draft 7 only."""
    assert [problem["path"] for problem in problems(schema, arguments)] == ["$.a[0]"]


@pytest.mark.parametrize(
    "schema",
    [
        None,
        "text",
        7,
        [],
        {"type": "no such type"},
        {"properties": []},
        {"pattern": "("},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"properties": {"a": {"multipleOf": 0}}},
        {"$schema": ["x"], "type": "object"},
    ],
)
def test_a_schema_that_cannot_be_used_stands_in_nobodys_way(schema: Any) -> None:
    """The tool judges its arguments itself then; each call anew."""
    offered = tools(schema)
    for _ in range(2):
        offered.check("tool", {"a": 1})


def test_a_schema_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing is somebody else's text: it must not make the gateway open connections."""

    def opened(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", opened)
    tools({"$ref": "http://127.0.0.1:9/schema.json"}).check("tool", {"a": 1})


def test_a_listed_tool_without_a_name_is_left_out() -> None:
    """It could not be called."""
    listing = ToolListing(entry="e", status="ready", tools=[{"title": "x"}, {"name": 7}, {"name": "ok"}])

    with pytest.raises(UnknownTool, match="it has: ok"):
        Tools("server", listing).require("x")
