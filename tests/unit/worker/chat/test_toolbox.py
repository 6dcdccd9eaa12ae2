"""The names under which the model knows the tools of many servers."""

from __future__ import annotations

import re
from typing import Any

from common.catalog import ServerSpec
from common.schema import SessionRecord, ToolListing
from worker.chat.toolbox import MAX_TOOLS, Toolbox, toolbox

SPEC = ServerSpec(image="none")


def box(offered: dict[str, list[Any]], allow: list[str] | None = None, **listing: Any) -> Toolbox:
    listings = {
        server: ToolListing(entry=SPEC.fingerprint, status="ready", tools=tools).model_copy(update=listing)
        for server, tools in offered.items()
    }
    record = SessionRecord(tenant="test", created_ms=1, allow=allow)
    return toolbox(dict.fromkeys(offered, SPEC), listings, record)


def names(found: Toolbox) -> list[str]:
    return [offer.name for offer in found.offers]


def test_the_same_tool_of_two_servers_has_two_names() -> None:
    """Each leads to its own."""
    found = box({"b": [{"name": "add"}], "a": [{"name": "add"}]})

    assert names(found) == ["a__add", "b__add"]
    tool = found.find("b__add")
    assert tool is not None
    assert (tool.server, tool.tool) == ("b", "add")


def test_names_that_providers_do_not_take_get_others_which_are_unique_too() -> None:
    """Dots, spaces, length, and what differs in these alone."""
    tools = [{"name": name} for name in ("a.b", "a b", "a_b", "x" * 100, "x" * 101)]
    found = names(box({"srv": tools}))

    assert len(set(found)) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in found)
    assert "srv__a_b" in found
    assert found == names(box({"srv": tools}))


def test_a_name_that_looks_like_another_servers_is_not_taken_for_it() -> None:
    """`a__b` of server `x`, and `b` of server `x__a`."""
    found = box({"x": [{"name": "a__b"}], "x__a": [{"name": "b"}]})

    assert len(set(names(found))) == 2


def test_a_schema_that_is_none_becomes_that_of_any_object() -> None:
    """Providers refuse the whole request otherwise."""
    found = box({"srv": [{"name": "a", "inputSchema": None}, {"name": "b", "inputSchema": {"type": "array"}}]})

    assert [offer.schema for offer in found.offers] == [{"type": "object", "properties": {}}] * 2


def test_only_what_works_now_is_offered() -> None:
    """Neither a failed server nor the listing of an entry that has changed."""
    assert names(box({"srv": [{"name": "a"}]}, status="failed")) == []
    assert names(box({"srv": [{"name": "a"}]}, entry="another")) == []
    assert names(box({"srv": [{"name": "a"}, {"title": "no name"}]})) == ["srv__a"]


def test_no_more_tools_are_offered_than_a_provider_takes() -> None:
    """The first in the order of their names."""
    found = names(box({"srv": [{"name": f"t{number:03}"} for number in range(200)]}))

    assert len(found) == MAX_TOOLS
    assert found[0] == "srv__t000"
