"""`hubhead query`: SQL over the scores, by DuckDB and without writing anything but the answer."""
