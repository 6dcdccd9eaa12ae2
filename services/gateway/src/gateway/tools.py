"""What one server offers: its tools by name, and the check of arguments against a tool's own JSON Schema."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry

from common.errors import InvalidArguments, UnknownTool
from common.log import get
from common.schema import ToolListing

_log = get(__name__)

MAX_PROBLEMS: Final = 20
MAX_PROBLEM_CHARS: Final = 300
"""jsonschema quotes the offending value, which may be as large as the request."""

_NO_REMOTE_SCHEMAS: Final[Registry[Any]] = Registry()
"""A schema is somebody else's text: what it refers to elsewhere is never fetched."""


class Tools:
    """The tools of one server as listed under one fingerprint of its catalog entry."""

    def __init__(self, server: str, listing: ToolListing) -> None:
        self.server_info = listing.server_info
        self.listed = listing.tools
        self._server = server
        self._by_name = {tool["name"]: tool for tool in listing.tools if isinstance(tool.get("name"), str)}
        self._validators: dict[str, Validator | None] = {}

    def require(self, tool: str) -> None:
        """
        Raises:
            UnknownTool: if the server has not listed it.
        """
        if tool not in self._by_name:
            raise UnknownTool(self._server, tool, sorted(self._by_name))

    def check(self, tool: str, arguments: dict[str, Any]) -> None:
        """Hold arguments to the schema of a tool that `require` found. Takes time in proportion to their size.

        A schema that cannot be used does not stand in the way of calls: it is logged once, and the tool judges.

        Raises:
            InvalidArguments: with the path and the reason of each of the first 20 violations.
        """
        validator = self._validator(tool)
        if validator is None:
            return
        try:
            violations = list(islice(validator.iter_errors(arguments), MAX_PROBLEMS))
        except RecursionError:
            return  # nested deeper than a check can follow, which says nothing about the schema
        except Exception:  # noqa: BLE001 - somebody else's schema may fail in any way
            _log.exception("tool schema cannot be applied, its calls go unchecked", server=self._server, tool=tool)
            self._validators[tool] = None
            return
        if violations:
            problems = [{"path": v.json_path, "message": _shortened(v.message)} for v in violations]
            raise InvalidArguments(f"arguments of {tool} do not fit its schema", problems)

    def _validator(self, tool: str) -> Validator | None:
        if tool not in self._validators:
            self._validators[tool] = _compile(self._server, tool, self._by_name[tool].get("inputSchema"))
        return self._validators[tool]


def _compile(server: str, tool: str, schema: Any) -> Validator | None:
    """The validator of the draft that `$schema` names, else of 2020-12, which is MCP's default."""
    if schema is None:
        return None
    try:
        if not isinstance(schema, dict):
            raise SchemaError(f"a {type(schema).__name__} is no schema")
        draft = validator_for(schema, default=Draft202012Validator)
        draft.check_schema(schema)
    except (SchemaError, TypeError, RecursionError) as exc:
        reason = exc.message if isinstance(exc, SchemaError) else str(exc)
        _log.warning("tool schema is invalid, its calls go unchecked", server=server, tool=tool, reason=reason)
        return None
    validator: Validator = draft(schema, registry=_NO_REMOTE_SCHEMAS)
    return validator


def _shortened(message: str) -> str:
    if len(message) <= MAX_PROBLEM_CHARS:
        return message
    # The reason stands at the end, behind the value.
    half = MAX_PROBLEM_CHARS // 2
    return f"{message[:half]} … {message[-half:]}"
