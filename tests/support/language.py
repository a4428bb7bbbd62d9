"""Check of the prose in code and documents: `python -m tests.support.language`, a part of `make lint`.

The list is short on purpose: phrases that were once all over this code and that no technical
documentation uses. CONTRIBUTING.md has the rules that no program can check.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.repository import REPO

PHRASES = re.compile(
    r"\b(?:(?:is|are)\s+told|held\s+against|(?:hold|holds|holding)\s+(?:\S+\s+){1,6}?against"
    r"|what\s+bec(?:omes|ame)\s+of|as\s+good\s+as\s+none|nobody's\s+business|who\s+asks)\b",
    re.IGNORECASE,
)
FIRST_WORDS = ("Of", "By", "For", "To", "In", "What", "Where", "Whether")
"""First words that leave a docstring without a subject or a verb."""

EXEMPT = ("tests/support/language.py", "tests/unit/test_language.py")
"""The list itself, and its examples."""

DOCUMENTS = {".md", ".html", ".yaml", ".toml", ".txt"}


@dataclass(frozen=True)
class Finding:
    """A place whose words have to change.

    Attributes:
        path: file, relative to the repository.
        line: number of its line.
        text: what was found.
    """

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def check_document(path: str, text: str) -> Iterator[Finding]:
    """Yield the phrases of a text; one may run over the end of a line."""
    for match in PHRASES.finditer(text):
        found = " ".join(match[0].split())
        yield Finding(path, text.count("\n", 0, match.start()) + 1, f"write it otherwise: {found!r}")


def check_python(path: str, source: str) -> Iterator[Finding]:
    """Yield the phrases of strings and comments, and docstrings that begin with a bare preposition."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            for found in check_document(path, token.string):
                yield Finding(path, token.start[0] + found.line - 1, found.text)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").split(maxsplit=1)[:1]
            if first and first[0].rstrip(",:") in FIRST_WORDS:
                line = node.body[0].lineno
                yield Finding(
                    path, line, f"a docstring begins with {first[0]!r}: name the thing or what it does"
                )


def check_repository() -> list[Finding]:
    """Return the findings of every tracked file."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True)
    found: list[Finding] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = REPO / name
        if not path.is_file() or name in EXEMPT or name.startswith("requirements"):
            continue
        if path.suffix == ".py":
            found += check_python(name, path.read_text("utf-8"))
        elif path.suffix in DOCUMENTS:
            found += check_document(name, path.read_text("utf-8"))
    return found


if __name__ == "__main__":
    findings = check_repository()
    print("\n".join(map(str, findings)) or "language: nothing found")
    sys.exit(bool(findings))
