"""PromQL parser, and a checker of the labels that an expression needs and has.

The grammar is that of Prometheus (promql/parser/generated_parser.y), without `@` and native histograms.
Nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_DURATION = r"(?:\d+(?:ms|[smhdwy]))+"
_TOKEN = re.compile(
    rf"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<duration>{_DURATION})(?![\w.])
  | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)
  | (?P<name>[a-zA-Z_:][\w:]*)
  | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){{}}\[\],])
)""",
    re.VERBOSE,
)

_RANK = [
    {"or"},
    {"and", "unless"},
    {"==", "!=", "<=", ">=", "<", ">"},
    {"+", "-"},
    {"*", "/", "%"},
    {"^"},
]
_AGGREGATIONS = frozenset({"sum", "min", "max", "avg", "count", "group", "stddev", "stdvar"})
_WITH_PARAMETER = frozenset({"topk", "bottomk", "quantile", "count_values"})

RANGES = frozenset({"rate", "irate", "increase", "delta", "predict_linear", "changes", "resets", "deriv"})
"""Functions that take a range vector, in addition to those that end with _over_time."""

FUNCTIONS = RANGES | {"absent", "histogram_quantile", "time", "clamp_min", "clamp_max", "round", "vector"}
"""Functions used by the expressions here; Prometheus has more."""


class PromqlSyntaxError(Exception):
    """Syntax error in an expression."""


@dataclass(frozen=True)
class Matcher:
    label: str
    operator: str
    value: str


@dataclass(frozen=True)
class Number:
    text: str


@dataclass(frozen=True)
class Text:
    value: str


@dataclass(frozen=True)
class Selector:
    """Series of a metric; `window` is "" for an instant vector."""

    name: str
    matchers: tuple[Matcher, ...]
    window: str = ""


@dataclass(frozen=True)
class Subquery:
    inner: Node
    window: str


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Aggregation:
    """Aggregation; `labels` are those of `by` if `kept`, else of `without`; None if there is neither."""

    name: str
    inner: Node
    labels: tuple[str, ...] | None
    kept: bool
    parameter: Node | None = None


@dataclass(frozen=True)
class Binary:
    """Binary operation; `labels` are those of `on` or `ignoring`; `many` is "left", "right" or ""."""

    operator: str
    left: Node
    right: Node
    labels: tuple[str, ...] | None = None
    on: bool = False
    many: str = ""
    included: tuple[str, ...] = ()


Node = Number | Text | Selector | Subquery | Call | Aggregation | Binary


