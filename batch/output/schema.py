"""The rows of the scores dataset, made from arrays without a loop over rows."""

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

COLUMNS = (
    *("uri", "sha256", "status", "detail", "label", "score", "top_labels", "top_scores", "width", "height"),
    *("model", "version", "scored_at"),
)
"""The names of the columns of `schema`, without importing Arrow."""

STATUSES = tuple(Status)
"""The statuses by the code that stands for them in arrays."""

USABLE = np.array([status.usable for status in STATUSES])
"""Whether a photo of that code has an embedding."""

_CODES = {status: code for code, status in enumerate(STATUSES)}


def encode_statuses(statuses: Sequence[Status]) -> NDArray[np.int8]:
    """The code of each status."""
    return np.fromiter((_CODES[status] for status in statuses), np.int8, len(statuses))


def encode_status_column(column: Any) -> NDArray[np.int8]:
    """The code of each status in a column of their names."""
    import pyarrow.compute as pc

    names: Any = [status.value for status in STATUSES]
    return pc.index_in(column, value_set=_strings(names)).to_numpy(zero_copy_only=False).astype(np.int8)


@dataclass(frozen=True)
class PhotoColumns:
    """What rows say whatever the model, N of each.

    Attributes:
        uris: strings.
        shas: hexadecimal strings, null where the bytes were not read.
        status: codes.
        details: strings, null where there is nothing to say.
        heights, widths: int32, pixels of the upright photo, 0 where unknown.
        columns: what passes through; None for nothing.
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
    """The rows of one model, what passes through behind the columns of `schema`.

    Args:
        about: the photos.
        decisions: N rows; those of photos that were refused say nothing.
        model: whose decisions they are.
        scored_at: what the rows say.
    """
    import pyarrow as pa

    rows = len(about.status)
    usable = USABLE[about.status]
    names = _strings(model.metadata.labels)
    k = decisions.top.shape[1]
    offsets: Any = pa.array(np.concatenate([[0], np.cumsum(np.where(usable, k, 0))]).astype(np.int32))

    def listed(values: Any) -> Any:
        return pa.ListArray.from_arrays(offsets, values)

    columns: dict[str, Any] = {
        "uri": about.uris,
        "sha256": about.shas,
        "status": _strings([status.value for status in STATUSES]).take(pa.array(about.status)),
        "detail": about.details,
        "label": names.take(pa.array(decisions.label, mask=decisions.label < 0)),
        "score": pa.array(decisions.scores[:, 0], mask=~usable),
        "top_labels": listed(names.take(pa.array(decisions.top[usable].ravel()))),
        "top_scores": listed(pa.array(decisions.scores[usable].ravel())),
        "width": pa.array(about.widths, mask=about.widths == 0),
        "height": pa.array(about.heights, mask=about.heights == 0),
        "model": _repeated(model.name, pa.string(), rows),
        "version": _repeated(model.version, pa.int64(), rows),
        "scored_at": _repeated(scored_at, pa.timestamp("us", tz="UTC"), rows),
    }
    table = pa.table([columns[name] for name in COLUMNS], schema=schema())
    for name in about.columns.column_names if about.columns is not None else ():
        assert about.columns is not None
        table = table.append_column(about.columns.schema.field(name), about.columns[name])
    return table


def count_decisions(about: PhotoColumns, decisions: Decisions, model: Bundle) -> DecisionCounts:
    """How often each label was given, how often none to a photo with an embedding, and the best scores."""
    labels = model.metadata.labels
    numbers = np.bincount(decisions.label[decisions.label >= 0], minlength=len(labels))
    given = Counter({label: int(number) for label, number in zip(labels, numbers, strict=True) if number})
    usable = USABLE[about.status]
    scores = DecisionCounts.histogram(decisions.scores[usable, 0])
    return DecisionCounts(given, int(usable.sum()) - given.total(), scores)


def parse_hex_digests(column: Any, width: int) -> NDArray[np.bytes_]:
    """Digests of a fixed width, of a column of their hexadecimal digits; null is all zeros.

    Args:
        column: of strings.
        width: bytes a digest.

    Raises:
        ValueError: a string is no digest of that width.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.cast(pa.string()).fill_null("0" * (2 * width))
    if (pc.binary_length(array).to_numpy(zero_copy_only=False) != 2 * width).any():
        raise ValueError(f"a digest has {2 * width} hexadecimal digits")
    if not len(array):
        return np.empty(0, f"S{width}")
    _, offsets, data = array.buffers()
    start = np.frombuffer(offsets, np.int32)[array.offset]
    text = np.frombuffer(data, np.uint8)[start : start + len(array) * 2 * width]
    nibbles = _NIBBLES[text]
    if (nibbles == _NO_DIGIT).any():
        raise ValueError("a digest has other characters than hexadecimal digits")
    return np.ascontiguousarray(nibbles[0::2] << 4 | nibbles[1::2]).view(f"S{width}")


_NO_DIGIT = 255
_NIBBLES = np.full(256, _NO_DIGIT, np.uint8)
_NIBBLES[list(b"0123456789abcdef")] = range(16)
_NIBBLES[list(b"ABCDEF")] = range(10, 16)


def _strings(values: Sequence[str]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.string())


def _repeated(value: Any, kind: Any, rows: int) -> Any:
    import pyarrow as pa

    return pa.repeat(pa.scalar(value, kind), rows)


def schema() -> pa.Schema:
    """The columns of the scores dataset."""
    import pyarrow as pa

    fields: list[Any] = [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),  # hex, as people and other tools write it; null where unread
        pa.field("status", pa.string(), nullable=False),  # serving.contract.Status
        pa.field("detail", pa.string()),  # why a photo was refused
        pa.field("label", pa.string()),  # null where the model abstains or the photo was refused
        pa.field("score", pa.float32()),  # calibrated probability of the best label
        pa.field("top_labels", pa.list_(pa.string()), nullable=False),
        pa.field("top_scores", pa.list_(pa.float32()), nullable=False),
        pa.field("width", pa.int32()),  # pixels of the upright photo
        pa.field("height", pa.int32()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
    return pa.schema(fields)
