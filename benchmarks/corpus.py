"""Conversations made of what is really there: results of tools that are called for it, and texts of this machine."""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import Session

Message = dict[str, Any]
Conversation = list[Message]

REPOSITORY = {"repo_path": "/tmp/repo"}
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    *(("git", "git_log", REPOSITORY | {"max_count": count}) for count in (1, 3, 5, 10)),
    ("git", "git_status", REPOSITORY),
    ("git", "git_branch", REPOSITORY | {"branch_type": "local"}),
    *(("git", "git_show", REPOSITORY | {"revision": revision}) for revision in ("HEAD", "HEAD~1", "HEAD~2")),
    *(("time", "get_current_time", {"timezone": zone}) for zone in ("UTC", "Asia/Tokyo", "Europe/Berlin")),
    *(
        ("time", "convert_time", {"source_timezone": "UTC", "time": f"{hour:02}:30", "target_timezone": "Asia/Tokyo"})
        for hour in range(0, 24, 3)
    ),
    *(("everything", "echo", {"message": f"attempt {number}"}) for number in range(4)),
    *(("everything", "get-sum", {"a": number, "b": 7}) for number in range(4)),
]
"""Of the MCP servers in images/; the commands of `exec` come on top."""
COMMANDS = [
    "ls -l /etc /usr /var",
    "ls -lR /usr/share | head -400",
    "cat /proc/cpuinfo /proc/meminfo",
    "env | sort",
    "df -h; mount",
    "cat /etc/os-release /etc/passwd",
    "python3 -c 'import sys; print(sorted(sys.modules))'",
    "python3 -m pydoc json",
]
READ_FILE = "sed -n '1,150p' {file}"
FILES_READ = 60


@dataclass(frozen=True)
class Result:
    """One call that was made, and what came of it."""

    server: str
    tool: str
    arguments: dict[str, Any]
    outcome: str
    content: Any


async def tool_results(session: Session) -> list[Result]:
    """Every call of CALLS, of COMMANDS, and beginnings of files of the container."""
    listed = await session.run("exec", "run", {"command": "ls /usr/lib/python3*/*.py /usr/local/lib/python3*/*.py"})
    files = [name for name in listed.text.split() if name.endswith(".py")][:FILES_READ]
    commands = [*COMMANDS, *(READ_FILE.format(file=name) for name in files)]
    commands += [f"grep -n def {name} | head -50" for name in files[::3]]
    found = []
    for server, tool, arguments in [*CALLS, *(("exec", "run", {"command": command}) for command in commands)]:
        result = await session.run(server, tool, arguments)
        content = (result.result or {}).get("content", [])
        found.append(Result(server, tool, arguments, result.outcome, content))
    if not all(any(each.server == name and each.outcome == "succeeded" for each in found) for name in SERVERS):
        raise SystemExit("a server has answered no call: no corpus can be made")
    return found


SERVERS = sorted({server for server, _, _ in CALLS} | {"exec"})


def texts() -> list[str]:
    """Paragraphs that people wrote: docstrings of Python's own library, which is on every machine that runs this."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (said := ast.get_docstring(node)):
                found += [part for part in inspect.cleandoc(said).split("\n\n") if 40 < len(part) < 3_000]
    return found


def chats(paragraphs: list[str], count: int, seed: int) -> Iterator[Conversation]:
    """Conversations of the usual size: a question of a sentence or two, an answer of a few paragraphs."""
    pick = random.Random(seed)
    for number in range(count):
        said: Conversation = []
        for turn in range(pick.randint(5, 25)):
            at = 1_790_000_000_000 + number * 10_000_000 + turn * 40_000
            question = pick.choice(paragraphs).split(". ")[0][:300]
            answer = "\n\n".join(pick.sample(paragraphs, pick.randint(1, 4)))
            said.append({"role": "user", "content": question, "time_ms": at})
            said.append({"role": "assistant", "content": answer, "time_ms": at + 9_000})
        yield said


def tool_heavy(results: list[Result], paragraphs: list[str], count: int, seed: int) -> Iterator[Conversation]:
    """Conversations of an agent at work: few words, many calls, and again and again the same file."""
    pick = random.Random(seed)
    for number in range(count):
        said: Conversation = []
        own = pick.sample(results, min(len(results), 25))
        for turn in range(pick.randint(6, 15)):
            at = 1_790_000_000_000 + number * 10_000_000 + turn * 90_000
            said.append({"role": "user", "content": pick.choice(paragraphs)[:400], "time_ms": at})
            for step in range(pick.randint(2, 8)):
                made = pick.choice(own)
                said.append(
                    {
                        "role": "tool",
                        "job": f"{at + step:012x}{pick.getrandbits(48):012x}",
                        "server": made.server,
                        "tool": made.tool,
                        "arguments": made.arguments,
                        "outcome": made.outcome,
                        "content": made.content,
                        "time_ms": at + step * 5_000,
                    }
                )
            said.append({"role": "assistant", "content": pick.choice(paragraphs), "time_ms": at + 60_000})
        yield said