def parse(text: str) -> Node:
    """Parse an expression into its syntax tree.

    Raises:
        PromqlSyntaxError: the text is not an expression.
    """
    parser = _Parser(text)
    node = parser.expression()
    if parser.kind:
        raise parser.error("an end")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0
        self.kind = self.word = ""
        self.advance()

    def advance(self) -> str:
        """Advance to the next token and return the previous one."""
        before = self.word
        rest = self.text[self.position :]
        if not rest.strip():
            self.kind = self.word = ""
            return before
        found = _TOKEN.match(rest)
        if found is None:
            raise PromqlSyntaxError(f"{rest.strip()[:20]!r} is not a token")
        self.kind = found.lastgroup or ""
        self.word = found[self.kind]
        self.position += found.end()
        return before

    def error(self, wanted: str) -> PromqlSyntaxError:
        return PromqlSyntaxError(
            f"expected {wanted} before the last token of {self.text[: self.position][-30:]!r}"
        )

    def accept(self, *words: str) -> bool:
        if self.kind in ("sign", "name") and self.word in words:
            self.advance()
            return True
        return False

    def expect(self, word: str) -> None:
        if not self.accept(word):
            raise self.error(word)

    def expect_kind(self, kind: str) -> str:
        if self.kind != kind:
            raise self.error(f"a {kind}")
        return self.advance()

    def expression(self, rank: int = 0) -> Node:
        if rank == len(_RANK):
            return self.unary()
        left = self.expression(rank + 1)
        while self.kind in ("sign", "name") and self.word in _RANK[rank]:
            operator = self.advance()
            self.accept("bool")
            labels, on, many, included = self.matching()
            right = self.expression(rank if operator == "^" else rank + 1)
            left = Binary(operator, left, right, labels, on, many, included)
        return left

    def matching(self) -> tuple[tuple[str, ...] | None, bool, str, tuple[str, ...]]:
        if self.kind != "name" or self.word not in ("on", "ignoring"):
            return None, False, "", ()
        on = self.advance() == "on"
        labels = self.label_names()
        many, included = "", ()
        if self.kind == "name" and self.word in ("group_left", "group_right"):
            many = self.advance().removeprefix("group_")
            if self.word == "(":
                included = self.label_names()
        return labels, on, many, included

    def unary(self) -> Node:
        if self.accept("-", "+"):
            return Binary("*", Number("1"), self.unary())
        return self.parse_suffix(self.primary())

    def parse_suffix(self, node: Node) -> Node:
        """Parse a range, subquery or offset behind an expression: [5m], [1h:5m], offset 5m."""
        if self.accept("["):
            window = self.expect_kind("duration")
            if self.kind == "name" and re.fullmatch(
                rf":(?:{_DURATION})?", self.word
            ):  # the tokenizer reads it as a name
                self.advance()
                node = Subquery(node, window)
            elif isinstance(node, Selector):
                node = Selector(node.name, node.matchers, window)
            else:
                raise PromqlSyntaxError("a range must follow a metric")
            self.expect("]")
        if self.accept("offset"):
            self.accept("-")
            self.expect_kind("duration")
        return node

    def primary(self) -> Node:
        if self.kind in ("number", "duration"):
            return Number(self.advance())
        if self.kind == "string":
            return Text(_unquote(self.advance()))
        if self.accept("("):
            inner = self.expression()
            self.expect(")")
            return inner
        if self.word == "{":
            return Selector("", self.matchers())
        name = self.expect_kind("name")
        if name in _AGGREGATIONS | _WITH_PARAMETER:
            return self.aggregation(name)
        if self.word == "(":
            return Call(name, self.arguments())
        return Selector(name, self.matchers() if self.word == "{" else ())

    def aggregation(self, name: str) -> Node:
        labels, kept = self.grouping()
        arguments = self.arguments()
        if labels is None:
            labels, kept = self.grouping()
        if len(arguments) != (2 if name in _WITH_PARAMETER else 1):
            raise PromqlSyntaxError(f"{name} does not take {len(arguments)} arguments")
        return Aggregation(name, arguments[-1], labels, kept, arguments[0] if len(arguments) == 2 else None)

    def grouping(self) -> tuple[tuple[str, ...] | None, bool]:
        if self.kind != "name" or self.word not in ("by", "without"):
            return None, False
        kept = self.advance() == "by"
        return self.label_names(), kept

    def arguments(self) -> tuple[Node, ...]:
        return self.parse_list(self.expression)

    def label_names(self) -> tuple[str, ...]:
        return self.parse_list(lambda: self.expect_kind("name"))

    def parse_list(self, item: Callable[[], T]) -> tuple[T, ...]:
        self.expect("(")
        found: list[T] = []
        while not self.accept(")"):
            if found:
                self.expect(",")
            found.append(item())
        return tuple(found)

    def matchers(self) -> tuple[Matcher, ...]:
        self.expect("{")
        found: list[Matcher] = []
        while not self.accept("}"):
            if found:
                self.expect(",")
                if self.accept("}"):
                    break
            label, operator = self.expect_kind("name"), self.expect_kind("sign")
            if operator not in ("=", "!=", "=~", "!~"):
                raise PromqlSyntaxError(f"{operator} is not a label matching operator")
            found.append(Matcher(label, operator, _unquote(self.expect_kind("string"))))
        return tuple(found)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def selectors(node: Node) -> list[Selector]:
    """Return all selectors of an expression."""
    if isinstance(node, Selector):
        return [node]
    inner: Sequence[Node | None] = ()
    if isinstance(node, Call):
        inner = node.arguments
    elif isinstance(node, Aggregation):
        inner = (node.parameter, node.inner)
    elif isinstance(node, Binary):
        inner = (node.left, node.right)
    elif isinstance(node, Subquery):
        inner = (node.inner,)
    return [found for child in inner if child is not None for found in selectors(child)]


