"""SQL queries over the scores, executed read-only by DuckDB (`hubhead query`)."""

FORMATS = ("table", "csv", "json", "parquet")
"""Formats of a result."""
