"""Checker of the metrics and labels that a PromQL expression uses.

promql_parser parses expressions, and rejects unknown functions and values of the wrong type. Nothing
is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    BinModifier,
    Call,
    Expr,
    LabelModifier,
    LabelModifierType,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    ValueType,
    VectorMatchCardinality,
    VectorSelector,
    walk,
)

Labels = frozenset[str]


def selectors(expression: Expr) -> list[VectorSelector]:
    """Return all selectors of an expression."""
    found: list[VectorSelector] = []

    def visit(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    walk(expression, visit)
    return found


class Checker:
    """Checker for metrics and labels that an expression uses and nothing exports.

    Attributes:
        findings: one line per missing metric or label.
    """

    def __init__(self, metrics: Mapping[str, Labels]) -> None:
        """Create a checker from the labels of each metric, including those that scraping adds."""
        self.metrics = metrics
        self.findings: list[str] = []

    def labels(self, node: Expr) -> Labels:
        """Return the labels of the resulting series, and collect findings."""
        match node:
            case VectorSelector():
                return self._check_selector(node)
            case MatrixSelector():
                return self._check_selector(node.vector_selector)
            case SubqueryExpr() | ParenExpr() | UnaryExpr():
                return self.labels(node.expr)
            case Call():
                return self._check_call(node)
            case AggregateExpr():
                return self._check_aggregation(node)
            case BinaryExpr():
                return self._check_binary(node)
            case NumberLiteral() | StringLiteral():
                return frozenset()
        raise AssertionError(f"the checker does not know {type(node).__name__}")

    def _check_selector(self, node: VectorSelector) -> Labels:
        name = str(node.name)
        if name not in self.metrics:
            self.findings.append(f"nothing exports {name}")
            return frozenset()
        self._require([matcher.name for matcher in node.matchers.matchers], self.metrics[name], name)
        return self.metrics[name]

    def _check_call(self, node: Call) -> Labels:
        found = frozenset[str]().union(*(self.labels(argument) for argument in node.args))
        if node.func.name == "histogram_quantile":
            self._require(["le"], found, node.func.name)
            return found - {"le"}
        if node.func.name == "absent":
            matchers = [matcher for one in selectors(node) for matcher in one.matchers.matchers]
            return frozenset(matcher.name for matcher in matchers if matcher.op == MatchOp.Equal)
        return found

    def _check_aggregation(self, node: AggregateExpr) -> Labels:
        found, name = self.labels(node.expr), str(node.op)
        if node.modifier is not None:
            self._require(node.modifier.labels, found, name)
        if name in ("topk", "bottomk"):
            return found
        if node.modifier is None:
            return frozenset()
        labels = frozenset(node.modifier.labels)
        return found & labels if node.modifier.type == AggModifierType.By else found - labels

    def _check_binary(self, node: BinaryExpr) -> Labels:
        left, right, operator = self.labels(node.lhs), self.labels(node.rhs), str(node.op)
        if _is_scalar(node.lhs) or _is_scalar(node.rhs):
            return left | right
        modifier = node.modifier or BinModifier(VectorMatchCardinality.OneToOne, False)
        if modifier.matching:
            ignoring = modifier.matching.type == LabelModifierType.Exclude
            for side in (left | right,) if ignoring else (left, right):
                self._require(modifier.matching.labels, side, operator)
        if operator == "or":
            return left | right
        keys, others = _select(left, modifier.matching), _select(right, modifier.matching)
        if keys != others:
            self.findings.append(f"{operator}: {sorted(keys)} never matches {sorted(others)}")
        if operator in ("and", "unless"):
            return left
        if modifier.card == VectorMatchCardinality.OneToOne:
            return keys
        many, one = (left, right) if modifier.card == VectorMatchCardinality.ManyToOne else (right, left)
        included = modifier.group_labels or ()
        self._require(included, one, operator)
        return many.union(included)

    def _require(self, labels: Iterable[str], known: Labels, where: str) -> None:
        self.findings += [f"{where} has no label {label}" for label in labels if label not in known]


def _select(labels: Labels, matching: LabelModifier | None) -> Labels:
    """Return the labels by which series are matched, as stated by `on` or `ignoring`."""
    if matching is None:
        return labels
    named = frozenset(matching.labels)
    return labels & named if matching.type == LabelModifierType.Include else labels - named


def _is_scalar(node: Expr) -> bool:
    match node:
        case ParenExpr() | UnaryExpr():
            return _is_scalar(node.expr)
        case BinaryExpr():
            return _is_scalar(node.lhs) and _is_scalar(node.rhs)
        case Call():
            return bool(node.func.return_type == ValueType.Scalar)
    return isinstance(node, NumberLiteral)
