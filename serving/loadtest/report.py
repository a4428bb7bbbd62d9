"""HTML report of a load test."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.html import parts, plot
from serving.html.markup import Element, element
from serving.loadtest.figures import PERCENTILES, Result, percentile

_MAX_POINTS = 400
"""Points of a chart: enough for its width."""

_TAIL_PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
"""Ticks of the percentile axis."""

_METHOD = (
    "Open-loop load: requests arrive at random times, independent of earlier responses. Latency is measured "
    "from the intended send time, so that a server that falls behind cannot hide it."
)


def render_page(results: Sequence[Result], model: str, server: str) -> str:
    """Return the report as a self-contained HTML page without scripts.

    Args:
        results: one result per arrival rate, in ascending order; the charts show the last one.
        model: name of the model.
        server: gRPC target of the server.
    """
    highest = results[-1]
    figures = element(
        "dl",
        parts.key_figure(
            "throughput", f"{highest.throughput:.1f}/s", f"at an arrival rate of {highest.rate:g} requests/s"
        ),
        *(
            parts.key_figure(
                f"p{number:g} latency",
                _format_ms(percentile(highest.latencies, number)),
                "from the intended send time to the response",
            )
            for number in (50.0, 99.0)
        ),
        parts.key_figure(
            "errors",
            f"{len(highest.samples) + highest.dropped - highest.successes}",
            _format_errors(highest),
        ),
        class_="figures",
    )
    return parts.document(
        f"Load test of {model}",
        element("h1", f"Load test of {model}"),
        element("p", server, class_="path"),
        figures,
        parts.section("Results by arrival rate", _METHOD, _table(results)),
        parts.section(
            "Latency",
            "",
            element(
                "div",
                parts.diagram(
                    "Latency by percentile",
                    _chart_by_percentile(highest),
                    f"At {highest.rate:g} requests/s. The axis is stretched towards the slowest requests.",
                ),
                parts.diagram(
                    "Latency over time",
                    _chart_over_time(highest),
                    "Each dot is a request at its intended send time; failed requests are highlighted.",
                ),
                parts.diagram(
                    "Latency by arrival rate", _chart_by_rate(results), "Lower line: p50; upper line: p99."
                )
                if results[1:]
                else None,
                class_="charts",
            ),
        ),
    )


def _table(results: Sequence[Result]) -> Element:
    heads = ["requests/s", "responses/s", *(f"p{number:g}" for number in PERCENTILES), "errors"]
    rows = [
        [
            f"{result.rate:g}",
            f"{result.throughput:.1f}",
            *(_format_ms(percentile(result.latencies, number)) for number in PERCENTILES),
            _format_errors(result),
        ]
        for result in results
    ]
    return parts.table_of(heads, rows)


def _format_errors(result: Result) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in result.errors.items()) or "none"


def _format_ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1000 * seconds:.1f}{parts.SPACE}ms"


def _chart_by_percentile(result: Result) -> Element:
    count = len(result.latencies)
    # The 99.9th percentile, say, needs 1,000 requests to be more than the maximum.
    ticks = [percent for percent in _TAIL_PERCENTILES if percent == 0 or count >= 100 / (100 - percent)]
    x = plot.x_axis(0, max(1.0, _nines(ticks[-1])), [(_nines(p), f"{p:g}") for p in ticks], "percentile")
    y = _latency_axis(result.latencies[-1:])
    positions = [x.high * step / _MAX_POINTS for step in range(_MAX_POINTS + 1)]
    points = [
        (x(at), y(1000 * percentile(result.latencies, 100 * (1 - 10**-at)))) for at in positions if count
    ]
    return plot.chart("Latency by percentile", x, y, [plot.line(points)])


def _nines(percent: float) -> float:
    """Return a percentile's place on the axis: 1 for the 90th, 2 for the 99th, 3 for the 99.9th."""
    return -math.log10(1 - percent / 100)


def _chart_over_time(result: Result) -> Element:
    x = plot.x_axis(0, result.seconds, _round_ticks(result.seconds), "seconds")
    y = _latency_axis([sample.seconds for sample in result.samples])
    # A sample of the requests would miss outliers: the slowest are always shown.
    slowest = sorted(result.samples, key=lambda sample: sample.seconds)[-_MAX_POINTS // 4 :]
    thinned = result.samples[:: max(1, len(result.samples) // _MAX_POINTS)]
    points = [
        plot.point(
            x(sample.intended),
            y(1000 * sample.seconds),
            f"{sample.error or 'response'} after {_format_ms(sample.seconds)}",
            highlighted=bool(sample.error),
        )
        for sample in sorted({*thinned, *slowest}, key=lambda sample: sample.intended)
    ]
    return plot.chart("Latency over time", x, y, points)


def _chart_by_rate(results: Sequence[Result]) -> Element:
    highest = max(result.rate for result in results)
    ticks = [(result.rate, f"{result.rate:g}") for result in results]
    x = plot.x_axis(0, highest, ticks, "requests/s")
    y = _latency_axis([percentile(result.latencies, 99.0) for result in results if result.latencies])
    lines = [
        plot.line(
            [
                (x(result.rate), y(1000 * percentile(result.latencies, number)))
                for result in results
                if result.latencies
            ]
        )
        for number in (50.0, 99.0)
    ]
    return plot.chart("Latency by arrival rate", x, y, lines)


def _latency_axis(seconds: Sequence[float]) -> plot.Axis:
    highest = 1000 * max(seconds, default=0.001) or 1.0
    return plot.y_axis(0, highest, _round_ticks(highest), "ms")


def _round_ticks(highest: float) -> list[tuple[float, str]]:
    """Return 4 to 10 ticks at round numbers, from 0."""
    step = 10 ** math.floor(math.log10(highest))
    while highest / step < 4:
        step /= 2
    return [(number * step, f"{number * step:g}") for number in range(int(highest / step) + 1)]