class Checker:
    """Checker for metrics and labels that an expression uses and nothing exports.

    Attributes:
        findings: one line per missing metric or label.
    """

    def __init__(self, metrics: Mapping[str, frozenset[str]]) -> None:
        """Create a checker from the labels of each metric, including those that scraping adds."""
        self.metrics = metrics
        self.findings: list[str] = []

    def labels(self, node: Node) -> frozenset[str]:
        """Return the labels of the resulting series, and collect findings."""
        if isinstance(node, Selector):
            return self._check_selector(node)
        if isinstance(node, Subquery):
            return self.labels(node.inner)
        if isinstance(node, Call):
            return self._check_call(node)
        if isinstance(node, Aggregation):
            inner = self.labels(node.inner)
            self._require(node.labels or (), inner, node.name)
            if node.labels is None:
                return frozenset() if node.name not in ("topk", "bottomk") else inner
            return inner & set(node.labels) if node.kept else inner - set(node.labels)
        if isinstance(node, Binary):
            return self._check_binary(node)
        return frozenset()

    def _check_selector(self, node: Selector) -> frozenset[str]:
        known = self.metrics.get(node.name)
        if known is None:
            self.findings.append(f"nothing exports {node.name}")
            return frozenset()
        self._require([matcher.label for matcher in node.matchers], known, node.name)
        return known

    def _check_call(self, node: Call) -> frozenset[str]:
        if node.function not in FUNCTIONS and not node.function.endswith("_over_time"):
            self.findings.append(f"there is no function {node.function}")
        ranged = node.function in RANGES or node.function.endswith("_over_time")
        found: frozenset[str] = frozenset()
        for argument in node.arguments:
            if not isinstance(argument, Text) and not _is_scalar(argument):
                found = self.labels(argument)
                if ranged != _is_range(argument):
                    self.findings.append(f"{node.function} {'needs' if ranged else 'takes no'} range")
        if node.function == "histogram_quantile":
            self._require(["le"], found, node.function)
            return found - {"le"}
        if node.function == "absent":
            (inner,) = node.arguments
            equal = [m.label for one in selectors(inner) for m in one.matchers if m.operator == "="]
            return frozenset(equal)
        return found

    def _check_binary(self, node: Binary) -> frozenset[str]:
        left, right = self.labels(node.left), self.labels(node.right)
        scalar = [side for side in (node.left, node.right) if _is_scalar(side)]
        if scalar:
            return left | right
        self._require(node.labels or (), left, node.operator)
        self._require(node.labels or (), right, node.operator)
        self._require(node.included, right if node.many == "left" else left, node.operator)
        if node.operator == "or":
            return left | right
        if node.labels is None and left != right:
            self.findings.append(f"{node.operator}: {sorted(left)} never matches {sorted(right)}")
        if node.operator in ("and", "unless") or node.many == "left":
            return left | set(node.included)
        if node.many == "right":
            return right | set(node.included)
        if node.labels is None:
            return left
        return left & set(node.labels) if node.on else left - set(node.labels)

    def _require(self, labels: Sequence[str], known: frozenset[str], where: str) -> None:
        self.findings += [f"{where} has no label {label}" for label in labels if label not in known]


def _is_range(node: Node) -> bool:
    return isinstance(node, Subquery) or (isinstance(node, Selector) and bool(node.window))


def _is_scalar(node: Node) -> bool:
    if isinstance(node, Binary):
        return _is_scalar(node.left) and _is_scalar(node.right)
    return isinstance(node, Number) or (isinstance(node, Call) and node.function == "time")
