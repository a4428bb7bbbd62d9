"""Clock, locale and proxies, as this process sees them."""

from __future__ import annotations

import locale
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import getproxies_environment

import serving
from serving.diagnostics.finding import Finding, Level
from serving.text import redact

LOCAL = ("localhost", "127.0.0.1")

_SLACK_SECONDS = 600.0


def check_clock() -> Iterator[Finding]:
    """Compare the clock with what is known without a network: the time when hubhead was installed."""
    yield describe_clock(time.time(), Path(serving.__file__).stat().st_mtime)


def describe_clock(now: float, installed: float) -> Finding:
    """Return the finding about the clock.

    Args:
        now: its time, in seconds since 1970.
        installed: time of the last change of hubhead's files.
    """
    shown = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    if now < installed - _SLACK_SECONDS:
        after = datetime.fromtimestamp(installed, UTC).isoformat(timespec="seconds")
        return Finding(
            "clock",
            Level.WARNING,
            f"{shown}, before hubhead was installed ({after}): certificates and signed requests are rejected",
            "Set the clock, such as with timedatectl set-ntp true.",
        )
    return Finding("clock", Level.OK, f"{shown}; its skew cannot be measured without a network")


def check_locale() -> Iterator[Finding]:
    """Check the encodings of file names and of the output."""
    yield describe_encodings(
        sys.getfilesystemencoding(),
        locale.getpreferredencoding(False),
        getattr(sys.stdout, "encoding", None) or "unknown",
    )


def describe_encodings(names: str, texts: str, output: str) -> Finding:
    """Return the finding about encodings.

    Args:
        names: encoding of file names.
        texts: encoding of the locale.
        output: encoding of stdout.
    """
    found = f"file names {names}, locale {texts}, stdout {output}"
    if all(one.lower().replace("-", "").replace("_", "") == "utf8" for one in (names, texts, output)):
        return Finding("locale", Level.OK, found)
    remedy = "Set LANG=C.UTF-8 or PYTHONUTF8=1; until then, other characters are printed as \\uXXXX."
    return Finding("locale", Level.WARNING, found, remedy)


def check_proxies() -> Iterator[Finding]:
    """Check the proxies of HTTP, which gRPC uses too."""
    yield describe_proxies(getproxies_environment())


def describe_proxies(proxies: Mapping[str, str]) -> Finding:
    """Return the finding about proxies; their passwords are not shown.

    Args:
        proxies: proxies by protocol, with their exceptions under "no".
    """
    used = {name: address for name, address in sorted(proxies.items()) if name in ("grpc", "http", "https")}
    if not used:
        return Finding("proxies", Level.OK, "none")
    exceptions = {one.strip() for one in proxies.get("no", "").split(",")}
    found = ", ".join(f"{name}: {redact(address)}" for name, address in used.items())
    if not exceptions & {*LOCAL, "*"}:
        remedy = f"Set no_proxy={','.join(LOCAL)}, so that servers on this machine are reached without it."
        return Finding("proxies", Level.WARNING, f"{found}; also for servers on this machine", remedy)
    return Finding("proxies", Level.OK, f"{found}; not for {', '.join(sorted(exceptions))}")
