"""Test data and helpers: rescore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def rows_of(output: Path) -> list[dict[str, Any]]:
    content = pq.read_table(output / "scores").drop_columns(["scored_at"])
    return content.sort_by([("uri", "ascending"), ("version", "ascending")]).to_pylist()
