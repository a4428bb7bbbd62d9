"""Installed packages: hubhead itself, and which of its extras are complete."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from serving.diagnostics.finding import Finding, Level

DISTRIBUTION = "hubhead"

FOR_DEVELOPERS = frozenset({"bench", "build", "dev", "docs"})
"""Extras for work on hubhead itself, which are not reported."""

_STAGES = {"serve": "tensorflow", "batch": "apache-beam", "train": "tensorflow-hub"}
"""Package that shows that an extra was meant to be installed; the others share their packages."""


@dataclass(frozen=True)
class Extra:
    """State of an extra, or of the core.

    Attributes:
        name: name of the extra; "" for the core.
        missing: requirements that are not installed.
        other_versions: requirements of which another version is installed, with that version.
        started: True if some of its packages were installed for it.
    """

    name: str
    missing: tuple[str, ...]
    other_versions: tuple[str, ...]
    started: bool

    @property
    def complete(self) -> bool:
        """True if all its packages are installed in versions that fit."""
        return not self.missing and not self.other_versions


def check_packages() -> Iterator[Finding]:
    """Check hubhead itself and the packages that every command needs."""
    python = f"Python {platform.python_version()} in {sys.prefix}"
    try:
        core = read_extra("")
    except metadata.PackageNotFoundError:
        yield Finding(
            "hubhead",
            Level.WARNING,
            f"runs from its sources without being installed; {python}",
            "Install it, so that its packages can be checked: pip install hubhead",
        )
        return
    found = f"{metadata.version(DISTRIBUTION)}, {python}"
    if core.complete:
        yield Finding("hubhead", Level.OK, found)
    else:
        problems = ", ".join((*(f"{one} is missing" for one in core.missing), *core.other_versions))
        yield Finding(
            "hubhead", Level.WARNING, f"{found}; {problems}", f"pip install --upgrade '{DISTRIBUTION}'"
        )


def check_extras() -> Iterator[Finding]:
    """Check which extras are complete. An extra that nobody installed is no problem."""
    try:
        names = list_extras()
    except metadata.PackageNotFoundError:
        return
    for name in names:
        extra = read_extra(name)
        if extra.complete:
            yield Finding(f"extra {name}", Level.OK, "complete")
            continue
        command = f"pip install '{DISTRIBUTION}[{name}]'"
        problems = [f"missing: {', '.join(extra.missing)}"] if extra.missing else []
        problems += extra.other_versions
        if extra.other_versions or extra.started:
            yield Finding(f"extra {name}", Level.WARNING, f"incomplete; {'; '.join(problems)}", command)
        else:
            yield Finding(f"extra {name}", Level.OK, "not installed", command)


def list_extras() -> list[str]:
    """Return the names of the extras for users, sorted.

    Raises:
        importlib.metadata.PackageNotFoundError: hubhead is not installed.
    """
    provided = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    return sorted(set(provided) - FOR_DEVELOPERS)


def read_extra(name: str) -> Extra:
    """Return the state of an extra, or of the core if the name is "".

    Raises:
        importlib.metadata.PackageNotFoundError: hubhead is not installed.
    """
    missing, others = [], []
    for requirement in _list_requirements(name):
        version = find_version(requirement.name)
        needed = f"{requirement.name}{requirement.specifier}"
        if version is None:
            missing.append(needed)
        elif not requirement.specifier.contains(version, prereleases=True):
            others.append(f"{requirement.name} is {version}, expected {requirement.specifier}")
    started = name in _STAGES and find_version(_STAGES[name]) is not None
    return Extra(name, tuple(sorted(missing)), tuple(sorted(others)), started)


def find_version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _list_requirements(name: str) -> list[Requirement]:
    """Return the requirements of an extra, those of the extras that it includes among them."""
    found: list[Requirement] = []
    for text in metadata.requires(DISTRIBUTION) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        applies = marker is None or marker.evaluate({"extra": name})
        is_core = marker is None or marker.evaluate({"extra": ""})
        if not applies or (name and is_core):
            continue
        if requirement.name == DISTRIBUTION:
            found += [one for extra in sorted(requirement.extras) for one in _list_requirements(extra)]
        else:
            found.append(requirement)
    return found
