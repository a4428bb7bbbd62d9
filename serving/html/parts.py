"""Parts of a page, and the page of them."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from serving.html.markup import Child, Element, element

SPACE = "\N{NO-BREAK SPACE}"


def document(title: str, *parts: Element | None) -> str:
    """The text of a page: one HTML file with its style in it, no script, and nothing that is fetched."""
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


# --- Figures in words -------------------------------------------------------------------------------------


def percent(value: float, digits: int = 1) -> str:
    """A share as percent; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}{SPACE}%"


def decimals(value: float) -> str:
    """Three decimals; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def many(count: int, thing: str) -> str:
    """`1 photo`, `2 photos`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def isolated(label: str) -> Element:
    """A label among other words, whichever way it is written."""
    return element("bdi", label)


# --- Parts ------------------------------------------------------------------------------------------------


def section(title: str, words: str, *parts: Element | None) -> Element:
    """A part of the page under its title."""
    return element(
        "section", element("h2", title), element("p", words, class_="soft") if words else None, *parts
    )


def key_figure(name: str, value: str, more: str) -> Element:
    """One figure in large; of those in a `dl` of class `figures`."""
    return element(
        "div",
        element("dt", name),
        element("dd", value, class_="big"),
        element("dd", more, class_="soft small"),
        class_="card",
    )


def diagram(title: str, chart: Element, words: str) -> Element:
    """A chart with its title and what is to be seen in it."""
    return element("figure", element("h3", title), chart, element("figcaption", words), class_="card")


def table_of(heads: Sequence[str], rows: Iterable[Sequence[Child]], caption: str = "") -> Element:
    """A table whose first column names the rows."""
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


def image(content: bytes | None, words: str, side: int) -> Element:
    """A JPEG of `side` pixels, told by `words`; a gap where there is none."""
    if content is None:
        return element("div", "no picture", class_="missing")
    data = base64.b64encode(content).decode()
    return element(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        alt=words,
        width=side,
        height=side,
        loading="lazy",
    )
