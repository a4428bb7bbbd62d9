"""What the client's answers are made of, beside `serving.contract.Prediction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from serving.contract import Refusal, Status

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class State(StrEnum):
    """Where a version is in its life (ModelVersionStatus.State in get_model_status.proto)."""

    UNKNOWN = "UNKNOWN"
    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model.

    Attributes:
        version: its number.
        state: AVAILABLE means loaded and answering.
        error: why it did not load, or "".
    """

    version: int
    state: State
    error: str


@dataclass(frozen=True)
class TensorInfo:
    """dtype by TensorFlow's name; shape with None where it is open, None if the rank is open."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{','.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of one signature."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Metadata:
    """The version that answers, and what it can be asked."""

    name: str
    version: int
    signatures: Mapping[str, Signature]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What the backbone makes of one photo.

    Attributes:
        status: what became of the photo.
        vector: float32 [D]; None where the photo was refused.
        height, width: pixels of the upright photo as it was sent; 0 where the photo was refused.
        detail: as in `Prediction`.
        version: as in `Prediction`.
    """

    status: Status
    vector: NDArray[np.float32] | None
    height: int = 0
    width: int = 0
    detail: str | None = None
    version: int | None = None

    @classmethod
    def refused(cls, refusal: Refusal) -> Embedding:
        """What stands in the place of an answer where the model is not asked."""
        return cls(refusal.status, None, detail=refusal.detail)
