"""Rules that hold for every source file of ours, read from their syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("libs", "services") for path in (ROOT / folder).glob("*/src/**/*.py"))
SUBJECTS = ROOT / "libs/common/src/common/subjects.py"
LINES = 400

SUBJECT = re.compile(r"(jobs|sessions|live|dead|close|workers)\.(\S|$)|\$(JS|KV|SRV)\b")

READS_ENVIRONMENT = {
    ("libs/common/src/common/tracing.py", "exporting"): "OpenTelemetry's own variables, which its SDK reads itself",
    ("services/worker/src/worker/served_server.py", "_environment"): "secrets of the catalog are named by it",
    ("services/standalone/src/standalone/stack.py", "_process"): "the children get ours, and more",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.expr | ast.ExceptHandler | ast.alias) -> str:
    return f"{name_of(path)}:{node.lineno}"


@cache
def docstrings(tree: ast.Module) -> set[ast.expr]:
    """Every string that stands alone: docstrings of modules, classes, functions and fields."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names; what is no name in it shows as `()`."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, name):
            return f"{dotted(value)}.{name}"
        case ast.Call(func):
            return f"{dotted(func)}()"
    return "()"


def with_function(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every node, with the name of the function that it stands in."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
        yield node, function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(tree, "")


def test_the_rules_look_at_all_our_packages() -> None:
    """A package that is new is found by itself."""
    packages = {name_of(path).split("/src/")[1].split("/")[0] for path in SOURCES}

    assert packages == {"common", "client", "gateway", "worker", "standalone"}
    assert len(SOURCES) > 60


def test_subjects_are_spelled_in_one_place() -> None:
    """`common.subjects`: elsewhere they are built, so that a change of the layout is a change of one file."""
    spelled = [
        f"{place(path, node)}: {node.value}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if path != SUBJECTS
        and isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and SUBJECT.match(node.value)
        and node not in docstrings(tree_of(path))
    ]

    assert spelled == []


def test_the_one_place_spells_every_kind_of_subject() -> None:
    """Or the rule above would forbid nothing."""
    spelled = {
        SUBJECT.match(node.value).group(1, 3)  # type: ignore[union-attr]
        for node in ast.walk(tree_of(SUBJECTS))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SUBJECT.match(node.value)
    }

    assert {first or second for first, second in spelled} == {
        "jobs", "sessions", "live", "dead", "close", "workers", "JS", "KV", "SRV"
    }  # fmt: skip


@cache
def lenders() -> set[str]:
    """Functions of ours that lend a TaskGroup of theirs for the time of a context."""
    return {
        node.name
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.AsyncFunctionDef)
        and node.returns is not None
        and ast.unparse(node.returns) == "AsyncIterator[asyncio.TaskGroup]"
    }


@cache
def groups_of(tree: ast.Module) -> set[str]:
    """Names that hold a TaskGroup: of `async with`, of a parameter, of an assignment."""
    lent = {f"{name}()" for name in lenders()} | {"asyncio.TaskGroup()"}
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.withitem(context, ast.expr() as target) if dotted(context) in lent:
                found.add(dotted(target))
            case ast.arg(name, annotation) if annotation and dotted(annotation) == "asyncio.TaskGroup":
                found.add(name)
            case ast.Assign(targets, ast.Call() as made) if dotted(made) == "asyncio.TaskGroup()":
                found |= {dotted(target) for target in targets}
            case ast.Assign(targets, ast.Await(ast.Call(_, [made]))) if dotted(made) == "asyncio.TaskGroup()":
                found |= {dotted(target) for target in targets}  # entered by an exit stack
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets, ast.Name(name)) if name in found:
                found |= {dotted(target) for target in targets}
    return found


def test_every_task_has_an_owner() -> None:
    """Only a TaskGroup starts one: a bare task is lost with its exception, and cancelled by nobody."""
    bare = [
        f"{place(path, node)}: {dotted(node.func)}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and dotted(node.func).rsplit(".", 1)[-1] in ("create_task", "ensure_future", "run_coroutine_threadsafe")
        and dotted(node.func).rpartition(".")[0] not in groups_of(tree_of(path))
    ]

    assert bare == []


def test_the_environment_is_read_by_the_settings_only() -> None:
    """With the exceptions that are named here, each for its reason; one that is gone leaves the list."""
    reads = {
        (name_of(path), function)
        for path in SOURCES
        for node, function in with_function(tree_of(path))
        if (isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.environb", "os.getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & names_of(node))
    }

    assert reads == READS_ENVIRONMENT.keys()


def names_of(node: ast.ImportFrom) -> set[str]:
    return {alias.name for alias in node.names}


def test_every_module_says_what_it_is() -> None:
    """In a docstring that begins with a sentence."""
    silent = [
        name_of(path)
        for path in SOURCES
        if not re.search(r"[.:?)`]$", (ast.get_docstring(tree_of(path)) or "").split("\n\n")[0])
    ]

    assert silent == []


def test_a_module_is_short_or_says_why_it_is_not() -> None:
    """400 lines fit into one head; the docstring of a longer one says why it is one module."""
    long = [
        name_of(path)
        for path in SOURCES
        if len(path.read_text().splitlines()) > LINES
        and "one module because" not in (ast.get_docstring(tree_of(path)) or "").lower()
    ]

    assert long == []


def test_who_catches_everything_raises_it_again() -> None:
    """A cancellation that is swallowed hangs a shutdown."""
    caught = [
        place(path, node)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or dotted(node.type) == "BaseException")
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]

    assert caught == []
