"""Types that a labelling session exchanges with the page; msgspec encodes and converts them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from serving.errors import HubheadError

Mode = Literal["single", "grid"]
"""Mode of the page: one photo at a time, or a grid of photos that the model takes for one label."""

GRID_PHOTOS = 24

GRID = "grid"
"""Strategy of a PhotoCard of a grid."""


class Strategy(StrEnum):
    """Rule that decides which photo comes next."""

    MIXED = "mixed"
    UNCERTAIN = "uncertain"
    DIVERSE = "diverse"
    NOVEL = "novel"
    RANDOM = "random"
    SUSPECTS = "suspects"


class AnswerConflict(HubheadError):
    """A photo of an answer was answered by another browser, or is held by one; HTTP 409."""


class AnswerNotKept(HubheadError):
    """The journal could not be written, so that the answer does not count; HTTP 507, `what` is for people."""


@dataclass(frozen=True)
class Suggestion:
    """A label for a photo with its calibrated probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Neighbours:
    """Photos of one label that are nearest to a suspected one, nearest first; ids for `photo_uri`."""

    label: str
    photos: tuple[int, ...]


@dataclass(frozen=True)
class Suspect:
    """A photo whose label may be wrong.

    Attributes:
        photo: row of the photo among the candidates.
        given_label: label that it has.
        neighbours: (label, rows of the nearest photos that have it), of the given and the suggested label.
    """

    photo: int
    given_label: str
    neighbours: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class PhotoCard:
    """A photo that a browser holds.

    Attributes:
        id: number of the photo, the only name by which a browser asks for it.
        name: last part of its path, escaped for display by the page.
        suggestions: up to five most probable labels, best first; empty without a model, and for photos of
            the test set.
        strategy: what chose it: a Strategy, or "grid"; "random" also for the test photos that are inserted
            under other strategies.
        given_label: label that the photo has now, under `suspects` alone.
        neighbours: nearest photos of the given and of the suggested label, under `suspects` alone.
    """

    id: int
    name: str
    suggestions: tuple[Suggestion, ...]
    strategy: str
    given_label: str = ""
    neighbours: tuple[Neighbours, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Photos that a browser is to show now.

    Attributes:
        mode: "single" or "grid".
        photos: photos to show, first one first. In single mode the others are the following ones, for the
            page to load ahead. Empty if nothing is left to ask for.
        label: label that the model takes all photos of a grid for; "" in single mode.
    """

    mode: Mode
    photos: tuple[PhotoCard, ...]
    label: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer about one photo.

    Attributes:
        photo: id of the photo.
        label: its label; "" for none of these.
        seconds: time from showing the photo to the answer.
    """

    photo: int
    label: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Interval:
    """A fraction of n photos with its 95 % interval; all three are 0 to 1."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy on the random sample, as of one refit of the head on `answers` training labels."""

    answers: int
    accuracy: Interval


@dataclass(frozen=True)
class State:
    """Progress of a session.

    Attributes:
        labels: names of the labels in the order of the page; new ones are at the end.
        strategy: strategy of the session.
        photos: number of candidates.
        labelled: photos with a label, including those of the test set.
        test: photos among them that are marked as the test set.
        none_of_these: photos that have none of the labels.
        skipped: photos that were skipped.
        near_duplicates: photos that are not asked for, since they nearly equal an answered one.
        remaining: photos that may still be asked for.
        per_label: number of photos by label.
        accuracy: accuracy of the current head on the test photos; None without a head or test photos.
        curve: learning curve, oldest point first.
        fitted_answers: training labels that the current head was fitted on; 0 for none.
        fitting: True while a head is fitted in the background.
        warning: sentence for people about the last failure of a fit or of the output; "" for none.
        output: path of the output.
    """

    labels: tuple[str, ...]
    strategy: Strategy
    photos: int
    labelled: int
    test: int
    none_of_these: int
    skipped: int
    near_duplicates: int
    remaining: int
    per_label: dict[str, int]
    accuracy: Interval | None
    curve: tuple[CurvePoint, ...]
    fitted_answers: int
    fitting: bool
    warning: str
    output: str
