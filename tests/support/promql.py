"""A parser of PromQL, and what labels an expression needs and has.

The grammar is that of Prometheus' own (promql/parser/generated_parser.y), without `@` and native
histograms. Nothing is evaluated.
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
"""Functions that take a range, beside those that end with _over_time."""

FUNCTIONS = RANGES | {"absent", "histogram_quantile", "time", "clamp_min", "clamp_max", "round", "vector"}
"""Functions that the expressions here use; Prometheus has more."""


class SyntaxFault(Exception):
    """What is wrong with an expression, and where."""


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
    """A metric's series; `window` is "" for the newest sample of each."""

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
    """`labels` of by or without, as `kept` says; None where neither is there."""

    name: str
    inner: Node
    labels: tuple[str, ...] | None
    kept: bool
    parameter: Node | None = None


@dataclass(frozen=True)
class Binary:
    """`labels` of on or ignoring, as `on` says; `many` is "left", "right" or ""."""

    operator: str
    left: Node
    right: Node
    labels: tuple[str, ...] | None = None
    on: bool = False
    many: str = ""
    included: tuple[str, ...] = ()


Node = Number | Text | Selector | Subquery | Call | Aggregation | Binary


def parse(text: str) -> Node:
    """An expression's tree.

    Raises:
        SyntaxFault: it is none.
    """
    parser = _Parser(text)
    node = parser.expression()
    if parser.kind:
        raise parser.fault("an end")
    return node


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.kind = self.word = ""
        self.step()

    def step(self) -> str:
        """Go to the next token; the one of before."""
        before = self.word
        rest = self.text[self.place :]
        if not rest.strip():
            self.kind = self.word = ""
            return before
        found = _TOKEN.match(rest)
        if found is None:
            raise SyntaxFault(f"{rest.strip()[:20]!r} cannot be read")
        self.kind = found.lastgroup or ""
        self.word = found[self.kind]
        self.place += found.end()
        return before

    def fault(self, wanted: str) -> SyntaxFault:
        return SyntaxFault(f"{wanted} was wanted before {self.text[: self.place][-30:]!r}'s last token")

    def take(self, *words: str) -> bool:
        if self.kind in ("sign", "name") and self.word in words:
            self.step()
            return True
        return False

    def need(self, word: str) -> None:
        if not self.take(word):
            raise self.fault(word)

    def one(self, kind: str) -> str:
        if self.kind != kind:
            raise self.fault(f"a {kind}")
        return self.step()

    def expression(self, rank: int = 0) -> Node:
        if rank == len(_RANK):
            return self.unary()
        left = self.expression(rank + 1)
        while self.kind in ("sign", "name") and self.word in _RANK[rank]:
            operator = self.step()
            self.take("bool")
            labels, on, many, included = self.matching()
            right = self.expression(rank if operator == "^" else rank + 1)
            left = Binary(operator, left, right, labels, on, many, included)
        return left

    def matching(self) -> tuple[tuple[str, ...] | None, bool, str, tuple[str, ...]]:
        if self.kind != "name" or self.word not in ("on", "ignoring"):
            return None, False, "", ()
        on = self.step() == "on"
        labels = self.label_names()
        many, included = "", ()
        if self.kind == "name" and self.word in ("group_left", "group_right"):
            many = self.step().removeprefix("group_")
            if self.word == "(":
                included = self.label_names()
        return labels, on, many, included

    def unary(self) -> Node:
        if self.take("-", "+"):
            return Binary("*", Number("1"), self.unary())
        return self.behind(self.primary())

    def behind(self, node: Node) -> Node:
        """[5m], [1h:5m] and offset 5m."""
        if self.take("["):
            window = self.one("duration")
            if self.kind == "name" and re.fullmatch(rf":(?:{_DURATION})?", self.word):  # as a name may be
                self.step()
                node = Subquery(node, window)
            elif isinstance(node, Selector):
                node = Selector(node.name, node.matchers, window)
            else:
                raise SyntaxFault("a range belongs behind a metric")
            self.need("]")
        if self.take("offset"):
            self.take("-")
            self.one("duration")
        return node

    def primary(self) -> Node:
        if self.kind in ("number", "duration"):
            return Number(self.step())
        if self.kind == "string":
            return Text(_unquoted(self.step()))
        if self.take("("):
            inner = self.expression()
            self.need(")")
            return inner
        if self.word == "{":
            return Selector("", self.matchers())
        name = self.one("name")
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
            raise SyntaxFault(f"{name} does not take {len(arguments)} arguments")
        return Aggregation(name, arguments[-1], labels, kept, arguments[0] if len(arguments) == 2 else None)

    def grouping(self) -> tuple[tuple[str, ...] | None, bool]:
        if self.kind != "name" or self.word not in ("by", "without"):
            return None, False
        kept = self.step() == "by"
        return self.label_names(), kept

    def arguments(self) -> tuple[Node, ...]:
        return self.listed(self.expression)

    def label_names(self) -> tuple[str, ...]:
        return self.listed(lambda: self.one("name"))

    def listed(self, item: Callable[[], T]) -> tuple[T, ...]:
        self.need("(")
        found: list[T] = []
        while not self.take(")"):
            if found:
                self.need(",")
            found.append(item())
        return tuple(found)

    def matchers(self) -> tuple[Matcher, ...]:
        self.need("{")
        found: list[Matcher] = []
        while not self.take("}"):
            if found:
                self.need(",")
                if self.take("}"):
                    break
            label, operator = self.one("name"), self.one("sign")
            if operator not in ("=", "!=", "=~", "!~"):
                raise SyntaxFault(f"{operator} is no way to match a label")
            found.append(Matcher(label, operator, _unquoted(self.one("string"))))
        return tuple(found)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def selectors(node: Node) -> list[Selector]:
    """All of an expression."""
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
    """What an expression asks for that is not there.

    Attributes:
        findings: a line for each.
    """

    def __init__(self, metrics: Mapping[str, frozenset[str]]) -> None:
        """With the labels of each metric by its name, the ones that scraping adds among them."""
        self.metrics = metrics
        self.findings: list[str] = []

    def labels(self, node: Node) -> frozenset[str]:
        """The labels that its series may have; findings on the way."""
        if isinstance(node, Selector):
            return self._of_selector(node)
        if isinstance(node, Subquery):
            return self.labels(node.inner)
        if isinstance(node, Call):
            return self._of_call(node)
        if isinstance(node, Aggregation):
            inner = self.labels(node.inner)
            self._want(node.labels or (), inner, node.name)
            if node.labels is None:
                return frozenset() if node.name not in ("topk", "bottomk") else inner
            return inner & set(node.labels) if node.kept else inner - set(node.labels)
        if isinstance(node, Binary):
            return self._of_binary(node)
        return frozenset()

    def _of_selector(self, node: Selector) -> frozenset[str]:
        known = self.metrics.get(node.name)
        if known is None:
            self.findings.append(f"nothing exports {node.name}")
            return frozenset()
        self._want([matcher.label for matcher in node.matchers], known, node.name)
        return known

    def _of_call(self, node: Call) -> frozenset[str]:
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
            self._want(["le"], found, node.function)
            return found - {"le"}
        if node.function == "absent":
            (inner,) = node.arguments
            equal = [m.label for one in selectors(inner) for m in one.matchers if m.operator == "="]
            return frozenset(equal)
        return found

    def _of_binary(self, node: Binary) -> frozenset[str]:
        left, right = self.labels(node.left), self.labels(node.right)
        scalar = [side for side in (node.left, node.right) if _is_scalar(side)]
        if scalar:
            return left | right
        self._want(node.labels or (), left, node.operator)
        self._want(node.labels or (), right, node.operator)
        self._want(node.included, right if node.many == "left" else left, node.operator)
        if node.operator == "or":
            return left | right
        if node.labels is None and left != right:
            self.findings.append(f"{node.operator}: {sorted(left)} never meets {sorted(right)}")
        if node.operator in ("and", "unless") or node.many == "left":
            return left | set(node.included)
        if node.many == "right":
            return right | set(node.included)
        if node.labels is None:
            return left
        return left & set(node.labels) if node.on else left - set(node.labels)

    def _want(self, labels: Sequence[str], known: frozenset[str], where: str) -> None:
        self.findings += [f"{where} has no label {label}" for label in labels if label not in known]


def _is_range(node: Node) -> bool:
    return isinstance(node, Subquery) or (isinstance(node, Selector) and bool(node.window))


def _is_scalar(node: Node) -> bool:
    if isinstance(node, Binary):
        return _is_scalar(node.left) and _is_scalar(node.right)
    return isinstance(node, Number) or (isinstance(node, Call) and node.function == "time")
