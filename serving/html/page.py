"""Rendering of a page from its Jinja2 template, and the filters of all templates."""

from __future__ import annotations

import base64
import math
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from serving.text import redact

if TYPE_CHECKING:
    from jinja2 import Environment

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Characters that HTML cannot contain: control characters and unpaired surrogates."""


def render(package: str, **values: Any) -> str:
    """Return the page of a package as one HTML file: its style is inline, it has no script and loads nothing.

    Args:
        package: package that contains `templates/report.html`.
        values: variables of the template. Text is escaped where it is inserted.
    """
    text = _environment(package).get_template("report.html").render(values)
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


@cache
def _environment(package: str) -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("serving.html")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(base64=_base64, number=_number, percent=_percent, pluralize=_pluralize)
    environment.filters["redact"] = redact
    environment.tests["nan"] = math.isnan
    return environment


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _number(value: float | None, form: str = ",") -> str:
    """Format a number with a true minus sign; None and NaN become a dash."""
    if value is None or math.isnan(value):
        return "–"
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def _percent(value: float, digits: int = 1) -> str:
    """Format a proportion as a percentage, or as a dash if it is NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _pluralize(count: int, noun: str) -> str:
    """Return the count and its noun: `1 photo`, `2 photos`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
