"""Generated parts of the pages in docs/: tables that follow from the code, between markers."""
