"""Table of the flags of retrain.py and make_image_classifier, and how `hubhead train` treats each.

`retrain.py` is hub/examples/image_retraining of tensorflow/hub, with the additional flags of its variant in
tensorflow-for-poets-2. `make_image_classifier` is the tool of tensorflow-hub 0.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.backbones.aliases import resolve_architecture


class Support(StrEnum):
    """How `hubhead train` treats a flag of an older tool."""

    UNCHANGED = "unchanged"
    ALIAS = "alias of another flag"
    REPLACED = "replaced"
    IGNORED = "ignored"


class _Absent:
    def __repr__(self) -> str:
        return ""


ABSENT = _Absent()
"""Default of a flag that the tool does not have."""


@dataclass(frozen=True, slots=True)
class LegacyFlag:
    """One flag of an older tool.

    Attributes:
        name: flag name without dashes.
        support: how `hubhead train` treats the flag.
        kind: type of its value.
        retrain: default in retrain.py.
        classifier: default in make_image_classifier.
        to: name of the flag that an alias stands for; what to use instead of a replaced flag.
        why: explanation for the user; the difference in behaviour for UNCHANGED.
        convert: function from its value to the value of the flag that it is an alias of.
        choices: accepted values.
    """

    name: str
    support: Support
    kind: type = str
    retrain: Any = ABSENT
    classifier: Any = ABSENT
    to: str = ""
    why: str = ""
    convert: Callable[[Any], Any] | None = None
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return how `hubhead train` treats the flag, in a few words."""
        what = {
            Support.UNCHANGED: "the same",
            Support.ALIAS: f"taken as --{self.to}",
            Support.REPLACED: f"replaced by {self.to}",
            Support.IGNORED: "no effect",
        }[self.support]
        return f"{what}: {self.why}" if self.why else what

    def format_notice(self, value: Any) -> str:
        """Return the sentence that is printed when the flag is given."""
        if self.support is Support.ALIAS and self.convert:
            why = f" ({self.why})" if self.why else ""
            return f"--{self.name} {value} is taken as --{self.to} {self.convert(value)}{why}."
        if self.support is Support.REPLACED:
            return f"--{self.name} has no effect; use {self.to} instead: {self.why}."
        return f"--{self.name} has no effect: {self.why}."


def _backbone_alias(name: str) -> str:
    """Return the alias of the backbone that an --architecture of retrain.py stands for."""
    return resolve_architecture(name).alias


_EXACT_SOLVER = "the head is fitted to convergence; there are no gradient steps to configure"
_FULL_BATCH = "all training photos form one batch"
_REGULARISATION = "the regularisation strength is selected on held-out photos"
_VIEWS = "applied to --views random views of each photo, which are stored and reused"
_SEPARATE_FLAGS = "each of these enables random views of the photos by itself"

UNCHANGED, ALIAS, REPLACED, IGNORED = Support

_DATA_AND_OUTPUT = (
    LegacyFlag("image_dir", UNCHANGED, retrain="", classifier=None),
    LegacyFlag(
        "output_labels",
        UNCHANGED,
        retrain="/tmp/output_labels.txt",
        why="labels are the exact directory names; the bundle also contains them as assets/labels.txt",
    ),
    LegacyFlag("testing_percentage", UNCHANGED, float, retrain=10),
    LegacyFlag("validation_percentage", UNCHANGED, float, retrain=10),
    LegacyFlag("print_misclassified_test_images", UNCHANGED, bool, retrain=False),
    LegacyFlag(
        "tfhub_module",
        UNCHANGED,
        retrain="https://tfhub.dev/google/imagenet/inception_v3/feature_vector/3",
        classifier="https://tfhub.dev/google/tf2-preview/mobilenet_v2/feature_vector/4",
    ),
    LegacyFlag(
        "saved_model_dir",
        UNCHANGED,
        retrain="",
        classifier=None,
        why="each run adds a numbered version below it; the signatures take photo bytes",
    ),
)

