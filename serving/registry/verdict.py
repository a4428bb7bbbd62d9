"""The gate's verdict on a bundle: every check with its figure and limit, in assets.extra/verdict.json."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving import contract
from serving.errors import BundleError, GateRejected
from serving.storage import files
from serving.storage.address import Address
from serving.storage.records import RecordFormat
from serving.text import escape_controls, redact

SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """One check of the gate.

    Attributes:
        name: name of the check, such as "accuracy".
        passed: True or False; None for a check that is informative only or undecided.
        figure: measured value; None if there is none.
        limit: value that `figure` is compared with; None if there is none.
        detail: explanation in words.
    """

    name: str
    passed: bool | None
    figure: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """Decision of the gate on whether a bundle may go live.

    Attributes:
        content: digest of the evaluated bundle; the verdict is void for any other content.
        checks: all checks made.
        live: path of the live version that the bundle was compared with; None if there was none.
        at: time of the decision, ISO 8601 in UTC.
        forced: True if a user blessed the bundle although checks failed.
        schema: version of the file layout.
    """

    content: str
    checks: tuple[Check, ...]
    live: str | None
    at: str
    forced: bool = False
    schema: int = SCHEMA

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def blessed(self) -> bool:
        """True if the bundle may go live."""
        return self.forced or not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that is written to the file."""
        return {"blessed": self.blessed, "failed": [check.name for check in self.failed], **asdict(self)}


# The file also has `blessed` and `failed`, which follow from the checks, for other readers of it.
FORMAT = RecordFormat(Verdict, SCHEMA, BundleError, ignored=frozenset({"blessed", "failed"}))
"""Format of verdict.json."""


def digest(directory: Path) -> str:
    """Return the SHA-256 digest, in hex, of the names and contents of a bundle's files except its verdict.

    Raises:
        BundleError: a file cannot be read.
    """
    total = hashlib.sha256()
    try:
        verdict = directory / contract.VERDICT_FILE
        for path in sorted(path for path in directory.rglob("*") if path.is_file() and path != verdict):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            name = os.fsencode(path.relative_to(directory).as_posix())
            total.update(name + f"\0{content}\n".encode())
    except OSError as error:
        raise BundleError(f"{directory} cannot be read: {error}.") from error
    return total.hexdigest()


def write(directory: Path, verdict: Verdict) -> Path:
    """Write a verdict into its bundle and return the file's path; an earlier verdict is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    path = directory / contract.VERDICT_FILE
    text = escape_controls(json.dumps(redact(verdict.to_dict()), indent=2, ensure_ascii=False))
    files.write(str(path), f"{text}\n".encode())
    return path


def read(bundle: Address) -> Verdict | None:
    """Read the verdict of a bundle, given its path or address; None if there is none.

    Raises:
        BundleError: the file is damaged, or of a newer layout.
        StorageError: remote storage does not answer.
    """
    with suppress(FileNotFoundError):
        return FORMAT.read(files.join(str(bundle), contract.VERDICT_FILE), remedy=_remedy(bundle))
    return None


def require_blessed(directory: Address, found: Verdict | None, content: str) -> None:
    """Check that a bundle has a valid verdict that blesses it.

    Args:
        directory: path or address of the bundle.
        found: verdict of the bundle; None if there is none.
        content: present digest of the bundle.

    Raises:
        GateRejected: there is no verdict, the bundle was not blessed, or it has changed since.
    """
    if found is None:
        raise GateRejected(f"{directory} has no verdict.", remedy=_remedy(directory))
    if found.content != content:
        raise GateRejected(f"{directory} has changed since its verdict.", remedy=_remedy(directory))
    if not found.blessed:
        raise GateRejected(
            f"{directory} is not blessed: {format_checks(found.failed)}.",
            remedy="Improve the model, or promote it anyway with --force; the audit log records that.",
        )


def format_checks(checks: Sequence[Check]) -> str:
    """Format checks in one line: name and detail of each."""
    return "; ".join(f"{check.name}: {check.detail or 'failed'}" for check in checks)


def _remedy(directory: Address) -> str:
    return f"Run the gate first: hubhead validate --bundle {directory}"
