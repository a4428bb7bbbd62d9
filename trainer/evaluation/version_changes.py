"""Records of a comparison of the candidate with the live version, by label and by photo."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.evaluation.metrics import Estimate, Evaluation, Proportion, nan_to_none
from trainer.evaluation.paired_comparison import PairedComparison


@dataclass(frozen=True)
class LabelChange:
    """Change of one label's recall between the live and the new version.

    Attributes:
        label: name of the label.
        new, live: recall of each version.
        difference: difference of the recalls, with its interval for matched pairs.
        gained: photos that only the new version gets right.
        lost: photos that only the live version gets right.
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
        uri: path of the photo.
        label: true label of the photo.
        new, live: best label of each version, and its probability.
    """

    uri: str
    label: str
    new: tuple[str, float]
    live: tuple[str, float]


@dataclass(frozen=True)
class LiveComparison:
    """Comparison of the new with the live version on the same N photos, of labels that both know.

    Attributes:
        name, version: name and version number of the live bundle.
        same_backbone: True if both have the same backbone, so that the live head was evaluated on the
            stored embeddings.
        added: labels that the live version does not know.
        removed: labels that only the live version knows.
        left_out: number of test photos left out, by reason.
        trained_on_known: True if the live version records which photos it was trained on, and the new one
            where that matters; otherwise they may be among the N photos and make its figures too good.
        new, live: metrics of each version, over the labels of both. A label that a version does not know
            has probability 0 there; none of the photos has such a label.
        difference: the new version compared with the live one.
        labels: changes of the labels that both know and that have photos.
        newly_right, newly_wrong: photos that only one version gets right, in descending order of the new
            version's confidence.
        respelled: labels whose Unicode form differs from that of the live version, as text; "" for none.
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
    difference: PairedComparison
    labels: tuple[LabelChange, ...]
    newly_right: tuple[PhotoChange, ...]
    newly_wrong: tuple[PhotoChange, ...]
    respelled: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values, as stored in hubhead.json."""
        record = {
            "with": {"name": self.name, "version": self.version, "same_backbone": self.same_backbone},
            "labels_added": self.added,
            "labels_removed": self.removed,
            "photos": self.difference.n,
            "photos_left_out": self.left_out,
            "trained_on_known": self.trained_on_known,
            **{
                name: {"accuracy": asdict(evaluation.accuracy), "log_loss": evaluation.log_loss}
                for name, evaluation in (("new", self.new), ("live", self.live))
            },
            "difference": self.difference.to_dict(),
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
        return dict(nan_to_none(record))

    def format_lines(self) -> list[str]:
        """Return the comparison as lines of text, one statement each."""
        lines = [f"Compared with version {self.version} of {self.name}: {self.difference}."]
        for change, labels in (("Added", self.added), ("Removed", self.removed)):
            if labels:
                lines.append(f"{change} labels: {', '.join(map(repr, labels))}.")
        if self.respelled:
            lines.append(f"Labels of the new version: {self.respelled}.")
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            lines.append(f"Test photos left out of the comparison: {reasons}.")
        if not self.trained_on_known:
            lines.append(
                f"Version {self.version} does not record which photos it was trained on. Some test photos "
                "may be among them, which would make its figures too good."
            )
        return lines
