"""Arguments of a tool as a command line spells them: `key=value`, or `key:=json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from client.session import Session

_REFERENCE: Final = "#/$defs/"


class BadArgument(Exception):
    """An argument that cannot be used; the message says which and why."""


def parse(pairs: Sequence[str], base: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call.

    A value is text where the tool's schema takes text or does not tell; otherwise it is what the schema asks
    for, lists and objects as JSON.

    Args:
        pairs: `key=value` or `key:=json`; they win over `base`.
        base: A JSON object, or nothing.
        schema: The tool's `inputSchema`.

    Raises:
        BadArgument: for the first that cannot be used.
    """
    arguments = _object(base) if base else {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.rstrip(":"):
            raise BadArgument(f"{pair!r} is neither key=value nor key:=json")
        if key.endswith(":"):
            key = key[:-1]
            arguments[key] = _json(key, text)
        else:
            arguments[key] = _value(key, text, _types(schema.get("properties", {}).get(key, {}), schema))
    return arguments


async def schema_of(session: Session, server: str, tool: str) -> dict[str, Any]:
    """The input schema of a tool; nothing for an unknown one, which the gateway refuses with a better sentence."""
    for each in await session.tools(server):
        if each["name"] == tool:
            schema: dict[str, Any] = each.get("inputSchema") or {}
            return schema
    return {}


def _object(text: str) -> dict[str, Any]:
    value = _json("--args", text)
    if not isinstance(value, dict):
        raise BadArgument(f"--args must be a JSON object, such as '{{\"key\": 1}}', and not {text!r}")
    return value


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise BadArgument(f"{name}: {text!r} is not JSON: {exc}") from exc


def _value(key: str, text: str, types: set[str]) -> Any:
    if not types or "string" in types:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not any(_is(value, each) for each in types):
        hint = " as JSON" if types & {"array", "object"} else ""
        raise BadArgument(f"{key}: {text!r} is not {' or '.join(sorted(types))}{hint}")
    return value


def _types(schema: Any, root: dict[str, Any]) -> set[str]:
    """The JSON types that a property's schema allows; nothing where it does not tell."""
    if not isinstance(schema, dict):
        return set()
    if isinstance(reference := schema.get("$ref"), str) and reference.startswith(_REFERENCE):
        schema = root.get("$defs", {}).get(reference.removeprefix(_REFERENCE), {})
    named = schema.get("type", [])
    types = {named} if isinstance(named, str) else set(named)
    for choice in ("anyOf", "oneOf"):
        for each in schema.get(choice, []):
            types |= _types(each, root)
    for literal in (*schema.get("enum", []), *([schema["const"]] if "const" in schema else [])):
        if isinstance(literal, str):
            types.add("string")
    return types


def _is(value: Any, type: str) -> bool:
    match type:
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
        case _:
            return False
