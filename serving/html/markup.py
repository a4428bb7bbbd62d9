"""Elements of HTML and SVG. Text and attributes are escaped by the serialiser, all of them, always."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None
"""None is left out."""

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def element(tag: str, /, *children: Child | Iterable[Child], **attributes: str | float | None) -> Element:
    """An element with text and elements in it.

    Of attributes, None is left out; a trailing underscore is dropped and others become hyphens, so
    that `class_` and `aria_label` can be said.
    """
    made = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): _printable(value if isinstance(value, str) else f"{value:g}")
            for name, value in attributes.items()
            if value is not None
        },
    )
    for child in _flat(children):
        if isinstance(child, Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _printable(child)
        else:
            made.text = (made.text or "") + _printable(child)
    return made


def _flat(children: Iterable[Child | Iterable[Child]]) -> Iterable[Element | str]:
    for child in children:
        if isinstance(child, (Element, str)):
            yield child
        elif child is not None:
            yield from _flat(child)


def _printable(text: str) -> str:
    """The same without what no page can hold: control characters, halves of characters."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
