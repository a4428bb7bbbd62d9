"""The PromQL parser and the label checker of the monitoring tests."""

from __future__ import annotations

import pytest

from tests.support.promql import (
    Binary,
    Checker,
    Matcher,
    Number,
    PromqlSyntaxError,
    Selector,
    parse,
    selectors,
)

METRICS = {
    "a": frozenset({"x", "y"}),
    "b": frozenset({"x"}),
    "h_bucket": frozenset({"x", "le"}),
    ":odd:name": frozenset({"x"}),
}


def test_precedence_and_selectors() -> None:
    tree = parse('1 - a{x="1", y=~"2|3"}[5m] offset 1h / b > 2 or :odd:name')
    assert isinstance(tree, Binary)
    assert (tree.operator, tree.right) == ("or", Selector(":odd:name", ()))
    compared = tree.left
    assert isinstance(compared, Binary)
    assert (compared.operator, compared.right) == (">", Number("2"))
    assert isinstance(compared.left, Binary)
    assert compared.left.operator == "-"
    assert selectors(tree)[0] == Selector("a", (Matcher("x", "=", "1"), Matcher("y", "=~", "2|3")), "5m")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sum(",
        "a{x}",
        "a{x=1}",
        "a b",
        "sum by x (a)",
        "rate(a)[5m]",
        'a{x=>"1"}',
        "a >",
        "a[5]",
        "topk(a)",
    ],
)
def test_invalid_expressions_are_syntax_errors(text: str) -> None:
    with pytest.raises(PromqlSyntaxError):
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
        ("rate(a)", "needs range"),
        ("absent(a[5m])", "takes no range"),
        ("histogram_quantile(0.9, rate(a[5m]))", "no label le"),
        ("histogram_quantile(0.9, sum by (x) (rate(h_bucket[5m])))", "no label le"),
        ("rates(a[5m])", "no function rates"),
    ],
)
def test_missing_metrics_and_labels_are_found(text: str, finding: str) -> None:
    checker = Checker(METRICS)
    checker.labels(parse(text))
    assert any(finding in line for line in checker.findings), checker.findings
