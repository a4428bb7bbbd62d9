"""Table of the flags of retrain.py and make_image_classifier, and how `hubhead train` treats each.

`retrain.py` is hub/examples/image_retraining of tensorflow/hub, with the additional flags of its variant in
tensorflow-for-poets-2. `make_image_classifier` is the tool of tensorflow-hub 0.13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from trainer.backbones.aliases import resolve_architecture


class Support(StrEnum):
    """How `hubhead train` treats a flag of an older tool, in words; {to} is `LegacyFlag.to`."""

    UNCHANGED = "the same"
    ALIAS = "taken as --{to}"
    REPLACED = "replaced by {to}"
    IGNORED = "no effect"


class _Absent:
    def __repr__(self) -> str:
        return ""


ABSENT = _Absent()
"""Default of a flag that the tool does not have."""


@dataclass(frozen=True, slots=True)
class LegacyFlag:
    """One flag of an older tool.

    Attributes:
        support: how `hubhead train` treats the flag.
        name: flag name without dashes.
        why: explanation for the user; the difference in behaviour for UNCHANGED.
        to: name of the flag that an alias stands for; what to use instead of a replaced flag.
        convert: function from its value to the value of the flag that it is an alias of.
        retrain: default in retrain.py.
        classifier: default in make_image_classifier.
        choices: accepted values.
        is_switch: True for a switch whose default is None.
    """

    support: Support
    name: str
    why: str = ""
    to: str = ""
    convert: Callable[[Any], Any] | None = None
    retrain: Any = ABSENT
    classifier: Any = ABSENT
    choices: tuple[str, ...] = ()
    is_switch: bool = False

    @property
    def kind(self) -> type:
        """Type of its value, which is that of its default; str where the default is None."""
        if self.is_switch:
            return bool
        return next(type(d) for d in (self.retrain, self.classifier, "") if d not in (ABSENT, None))

    def describe(self) -> str:
        """Return how `hubhead train` treats the flag, in a few words."""
        what = self.support.format(to=self.to)
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


# One row per flag below: how it is treated, its name, why, what it is replaced by, and the tools' defaults.
_unchanged, _alias, _replaced, _ignored = (functools.partial(LegacyFlag, support) for support in Support)

_EXACT_SOLVER = "the head is fitted to convergence; there are no gradient steps to configure"
_FULL_BATCH = "all training photos form one batch"
_REGULARISATION = "the regularisation strength is selected on held-out photos"
_VIEWS = "applied to --views random views of each photo, which are stored and reused"
_SEPARATE_FLAGS = "each of these enables random views of the photos by itself"

_FLAGS = (
    # Photos, backbone and outputs
    _unchanged("image_dir", retrain="", classifier=None),
    _unchanged(
        "output_labels",
        "labels are the exact directory names; the bundle also contains them as assets/labels.txt",
        retrain="/tmp/output_labels.txt",
    ),
    _unchanged("testing_percentage", retrain=10),
    _unchanged("validation_percentage", retrain=10),
    _unchanged("print_misclassified_test_images", retrain=False),
    _unchanged(
        "tfhub_module",
        retrain="https://tfhub.dev/google/imagenet/inception_v3/feature_vector/3",
        classifier="https://tfhub.dev/google/tf2-preview/mobilenet_v2/feature_vector/4",
    ),
    _unchanged(
        "saved_model_dir",
        "each run adds a numbered version below it; the signatures take photo bytes",
        retrain="",
        classifier=None,
    ),
    # retrain.py: paths
    _alias(
        "architecture",
        "for MobileNets it uses the features, while retrain.py used the class scores",
        "tfhub_module",
        _backbone_alias,
        retrain="inception_v3",
    ),
    _alias(
        "bottleneck_dir",
        "embeddings are stored by the content of the photos; text files of retrain.py are not read",
        "embedding_store",
        str,
        retrain="/tmp/bottleneck",
    ),
    _replaced(
        "model_dir",
        "backbones are cached there, or below $HUBHEAD_CACHE_DIR if it is not set",
        "$TFHUB_CACHE_DIR",
        retrain="/tmp/imagenet",
    ),
    _replaced(
        "output_graph",
        "the result is a SavedModel from photo bytes to labels, not a frozen graph",
        "--saved_model_dir",
        retrain="/tmp/output_graph.pb",
    ),
    # retrain.py: training
    _ignored("how_many_training_steps", _EXACT_SOLVER, retrain=4000),
    _ignored("learning_rate", _EXACT_SOLVER, retrain=0.01, classifier=0.005),
    _ignored("eval_step_interval", _EXACT_SOLVER, retrain=10),
    _ignored("train_batch_size", _FULL_BATCH, retrain=100),
    _ignored("test_batch_size", "all test photos are evaluated, as with -1 in retrain.py", retrain=-1),
    _ignored(
        "validation_batch_size", "all validation photos are used, as with -1 in retrain.py", retrain=100
    ),
    _ignored("intermediate_store_frequency", _EXACT_SOLVER, retrain=0),
    _ignored("intermediate_output_graphs_dir", _EXACT_SOLVER, retrain="/tmp/intermediate_graph/"),
    _ignored(
        "checkpoint_path",
        "an interrupted run resumes from the embedding store",
        retrain="/tmp/_retrain_checkpoint",
    ),
    _unchanged(
        "summaries_dir",
        "a step is one candidate for the regularisation strength; existing files are kept",
        retrain="/tmp/retrain_logs",
        classifier=None,
    ),
    _ignored(
        "final_tensor_name", "the outputs are named label, classes, scores and status", retrain="final_result"
    ),
    _unchanged("flip_left_right", _VIEWS, retrain=False),
    _unchanged("random_crop", _VIEWS, retrain=0),
    _unchanged("random_scale", _VIEWS, retrain=0),
    _unchanged("random_brightness", _VIEWS, retrain=0),
    _ignored(
        "logging_verbosity",
        "progress and warnings go to stderr, results to stdout",
        retrain="INFO",
        choices=("DEBUG", "INFO", "WARN", "ERROR", "FATAL"),
    ),
    # make_image_classifier: photos and outputs
    _alias("labels_output_file", to="output_labels", convert=Path, classifier=None),
    _alias(
        "validation_split",
        "in addition, the test photos of --testing_percentage are held out",
        "validation_percentage",
        lambda fraction: round(100 * fraction, 9),
        classifier=0.2,
    ),
    _unchanged("image_size", classifier=None),
    _unchanged(
        "tflite_output_file",
        "pixels are 0 to 255 instead of 0 to 1, and the file contains the labels; the bundle has it too",
        classifier=None,
    ),
    _unchanged(
        "assert_accuracy_at_least", "measured on the test photos; exit code 4 if it fails", classifier=None
    ),
    # make_image_classifier: training
    _ignored("train_epochs", _EXACT_SOLVER, classifier=5),
    _ignored("batch_size", _FULL_BATCH, classifier=32),
    _ignored("momentum", _EXACT_SOLVER, classifier=0.9),
    _ignored("dropout_rate", _REGULARISATION, classifier=0.2),
    _ignored("l1_regularizer", _REGULARISATION, classifier=0.0),
    _ignored("l2_regularizer", _REGULARISATION, classifier=0.0001),
    _ignored(
        "label_smoothing",
        "probabilities are calibrated by a temperature that is fitted on held-out photos",
        classifier=0.1,
    ),
    _replaced(
        "do_fine_tuning",
        "it trains the last layers of the backbone, starting from a fitted head",
        "--fine_tune",
        classifier=False,
    ),
    # make_image_classifier: augmentation
    _replaced(
        "do_data_augmentation",
        _SEPARATE_FLAGS,
        "--flip_left_right, --random_crop, --random_scale",
        classifier=False,
    ),
    _ignored("rotation_range", "views are not rotated; only the EXIF orientation is applied", classifier=40),
    _replaced("horizontal_flip", _SEPARATE_FLAGS, "--flip_left_right", classifier=True),
    _replaced("width_shift_range", _SEPARATE_FLAGS, "--random_crop", classifier=0.2),
    _replaced("height_shift_range", _SEPARATE_FLAGS, "--random_crop", classifier=0.2),
    _ignored(
        "shear_range", "views are not sheared, which was the default of make_image_classifier", classifier=0.0
    ),
    _replaced("zoom_range", _SEPARATE_FLAGS, "--random_scale", classifier=0.2),
    # make_image_classifier: runtime
    _replaced(
        "set_memory_growth",
        "TensorFlow reads this environment variable",
        "TF_FORCE_GPU_ALLOW_GROWTH=true",
        classifier=False,
    ),
    _ignored(
        "distribution_strategy",
        "photos are embedded on all cores of the machine",
        classifier=None,
        choices=("", "mirrored"),
    ),
    _ignored("use_tf_data_input", "there is only one way of reading photos", classifier=None, is_switch=True),
)

LEGACY_FLAGS = {flag.name: flag for flag in _FLAGS}
"""All flags by name, in the order in which they are explained."""
