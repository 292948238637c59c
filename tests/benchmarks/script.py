"""What a script of a measurement is told, and what it answers: one JSON object each way."""

from __future__ import annotations

import json
import sys
from typing import Any


def parameters() -> dict[str, Any]:
    """The object of the command line."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def answer(**values: Any) -> None:
    """Prints the last line of a script."""
    print(json.dumps(values), flush=True)