_RETRAIN_PATHS = (
    LegacyFlag(
        "architecture",
        ALIAS,
        retrain="inception_v3",
        to="tfhub_module",
        convert=_backbone_alias,
        why="for MobileNets it uses the features, while retrain.py used the class scores",
    ),
    LegacyFlag(
        "bottleneck_dir",
        ALIAS,
        retrain="/tmp/bottleneck",
        to="embedding_store",
        convert=str,
        why="embeddings are stored by the content of the photos; text files of retrain.py are not read",
    ),
    LegacyFlag(
        "model_dir",
        REPLACED,
        retrain="/tmp/imagenet",
        to="$TFHUB_CACHE_DIR",
        why="backbones are cached there, or below $HUBHEAD_CACHE_DIR if it is not set",
    ),
    LegacyFlag(
        "output_graph",
        REPLACED,
        retrain="/tmp/output_graph.pb",
        to="--saved_model_dir",
        why="the result is a SavedModel from photo bytes to labels, not a frozen graph",
    ),
)

_RETRAIN_TRAINING = (
    LegacyFlag("how_many_training_steps", IGNORED, int, retrain=4000, why=_EXACT_SOLVER),
    LegacyFlag("learning_rate", IGNORED, float, retrain=0.01, classifier=0.005, why=_EXACT_SOLVER),
    LegacyFlag("eval_step_interval", IGNORED, int, retrain=10, why=_EXACT_SOLVER),
    LegacyFlag("train_batch_size", IGNORED, int, retrain=100, why=_FULL_BATCH),
    LegacyFlag(
        "test_batch_size",
        IGNORED,
        int,
        retrain=-1,
        why="all test photos are evaluated, as with -1 in retrain.py",
    ),
    LegacyFlag(
        "validation_batch_size",
        IGNORED,
        int,
        retrain=100,
        why="all validation photos are used, as with -1 in retrain.py",
    ),
    LegacyFlag("intermediate_store_frequency", IGNORED, int, retrain=0, why=_EXACT_SOLVER),
    LegacyFlag(
        "intermediate_output_graphs_dir", IGNORED, retrain="/tmp/intermediate_graph/", why=_EXACT_SOLVER
    ),
    LegacyFlag(
        "checkpoint_path",
        IGNORED,
        retrain="/tmp/_retrain_checkpoint",
        why="an interrupted run resumes from the embedding store",
    ),
    LegacyFlag(
        "summaries_dir",
        UNCHANGED,
        retrain="/tmp/retrain_logs",
        classifier=None,
        why="a step is one candidate for the regularisation strength; existing files are kept",
    ),
    LegacyFlag(
        "final_tensor_name",
        IGNORED,
        retrain="final_result",
        why="the outputs are named label, classes, scores and status",
    ),
    LegacyFlag("flip_left_right", UNCHANGED, bool, retrain=False, why=_VIEWS),
    LegacyFlag("random_crop", UNCHANGED, int, retrain=0, why=_VIEWS),
    LegacyFlag("random_scale", UNCHANGED, int, retrain=0, why=_VIEWS),
    LegacyFlag("random_brightness", UNCHANGED, int, retrain=0, why=_VIEWS),
    LegacyFlag(
        "logging_verbosity",
        IGNORED,
        retrain="INFO",
        choices=("DEBUG", "INFO", "WARN", "ERROR", "FATAL"),
        why="progress and warnings go to stderr, results to stdout",
    ),
)

