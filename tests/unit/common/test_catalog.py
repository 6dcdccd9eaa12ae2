"""The catalog file: every fault at once with its line, defaults, and what follows from an entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from common.catalog import Catalog, CatalogFault, ContainerLimits, ServerSpec, parse, read

ROOT = Path(__file__).parents[3]


def faults(text: str) -> list[str]:
    """Each fault of a file, from its place on."""
    with pytest.raises(CatalogFault) as refused:
        parse(text, "f.yaml")
    lines = refused.value.message.splitlines()
    if lines[0].startswith("f.yaml:"):
        [line] = lines
        return [line]
    assert lines[0] == f"{len(lines) - 1} fault(s) in the catalog:"
    return lines[1:]


def spec(**fields: Any) -> ServerSpec:
    return ServerSpec.model_validate({"image": "i", **fields})


# --- faults -----------------------------------------------------------------------------------------------


def test_every_fault_of_a_file_is_told_at_once_each_with_its_line() -> None:
    """In the order of the lines; the good entry between them is no excuse."""
    text = """\
servers:
  Bad.Name:
    image: a
  good:
    image: b
  broken:
    image: c
    colour: red
    pool: {min: 5, max: 2}
    limits:
      memory_mb: 64
      tmpfs_mb: 64
    command:
      - fine
      - 7
    secrets: {TOKEN: hunter2}
    timeouts:
      job_ms: soon
    concurrency: {cluster: 0}
    tools:
      go: {timeout_ms: 0, read_only: maybe}
  good:
    image: d
  shell:
    kind: exec
    image: e
