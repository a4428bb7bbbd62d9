"""HTML and SVG elements. The serialiser escapes all text and all attribute values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str | None
"""A child of an element: another element, text, or None, which is skipped."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def element(tag: str, /, *children: Child | Iterable[Child], **attributes: str | float | None) -> Element:
    """Return an element with the given children and attributes.

    Args:
        tag: name of the element.
        children: elements and text, also in nested iterables; None is skipped.
        attributes: values by name; None is skipped. A trailing underscore of a name is dropped and the
            others become hyphens, so `class_` gives `class` and `aria_label` gives `aria-label`.
    """
    built = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): _replace_unprintable(
                value if isinstance(value, str) else f"{value:g}"
            )
            for name, value in attributes.items()
            if value is not None
        },
    )
    for child in _flatten(children):
        if isinstance(child, Element):
            built.append(child)
        elif len(built):
            # ElementTree keeps the text that follows a child in the child's tail.
            built[-1].tail = (built[-1].tail or "") + _replace_unprintable(child)
        else:
            built.text = (built.text or "") + _replace_unprintable(child)
    return built


def _flatten(children: Iterable[Child | Iterable[Child]]) -> Iterable[Element | str]:
    for child in children:
        if isinstance(child, (Element, str)):
            yield child
        elif child is not None:
            yield from _flatten(child)


def _replace_unprintable(text: str) -> str:
    """Replace what HTML cannot contain: control characters and unpaired surrogates."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
