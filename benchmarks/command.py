"""What all benchmarks have in common on the command line: options, checks, and the JSON object in the last line."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.<name>`, described by the first line of its docstring."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").split("\n")[0])
    made.add_argument("--json", action="store_true", help="print nothing but the JSON object on standard output")
    return made


def require_at_least(least: int, parsing: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """Ends with an error that names the option."""
    for name in names:
        if getattr(options, name) < least:
            parsing.error(f"--{name} must be at least {least}")


def print_figures(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """For people on standard error, unless `--json` is given; for programs in the last line of standard output."""
    if not options.json:
        width = max(map(len, figures))
        for name, value in figures.items():
            print(f"{name:{width}} {value:>10}", file=sys.stderr)
    print(json.dumps(figures))


def percentile(values: list[float], percent: int) -> float:
    """Nearest rank; of fewer than 100 values the 99th is the largest."""
    if percent == 50:
        return round(statistics.median(values), 3)
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 3)
