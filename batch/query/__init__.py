"""SQL queries over the scores, executed read-only by DuckDB (`hubhead query`)."""
