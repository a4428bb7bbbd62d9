"""The names that trainer, batch and serving agree on. No TensorFlow here.

A bundle is a SavedModel with these signatures. Every output has the batch as its
first dimension, since TensorFlow Serving's server-side batching splits there.

| signature            | in                                | out |
|----------------------|-----------------------------------|-----|
| serving_default      | image_bytes string [N]            | label string [N], classes string [N,k], scores float32 [N,k], status string [N] |
| probabilities        | image_bytes string [N]            | probabilities float32 [N,K], status string [N] |
| embed                | image_bytes string [N]            | embedding float32 [N,D], status string [N], height int32 [N], width int32 [N] |
| classify_pixels      | pixels uint8 [N,H,W,3]            | as serving_default |
| classify_embedding   | embedding float32 [N,D]           | probabilities float32 [N,K], known bool [N] |
| classify             | inputs string [N] (tf.Example)    | classes string [N,k], scores float32 [N,k] |

A headless bundle has `embed` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SERVING_DEFAULT = "serving_default"
PROBABILITIES = "probabilities"
EMBED = "embed"
CLASSIFY_PIXELS = "classify_pixels"
CLASSIFY_EMBEDDING = "classify_embedding"
CLASSIFY = "classify"

IMAGE_BYTES = "image_bytes"
PIXELS = "pixels"
EMBEDDING = "embedding"
KNOWN = "known"
EXAMPLES = "inputs"
EXAMPLE_IMAGE_FEATURE = "image/encoded"
LABEL = "label"
CLASSES = "classes"
SCORES = "scores"
STATUS = "status"
HEIGHT = "height"
WIDTH = "width"

LABELS_FILE = "assets/labels.txt"
METADATA_FILE = "assets.extra/hubhead.json"
REPORT_FILE = "assets.extra/report.html"
HEAD_FILE = "assets.extra/head.npz"
TRAINED_ON_FILE = "assets.extra/trained_on.npy"
VERDICT_FILE = "assets.extra/verdict.json"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
SAVED_MODEL_FILE = "saved_model.pb"

WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""The server-side batch sizes that a bundle is warmed for, one warm-up record each.

k8s/base/batching_parameters.txt allows the same sizes; a test compares them.
"""


class Status(StrEnum):
    """What became of one photo: a closed set, so that it can be counted and filtered."""

    OK = "ok"
    TRUNCATED = "truncated"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_LARGE = "too_large"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"
    FAILED = "failed"

    @property
    def usable(self) -> bool:
        """Whether the photo has an embedding: whole, or scored from the part that is there."""
        return self in (Status.OK, Status.TRUNCATED)

    @property
    def meaning(self) -> str:
        """One phrase for people."""
        return _MEANING[self]


_MEANING = {
    Status.OK: "decoded whole",
    Status.TRUNCATED: "the file is cut off; scored from the part that is there",
    Status.EMPTY: "the file has no bytes",
    Status.NOT_AN_IMAGE: "the bytes are no known image format",
    Status.UNSUPPORTED_FORMAT: "an image format that is not decoded here",
    Status.TOO_LARGE: "more pixels, bytes or frames than the limits allow",
    Status.CORRUPT: "looks like an image but does not decode",
    Status.UNREADABLE: "the storage did not give the bytes",
    Status.FAILED: "the server fails on this photo, and on no other",
}


@dataclass(frozen=True, slots=True)
class PhotoRejection:
    """Why a photo does not go to the model.

    Attributes:
        status: what became of the photo.
        detail: the reason in words.
        permanent: whether the photo's bytes are the reason, so that trying again is of no use.
    """

    status: Status
    detail: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one photo.

    Attributes:
        status: what became of the photo.
        label: the best label; None where the model abstains or the photo was refused.
        top: (label, calibrated probability), best first; empty where the photo was refused.
        detail: why the photo was refused before the model was asked, or what the server said of it
            alone; None where the model answered.
        version: the model's version that answered; None where none was asked or it is not known.
            Predictions are equal whichever version made them.
    """

    status: Status
    label: str | None
    top: tuple[tuple[str, float], ...]
    detail: str | None = None
    version: int | None = field(default=None, compare=False)

    @classmethod
    def from_rejection(cls, rejection: PhotoRejection) -> Prediction:
        """What stands in the place of an answer where the model is not asked."""
        return cls(rejection.status, None, (), rejection.detail)

    @property
    def score(self) -> float | None:
        """Probability of the best label, also where the model abstains."""
        return self.top[0][1] if self.top else None


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the model says of many photos, as arrays.

    Attributes:
        top: int64 [N,k], columns of the best labels, best first.
        scores: float32 [N,k], their calibrated probabilities.
        label: int64 [N], column of the label; -1 where the model abstains or the photo was refused.
    """

    top: NDArray[np.int64]
    scores: NDArray[np.float32]
    label: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Decisions:
        """Those of some photos; -1 is a photo of which the model says nothing."""
        import numpy as np

        if not len(self.label):
            blank = np.zeros((len(rows), self.top.shape[1]), np.int64)
            return Decisions(blank, blank.astype(np.float32), np.full(len(rows), -1))
        label = np.where(rows < 0, -1, self.label[rows])
        return Decisions(self.top[rows], self.scores[rows], label)


def decide(
    probabilities: NDArray[np.float32],
    usable: NDArray[np.bool_],
    *,
    threshold: float,
    top_k: int,
    known: NDArray[np.bool_] | None = None,
) -> Decisions:
    """The decision that `serving_default` takes inside the graph, for stored embeddings.

    Args:
        probabilities: float32 [N,K], calibrated, a column for each label.
        usable: bool [N], which photos have a status that is usable.
        threshold: below this best probability the model abstains.
        top_k: how many labels to keep.
        known: bool [N], whether each photo is like those of the labels; where not the model abstains too.
    """
    import numpy as np

    top = _best(probabilities, min(top_k, probabilities.shape[1]))
    scores = np.take_along_axis(probabilities, top, axis=1)
    # In double precision, as the manifest has the threshold.
    answered = usable & (scores[:, 0].astype(np.float64) >= threshold)
    if known is not None:
        answered &= known
    return Decisions(top, scores, np.where(answered, top[:, 0], -1))


def _best(probabilities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The columns of the k largest of each row, largest first; of equal ones the first, as top_k has it."""
    import numpy as np

    if probabilities.shape[1] <= _FEW_LABELS or k == probabilities.shape[1]:
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    # Sorting k of many labels instead of all.
    part = np.sort(np.argpartition(-probabilities, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(probabilities, part, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(part, order, axis=1)
    # Which of several equal ones are among the k is the partition's whim: such rows are sorted whole.
    last = np.take_along_axis(probabilities, best[:, -1:], axis=1)
    tied = np.flatnonzero((probabilities >= last).sum(axis=1) > k)
    best[tied] = np.argsort(-probabilities[tied], axis=1, kind="stable")[:, :k]
    return best


_FEW_LABELS = 32
