"""The figures as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.html import parts, plot
from serving.html.markup import Element, element
from serving.loadtest.figures import PERCENTILES, Result, percentile

_SHOWN = 400
"""Points of a chart: enough for its width."""

_TAIL = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)


def page(results: Sequence[Result], model: str, server: str) -> str:
    """A page without scripts, and nothing that is fetched.

    Args:
        results: one for each rate, ascending.
        model: what was asked.
        server: where.
    """
    best = results[-1]
    figures = element(
        "dl",
        parts.key_figure("answered", f"{best.throughput:.1f}/s", f"of {best.rate:g} requests a second sent"),
        *(
            parts.key_figure(
                f"p{number:g}",
                _ms(percentile(best.latencies, number)),
                "from the intended time to the answer",
            )
            for number in (50.0, 99.0)
        ),
        parts.key_figure("not answered", f"{len(best.samples) + best.dropped - best.answered}", _why(best)),
        class_="figures",
    )
    return parts.document(
        f"Load on {model}",
        element("h1", f"Load on {model}"),
        element("p", server, class_="path"),
        figures,
        parts.section("Rates", _SAID, _table(results)),
        parts.section(
            "Latency",
            "",
            element(
                "div",
                parts.diagram(
                    "By percentile",
                    _by_percentile(best),
                    f"At {best.rate:g} requests a second. The scale widens towards the slowest.",
                ),
                parts.diagram(
                    "Over time",
                    _over_time(best),
                    "Each dot is a request, where it was to be sent; those that failed stand out.",
                ),
                parts.diagram("By rate", _by_rate(results), "p50 below, p99 above.") if results[1:] else None,
                class_="charts",
            ),
        ),
    )


_SAID = (
    "Requests come at random times, independent of the answers, and a latency counts from the time at "
    "which the request was to be sent. So a server that falls behind cannot hide it."
)


def _table(results: Sequence[Result]) -> Element:
    heads = ["requests/s", "answered/s", *(f"p{number:g}" for number in PERCENTILES), "not answered"]
    rows = [
        [
            f"{result.rate:g}",
            f"{result.throughput:.1f}",
            *(_ms(percentile(result.latencies, number)) for number in PERCENTILES),
            _why(result),
        ]
        for result in results
    ]
    return parts.table_of(heads, rows)


def _why(result: Result) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in result.errors.items()) or "none"


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1000 * seconds:.1f}{parts.SPACE}ms"


def _by_percentile(result: Result) -> Element:
    count = len(result.latencies)
    shown = [percent for percent in _TAIL if percent == 0 or count >= 100 / (100 - percent)]
    x = plot.x_axis(0, max(1.0, _tail(shown[-1])), [(_tail(p), f"{p:g}") for p in shown], "percentile")
    y = _milliseconds(result.latencies[-1:])
    wanted = [x.high * step / _SHOWN for step in range(_SHOWN + 1)]
    points = [(x(at), y(1000 * percentile(result.latencies, 100 * (1 - 10**-at)))) for at in wanted if count]
    return plot.chart("Latency by percentile", x, y, [plot.line(points)])


def _tail(percent: float) -> float:
    """1 for the 90th percentile, 2 for the 99th, and so on."""
    return -math.log10(1 - percent / 100)


def _over_time(result: Result) -> Element:
    x = plot.x_axis(0, result.seconds, _ticks(result.seconds), "seconds")
    y = _milliseconds([sample.seconds for sample in result.samples])
    slowest = sorted(result.samples, key=lambda sample: sample.seconds)[-_SHOWN // 4 :]
    thinned = result.samples[:: max(1, len(result.samples) // _SHOWN)]
    dots = [
        plot.point(
            x(sample.intended),
            y(1000 * sample.seconds),
            f"{sample.error or 'answered'} after {_ms(sample.seconds)}",
            highlighted=bool(sample.error),
        )
        for sample in sorted({*thinned, *slowest}, key=lambda sample: sample.intended)
    ]
    return plot.chart("Latency over time", x, y, dots)


def _by_rate(results: Sequence[Result]) -> Element:
    most = max(result.rate for result in results)
    x = plot.x_axis(0, most, [(result.rate, f"{result.rate:g}") for result in results], "requests a second")
    y = _milliseconds([percentile(result.latencies, 99.0) for result in results if result.latencies])
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
    return plot.chart("Latency by rate", x, y, lines)


def _milliseconds(seconds: Sequence[float]) -> plot.Axis:
    most = 1000 * max(seconds, default=0.001) or 1.0
    return plot.y_axis(0, most, _ticks(most), "ms")


def _ticks(most: float) -> list[tuple[float, str]]:
    """Four to ten round numbers from 0."""
    step = 10 ** math.floor(math.log10(most))
    while most / step < 4:
        step /= 2
    return [(number * step, f"{number * step:g}") for number in range(int(most / step) + 1)]
