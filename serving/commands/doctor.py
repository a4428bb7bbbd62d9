"""`hubhead doctor`: check the installation and the machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from serving.commands.common.command import Command
from serving.commands.output import Cell, echo, is_quiet, print_table
from serving.diagnostics.finding import Finding, Level
from serving.errors import ExitCode

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


@click.command(
    cls=Command,
    short_help="Check the installation and the machine.",
    epilog="\b\nExamples:\n"
    "  hubhead doctor\n"
    "  hubhead doctor --quiet       # only what needs attention\n"
    "  hubhead doctor --json",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def doctor(as_json: bool) -> int:
    """Check the installation and the machine, and say what to do about each problem.

    Checks packages and extras, TensorFlow, ONNX Runtime and GPUs (each in a process of its own), the engine
    that --engine auto chooses, CPU, cores, memory, the cache, disk space, ports, Java, kubectl, clock, locale
    and proxies. Nothing is changed, and no network is used.

    Exit code: 0 if nothing prevents work, 1 if something does.
    """
    from serving.diagnostics.checks import run_checks

    findings = run_checks()
    errors = sum(one.level is Level.ERROR for one in findings)
    if as_json:
        echo(json.dumps({"ok": not errors, "findings": list(map(asdict, findings))}, ensure_ascii=False))
        return ExitCode.FAILED if errors else ExitCode.SUCCESS
    shown = [one for one in findings if one.level is not Level.OK] if is_quiet() else findings
    if shown:
        print_table(("check", "state", "found"), map(_format_row, shown))
    warnings = sum(one.level is Level.WARNING for one in findings)
    if not is_quiet():
        echo(f"{errors} errors, {warnings} warnings, {len(findings) - errors - warnings} ok.")
    return ExitCode.FAILED if errors else ExitCode.SUCCESS


def _format_row(one: Finding) -> tuple[Cell, ...]:
    found = f"{one.found}\n{one.remedy}" if one.remedy else one.found
    return one.check, (one.level.value, _COLOURS[one.level]), found
