"""What the command line shows as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from client.event import Job
from client.summary import ending, shorten

Row = dict[str, Any]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        # Names of numbers end in what they count; numbers stand at the right.
        right = column in ("WAITING", "RUNNING", "READY", "BUSY", "STARTING", "LIMIT", "LEASES", "SLOTS", "ATTEMPTS")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def show_servers(console: Console, servers: list[Row]) -> None:
    table = _table("SERVER", "STATUS", "SCOPE", "KIND", "WHAT")
    for each in servers:
        what = each["description"] if each["status"] == "ready" else each["reason"]
        table.add_row(each["name"], each["status"], each["scope"], each["kind"], what)
    console.print(table)


def show_tools(console: Console, tools: list[Row]) -> None:
    table = _table("TOOL", "ARGUMENTS", "HINTS")
    for each in tools:
        table.add_row(each["name"], arguments(each.get("inputSchema", {})), hints(each.get("annotations") or {}))
    console.print(table)


def arguments(schema: Row) -> str:
    """`name: type` of each argument, optional ones in brackets."""
    required = schema.get("required") or []
    shown = []
    for name, each in (schema.get("properties") or {}).items():
        text = f"{name}: {_type(each)}"
        shown.append(text if name in required else f"[{text}]")
    return " ".join(shown)


def _type(schema: Row) -> str:
    if "enum" in schema:
        return "|".join(str(value) for value in schema["enum"])
    named = schema.get("type") or [_type(each) for key in ("anyOf", "oneOf") for each in schema.get(key, [])]
    types = [named] if isinstance(named, str) else [each for each in named if each != "null"]
    return "|".join(types) or "any"


def hints(annotations: Row) -> str:
    """What the server claims of a tool."""
    names = {"readOnlyHint": "read-only", "idempotentHint": "idempotent", "openWorldHint": "open-world"}
    shown = [text for name, text in names.items() if annotations.get(name)]
    # MCP's default for a tool that writes is that it may destroy.
    if not annotations.get("readOnlyHint") and annotations.get("destructiveHint", True):
        shown.append("destructive")
    return ", ".join(shown)


def show_status(console: Console, status: Row) -> None:
    """Gateway, workers, their pools, and the queues."""
    gateway, workers = status["gateway"], status["workers"]
    if not gateway["connected"]:
        console.print(f"the gateway has no store: {gateway['reason']}", style="bold red")
        return
    draining = ", draining" if gateway["draining"] else ""
    console.print(f"gateway: {gateway['connections']} connections, {gateway['sessions']} sessions{draining}\n")
    for weakness in gateway.get("durability", {}).get("weaknesses", []):
        console.print(f"the store is weaker than asked for: {weakness}\n", style="bold yellow", markup=False)
    if not workers:
        console.print("no worker answers: jobs wait until one comes\n", style="bold yellow")
    else:
        _show_workers(console, workers)
    queues = _table("QUEUE", "WAITING", "RUNNING")
    for each in status["queues"]:
        queues.add_row(each["server"], str(each["waiting"]), str(each["running"]))
    console.print(queues)


def _show_workers(console: Console, workers: list[Row]) -> None:
    table = _table("WORKER", "SLOTS", "STATE")
    pools = _table("POOL", "WORKER", "SCOPE", "READY", "BUSY", "STARTING", "LIMIT", "LEASES", "FAILURE")
    for worker in workers:
        name = str(worker.get("worker") or worker["id"])
        slots = worker.get("slots") or {}
        table.add_row(
            name,
            f"{slots.get('used', '?')}/{slots.get('limit', '?')}",
            "draining" if worker.get("draining") else "serving",
        )
        for pool in worker.get("pools") or []:
            numbers = [str(pool.get(key, "")) for key in ("ready", "busy", "starting", "limit", "leases")]
            pools.add_row(pool["server"], name, pool.get("scope", ""), *numbers, pool.get("failure", ""))
    for each in (table, pools):
        console.print(each)
        console.print()


def show_job(console: Console, job: Job) -> None:
    facts = {
        "job": job.id,
        "call": f"{job.server or '?'} {job.tool or '?'}",
        "state": job.state,
        "attempt": str(job.attempt),
        "newest event": str(job.seq),
    }
    if job.result is not None:
        facts["ended"] = ending(job.result)
        facts |= {name.replace("_ms", ""): f"{ms:g} ms" for name, ms in job.result.timings.items()}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def show_files(console: Console, listed: Row) -> None:
    if not listed["entries"]:
        console.print("no files")
        return
    table = _table("NAME", "TYPE", "SIZE", "CHANGED", "TO")
    for each in listed["entries"]:
        size = str(each["size"]) if each["type"] == "file" else ""
        table.add_row(each["name"], each["type"], size, _moment(each["mtime_ms"]), each.get("target") or "")
    console.print(table)
    if listed["truncated"]:
        console.print("there is more: list a folder")


def show_letters(console: Console, letters: list[Row]) -> None:
    if not letters:
        console.print("no dead letters")
        return
    table = _table("LETTER", "WHEN", "TENANT", "SERVER", "TOOL", "JOB", "ATTEMPTS", "REASON")
    for each in letters:
        table.add_row(
            each["letter"],
            _moment(each["time_ms"]),
            each["tenant"] or "?",
            each["server"],
            each["tool"] or "?",
            each["job"] or "?",
            str(each["attempts"]),
            shorten(each["reason"]),
        )
    console.print(table)


def show_letter(console: Console, letter: Row) -> None:
    """Its facts, its attempts, what the server said last, and the call."""
    facts = {
        "letter": letter["letter"],
        "when": _moment(letter["time_ms"]),
        "tenant": letter["tenant"] or "?",
        "call": f"{letter['server']} {letter['tool'] or '?'}",
        "session": letter["session"],
        "job": letter["job"] or "?",
        "redrive of": letter["redrive_of"],
        "why": f"{letter['error'].get('type')}: {letter['reason']}",
        "image": letter["image_digest"],
        "trace": letter["trace"],
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts.items():
        if value:
            table.add_row(name, value)
    console.print(table)
    if letter["attempts"]:
        attempts = _table("ATTEMPT", "WORKER", "CONTAINER", "STARTED", "ENDED", "ERROR")
        for each in letter["attempts"]:
            ended = "worker lost" if each["ended_ms"] is None else _moment(each["ended_ms"])
            error = (each["error"] or {}).get("message", "")
            started = _moment(each["started_ms"])
            attempts.add_row(str(each["attempt"]), each["worker"], each["container"], started, ended, shorten(error))
        console.print()
        console.print(attempts)
    if letter["stderr"]:
        console.print("\nlast on stderr:")
        console.print(letter["stderr"])
    if "arguments" in letter:
        console.print("\narguments:")
        console.print_json(data=letter["arguments"])
    else:
        console.print(f"\nno job can be made of its message of {letter['size']} bytes; --json shows it")


def _moment(time_ms: int) -> str:
    if not time_ms:
        return "?"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
