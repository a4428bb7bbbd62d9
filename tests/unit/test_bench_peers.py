"""The figures of tests.bench.peers: turns, rates, and the plot."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from tests.bench.callers import quantile
from tests.bench.interleave import take_turns
from tests.bench.peers import batch, online, plot


@pytest.mark.parametrize(("warm_up", "calls"), [(True, 6), (False, 4)])
def test_turns_alternate_and_the_warm_up_does_not_count(warm_up: bool, calls: int) -> None:
    made: list[str] = []

    def run(name: str) -> int:
        made.append(name)
        return len(made)

    results = take_turns(["a", "b"], 2, run, warm_up=warm_up)
    assert made == ["a", "b"] * (calls // 2)
    assert results == {"a": [calls - 3, calls - 1], "b": [calls - 2, calls]}


def test_steady_rate_is_that_of_run_json_or_of_the_printed_line() -> None:
    assert batch._read_steady_rate(json.dumps({"this_run": {"photos_per_second": 12.5}})) == 12.5
    assert batch._read_steady_rate("a warning\n98.25 photos/s\n") == 98.25


def test_ratio_is_the_median_of_the_rounds_and_not_of_the_medians() -> None:
    own = [batch.Figures(rate, rate, 1, 1) for rate in (10.0, 20.0, 60.0)]
    peers = [batch.Figures(rate, 2 * rate, 1, 1) for rate in (20.0, 10.0, 20.0)]
    row = batch._summarize("small", "peer", own, peers, 1.0)
    assert row.ratio == 2.0  # of 0.5, 2 and 3
    assert row.steady_ratio == 1.0
    assert row.figures is not None
    assert row.figures.photos_per_second == 20.0


def test_a_peer_that_is_not_installed_names_the_package() -> None:
    assert batch.Peer((), packages=("json", "no_such_package")).missing == ["no_such_package"]


def test_plot_has_a_bar_for_each_row_with_figures() -> None:
    found = batch.Figures(10, 20, 1, 1)
    scored = [
        batch.Row("small", "hubhead score", found),
        batch.Row("small", "A & B", batch.Figures(5, 10, 1, 1)),
        batch.Row("small", "Ray Data", skipped="not installed: ray"),
    ]
    served = [online.Row(16, "hubhead serve", online.Figures(30, 1, 2, 3, 4))]
    drawn = ElementTree.fromstring(plot.draw(scored, served, "A <CPU>"))
    bars = [element for element in drawn if element.tag.endswith("rect")]
    assert [float(bar.attrib["width"]) for bar in bars] == [420, 210, 420]
    assert "A & B" in "".join(drawn.itertext())


def test_quantiles_of_sorted_values() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (51.0, 100.0)