_CLASSIFIER_INPUT_AND_OUTPUT = (
    LegacyFlag(
        "labels_output_file",
        ALIAS,
        classifier=None,
        to="output_labels",
        convert=Path,
    ),
    LegacyFlag(
        "validation_split",
        ALIAS,
        float,
        classifier=0.2,
        to="validation_percentage",
        convert=lambda fraction: round(100 * fraction, 9),
        why="in addition, the test photos of --testing_percentage are held out",
    ),
    LegacyFlag("image_size", UNCHANGED, int, classifier=None),
    LegacyFlag(
        "tflite_output_file",
        UNCHANGED,
        classifier=None,
        why="pixels are 0 to 255 instead of 0 to 1, and the file contains the labels; the bundle has it too",
    ),
    LegacyFlag(
        "assert_accuracy_at_least",
        UNCHANGED,
        float,
        classifier=None,
        why="measured on the test photos; exit code 4 if it fails",
    ),
)

_CLASSIFIER_TRAINING = (
    LegacyFlag("train_epochs", IGNORED, int, classifier=5, why=_EXACT_SOLVER),
    LegacyFlag("batch_size", IGNORED, int, classifier=32, why=_FULL_BATCH),
    LegacyFlag("momentum", IGNORED, float, classifier=0.9, why=_EXACT_SOLVER),
    LegacyFlag("dropout_rate", IGNORED, float, classifier=0.2, why=_REGULARISATION),
    LegacyFlag("l1_regularizer", IGNORED, float, classifier=0.0, why=_REGULARISATION),
    LegacyFlag("l2_regularizer", IGNORED, float, classifier=0.0001, why=_REGULARISATION),
    LegacyFlag(
        "label_smoothing",
        IGNORED,
        float,
        classifier=0.1,
        why="probabilities are calibrated by a temperature that is fitted on held-out photos",
    ),
    LegacyFlag(
        "do_fine_tuning",
        REPLACED,
        bool,
        classifier=False,
        to="--fine_tune",
        why="it trains the last layers of the backbone, starting from a fitted head",
    ),
)

_CLASSIFIER_AUGMENTATION = (
    LegacyFlag(
        "do_data_augmentation",
        REPLACED,
        bool,
        classifier=False,
        to="--flip_left_right, --random_crop, --random_scale",
        why=_SEPARATE_FLAGS,
    ),
    LegacyFlag(
        "rotation_range",
        IGNORED,
        int,
        classifier=40,
        why="views are not rotated; only the EXIF orientation is applied",
    ),
    LegacyFlag(
        "horizontal_flip", REPLACED, bool, classifier=True, to="--flip_left_right", why=_SEPARATE_FLAGS
    ),
    LegacyFlag("width_shift_range", REPLACED, float, classifier=0.2, to="--random_crop", why=_SEPARATE_FLAGS),
    LegacyFlag(
        "height_shift_range", REPLACED, float, classifier=0.2, to="--random_crop", why=_SEPARATE_FLAGS
    ),
    LegacyFlag(
        "shear_range",
        IGNORED,
        float,
        classifier=0.0,
        why="views are not sheared, which was the default of make_image_classifier",
    ),
    LegacyFlag("zoom_range", REPLACED, float, classifier=0.2, to="--random_scale", why=_SEPARATE_FLAGS),
)

_CLASSIFIER_RUNTIME = (
    LegacyFlag(
        "set_memory_growth",
        REPLACED,
        bool,
        classifier=False,
        to="TF_FORCE_GPU_ALLOW_GROWTH=true",
        why="TensorFlow reads this environment variable",
    ),
    LegacyFlag(
        "distribution_strategy",
        IGNORED,
        classifier=None,
        choices=("", "mirrored"),
        why="photos are embedded on all cores of the machine",
    ),
    LegacyFlag(
        "use_tf_data_input", IGNORED, bool, classifier=None, why="there is only one way of reading photos"
    ),
)

LEGACY_FLAGS = {
    flag.name: flag
    for group in (
        _DATA_AND_OUTPUT,
        _RETRAIN_PATHS,
        _RETRAIN_TRAINING,
        _CLASSIFIER_INPUT_AND_OUTPUT,
        _CLASSIFIER_TRAINING,
        _CLASSIFIER_AUGMENTATION,
        _CLASSIFIER_RUNTIME,
    )
    for flag in group
}
"""All flags by name, in the order in which they are explained."""