volumes: {}
"""

    assert faults(text) == [
        "f.yaml:2: Bad.Name: a name is 1-32 of a-z, 0-9, - and _, starting with a letter or digit",
        "f.yaml:8: broken.colour: Extra inputs are not permitted",
        "f.yaml:9: broken.pool: Value error, min (5) is above max (2)",
        "f.yaml:10: broken.limits: Value error, tmpfs_mb (64) must be below memory_mb (64)",
        "f.yaml:15: broken.command.1: Input should be a valid string",
        "f.yaml:16: broken.secrets.TOKEN: String should match pattern '^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$'",
        "f.yaml:18: broken.timeouts.job_ms: Input should be a valid integer, unable to parse string as an integer",
        "f.yaml:19: broken.concurrency.cluster: Input should be greater than or equal to 1",
        "f.yaml:21: broken.tools.go.read_only: Input should be a valid boolean, unable to interpret input",
        "f.yaml:21: broken.tools.go.timeout_ms: Input should be greater than or equal to 1",
        "f.yaml:22: good: repeated; first on line 4",
        "f.yaml:24: shell: Value error, scope must be session or call when kind is exec: commands keep files",
        "f.yaml:27: volumes: unknown; the only top-level name is 'servers'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("servers:\n  a: {}\n  b: [\n", "f.yaml:4: not YAML: expected the node content, but found '<stream end>'"),
        ("servers:\n\ta: 1\n", "f.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("servers: {}\n---\nservers: {}\n", "f.yaml:2: not YAML: but found another document"),
        ("servers:\n  a: {image: \x07}", "f.yaml:2: not YAML: special characters are not allowed"),
        ("", "f.yaml:1: the file must have a mapping named 'servers'"),
        ("# nothing yet\n", "f.yaml:1: the file must have a mapping named 'servers'"),
        ("- a\n- b\n", "f.yaml:1: the file must have a mapping named 'servers'"),
        ("servers:\n", "f.yaml:1: the file must have a mapping named 'servers'"),
        ("servers: [a, b]\n", "f.yaml:1: the file must have a mapping named 'servers'"),
        ("servers:\n  a:\n", "f.yaml:2: a: Input should be a valid dictionary or instance of ServerSpec"),
        ("servers:\n  a: {}\n", "f.yaml:2: a.image: Field required"),
        ("servers:\n  a: {image: ''}\n", "f.yaml:2: a.image: String should have at least 1 character"),
        ("servers:\n  a:\n    env:\n      - X\n    image: x", "f.yaml:3: a.env: Input should be a valid dictionary"),
        ("servers:\n  a:\n    env: {X: 1}\n    image: x", "f.yaml:3: a.env.X: Input should be a valid string"),
        ("servers:\n  a:\n    env: {D: 2024-01-01}\n    image: x", "f.yaml:3: a.env.D: Input should be a valid string"),
        ("servers:\n  a:\n    image: x\n    image: y", "f.yaml:4: image: repeated; first on line 3"),
        ("servers: {}\nservers: {}\n", "f.yaml:2: servers: repeated; first on line 1"),
        ("servers:\n  a:\n    image: x\n    tools:\n      - {b: 1, b: 2}", "f.yaml:5: b: repeated; first on line 5"),
    ],
    ids=[
        "not YAML", "tab", "two documents", "control character", "empty", "comment only", "a list", "no servers",
        "servers in a list", "no entry", "no image", "empty image", "list for a mapping", "number for text",
        "date for text", "key twice", "servers twice", "key twice in a list",
    ],
)  # fmt: skip
def test_a_fault_has_its_line(text: str, fault: str) -> None:
    """The line of what is wrong, as an editor counts."""
    assert fault in "\n".join(faults(text))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("servers:\n  a:\n    image: {{ registry }}\n", 3),
        ("servers:\n  a:\n    ? [image]\n    : x\n", 3),
        ("servers:\n  [a]: {image: x}\n", 2),
        ("[servers]: {a: {image: x}}\nservers: {}\n", 1),
    ],
    ids=["template", "list as key", "list as name", "list at the top"],
)
def test_a_key_that_is_no_text_is_a_fault_with_its_line(text: str, line: int) -> None:
    """YAML takes a list or a mapping as a key, as an unrendered template has it."""
    assert f"f.yaml:{line}: a key must be plain text" in faults(text)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("!secret db", "could not determine a constructor for the tag '!secret'"),
        ("!!python/name:os.system x", "could not determine a constructor"),
        ("2024-13-45", "month must be in 1..12"),
    ],
    ids=["unknown tag", "python tag", "no date"],
)
def test_a_value_that_yaml_cannot_make_is_a_fault_beside_the_others(value: str, what: str) -> None:
    """It hides neither itself nor the fault of the next entry."""
    found = faults(f"servers:\n  a:\n    image: x\n    description: {value}\n  b: {{}}\n")

    assert re.match(rf"f\.yaml:(2|4): a: .*{re.escape(what)}", found[0])
    assert found[1:] == ["f.yaml:5: b.image: Field required"]


def test_an_entry_that_contains_itself_is_a_fault() -> None:
    """A YAML alias can stand for what it stands in."""
    [fault] = faults("servers: {a: &a {image: x, env: *a}}")

    assert fault == "f.yaml:1: nested too deeply, or an alias stands for what contains it"


def test_a_missing_file_is_a_fault_with_its_name(tmp_path: Path) -> None:
    """As every other fault."""
    with pytest.raises(CatalogFault, match=r"none\.yaml: cannot be read: .*No such file"):
        read(tmp_path / "none.yaml")


def test_a_file_in_another_encoding_is_a_fault(tmp_path: Path) -> None:
    """YAML is read as UTF-8."""
    file = tmp_path / "latin.yaml"
    file.write_bytes("servers: {a: {image: é}}".encode("latin-1"))

    with pytest.raises(CatalogFault, match="cannot be read: 'utf-8' codec"):
        read(file)


# --- entries --------------------------------------------------------------------------------------------------


def test_an_entry_with_nothing_but_its_image_has_the_documented_defaults() -> None:
    """docs/catalog.md shows the same numbers."""
    entry = parse("servers: {a: {image: x}}", "f")["a"]

    assert entry.model_dump() == {
        "kind": "mcp",
        "description": "",
        "image": "x",
        "command": None,
        "env": {},
        "secrets": {},
        "scope": "shared",
        "pool": {"min": 1, "max": 4},
        "limits": {"memory_mb": 256, "cpus": 1.0, "pids": 64, "tmpfs_mb": 64, "files_mb": 64},
        "network": "none",
        "runtime": None,
        "timeouts": {"start_s": 20.0, "queue_s": 600.0, "job_ms": None, "heartbeat_ms": None, "idle_s": 300.0},
        "concurrency": {"per_container": 8, "per_worker": 10, "cluster": 1000},
        "tools": {},
    }


def test_a_file_may_have_no_servers() -> None:
    """Then there are none."""
    assert parse("servers: {}", "f") == {}


@pytest.mark.parametrize("file", ["servers.yaml"])
def test_the_catalog_of_this_repository_has_no_fault(file: str) -> None:
    """It is what a new user starts with."""
    catalog = read(ROOT / file)

    assert {"time", "git", "exec"} <= catalog.keys()
    assert {name: spec.kind for name, spec in catalog.items() if spec.scope == "shared"}.get("exec") is None


def test_the_example_in_the_documentation_is_a_catalog() -> None:
    """Every field that docs/catalog.md shows can be written so."""
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/catalog.md").read_text(), re.DOTALL)
    shown = parse(examples[0], "docs/catalog.md")["time"]

    assert shown.model_fields_set == set(ServerSpec.model_fields)


@pytest.mark.parametrize("reference", ["env:TOKEN", "env:_x1", "file:/run/secrets/token"])
def test_a_secret_is_a_reference(reference: str) -> None:
    """To the worker's environment, or to a file by its absolute path."""
    assert spec(secrets={"TOKEN": reference}).secrets == {"TOKEN": reference}


