"""Schema of what hubhead uses of hubhead.json, stricter than the types of `BundleMetadata`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required, TypeAlias, TypedDict

from msgspec import Meta

_Count: TypeAlias = Annotated[int, Meta(ge=0)]


class _Figure(TypedDict, total=False):
    value: float | None
    n: _Count
    low: float | None
    high: float | None


_FigureByName: TypeAlias = dict[str, _Figure | None] | None


class _Calibration(TypedDict, total=False):
    error: float | None


class _SetFigures(TypedDict, total=False):
    accuracy: _Figure | None
    top_3: _Figure | None
    log_loss: float | None
    log_loss_interval: tuple[float | None, float | None] | None
    recall: _FigureByName
    precision: _FigureByName
    macro: _FigureByName
    calibration: _Calibration | None


class _CrossValidation(TypedDict, total=False):
    folds: Required[int]
    accuracy: _Figure | None
    first: _SetFigures


class _LabelErrors(TypedDict, total=False):
    suspected: _Count


_Metrics = TypedDict(
    "_Metrics",
    {
        "test": _SetFigures | None,
        "validation": _SetFigures | None,
        "cross-validation": _SetFigures | None,  # no name of an attribute, so that this is no class
        "cross_validate": _CrossValidation | None,
        "label_errors": _LabelErrors | None,
    },
    total=False,
)


class _Data(TypedDict, total=False):
    photos: dict[str, _Count]
    labels: dict[str, _Count]
    left_out: _Count | None
    duplicates: _Count | None
    near_duplicates: _Count | None
    test_photos_like_training_photos: _Count | None


class _Preprocessing(TypedDict, total=False):
    aspect: Literal["stretch", "crop", "pad"]
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    max_bytes: Annotated[int, Meta(ge=1)]
    max_whole_pixels: Annotated[int, Meta(ge=1)]


class _Provenance(TypedDict, total=False):
    created: str | None
    packages: dict[str, str | None]
    engines: list[dict[str, Any]]
    configuration: dict[str, Any]


class _Head(TypedDict, total=False):
    kind: str


class _Backbone(TypedDict, total=False):
    fingerprint: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,128}\Z")]  # names a directory of the store
    dimension: Annotated[int, Meta(ge=1, le=2**24)]


class Details(TypedDict, total=False):
    """Values of hubhead.json that hubhead uses; other keys beside them are kept as they are."""

    backbone: _Backbone
    top_k: Annotated[int, Meta(ge=0)]
    preprocessing: _Preprocessing
    metrics: _Metrics
    data: _Data
    head: _Head
    provenance: _Provenance
