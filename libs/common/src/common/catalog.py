"""The catalog: which servers there are and how each is run.

`servers.yaml` is parsed here, with every fault in one message, each with its line. `common.registry` stores
the entries and watches them. docs/catalog.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from common import subjects
from common.errors import BrokenError

SecretRef = Annotated[str, StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$")]
Scope = Literal["shared", "session", "call"]


class CatalogFault(BrokenError):
    """The catalog file cannot be used; the message lists every fault with file and line."""

    type = "catalog_fault"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolSize(_Part):
    min: int = Field(default=1, ge=0, le=1000)
    """Containers kept ready."""
    max: int = Field(default=4, ge=1, le=1000)
    """Containers of this server on one worker, ready and in use."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


FIRST_LIMITS: Final = frozenset({"memory_mb", "cpus", "pids", "tmpfs_mb", "files_mb"})
"""Always in an entry's fingerprint; a limit that came later is in it where it is set."""


class ContainerLimits(_Part):
    memory_mb: int = Field(default=256, ge=16)
    cpus: float = Field(default=1.0, gt=0)
    pids: int = Field(default=64, ge=8)
    tmpfs_mb: int = Field(default=64, ge=1)
    """Size of /tmp. Charged to memory_mb, so it must be smaller."""
    files_mb: int = Field(default=64, ge=1)
    """Size of the files directory of a `session` container. What a tool writes there is charged to memory_mb."""

    @model_validator(mode="after")
    def _tmpfs_fits(self) -> Self:
        if self.tmpfs_mb >= self.memory_mb:
            raise ValueError(f"tmpfs_mb ({self.tmpfs_mb}) must be below memory_mb ({self.memory_mb})")
        return self


class Timeouts(_Part):
    start_s: float = Field(default=20.0, gt=0, le=600)
    """From creating a container to its answered handshake."""
    queue_s: float = Field(default=600.0, gt=0, le=86_400)
    """Schedule-to-start: how long a job may wait for a worker."""
    job_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    """Start-to-close; unset means the gateway's JOB_TIMEOUT_MS."""
    heartbeat_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    """How long a running tool may tell nothing, neither progress nor output; unset means as long as it likes."""
    idle_s: float = Field(default=300.0, gt=0)
    """How long a leased container may be idle before it is removed."""


class Concurrency(_Part):
    per_container: int = Field(default=8, ge=1)
    """Calls at once in one container; 1 or more only with scope `shared`."""
    per_worker: int = Field(default=10, ge=1)
    cluster: int = Field(default=1000, ge=1)


class ToolOverride(_Part):
    """What the operator knows better than the server's own hints."""

    read_only: bool | None = None
    idempotent: bool | None = None
    queue_s: float | None = Field(default=None, gt=0, le=86_400)
    timeout_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    heartbeat_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    approval: Literal["none", "ask"] = "none"
    """`ask`: a chat turn that wants to call it waits until the user has approved the call."""


