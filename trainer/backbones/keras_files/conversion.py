"""The process that converts a Keras file to a SavedModel: `python -c` calls `main`.

A process of its own, because a damaged HDF5 file can end it, Keras takes seconds to import and keeps global
settings, and files of Keras 2 need tf_keras, another version of the same library.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.runtime.errors import output_errors
from serving.text import first_line
from trainer.backbones.keras_files import architecture, features, weights
from trainer.backbones.keras_files.applications import Application, guess_application, require_application
from trainer.backbones.keras_files.contents import Contents, read_contents

FACTS, FAILURE = "keras.json", "failure.json"
"""Files that the process writes beside the SavedModel: what was found, or the error."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a converted file.

    Attributes:
        application: name of the network of keras.applications that it is or contains; "" if it is none.
        mode: mode of the pixel values that it expects; "" if it is not known.
        is_preceded: whether other operations come before that network.
        has_size: whether it takes photos of one size only.
        layer: name of the layer that returns the features.
        labels: number of labels of the classifier that was cut off; 0 if there was none.
    """

    application: str
    mode: str
    is_preceded: bool
    has_size: bool
    layer: str
    labels: int


def main(file: str, directory: str, application: str) -> None:
    """Convert a file; write FACTS beside the SavedModel, or FAILURE in its place.

    Args:
        file: Keras file.
        directory: existing directory to write to.
        application: network that the user named; "" for none.
    """
    try:
        facts = convert(Path(file), Path(directory), application)
        Path(directory, FACTS).write_text(json.dumps(asdict(facts)))
    except InputError as error:
        Path(directory, FAILURE).write_text(json.dumps([error.what, error.remedy]))


def convert(file: Path, directory: Path, application: str) -> Facts:
    """Write the network in a Keras file as a callable SavedModel, and return what is known of it.

    Raises:
        InputError: it is damaged, has no network for photos, or has layers that are not accepted.
    """
    contents = read_contents(file)
    shown = str(file)
    architecture.check_classes(contents.config, shown)
    stated = require_application(application) if application else None
    if contents.kind.is_model:
        recognised = _check_stated(architecture.recognise(contents.config), stated, shown)
    else:
        if stated is None:
            raise InputError(
                f"{shown} has weights without an architecture.", remedy=_suggest_application(file)
            )
        recognised = architecture.Recognised(stated, True, stated.mode == "raw")
    keras = _import_keras(contents, shown)
    with tempfile.TemporaryDirectory() as temporary:
        # Keras chooses the format by the suffix, which users choose freely.
        link = Path(temporary, f"file{weights.suffix_of(contents.kind)}")
        link.symlink_to(file.resolve())
        if contents.kind.is_model:
            model = _load_model(keras, link, shown)
        else:
            assert stated is not None
            model = weights.build_network(keras, stated, contents, link, shown)
    height, width = features.check_input(model, shown)
    found = features.find_features(keras, model, shown)
    model.trainable = True  # what is frozen in the file; fine-tuning chooses by itself
    export(keras.Model(model.inputs[0], found.tensor, name="backbone"), (height, width), directory)
    return Facts(
        recognised.application.name if recognised.application else "",
        recognised.mode or "",
        not recognised.is_direct,
        bool(height and width),
        found.layer,
        found.labels,
    )


def _check_stated(
    recognised: architecture.Recognised, stated: Application | None, shown: str
) -> architecture.Recognised:
    """Return what was recognised, with the network that the user named.

    Raises:
        InputError: it is another network by its name.
    """
    if stated is None:
        return recognised
    if recognised.application not in (None, stated):
        raise InputError(
            f"The model in {shown} is {recognised.application.name} by its name, not {stated.name}.",
            remedy="Remove --keras_application, or name the right network.",
        )
    return architecture.Recognised(stated, recognised.is_direct, recognised.scales)


def _suggest_application(file: Path) -> str:
    guessed = guess_application(file.name)
    example = guessed.name.lower() if guessed else "resnet50"
    return (
        f"Name the network, {'maybe' if guessed else 'such as'} --keras_application {example}; of a network "
        "of your own save the whole model, with model.save('NAME.keras')."
    )


def _import_keras(contents: Contents, shown: str) -> Any:
    """Return the module of the Keras that loads a file: Keras 3, or tf_keras for models of Keras 2.

    Keras 3 rejects arguments that Keras 2 wrote for common layers, such as `groups` of DepthwiseConv2D.

    Raises:
        InputError: tf_keras is not installed.
    """
    if not contents.is_keras_2:
        return importlib.import_module("keras")
    try:
        return importlib.import_module("tf_keras")  # a dependency of tensorflow-hub 0.16
    except ImportError as error:
        raise InputError(
            f"{shown} was written by Keras {contents.version or '1 or 2'}, and tf-keras, which loads such "
            f"files, cannot be imported: {first_line(error)}",
            remedy="Install it with: pip install tf-keras",
        ) from error


def _load_model(keras: Any, file: Path, shown: str) -> Any:
    try:
        return keras.models.load_model(str(file), compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras or h5py raise for a file that does not fit
        raise InputError(
            f"Keras {keras.__version__} cannot load {shown}: {weights.explain(error)}",
            remedy="Load it with the Keras that wrote it, write a SavedModel with model.export(DIRECTORY), "
            "and give that directory.",
        ) from error


def export(model: Any, size: tuple[int | None, int | None], directory: Path) -> None:
    """Write a model as a callable SavedModel that returns feature vectors; feature maps are averaged.

    It has `variables`, `trainable_variables` and `regularization_losses` for fine-tuning. Batch normalisation
    uses its stored statistics, and dropout does nothing.

    Args:
        model: Keras model of features [N,D] or [N,H,W,D].
        size: height and width of the photos; None for any.
        directory: directory to write to.
    """
    import tensorflow as tf

    @tf.function(
        input_signature=[tf.TensorSpec([None, *size, 3], tf.float32, name="inputs")], autograph=False
    )
    def call(inputs: Any) -> Any:
        found = model(inputs, training=False)
        if found.shape.rank == 4:
            found = tf.reduce_mean(tf.cast(found, tf.float32), [1, 2])
        return tf.cast(found, tf.float32)

    used = {id(variable) for variable in call.get_concrete_function().variables}
    root = tf.train.Checkpoint()
    root.__call__ = call
    # Without the states of random numbers: they differ each time a file is loaded, as the fingerprint would.
    root.variables, root.trainable_variables = (
        [tensor for variable in variables if id(tensor := _unwrap(variable)) in used]
        for variables in (model.variables, model.trainable_variables)
    )
    root.regularization_losses = []
    with output_errors(directory):
        tf.saved_model.save(root, str(directory))


def _unwrap(variable: Any) -> Any:
    """Return the tf.Variable of a variable of Keras 3; those of tf_keras are tf.Variables."""
    import tensorflow as tf

    return variable if isinstance(variable, tf.Variable) else variable._value
