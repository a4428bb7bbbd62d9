"""Schema of the scores dataset, and vectorized construction of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from batch.monitoring.drift import DecisionCounts
from serving.bundle import Bundle
from serving.contract import Decisions, Status

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "uri": "address of the photo, as the input names it",
    "sha256": "SHA-256 digest of the file in hexadecimal digits; null if the photo could not be read",
    "status": "outcome for the photo, one of `serving.contract.Status`",
    "detail": "reason for a rejection; null if the photo was accepted",
    "label": "predicted label; null if the model abstains or the photo was rejected",
    "score": "calibrated probability of the best label, even if the model abstains; null if there is none",
    "top_labels": "the most probable labels, best first; empty without an embedding",
    "top_scores": "their calibrated probabilities",
    "width": "width of the upright photo in pixels; null if it is unknown",
    "height": "height of the upright photo in pixels; null if it is unknown",
    "model": "name of the model",
    "version": "version of the model",
    "scored_at": "start of the run that wrote the row",
}
"""Column names of `scores_schema` and their meanings, available without importing Arrow."""


def format_columns(columns: Sequence[Sequence[str]]) -> str:
    """Format names and types of pass-through columns for messages."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns) or "none"


STATUSES = tuple(Status)
"""Statuses in the order of their codes; arrays store codes."""

USABLE = np.array([status.usable for status in STATUSES])
"""Mask over status codes: True if photos with that status have an embedding."""

_CODES = {status: code for code, status in enumerate(STATUSES)}


def encode_statuses(statuses: Sequence[Status]) -> NDArray[np.int8]:
    """Return the code of each status."""
    return np.fromiter((_CODES[status] for status in statuses), np.int8, len(statuses))


def encode_status_column(column: Any) -> NDArray[np.int8]:
    """Return the code of each status in a column (pa.Array) of status names; -1 for null and unknown ones."""
    import pyarrow.compute as pc

    names: Any = [status.value for status in STATUSES]
    codes = pc.index_in(column, value_set=_strings(names)).fill_null(-1)
    return codes.to_numpy(zero_copy_only=False).astype(np.int8)


@dataclass(frozen=True)
class PhotoColumns:
    """Columns of the scores that do not depend on the model, for N photos.

    Attributes:
        uris: addresses, string [N].
        shas: sha256 as hexadecimal digits, string [N]; null for photos that could not be read.
        status: status codes, int8 [N].
        details: reasons for rejection, string [N]; null for accepted photos.
        heights, widths: size of the upright photo in pixels, int32 [N]; 0 where unknown.
        columns: pass-through columns, N rows; None if there are none.
    """

    uris: pa.Array[Any]
    shas: pa.Array[Any]
    status: NDArray[np.int8]
    details: pa.Array[Any]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    columns: pa.Table | None = None


def build_scores_table(
    about: PhotoColumns, decisions: Decisions, model: Bundle, scored_at: datetime
) -> pa.Table:
    """Return the rows of one model: the columns of `scores_schema`, then the pass-through columns.

    Args:
        about: columns that do not depend on the model.
        decisions: N decisions; those of rejected photos are ignored.
        model: bundle that made the decisions.
        scored_at: value of the column `scored_at`.
    """
    import pyarrow as pa

    rows = len(about.status)
    usable = USABLE[about.status]
    names = _strings(model.metadata.labels)
    k = decisions.top.shape[1]
    # Rows with an embedding have lists of k entries, all others empty lists. So the values are those of
    # the usable rows, flattened, and the offsets delimit the list of each row.
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(np.where(usable, k, 0))]).astype(np.int32))

    def to_lists(values: Any) -> Any:
        return pa.ListArray.from_arrays(offsets, values)

    columns: dict[str, Any] = {
        "uri": about.uris,
        "sha256": about.shas,
        "status": _strings([status.value for status in STATUSES]).take(pa.array(about.status)),
        "detail": about.details,
        "label": names.take(pa.array(decisions.label, mask=decisions.label < 0)),
        "score": pa.array(decisions.scores[:, 0], mask=~usable),
        "top_labels": to_lists(names.take(pa.array(decisions.top[usable].ravel()))),
        "top_scores": to_lists(pa.array(decisions.scores[usable].ravel())),
        "width": pa.array(about.widths, mask=about.widths == 0),
        "height": pa.array(about.heights, mask=about.heights == 0),
        "model": _repeat(model.name, pa.string(), rows),
        "version": _repeat(model.version, pa.int64(), rows),
        "scored_at": _repeat(scored_at, pa.timestamp("us", tz="UTC"), rows),
    }
    table = pa.table([columns[name] for name in COLUMNS], schema=scores_schema())
    for name in about.columns.column_names if about.columns is not None else ():
        assert about.columns is not None
        table = table.append_column(about.columns.schema.field(name), about.columns[name])
    return table


def count_decisions(about: PhotoColumns, decisions: Decisions, model: Bundle) -> DecisionCounts:
    """Return the counts of labels, of photos with an embedding but no label, and of top scores."""
    labels = model.metadata.labels
    numbers = np.bincount(decisions.label[decisions.label >= 0], minlength=len(labels))
    given = Counter({label: int(number) for label, number in zip(labels, numbers, strict=True) if number})
    usable = USABLE[about.status]
    # Labels are only given to photos with an embedding, so the difference is the number of abstentions.
    scores = DecisionCounts.histogram(decisions.scores[usable, 0])
    return DecisionCounts(given, int(usable.sum()) - given.total(), scores)


def parse_hex_digests(column: Any, width: int) -> NDArray[np.bytes_]:
    """Convert a column of hexadecimal digests to a numpy array of bytes, without a loop over rows.

    Args:
        column: strings of 2 * `width` hexadecimal digits; null becomes all zeros.
        width: bytes per digest.

    Returns:
        Digests, dtype S<width>.

    Raises:
        ValueError: a string has another length or other characters.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.cast(pa.string()).fill_null("0" * (2 * width))
    if (pc.binary_length(array).to_numpy(zero_copy_only=False) != 2 * width).any():
        raise ValueError(f"a digest has {2 * width} hexadecimal digits")
    if not len(array):
        return np.empty(0, f"S{width}")
    # All strings have the same length, so their characters form one contiguous block of the buffer.
    _, offsets, data = array.buffers()
    start = np.frombuffer(offsets, np.int32)[array.offset]
    text = np.frombuffer(data, np.uint8)[start : start + len(array) * 2 * width]
    nibbles = _NIBBLES[text]
    if (nibbles == _INVALID_DIGIT).any():
        raise ValueError("a digest has other characters than hexadecimal digits")
    return np.ascontiguousarray(nibbles[0::2] << 4 | nibbles[1::2]).view(f"S{width}")


_INVALID_DIGIT = 255
_NIBBLES = np.full(256, _INVALID_DIGIT, np.uint8)
_NIBBLES[list(b"0123456789abcdef")] = range(16)
_NIBBLES[list(b"ABCDEF")] = range(10, 16)


def _strings(values: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.string())


def _repeat(value: Any, kind: Any, rows: int) -> Any:
    import pyarrow as pa

    return pa.repeat(pa.scalar(value, kind), rows)


def scores_schema() -> pa.Schema:
    """Return the schema of the scores dataset, without pass-through columns."""
    import pyarrow as pa

    fields: list[Any] = [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("top_labels", pa.list_(pa.string()), nullable=False),
        pa.field("top_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
    return pa.schema(fields)
