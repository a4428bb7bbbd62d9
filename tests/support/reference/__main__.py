"""Write the generated parts of the pages in docs/: `python -m tests.support.reference`."""

from __future__ import annotations

from tests.support.reference.benchmarks import has_record
from tests.support.reference.contents import GENERATORS
from tests.support.reference.markers import drop_superseded, fill, list_parts
from tests.support.repository import REPO


def main() -> None:
    """Rewrite every page that differs from what the code says."""
    for page in sorted((REPO / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if list_parts(text) and (filled := fill(drop_superseded(text, has_record), GENERATORS)) != text:
            page.write_text(filled, encoding="utf-8")
            print(page.relative_to(REPO))


if __name__ == "__main__":
    main()
