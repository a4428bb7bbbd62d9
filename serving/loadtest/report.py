"""HTML report of a load test."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving import html
from serving.html import Axis, Chart, Point
from serving.loadtest.figures import PERCENTILES, Result, percentile

_MAX_POINTS = 400
"""Points of a chart: enough for its width."""

_TAIL_PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
"""Ticks of the percentile axis."""


def render_page(results: Sequence[Result], model: str, server: str) -> str:
    """Return the report as a self-contained HTML page without scripts.

    Args:
        results: one result per arrival rate, in ascending order; the charts show the last one.
        model: name of the model.
        server: gRPC target of the server.
    """
    return html.render(
        "serving.loadtest",
        results=results,
        model=model,
        server=server,
        percentiles=PERCENTILES,
        percentile=percentile,
        milliseconds=_format_ms,
        by_percentile=_chart_by_percentile(results[-1]),
        over_time=_chart_over_time(results[-1]),
        by_rate=_chart_by_rate(results),
    )


def _format_ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1000 * seconds:.1f}\N{NO-BREAK SPACE}ms"


def _chart_by_percentile(result: Result) -> Chart:
    count = len(result.latencies)
    # The 99.9th percentile, say, needs 1,000 requests to be more than the maximum.
    ticks = [percent for percent in _TAIL_PERCENTILES if percent == 0 or count >= 100 / (100 - percent)]
    end = max(1.0, _nines(ticks[-1]))
    positions = [end * step / _MAX_POINTS for step in range(_MAX_POINTS + 1)] if count else []
    line = [(at, 1000 * percentile(result.latencies, 100 * (1 - 10**-at))) for at in positions]
    return Chart(
        "Latency by percentile",
        Axis(0, end, [(_nines(percent), f"{percent:g}") for percent in ticks], "percentile"),
        _latency_axis(result.latencies[-1:]),
        [line],
    )


def _nines(percent: float) -> float:
    """Return a percentile's place on the axis: 1 for the 90th, 2 for the 99th, 3 for the 99.9th."""
    return -math.log10(1 - percent / 100)


def _chart_over_time(result: Result) -> Chart:
    # A sample of the requests would miss outliers: the slowest are always shown.
    slowest = sorted(result.samples, key=lambda sample: sample.seconds)[-_MAX_POINTS // 4 :]
    thinned = result.samples[:: max(1, len(result.samples) // _MAX_POINTS)]
    points = [
        Point(
            sample.intended,
            1000 * sample.seconds,
            f"{sample.error or 'response'} after {_format_ms(sample.seconds)}",
            highlighted=bool(sample.error),
        )
        for sample in sorted({*thinned, *slowest}, key=lambda sample: sample.intended)
    ]
    return Chart(
        "Latency over time",
        Axis(0, result.seconds, _round_ticks(result.seconds), "seconds"),
        _latency_axis([sample.seconds for sample in result.samples]),
        points=points,
    )


def _chart_by_rate(results: Sequence[Result]) -> Chart:
    ticks = [(result.rate, f"{result.rate:g}") for result in results]
    lines = [
        [(result.rate, 1000 * percentile(result.latencies, number)) for result in results if result.latencies]
        for number in (50.0, 99.0)
    ]
    return Chart(
        "Latency by arrival rate",
        Axis(0, max(result.rate for result in results), ticks, "requests/s"),
        _latency_axis([percentile(result.latencies, 99.0) for result in results if result.latencies]),
        lines,
    )


def _latency_axis(seconds: Sequence[float]) -> Axis:
    highest = 1000 * max(seconds, default=0.001) or 1.0
    return Axis(0, highest, _round_ticks(highest), "ms")


def _round_ticks(highest: float) -> list[tuple[float, str]]:
    """Return 4 to 10 ticks at round numbers, from 0."""
    step = 10 ** math.floor(math.log10(highest))
    while highest / step < 4:
        step /= 2
    return [(number * step, f"{number * step:g}") for number in range(int(highest / step) + 1)]
