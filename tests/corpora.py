"""Where the corpora of hostile input lie (see their README), and whether the long tests run at their full size.

`FLASHSALE_CORPORA` names the folder; without it nothing of it is tried, and the end of the test run says so.
`FLASHSALE_FULL=1` makes every test that has a full size run at it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FULL = os.environ.get("FLASHSALE_FULL") == "1"
FOLDER = os.environ.get("FLASHSALE_CORPORA", "")


def absent() -> str:
    """One line that says what was not tried; "" where the corpora are there."""
    if Path(FOLDER, "http").is_dir() and FOLDER:
        return ""
    return "FLASHSALE_CORPORA names no folder of corpora: their hostile input was not tried"


def load(name: str) -> Any:
    """A JSON file of the corpora; an empty list where they are absent."""
    return [] if absent() else json.loads(Path(FOLDER, name).read_text(encoding="utf-8"))
