"""Progress: rate, time left, formatted durations and log lines."""

from __future__ import annotations

import pytest

from batch.monitoring.progress import WINDOW_SECONDS, LogReporter, RateEstimator, format_duration
from batch.monitoring.stats import Meter, Progress


class Clock:
    """Fake clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def report_at_rate(
    estimator: RateEstimator, clock: Clock, seconds: float, rate: float, total: int = 100_000
) -> None:
    """Report progress at a constant rate, ten times a second."""
    start = estimator.progress.done
    began = clock.now
    for tick in range(round(seconds * 10)):
        clock.now = began + (tick + 1) / 10
        estimator.update(Progress(round(start + rate * (tick + 1) / 10), total, 0))


def test_rate_is_averaged_over_a_sliding_window() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    estimator.update(Progress(0, 100_000, 0))
    report_at_rate(estimator, clock, 100, rate=500)
    assert estimator.rate == pytest.approx(500, rel=0.02)
    report_at_rate(estimator, clock, 10, rate=50)
    assert 300 < (estimator.rate or 0) < 400
    report_at_rate(estimator, clock, WINDOW_SECONDS, rate=50)
    assert estimator.rate == pytest.approx(50, rel=0.05)
    assert estimator.seconds_left == pytest.approx((100_000 - 52_000) / 50, rel=0.05)


def test_rate_falls_while_no_progress_is_reported() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    estimator.update(Progress(0, 100_000, 0))
    report_at_rate(estimator, clock, 60, rate=100)
    clock.now += 90
    assert (estimator.rate or 0) < 30


def test_rate_is_unknown_before_the_first_samples() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    assert (estimator.rate, estimator.seconds_left, str(estimator)) == (None, None, "")
    estimator.update(Progress(10, 100, 0))
    clock.now += 0.1
    estimator.update(Progress(20, 100, 0))
    assert estimator.rate is None


def test_photos_of_previous_runs_do_not_count_for_the_rate() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    seen: list[Progress] = []
    meter = Meter(1000, seen.append)
    meter.add(900, 5, known=True)
    estimator.update(seen[-1])
    for _ in range(10):
        clock.now += 1
        meter.add(5)
        estimator.update(seen[-1])
    assert seen[-1] == Progress(950, 1000, 5, known=900)
    assert estimator.rate == pytest.approx(5)
    assert estimator.seconds_left == pytest.approx(10)
    assert str(estimator) == "5.0 photos/s, 10 s left"


def test_time_to_load_the_model_does_not_count_for_the_rate() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    estimator.update(Progress(0, 1000, 0))
    clock.now += 20
    for done in range(10, 60, 10):
        estimator.update(Progress(done, 1000, 0))
        clock.now += 1
    assert estimator.rate == pytest.approx(8)


def test_another_total_resets_the_rate() -> None:
    clock = Clock()
    estimator = RateEstimator(clock)
    report_at_rate(estimator, clock, 10, rate=1000, total=10_000)
    estimator.update(Progress(0, 70, 0))
    assert estimator.rate is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (100, "2 min"),
        (5_400, "90 min"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_log_lines_become_rarer_and_include_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = LogReporter(clock)
    for second in range(601):
        clock.now = 1000 + second
        report(Progress(second * 100, 60_000, second // 100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "500 of 60,000 photos (1 %), 100 photos/s, 10 min left"
    assert lines[-1] == "60,000 of 60,000 photos (100 %), 100 photos/s, 6 rejected"
    assert 10 <= len(lines) <= 16


def test_log_line_while_listing_shows_the_number_of_photos_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    report = LogReporter(clock)
    for second in range(8):
        clock.now = 1000 + second
        report(Progress(0, second * 1000, 0, listing=True))
    assert capsys.readouterr().err.splitlines()[0] == "5,000 photos listed"


def test_short_run_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = LogReporter(clock)
    for second in range(4):
        clock.now += 1
        report(Progress(second, 3, 0))
    assert capsys.readouterr().err == ""