@pytest.mark.parametrize("reference", ["hunter2", "env:", "env:1X", "env:A-B", "file:relative", "file:", "vault:a", ""])
def test_what_is_no_reference_is_refused_as_a_secret(reference: str) -> None:
    """A value in its place would be stored in plain text."""
    with pytest.raises(ValidationError, match="should match pattern"):
        spec(secrets={"TOKEN": reference})


@pytest.mark.parametrize("scope", ["session", "call"])
def test_commands_run_in_a_container_that_is_not_shared(scope: str) -> None:
    """They keep files."""
    assert spec(kind="exec", scope=scope).scope == scope


def test_what_a_session_container_keeps_in_memory_leaves_room_for_the_tool() -> None:
    """Only there: other containers have no files directory."""
    limits = {"memory_mb": 128, "tmpfs_mb": 64, "files_mb": 64}

    with pytest.raises(ValidationError, match=r"tmpfs_mb \(64\) and files_mb \(64\) must together be below memory_mb"):
        spec(scope="session", limits=limits)
    assert spec(scope="session", limits={**limits, "files_mb": 63}).limits.files_mb == 63
    assert spec(scope="call", limits=limits).limits.files_mb == 64


# --- fingerprint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "exec", "scope": "session"},
        {"image": "j"},
        {"command": ["x"]},
        {"command": []},
        {"env": {"A": "1"}},
        {"secrets": {"A": "env:A"}},
        {"limits": {"memory_mb": 512}},
        {"limits": {"cpus": 0.5}},
        {"limits": {"files_mb": 8}},
        {"network": "bridge"},
        {"runtime": "runsc"},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_what_a_container_is_made_of(change: dict[str, Any]) -> None:
    """Then pools are rebuilt and listings renewed."""
    assert spec(**change).fingerprint != spec().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"description": "other"},
        {"scope": "call"},
        {"pool": {"min": 0, "max": 9}},
        {"timeouts": {"start_s": 1, "job_ms": 5}},
        {"concurrency": {"cluster": 5}},
        {"tools": {"t": {"read_only": True}}},
        {"env": {}},
        {"limits": {"memory_mb": 256}},
    ],
    ids=str,
)
def test_the_fingerprint_does_not_change_with_how_containers_are_used(change: dict[str, Any]) -> None:
    """A listing stays good, also when a default is written out."""
    assert spec(**change).fingerprint == spec().fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_the_file() -> None:
    """Of fields, or of variables."""
    one: Catalog = parse("servers: {a: {image: x, env: {A: '1', B: '2'}}}", "f")
    other: Catalog = parse("servers: {a: {env: {B: '2', A: '1'}, image: x}}", "f")

    assert one["a"].fingerprint == other["a"].fingerprint


