"""HTML pages: escaping, undefined variables, numbers as text, and the coordinates of charts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from jinja2 import DictLoader, UndefinedError

from serving import html
from serving.html import Axis, Chart, Point, page, percent_ticks
from tests.support.html_assertions import HOSTILE, Page, check_self_contained


def render_template(monkeypatch: pytest.MonkeyPatch, source: str, **values: object) -> str:
    """Render a page whose main block is `source`."""
    environment = page._environment("serving.html").overlay()
    report = (
        '{% extends "base.html" %}{% import "macros.html" as ui %}{% block main %}'
        + source
        + "{% endblock %}"
    )
    templates = {path.name: path.read_text() for path in Path(page.__file__).parent.glob("templates/*")}
    environment.loader = DictLoader({**templates, "report.html": report})
    monkeypatch.setattr(page, "_environment", lambda _: environment)
    return html.render("serving.html", **values)


def test_text_and_attributes_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render_template(monkeypatch, '<p title="{{ name }}">{{ name }}</p>', name=HOSTILE)
    check_self_contained(text)
    parsed = Page(text)
    assert HOSTILE in parsed.text
    assert parsed.all("p") == [{"title": HOSTILE}]


def test_unprintable_characters_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    text = render_template(monkeypatch, "<p>{{ name }}</p>", name="half \ud800, \x00 and \x1b")
    assert "<p>half �, � and �</p>" in text


def test_undefined_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndefinedError, match="missing"):
        render_template(monkeypatch, "{{ missing }}")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("12345|number", "12,345"),
        ("-0.04|number('+z.1f')", "+0.0"),
        ("-2.64|number('+.1f')", "\N{MINUS SIGN}2.6"),
        ("nan|number", "–"),
        ("none|number", "–"),
        ("0.1234|percent", "12.3\N{NO-BREAK SPACE}%"),
        ("nan|percent", "–"),
        ("1|pluralize('photo')", "1 photo"),
        ("1200|pluralize('photo')", "1,200 photos"),
    ],
)
def test_numbers_as_text(monkeypatch: pytest.MonkeyPatch, expression: str, text: str) -> None:
    assert f"<p>{text}</p>" in render_template(monkeypatch, f"<p>{{{{ {expression} }}}}</p>", nan=math.nan)


def test_chart_is_drawn_in_the_units_of_its_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = Chart(
        f"a chart of {HOSTILE}",
        Axis(0, 1, percent_ticks(0.5), "coverage"),
        Axis(10, 20, [(10, "ten"), (20, "twenty")], "accuracy"),
        lines=[[(0, 10), (1, 20)]],
        points=[Point(0.5, 15, "middle", highlighted=True, note="chosen"), Point(0, 20, HOSTILE)],
        columns=[(0, 0.5, 15, "first column")],
        intervals=[(0.5, 10, 20)],
        diagonal="perfect",
    )
    text = render_template(monkeypatch, "{{ ui.draw(chart) }}", chart=chart)
    check_self_contained(text)
    parsed = Page(text)
    for words in (
        f"a chart of {HOSTILE}",
        "0% 50% 100%",
        "ten",
        "twenty",
        "coverage",
        "accuracy",
        "chosen",
        "perfect",
    ):
        assert words in parsed.text
    # The area between the axes is from (70, 280) to (402, 14).
    assert parsed.all("polyline")[0]["points"] == "70.0,280.0 402.0,14.0 "
    middle, corner = parsed.all("circle")
    assert (middle["cx"], middle["cy"], middle["class"]) == ("236.0", "147.0", "highlighted")
    assert (corner["cx"], corner["cy"], corner["class"]) == ("70.0", "14.0", "point")
    [column] = parsed.all("rect")
    assert (column["x"], column["y"], column["width"], column["height"]) == (
        "71.0",
        "147.0",
        "164.0",
        "133.0",
    )
    [interval] = [line for line in parsed.all("line") if line["class"] == "whisker"]
    assert (interval["x1"], interval["y1"], interval["y2"]) == ("236.0", "280.0", "14.0")


def test_interval_bar_is_visible_at_its_ends_and_empty_if_it_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value, low, high, places in [
        (0.0, 0.0, 0.0, ["0", "0.0", "0"]),
        (1.0, 1.0, 1.0, ["0", "99", "98"]),
        (0.5, 0.25, 0.75, ["0", "25.0", "49.0"]),
        (math.nan, math.nan, math.nan, ["0"]),
    ]:
        figure = {"value": value, "low": low, "high": high}
        bars = Page(render_template(monkeypatch, "{{ ui.interval(figure, 'recall') }}", figure=figure)).all(
            "rect"
        )
        assert [bar["x"] for bar in bars] == places
        assert all(float(bar["width"] or 0) >= 1 for bar in bars)
