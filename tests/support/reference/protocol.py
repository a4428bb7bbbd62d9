"""Tables of the protocol of TensorFlow Serving, from tests/conformance/protocol.toml, and of its flags."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

from serving.server.config.flags import FLAGS
from tests.conformance.protocol import ERRORS, FACTS
from tests.support.reference.tables import code, format_table

GROUPS = {
    "predict": ("predict", "classify", "regress", "multi", "metadata"),
    "status": ("status", "reload"),
    "rest": ("rest",),
    "metrics": ("metrics",),
    "versions": ("versions", "labels"),
    "warmup": ("warmup",),
    "batching": ("batching",),
    "process": ("process",),
    "more-errors": ("error",),
}
"""First words of the ids of the facts of each table, by the name of the table."""


def describe_deviations() -> str:
    """Return a table of what the local server deliberately does differently."""
    rows = [(fact["says"], fact["ours"]) for fact in FACTS if "ours" in fact]
    return format_table(("TensorFlow Serving", "`hubhead serve`"), rows)


def describe_facts(group: str) -> str:
    """Return a table of the facts of a group; deviations are marked."""
    rows = [
        (fact["says"], fact.get("ours", "The same."))
        for fact in FACTS
        if fact["id"].partition(".")[0] in GROUPS[group]
    ]
    return format_table(("TensorFlow Serving", "`hubhead serve`"), rows)


def describe_errors() -> str:
    """Return a table of the errors: cause, gRPC status code, HTTP status, text."""
    rows = [
        (row["says"], code(row["code"]) if "code" in row else "", row.get("http", ""), _text(row))
        for row in ERRORS
    ]
    return format_table(("cause", "gRPC", "HTTP", "text"), rows)


def describe_ignored_flags() -> str:
    """Return a table of the flags that are accepted without effect."""
    ignored = [(flag.ignored_because, name) for name, flag in FLAGS.items() if flag.ignored_because]
    rows = [
        (", ".join(code(f"--{name}") for _, name in group), f"{reason[0].upper()}{reason[1:]}.")
        for reason, group in groupby(ignored, key=lambda pair: pair[0])
    ]
    return format_table(("flags", "reason"), rows)


def describe_flags() -> str:
    """Return a table of the flags that have an effect."""
    rows = [
        (code(f"--{name}"), "" if flag.default in (None, "") else code(str(flag.default)), flag.help)
        for name, flag in FLAGS.items()
        if not flag.ignored_because
    ]
    return format_table(("flag", "default", "meaning"), rows)


def _text(row: dict[str, Any]) -> str:
    """Return the text of an error over gRPC, and that of REST if it is another one."""
    found = []
    for prefix, where in (("", ""), ("http_", "REST: ")):
        for name, shown in (("text", ""), ("starts", "begins with "), ("has", "contains ")):
            if (key := prefix + name) in row:
                found.append(f"{where}{shown}{code(row[key])}")
    return "; ".join(found)


GENERATORS = {
    "deviations": describe_deviations,
    "errors": describe_errors,
    "flags": describe_flags,
    "ignored-flags": describe_ignored_flags,
    **{f"protocol-{group}": partial(describe_facts, group) for group in GROUPS},
}
"""Functions that return the generated parts of docs/reference/tensorflow-serving.md, by their names."""
