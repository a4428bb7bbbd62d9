"""Formats of JSON records with a schema version: hubhead.json, verdict.json and run.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from serving.errors import HubheadError, StorageError
from serving.storage import files

T = TypeVar("T")

_MAX_DEPTH = 32
_TOO_DEEP = f"it is nested more than {_MAX_DEPTH} levels deep"


@dataclass(frozen=True)
class RecordFormat(Generic[T]):
    """Format of a JSON object whose key `schema` is the version of its layout.

    Attributes:
        kind: dataclass or TypedDict of the current layout. Its annotations are the schema.
        schema: number of the current layout.
        error: class of the errors that `parse` raises.
        upgrades: function that converts a record to the next layout, by the number of the layout it reads.
        ignored: keys that a record may have beside those of `kind`; None for any.
        details: function that returns a TypedDict with which a record is checked too; None for no check.
    """

    kind: type[T]
    schema: int
    error: type[HubheadError]
    upgrades: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    ignored: frozenset[str] | None = frozenset()
    details: Callable[[], type[Any]] | None = None

    def read(self, uri: str, *, remedy: str) -> T:
        """Read and parse a file, see `parse`.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: remote storage does not answer.
            HubheadError: the file cannot be read, or as `parse`; its class is `error`.
        """
        try:
            content = files.read(uri)
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            raise self.error(f"{uri} cannot be read: {error}.", remedy=remedy) from error
        return self.parse(content, uri, remedy=remedy)

    def parse(self, content: bytes, source: object, *, remedy: str) -> T:
        """Parse a record of the current or an earlier layout.

        Args:
            content: content of the file.
            source: path or address of the file, for error messages.
            remedy: what to do about a damaged file.

        Raises:
            HubheadError: the content is damaged, or of a newer layout; its class is `error`.
        """
        import msgspec

        try:
            # json also reads NaN and Infinity, which metrics may contain; msgspec alone does not.
            record: dict[str, Any] = json.loads(content)
            _check_depth(record, _MAX_DEPTH)
            found = msgspec.convert(record, _Versioned).schema
            if found > self.schema:
                raise self.error(
                    f"{source} has schema {found}; this version of hubhead reads up to schema {self.schema}.",
                    remedy="Upgrade hubhead.",
                )
            for number in range(found, self.schema):
                record = {**self.upgrades[number](record), "schema": number + 1}
            unknown = sorted(record.keys() - self.kind.__annotations__.keys() - (self.ignored or frozenset()))
            if unknown and self.ignored is not None:
                raise ValueError(f"unknown keys: {', '.join(unknown)}")
            if self.details is not None:
                msgspec.convert(record, self.details())
            return msgspec.convert(record, self.kind)
        except RecursionError as error:
            raise self.error(f"{source} cannot be read: {_TOO_DEEP}.", remedy=remedy) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # Only a ValueError has a message for users; the others are those of an upgrade.
            reason = error if isinstance(error, ValueError) else f"it is not a record of schema {found}"
            raise self.error(f"{source} cannot be read: {reason}.", remedy=remedy) from error

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the current layout."""
        import msgspec

        return msgspec.json.schema(self.kind)


def _check_depth(value: Any, left: int) -> None:
    """Check that a JSON value is not nested deeper than `left` levels, so that functions on it can recurse.

    Raises:
        ValueError: it is.
    """
    if not left:
        raise ValueError(_TOO_DEEP)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, dict | list):
            _check_depth(part, left - 1)


@dataclass(frozen=True)
class _Versioned:
    schema: int
