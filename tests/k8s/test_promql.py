"""The checker of metrics and labels that the monitoring tests use."""

from __future__ import annotations

import pytest
from promql_parser import parse

from tests.support.promql import Checker, selectors

METRICS = {
    "a": frozenset({"x", "y"}),
    "b": frozenset({"x"}),
    "h_bucket": frozenset({"x", "le"}),
    ":odd:name": frozenset({"x"}),
}


def test_selectors_are_found_in_ranges_subqueries_and_operands() -> None:
    tree = parse('1 - rate(a{x="1", y=~"2|3"}[5m] offset 1h) / b > 2 or max_over_time(:odd:name[1h:5m])')
    assert [selector.name for selector in selectors(tree)] == ["a", "b", ":odd:name"]
    matchers = selectors(tree)[0].matchers.matchers
    assert [str(matcher) for matcher in matchers] == ['x="1"', 'y=~"2|3"']


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sum(",
        "a{x}",
        "a b",
        "rate(a)",
        "rate(a)[5m]",
        "rate(sum(a[5m]))",
        "absent(a[5m])",
        "rates(a[5m])",
        "topk(a)",
    ],
)
def test_invalid_expressions_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("sum by (x) (rate(a[5m]))", {"x"}),
        ("sum (rate(a[5m])) by (x)", {"x"}),
        ("sum without (x) (a)", {"y"}),
        ("sum(a)", set()),
        ("histogram_quantile(0.9, sum by (x, le) (rate(h_bucket[5m])))", {"x"}),
        ("time() - a > 3 * 60", {"x", "y"}),
        ("a / on (x) group_left b", {"x", "y"}),
        ("a / on (x) sum by (x) (b)", {"x"}),
        ("a unless a offset 30m", {"x", "y"}),
        ("a and on (x) b", {"x", "y"}),
        ("a / ignoring (y) b", {"x"}),
        ("b * on (x) group_right a", {"x", "y"}),
        ("(a) * -1", {"x", "y"}),
        ("topk(3, a)", {"x", "y"}),
        ('absent(a{x="1"})', {"x"}),
        ("max_over_time(a[1h:5m])", {"x", "y"}),
        ("predict_linear(a[6h], 24 * 3600) < 0", {"x", "y"}),
    ],
)
def test_labels_of_an_expression(text: str, labels: set[str]) -> None:
    checker = Checker(METRICS)
    assert checker.labels(parse(text)) == labels
    assert checker.findings == []


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("sum by (z) (a)", "no label z"),
        ('a{z="1"}', "no label z"),
        ("c", "nothing exports c"),
        ("a / b", "never matches"),
        ("a / on (y) b", "no label y"),
        ("a / ignoring (x) b", "never matches"),
        ("a / ignoring (y, z) b", "no label z"),
        ("a * on (x) group_left (z) b", "no label z"),
        ("b and (a)", "never matches"),
        ("-c", "nothing exports c"),
        ("topk by (z) (3, a)", "no label z"),
        ("histogram_quantile(0.9, rate(a[5m]))", "no label le"),
        ("histogram_quantile(0.9, sum by (x) (rate(h_bucket[5m])))", "no label le"),
    ],
)
def test_missing_metrics_and_labels_are_found(text: str, finding: str) -> None:
    checker = Checker(METRICS)
    checker.labels(parse(text))
    assert any(finding in line for line in checker.findings), checker.findings
