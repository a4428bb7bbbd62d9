"""Records of a comparison of the candidate with the live version, by label and by photo."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.evaluation.metrics import Estimate, Evaluation, Proportion, finite
from trainer.evaluation.paired import Comparison


@dataclass(frozen=True)
class LabelChange:
    """What became of the photos of a label.

    Attributes:
        label: its name.
        new, live: the share found (recall) by each version.
        difference: of the two, with its interval for matched pairs.
        gained: photos that the new version alone gets right.
        lost: photos that the live version alone gets right.
    """

    label: str
    new: Proportion
    live: Proportion
    difference: Estimate
    gained: int
    lost: int


@dataclass(frozen=True)
class PhotoChange:
    """A photo that one version gets right and the other does not.

    Attributes:
        uri: its path.
        label: its own.
        new, live: the best label of each version, and its probability.
    """

    uri: str
    label: str
    new: tuple[str, float]
    live: tuple[str, float]


@dataclass(frozen=True)
class LiveComparison:
    """Two versions on the same N photos, of the labels that both know.

    Attributes:
        name, version: of the live bundle.
        same_backbone: whether the live head could be asked about the stored embeddings.
        added: labels that the live version does not know.
        removed: labels that only the live version knows.
        left_out: test photos that take no part, by the reason.
        trained_on_known: whether it is known which photos the live version was trained on; where not,
            they may be among the N and flatter it.
        new, live: figures of each, over the labels of both. A label that a version does not know has
            probability 0 there; it is the own label of none of the photos.
        difference: new against live.
        labels: of the labels that both know and that have photos.
        newly_right, newly_wrong: the photos that make the difference, those that the new version is
            surest of first.
    """

    name: str
    version: int
    same_backbone: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    left_out: dict[str, int]
    trained_on_known: bool
    new: Evaluation
    live: Evaluation
    difference: Comparison
    labels: tuple[LabelChange, ...]
    newly_right: tuple[PhotoChange, ...]
    newly_wrong: tuple[PhotoChange, ...]

    def record(self) -> dict[str, Any]:
        """For hubhead.json."""
        told = {
            "with": {"name": self.name, "version": self.version, "same_backbone": self.same_backbone},
            "labels_added": self.added,
            "labels_removed": self.removed,
            "photos": self.difference.n,
            "photos_left_out": self.left_out,
            "trained_on_known": self.trained_on_known,
            **{
                name: {"accuracy": asdict(found.accuracy), "log_loss": found.log_loss}
                for name, found in (("new", self.new), ("live", self.live))
            },
            "difference": self.difference.record(),
            "recall": {
                change.label: {
                    "new": change.new.value,
                    "live": change.live.value,
                    "n": change.new.n,
                    "difference": asdict(change.difference),
                }
                for change in self.labels
            },
        }
        return dict(finite(told))

    def sentences(self) -> list[str]:
        """What people should know, a sentence each."""
        told = [f"Against version {self.version} of {self.name}: {self.difference}."]
        for what, labels in (("new", self.added), ("gone", self.removed)):
            if labels:
                told.append(f"Labels that are {what}: {', '.join(map(repr, labels))}.")
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            told.append(f"Test photos left out of the comparison: {reasons}.")
        if not self.trained_on_known:
            told.append(
                f"It is not known which photos version {self.version} was trained on: some of these may be "
                "among them and flatter it."
            )
        return told
