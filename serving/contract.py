"""Names, statuses and records that trainer, batch and serving share. Does not import TensorFlow.

A bundle is a SavedModel with these signatures. The first dimension of every output is the
batch, because TensorFlow Serving's server-side batching splits the outputs there.

| signature            | in                                | out |
|----------------------|-----------------------------------|-----|
| serving_default      | image_bytes string [N]            | label string [N], classes string [N,k], scores float32 [N,k], status string [N] |
| probabilities        | image_bytes string [N]            | probabilities float32 [N,K], status string [N] |
| embed                | image_bytes string [N]            | embedding float32 [N,D], status string [N], height int32 [N], width int32 [N] |
| decode               | image_bytes string [N]            | pixels uint8 [N,H,W,3], status string [N], height int32 [N], width int32 [N] |
| classify_pixels      | pixels uint8 [N,H,W,3]            | as serving_default |
| classify_embedding   | embedding float32 [N,D]           | probabilities float32 [N,K], known bool [N] |
| classify             | inputs string [N] (tf.Example)    | classes string [N,k], scores float32 [N,k] |

A headless bundle has only `embed` and `decode`.
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
DECODE = "decode"
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
MODEL_CARD_FILE = "README.md"
REPORT_FILE = "assets.extra/report.html"
ONNX_FILE = "assets.extra/backbone.onnx"
HEAD_FILE = "assets.extra/head.npz"
TRAINED_ON_FILE = "assets.extra/trained_on.npy"
TEST_PHOTOS_FILE = "assets.extra/test_photos.npz"
VERDICT_FILE = "assets.extra/verdict.json"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
SAVED_MODEL_FILE = "saved_model.pb"

ENGINES = ("auto", "onnx", "tensorflow")
"""Engines for the backbone, as values of --engine; `auto` is ONNX Runtime where the bundle is made for it and
there is no GPU."""

ENGINE_TOLERANCE = 1e-4
"""Largest difference between the embeddings of two engines that is accepted, relative to the largest entry or 1,
before they are rounded to float16. EfficientNet-Lite0 differs by about 2e-6: the engines add the same float32
products in another order."""

ENGINE_KEY, CPU_KEY = "hubhead_engine", "hubhead_cpu"
"""Entries of the metadata map of a GetModelMetadataResponse, google.protobuf.StringValue: the engine that runs
the backbone, and the server's CPU. Only hubhead serve sends them."""

WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""Server-side batch sizes for which a bundle has a warm-up record.

k8s/base/batching_parameters.txt allows the same sizes; a test compares them.
"""


class Status(StrEnum):
    """Outcome of one photo. The set is closed, so that outcomes can be counted and filtered.

    Attributes:
        meaning: one phrase that explains the status to people.
    """

    meaning: str

    OK = "ok", "decoded completely"
    TRUNCATED = "truncated", "the file is cut off; scored from the part that could be read"
    EMPTY = "empty", "the file is empty"
    NOT_AN_IMAGE = "not_an_image", "not in a known image format"
    UNSUPPORTED_FORMAT = "unsupported_format", "an image format that cannot be decoded here"
    TOO_LARGE = "too_large", "more pixels, bytes or frames than the limits allow"
    CORRUPT = "corrupt", "looks like an image but cannot be decoded"
    UNREADABLE = "unreadable", "the file could not be read from storage"
    FAILED = "failed", "the server fails on this photo, but not on others"

    def __new__(cls, value: str, meaning: str = "") -> Status:
        """Create the member with this value, and keep its meaning beside it."""
        status = str.__new__(cls, value)
        status._value_, status.meaning = value, meaning
        return status

    @property
    def usable(self) -> bool:
        """True if the photo has an embedding, computed from all of it or from its readable part."""
        return self in (Status.OK, Status.TRUNCATED)


@dataclass(frozen=True, slots=True)
class PhotoRejection:
    """Reason why a photo is not sent to the model.

    Attributes:
        status: status of the photo.
        detail: explanation of the status.
        permanent: True if the bytes of the photo are the reason, so that a retry cannot help.
    """

    status: Status
    detail: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction of the model for one photo.

    Attributes:
        status: status of the photo.
        label: most probable label; None if the model abstains or the photo was rejected.
        top: (label, calibrated probability), best first; empty if the photo was rejected.
        detail: why the photo was rejected before it was sent, or the server's error for this photo;
            None if the model answered.
        version: version of the model that answered; None if no request was sent or if it is not
            known. It does not count when predictions are compared.
    """

    status: Status
    label: str | None
    top: tuple[tuple[str, float], ...]
    detail: str | None = None
    version: int | None = field(default=None, compare=False)

    @classmethod
    def from_rejection(cls, rejection: PhotoRejection) -> Prediction:
        """Return the prediction that stands for a photo that is not sent to the model."""
        return cls(rejection.status, None, (), rejection.detail)

    @property
    def score(self) -> float | None:
        """Probability of the most probable label, also if the model abstains; None without one."""
        return self.top[0][1] if self.top else None


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions of the model for N photos, as arrays.

    Attributes:
        top: int64 [N,k], columns of the k most probable labels, best first.
        scores: float32 [N,k], their calibrated probabilities.
        label: int64 [N], column of the decided label; -1 where the model abstains or the photo was
            rejected.
    """

    top: NDArray[np.int64]
    scores: NDArray[np.float32]
    label: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Decisions:
        """Return the decisions at `rows`, int64 [M]; row -1 stands for a photo without a decision."""
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
    """Decide labels from probabilities, as `serving_default` does inside the graph.

    Args:
        probabilities: float32 [N,K], calibrated, one column for each label.
        usable: bool [N], True where the status of the photo is usable.
        threshold: the model abstains if the largest probability is below it.
        top_k: number of labels to keep.
        known: bool [N], False where the photo resembles none of the labels, so that the model
            abstains; None to accept all.
    """
    import numpy as np

    top = _top_columns(probabilities, min(top_k, probabilities.shape[1]))
    scores = np.take_along_axis(probabilities, top, axis=1)
    # Compare in double precision, as the bundle metadata stores the threshold.
    answered = usable & (scores[:, 0].astype(np.float64) >= threshold)
    if known is not None:
        answered &= known
    return Decisions(top, scores, np.where(answered, top[:, 0], -1))


def _top_columns(probabilities: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the columns of the k largest values of each row, largest first; ties as in tf.math.top_k."""
    import numpy as np

    if probabilities.shape[1] <= _FEW_LABELS or k == probabilities.shape[1]:
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    # With many labels, partition first and sort only k of them.
    part = np.sort(np.argpartition(-probabilities, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(probabilities, part, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(part, order, axis=1)
    # argpartition picks arbitrarily among values equal to the k-th; rows with such ties are sorted completely,
    # so that the smaller column wins.
    last = np.take_along_axis(probabilities, best[:, -1:], axis=1)
    tied = np.flatnonzero((probabilities >= last).sum(axis=1) > k)
    best[tied] = np.argsort(-probabilities[tied], axis=1, kind="stable")[:, :k]
    return best


_FEW_LABELS = 32
"""Number of labels up to which all are sorted, without partitioning first."""
