"""Reading of score rows for tests of rescore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows by uri and version, without the column that differs between runs."""
    content = pq.read_table(output / "scores").drop_columns(["scored_at"])
    return content.sort_by([("uri", "ascending"), ("version", "ascending")]).to_pylist()
