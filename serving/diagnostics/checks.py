"""All checks, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from serving.diagnostics import engines, environment, installation, machine, programs
from serving.diagnostics.finding import Finding, Level

Check = Callable[[], Iterable[Finding]]

CHECKS: Sequence[Check] = (
    installation.check_packages,
    installation.check_extras,
    engines.check_engines,
    machine.check_cpu,
    machine.check_memory,
    machine.check_directories,
    machine.check_ports,
    programs.check_java,
    programs.check_kubectl,
    environment.check_clock,
    environment.check_locale,
    environment.check_proxies,
)
"""All checks, in the order in which they are shown. Each is independent of the others."""


def run_checks(checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Run checks, several at a time since some wait for processes, and return their findings in order.

    A check that fails by itself is a finding too: a diagnosis must not end because of what it looks at.
    """
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(chain.from_iterable(pool.map(_run, checks)))


def _run(check: Check) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a bug of any kind in one check must not hide what the others found
        name = check.__name__.removeprefix("check_").replace("_", " ")
        found = f"the check itself failed: {type(error).__name__}: {error}"
        return [Finding(name, Level.WARNING, found, "Report this as a bug of hubhead.")]
