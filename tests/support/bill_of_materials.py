"""Check of a software bill of materials: `python -m tests.support.bill_of_materials build/sbom.cdx.json`.

It has every locked package, with its version and the hashes of the lock file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.support.repository import REPO

_PACKAGE = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)(.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def read_lock(text: str) -> dict[tuple[str, str], frozenset[str]]:
    """Return the SHA-256 hashes of each (package, version) of a lock file."""
    return {
        (canonicalize_name(name), version): frozenset(_HASH.findall(rest))
        for name, version, rest in _PACKAGE.findall(text)
    }


def find_differences(bill: Mapping[str, Any], lock: Mapping[tuple[str, str], frozenset[str]]) -> list[str]:
    """Return one sentence for each locked package that the bill lacks or has with other hashes."""
    listed: dict[tuple[str, str], set[str]] = {}
    for component in bill["components"]:
        key = canonicalize_name(component["name"]), component.get("version", "")
        hashes = listed.setdefault(key, set())
        for reference in component.get("externalReferences", ()):
            hashes |= {entry["content"] for entry in reference.get("hashes", ())}
        hashes |= {entry["content"] for entry in component.get("hashes", ())}
    found = [f"{name} {version} is missing." for name, version in lock if (name, version) not in listed]
    found += [
        f"{name} {version} has other hashes than the lock file."
        for (name, version), hashes in lock.items()
        if not hashes <= listed.get((name, version), hashes)
    ]
    return found


def main(arguments: Sequence[str]) -> None:
    """Compare a bill of materials with requirements.txt; end with exit code 1 if they differ."""
    bill = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    lock = read_lock((REPO / "requirements.txt").read_text(encoding="utf-8"))
    if differences := find_differences(bill, lock):
        sys.exit("\n".join(differences))
    print(f"{arguments[0]} has all {len(lock)} locked packages.")


if __name__ == "__main__":
    main(sys.argv[1:])