# --- rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "hints", "holds"),
    [
        (None, {}, False),
        (None, {"hint": True}, True),
        (None, {"hint": False}, False),
        (None, {"hint": "true"}, False),
        (None, {"hint": 1}, False),
        (None, {"hint": None}, False),
        (None, {"other": True}, False),
        (True, {}, True),
        (True, {"hint": False}, True),
        (False, {"hint": True}, False),
        (False, {"hint": True, "other": True}, False),
    ],
)
@pytest.mark.parametrize("rule", ["read_only", "idempotent"])
def test_the_operators_word_on_a_tool_counts_else_its_own_hint(
    rule: str, override: bool | None, hints: dict[str, Any], holds: bool
) -> None:
    """A hint that is missing or no boolean means no; word and hint are each for one question only."""
    names = {"read_only": "readOnlyHint", "idempotent": "idempotentHint"}
    other = next(name for name in names if name != rule)
    told = {{"hint": names[rule], "other": names[other]}[name]: value for name, value in hints.items()}
    entry = spec(tools={"t": {rule: override, other: not override}} if override is not None else {})

    assert getattr(entry, rule)("t", told) is holds


def test_an_override_is_for_its_tool_alone() -> None:
    """Another tool of the server keeps its hints."""
    entry = spec(tools={"t": {"read_only": True, "idempotent": False}})

    assert entry.read_only("u", {}) is False
    assert entry.idempotent("u", {"idempotentHint": True}) is True


@pytest.mark.parametrize(
    ("fields", "timeout_ms"),
    [
        ({}, 300),
        ({"timeouts": {"job_ms": 200}}, 200),
        ({"timeouts": {"job_ms": 200}, "tools": {"t": {"timeout_ms": 100}}}, 100),
        ({"tools": {"t": {"timeout_ms": 400}}}, 400),
        ({"timeouts": {"job_ms": 200}, "tools": {"t": {"read_only": True}}}, 200),
        ({"timeouts": {"job_ms": 200}, "tools": {"other": {"timeout_ms": 100}}}, 200),
    ],
)
def test_the_timeout_is_the_tools_else_the_servers_else_the_gateways(fields: dict[str, Any], timeout_ms: int) -> None:
    """The nearest word wins, also when it is the longer time."""
    assert spec(**fields).timeout_ms("t", 300) == timeout_ms


def test_a_tools_own_timeouts_come_before_its_servers() -> None:
    """Schedule-to-start and heartbeat, as start-to-close."""
    entry = spec(
        timeouts={"queue_s": 60, "heartbeat_ms": 500}, tools={"t": {"queue_s": 5, "heartbeat_ms": 100}, "other": {}}
    )

    assert [(entry.queue_s(tool), entry.heartbeat_ms(tool)) for tool in ("t", "other")] == [(5, 100), (60, 500)]
    assert entry.shortest_queue_s == 5
    assert spec().heartbeat_ms("t") is None
    assert spec().shortest_queue_s == 600


class LaterLimits(ContainerLimits):
    """Those of a version that has one more."""

    swap_mb: int = 0


class LaterSpec(ServerSpec):
    limits: LaterLimits = Field(default_factory=LaterLimits)


def test_an_entry_has_the_fingerprint_that_the_versions_before_this_one_give_it() -> None:
    """While both run, a gateway would have no tools from workers that come to another one."""
    limits = {"memory_mb": 512, "cpus": 2, "pids": 32, "tmpfs_mb": 32, "files_mb": 32}
    every = {"kind": "exec", "scope": "session", "command": ["a"], "env": {"A": "1"}, "secrets": {"T": "env:T"}}

    assert spec(image="mcp-orchestrator/time:local").fingerprint == "d3e70a8c03f2259e"
    assert spec(**every, image="x:1", network="n", runtime="runsc", limits=limits).fingerprint == "c6ba69a417e89feb"


def test_a_limit_that_a_later_version_adds_is_in_the_fingerprint_where_it_is_set() -> None:
    """Unset it leaves the entry what it was."""
    assert LaterSpec(image="i").fingerprint == spec().fingerprint
    assert LaterSpec(image="i", limits=LaterLimits(swap_mb=1)).fingerprint != spec().fingerprint
