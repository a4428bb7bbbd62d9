"""Schema of what hubhead uses of hubhead.json, stricter than the types of `BundleMetadata`."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta


class _Figure(TypedDict, total=False):
    value: float | None
    n: Annotated[int, Meta(ge=0)]


class _Calibration(TypedDict, total=False):
    error: float | None


class _TestFigures(TypedDict, total=False):
    accuracy: _Figure | None
    log_loss: float | None
    recall: dict[str, _Figure | None] | None
    calibration: _Calibration | None


class _Metrics(TypedDict, total=False):
    test: _TestFigures | None


class _Preprocessing(TypedDict, total=False):
    aspect: Literal["stretch", "crop", "pad"]
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    max_bytes: Annotated[int, Meta(ge=1)]
    max_whole_pixels: Annotated[int, Meta(ge=1)]


class _Provenance(TypedDict, total=False):
    created: str | None


class _Backbone(TypedDict, total=False):
    fingerprint: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,128}\Z")]  # names a directory of the store
    dimension: Annotated[int, Meta(ge=1, le=2**24)]


class Details(TypedDict, total=False):
    """Values of hubhead.json that hubhead uses; other keys beside them are kept as they are."""

    backbone: _Backbone
    top_k: Annotated[int, Meta(ge=0)]
    preprocessing: _Preprocessing
    metrics: _Metrics
    provenance: _Provenance
