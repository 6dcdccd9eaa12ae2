"""Arguments on the command line."""

from __future__ import annotations

from typing import Any

import pytest

from client.arguments import BadArgument, parse

SCHEMA: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "loud": {"type": "boolean"},
        "files": {"type": "array", "items": {"type": "string"}},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "command": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "level": {"type": ["integer", "null"]},
        "mode": {"enum": ["fast", "slow"]},
        "point": {"$ref": "#/$defs/Point"},
        "any": {},
    },
    "$defs": {"Point": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("text=5", {"text": "5"}),
        ("text=a=b", {"text": "a=b"}),
        ("text=", {"text": ""}),
        ("count=5", {"count": 5}),
        ("ratio=0.5", {"ratio": 0.5}),
        ("ratio=2", {"ratio": 2}),
        ("loud=true", {"loud": True}),
        ('files=["a", "b"]', {"files": ["a", "b"]}),
        ("maybe=null", {"maybe": "null"}),
        ("command=ls -l", {"command": "ls -l"}),
        ("level=null", {"level": None}),
        ("mode=fast", {"mode": "fast"}),
        ('point={"x": 1}', {"point": {"x": 1}}),
        ("any=5", {"any": "5"}),
        ("unknown=5", {"unknown": "5"}),
        ("text:=5", {"text": 5}),
        ('command:=["ls", "-l"]', {"command": ["ls", "-l"]}),
    ],
)
def test_a_value_becomes_what_the_schema_asks_for(pair: str, expected: dict[str, Any]) -> None:
    """Text where text is taken or nothing is said; `:=` is always JSON."""
    assert parse([pair], "", SCHEMA) == expected


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("count=many", "count: 'many' is not integer"),
        ("count=true", "count: 'true' is not integer"),
        ("loud=yes", "loud: 'yes' is not boolean"),
        ("files=a.txt", "files: 'a.txt' is not array as JSON"),
        ("text:=nope", "text: 'nope' is not JSON"),
        ("text", "'text' is neither key=value nor key:=json"),
        ("=5", "'=5' is neither key=value nor key:=json"),
    ],
)
def test_what_cannot_be_used_is_named(pair: str, said: str) -> None:
    """The sentence says which argument and what was expected."""
    with pytest.raises(BadArgument) as bad:
        parse([pair], "", SCHEMA)

    assert said in str(bad.value)


def test_pairs_win_over_the_json_object() -> None:
    """`--args` is the base."""
    assert parse(["count=2"], '{"count": 1, "text": "a"}', SCHEMA) == {"count": 2, "text": "a"}


def test_a_json_object_must_be_one() -> None:
    """A list or a number is no set of arguments."""
    with pytest.raises(BadArgument, match="must be a JSON object"):
        parse([], "[1]", SCHEMA)
