"""Contents of protocol.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

_TABLE = tomllib.loads(Path(__file__).with_name("protocol.toml").read_text("utf-8"))

ERRORS: list[dict[str, Any]] = _TABLE["error"]
FACTS: list[dict[str, Any]] = _TABLE["fact"]
IDS = [entry["id"] for entry in (*ERRORS, *FACTS)]
