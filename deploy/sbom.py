"""Prints a CycloneDX bill of the packages that this Python has. Runs while an image is built.

The first argument names the component that the bill is of.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import distributions
from typing import Any


def bill(subject: str) -> dict[str, Any]:
    found = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version for each in distributions()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": subject, "version": found[subject]}},
        "components": [
            {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
            for name, version in sorted(found.items())
            if name != subject
        ],
    }


if __name__ == "__main__":
    json.dump(bill(sys.argv[1]), sys.stdout, indent=1)