class ServerSpec(_Part):
    """One server of the catalog."""

    kind: Literal["mcp", "exec"] = "mcp"
    description: str = ""
    image: str = Field(min_length=1)
    command: list[str] | None = None
    """Replaces the image's command."""
    env: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, SecretRef] = Field(default_factory=dict)
    """Environment variables by reference, `env:NAME` or `file:/path`, resolved on the worker, never stored."""
    scope: Scope = "shared"
    pool: PoolSize = Field(default_factory=PoolSize)
    limits: ContainerLimits = Field(default_factory=ContainerLimits)
    network: str = "none"
    runtime: str | None = None
    """OCI runtime known to the engine, such as `runsc`; unset means the engine's default."""
    timeouts: Timeouts = Field(default_factory=Timeouts)
    concurrency: Concurrency = Field(default_factory=Concurrency)
    tools: dict[str, ToolOverride] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exec_is_never_shared(self) -> Self:
        if self.kind == "exec" and self.scope == "shared":
            raise ValueError("scope must be session or call when kind is exec: commands keep files")
        return self

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        limits = self.limits
        if self.scope == "session" and limits.tmpfs_mb + limits.files_mb >= limits.memory_mb:
            raise ValueError(
                f"limits: tmpfs_mb ({limits.tmpfs_mb}) and files_mb ({limits.files_mb})"
                f" must together be below memory_mb ({limits.memory_mb}) when scope is session"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Changes when containers of this entry would be other ones: then pools are rebuilt, listings renewed.

        Gateways and workers of two versions have to come to the same one: a gateway uses no listing of another.
        """
        facts = self.model_dump(include={"kind", "image", "command", "env", "secrets", "limits", "network", "runtime"})
        for name, field in type(self.limits).model_fields.items():
            if name not in FIRST_LIMITS and facts["limits"][name] == field.default:
                del facts["limits"][name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def queue_s(self, tool: str) -> float:
        """Schedule-to-start."""
        return self._override(tool).queue_s or self.timeouts.queue_s

    @property
    def shortest_queue_s(self) -> float:
        """No job of this server has to be ended for its waiting before it is this old."""
        return min([self.timeouts.queue_s, *(each.queue_s for each in self.tools.values() if each.queue_s)])

    def timeout_ms(self, tool: str, default_ms: int) -> int:
        """Start-to-close."""
        return self._override(tool).timeout_ms or self.timeouts.job_ms or default_ms

    def heartbeat_ms(self, tool: str) -> int | None:
        """Heartbeat."""
        return self._override(tool).heartbeat_ms or self.timeouts.heartbeat_ms

    def asks(self, tool: str) -> bool:
        """Must a user approve each call that a model wants of it?"""
        return self._override(tool).approval == "ask"

    def _override(self, tool: str) -> ToolOverride:
        return self.tools.get(tool, ToolOverride())

    def read_only(self, tool: str, annotations: dict[str, Any]) -> bool:
        """Has the tool no effect? The operator's word, else the server's hint; absent means no."""
        override = self._override(tool).read_only
        return annotations.get("readOnlyHint") is True if override is None else override

    def idempotent(self, tool: str, annotations: dict[str, Any]) -> bool:
        """Has a second run no further effect? As `read_only`."""
        override = self._override(tool).idempotent
        return annotations.get("idempotentHint") is True if override is None else override


Catalog = dict[str, ServerSpec]


def parse(text: str, source: str) -> Catalog:
    """Read the text of a catalog file; `source` names it in faults.

    Raises:
        CatalogFault: listing every fault as `source:line: where: what`.
    """
    try:
        return _parse(text, source)
    except RecursionError as exc:
        raise CatalogFault(f"{source}:1: nested too deeply, or an alias stands for what contains it") from exc


def _parse(text: str, source: str) -> Catalog:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise CatalogFault(f"{source}:{line}: not YAML: {exc.problem}") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise CatalogFault(f"{source}:{line}: not YAML: {exc.reason}") from exc
    faults: list[tuple[int, str]] = []
    servers = _member(root, "servers")
    if not isinstance(servers, yaml.MappingNode):
        raise CatalogFault(f"{source}:1: the file must have a mapping named 'servers'")
    assert isinstance(root, yaml.MappingNode)
    for key, _ in root.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "servers":
            faults.append((key.start_mark.line + 1, f"{key.value}: unknown; the only top-level name is 'servers'"))
    faults += _faulty_keys(root)
    catalog: Catalog = {}
    for key, node in servers.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            continue
        name = str(key.value)
        if not subjects.SERVER_NAME.match(name):
            faults.append((line, f"{name}: a name is 1-32 of a-z, 0-9, - and _, starting with a letter or digit"))
            continue
        if name == subjects.CHAT:
            faults.append((line, f"{name}: this name stands for chat turns; take another"))
            continue
        try:
            catalog[name] = ServerSpec.model_validate(_plain(node))
        except yaml.MarkedYAMLError as exc:
            at = exc.problem_mark.line + 1 if exc.problem_mark else line
            faults.append((at, f"{name}: {exc.problem}"))
        except ValidationError as exc:
            for fault in exc.errors(include_url=False):
                path = [str(part) for part in fault["loc"]]
                faults.append((_line_of(node, path) or line, f"{'.'.join([name, *path])}: {fault['msg']}"))
        except ValueError as exc:  # what looks like a date, and is none
            faults.append((line, f"{name}: {exc}"))
    if faults:
        lines = [f"{source}:{line}: {what}" for line, what in sorted(set(faults))]
        raise CatalogFault(f"{len(lines)} fault(s) in the catalog:\n" + "\n".join(lines))
    return catalog


def read(path: Path) -> Catalog:
    """`parse` of a file.

    Raises:
        CatalogFault: also if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CatalogFault(f"{path}: cannot be read: {exc}") from exc
    return parse(text, str(path))


def _plain(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _member(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name:
                found: yaml.Node = value
                return found
    return None


def _line_of(node: yaml.Node, path: list[str]) -> int | None:
    """The line of the deepest key or item on `path` that the file has."""
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _faulty_keys(node: yaml.Node) -> list[tuple[int, str]]:
    """YAML readers let the last of two equal keys win in silence; here it is a fault. So is a key that is no text."""
    faults: list[tuple[int, str]] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                faults.append((line, "a key must be plain text"))
            elif key.value in seen:
                faults.append((line, f"{key.value}: repeated; first on line {seen[key.value]}"))
            else:
                seen[key.value] = line
            faults += _faulty_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            faults += _faulty_keys(item)
    return faults
