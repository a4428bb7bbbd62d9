"""What the gate found about a bundle: every check with its figure and limit, in assets.extra/verdict.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving import contract
from serving.errors import BundleError, GateRejected
from serving.storage.address import Address
from serving.storage.text import replace_text

SCHEMA = 1


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        name: what was looked at, such as "accuracy".
        passed: whether it is as it has to be; None where it is told and judged by nobody.
        figure: what was found; None where there is no figure.
        limit: what it is held against; None where there is none.
        detail: the rest, in words.
    """

    name: str
    passed: bool | None
    figure: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle may go live.

    Attributes:
        content: the digest of the bundle that was judged; of any other content the verdict says nothing.
        checks: all that were made.
        live: the path of the version it was held against; None: none.
        at: when, ISO 8601 in UTC.
        forced: whether somebody blessed it in spite of the checks.
        schema: of this file's layout.
    """

    content: str
    checks: tuple[Check, ...]
    live: str | None
    at: str
    forced: bool = False
    schema: int = SCHEMA

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that stand in the way."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def blessed(self) -> bool:
        """Whether it may go live."""
        return self.forced or not self.failed

    def to_dict(self) -> dict[str, Any]:
        """As it is written."""
        return {"blessed": self.blessed, "failed": [check.name for check in self.failed], **asdict(self)}


def digest(directory: Path) -> str:
    """sha256 hex over the names and bytes of a bundle's files, its verdict left out.

    Raises:
        BundleError: a file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for path in files(directory):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(directory).as_posix()}\0{content}\n".encode())
    except OSError as error:
        raise BundleError(f"{directory} cannot be read: {error}.") from error
    return total.hexdigest()


def files(directory: Path) -> list[Path]:
    """The files of a bundle in order, its verdict left out."""
    verdict = directory / contract.VERDICT_FILE
    return sorted(path for path in directory.rglob("*") if path.is_file() and path != verdict)


def write(directory: Path, verdict: Verdict) -> Path:
    """Put a verdict into its bundle, in place of an earlier one.

    Raises:
        OutputError: it cannot be written.
    """
    path = directory / contract.VERDICT_FILE
    replace_text(path, json.dumps(verdict.to_dict(), indent=2, ensure_ascii=False) + "\n")
    return path


def read(directory: Path) -> Verdict | None:
    """The verdict in a bundle; None where there is none.

    Raises:
        BundleError: the file is torn, or of another layout.
    """
    path = directory / contract.VERDICT_FILE
    try:
        return parse(path.read_bytes(), directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy=_remedy(directory)) from error


def parse(content: bytes, bundle: Address) -> Verdict:
    """The verdict in the content of its file.

    Raises:
        BundleError: it is torn, or of another layout.
    """
    path = f"{bundle}/{contract.VERDICT_FILE}"
    try:
        record = {
            key: value for key, value in json.loads(content).items() if key not in ("blessed", "failed")
        }
        checks = tuple(Check(**check) for check in record.pop("checks"))
        found = Verdict(checks=checks, **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", remedy=_remedy(bundle)) from error
    if found.schema != SCHEMA:
        raise BundleError(f"{path} is not of layout {SCHEMA}.", remedy=_remedy(bundle))
    return found


def require_blessed(directory: Address, found: Verdict | None, content: str) -> None:
    """Refuse a bundle that the gate did not let through.

    Args:
        directory: the bundle.
        found: its verdict.
        content: its digest now.

    Raises:
        GateRejected: there is no verdict, it is a no, or it is about other content.
    """
    if found is None:
        raise GateRejected(f"{directory} has no verdict.", remedy=_remedy(directory))
    if found.content != content:
        raise GateRejected(f"{directory} was changed since its verdict.", remedy=_remedy(directory))
    if not found.blessed:
        raise GateRejected(
            f"{directory} is not blessed: {format_checks(found.failed)}.",
            remedy="Mend the model, or promote it all the same with --force, which is recorded.",
        )


def format_checks(checks: Sequence[Check]) -> str:
    """Checks in one line."""
    return "; ".join(f"{check.name}: {check.detail or 'failed'}" for check in checks)


def _remedy(directory: Address) -> str:
    return f"Judge it first: hubhead validate --bundle {directory}"
