"""Components that several pages share, and the page itself."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from serving.html.markup import Child, Element, element

SPACE = "\N{NO-BREAK SPACE}"


def document(title: str, *parts: Element | None) -> str:
    """Return a page as one HTML file: its style is inline, it has no script and loads nothing."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    root = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", title),
            element("style", style),
        ),
        element("body", element("main", *parts)),
        lang="en",
    )
    return "<!doctype html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"


# --- Numbers as text --------------------------------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """Format a proportion as a percentage, or as a dash if it is NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}{SPACE}%"


def decimals(value: float) -> str:
    """Format a number with three decimals, or as a dash if it is NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def pluralize(count: int, noun: str) -> str:
    """Return the count and its noun: `1 photo`, `2 photos`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bidi_isolate(label: str) -> Element:
    """Return a class label isolated from the surrounding text, as right-to-left scripts need it (`bdi`)."""
    return element("bdi", label)


# --- Components -------------------------------------------------------------------------------------------


def section(title: str, introduction: str, *parts: Element | None) -> Element:
    """Return a section of the page: its heading, an introduction ("" for none) and its parts."""
    return element(
        "section",
        element("h2", title),
        element("p", introduction, class_="soft") if introduction else None,
        *parts,
    )


def key_figure(name: str, value: str, note: str) -> Element:
    """Return a card with one number in large type. It belongs in a `dl` of class `figures`."""
    return element(
        "div",
        element("dt", name),
        element("dd", value, class_="big"),
        element("dd", note, class_="soft small"),
        class_="card",
    )


def diagram(title: str, chart: Element, caption: str) -> Element:
    """Return a card with a chart, its title and a caption that explains it."""
    return element("figure", element("h3", title), chart, element("figcaption", caption), class_="card")


def table_of(heads: Sequence[str], rows: Iterable[Sequence[Child]], caption: str = "") -> Element:
    """Return a table whose first column holds the row headers."""
    return element(
        "table",
        element("caption", caption) if caption else None,
        element(
            "thead",
            element(
                "tr",
                *(element("th" if head else "td", head, scope="col" if head else None) for head in heads),
            ),
        ),
        element(
            "tbody",
            *(
                element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
                for first, *others in rows
            ),
        ),
    )


def image(content: bytes | None, description: str, side: int) -> Element:
    """Return a square image of `side` pixels with inline JPEG data, or a placeholder if `content` is None."""
    if content is None:
        return element("div", "no picture", class_="missing")
    data = base64.b64encode(content).decode()
    return element(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        alt=description,
        width=side,
        height=side,
        loading="lazy",
    )
