"""Parts of a document in Markdown: code blocks, code spans, links and the anchors of its headings."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from tests.support.repository import REPO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

DOCUMENTS = tuple(
    sorted(
        path.relative_to(REPO).as_posix()
        for pattern in (
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "SECURITY.md",
            "docs/**/*.md",
            "k8s/*.md",
        )
        for path in REPO.glob(pattern)
    )
)
"""Every document, as a path below the repository."""

_LINKS = ("href", "src")


@dataclass(frozen=True)
class Fence:
    """A code block between fences.

    Attributes:
        document: path of the document below the repository.
        line: number of its first line inside the fences, from 1.
        language: first word after the opening fence, or "".
        text: the lines between the fences.
    """

    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Place of the block, as `docs/tutorial.md:12`."""
        return f"{self.document}:{self.line}"


def fences(document: str, *languages: str) -> list[Fence]:
    """Return the code blocks of these languages ("" for none), or all code blocks."""
    found = [
        Fence(document, token.map[0] + 2, (token.info.split() or [""])[0], token.content)
        for token in _parse(document)
        if token.type == "fence" and token.map
    ]
    return [fence for fence in found if not languages or fence.language in languages]


def hidden_blocks(document: str) -> list[Fence]:
    """Return the comments of HTML that begin with `<!-- run`, without their first and last line."""
    return [
        Fence(document, token.map[0] + 2, "run", "".join(token.content.splitlines(keepends=True)[1:-1]))
        for token in _parse(document)
        if token.type == "html_block" and token.map and token.content.startswith("<!-- run\n")
    ]


def code_blocks(document: str, language: str = "") -> list[str]:
    """Return the texts of the code blocks of a language; those without one by default."""
    return [fence.text for fence in fences(document, language)]


def code_spans(document: str) -> list[str]:
    """Return the code spans in the text, such as `hubhead train`, in one line each."""
    return [" ".join(t.content.split()) for t in _parse_inline(document) if t.type == "code_inline"]


def links(document: str) -> list[str]:
    """Return the targets of links and pictures as they are written."""
    targets = [str(t.attrs[name]) for t in _parse_inline(document) for name in t.attrs if name in _LINKS]
    return targets + [value for name, value in _html_attributes(document) if name in _LINKS]


def anchors(document: str) -> set[str]:
    """Return the anchors that GitHub derives from the headings of a document, and those of its HTML."""
    tokens = _parse(document)
    found: Counter[str] = Counter()
    result: set[str] = set()
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(t.content for t in inline.children or () if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            result.add(f"{slug}-{found[slug]}" if found[slug] else slug)
            found[slug] += 1
    return result | {value for name, value in _html_attributes(document) if name in ("id", "name")}


def resolve(document: str, target: str) -> tuple[Path, str]:
    """Return the file that a relative link names, and its anchor or ""."""
    path, _, anchor = target.partition("#")
    return ((REPO / document).parent / path).resolve() if path else REPO / document, anchor


@cache
def _parse(document: str) -> tuple[Token, ...]:
    text = (REPO / document).read_text(encoding="utf-8")
    return tuple(MarkdownIt("commonmark").enable("table").parse(text))


def _parse_inline(document: str) -> Iterator[Token]:
    for token in _parse(document):
        yield from token.children or ()


def _html_attributes(document: str) -> list[tuple[str, str]]:
    """Return the attributes of all tags of HTML in the document."""
    tokens = itertools.chain(_parse(document), _parse_inline(document))
    html = [token.content for token in tokens if token.type.startswith("html_")]
    found: list[tuple[str, str]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend((name, value or "") for name, value in attrs)

    parser = Parser()
    for text in html:
        parser.feed(text)
    parser.close()
    return found
