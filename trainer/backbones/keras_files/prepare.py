"""Conversion of a Keras file in the cache, and the pixel values that it expects."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from serving.contract import SAVED_MODEL_FILE
from serving.errors import InputError
from trainer.backbones.interface import InputOptions
from trainer.backbones.keras_files.applications import require_application
from trainer.backbones.keras_files.contents import SUFFIXES, check_signature
from trainer.backbones.keras_files.conversion import FACTS, FAILURE, Facts
from trainer.backbones.pixel_values import CHANNEL_MODES, MODES
from trainer.dataset.download import ProgressLogger, create_once, sha256

RECIPE = "1"
"""Version of the SavedModel that the conversion writes; increment it when the conversion changes."""

TIME_LIMIT = 1800
"""Time limit of a conversion, in seconds; the largest networks take a minute or two."""

_CODE = "import sys; from trainer.backbones.keras_files.conversion import main; main(*sys.argv[1:])"


def is_keras_file(handle: str) -> bool:
    """Return true if a handle is a file of Keras, by its name; a SavedModel may have such a name too."""
    path = Path(handle)
    return path.suffix.lower() in SUFFIXES and not (path / SAVED_MODEL_FILE).is_file()


def reject_application(handle: str, options: InputOptions) -> None:
    """Raise InputError if a network of keras.applications is named for anything but a Keras file."""
    if options.keras_application:
        raise InputError(
            f"--keras_application names the network of a Keras file; {handle} is none.",
            remedy="Give a file that ends in .keras or .h5, or state the pixel values by --preprocessing.",
        )


def prepare(
    handle: str, cache: Path, options: InputOptions, *, progress: ProgressLogger
) -> tuple[str, InputOptions]:
    """Convert a Keras file to a SavedModel in the cache.

    Returns:
        Directory of the SavedModel, and the options with the pixel values and the image size completed.

    Raises:
        InputError: the file is missing or damaged, has no network for photos, or does not fit the options.
        OutputError: the cache cannot be written.
    """
    if "://" in handle:
        raise InputError(
            f"The Keras file {handle} is not on this machine.", remedy="Download it, and give its path."
        )
    file = Path(handle)
    check_signature(file)
    named = options.keras_application
    application = require_application(named).name if named else ""
    key = json.dumps([RECIPE, sha256(file), application])
    directory = cache / "backbones" / "keras" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not directory.is_dir():
        progress(f"Converting {handle} with Keras; the result is kept")
        with create_once(directory) as staged:
            _run_conversion(handle, staged, application)
    facts = Facts(**json.loads((directory / FACTS).read_text()))
    if facts.labels:
        progress(
            f"{handle} ends in a classifier of {facts.labels} labels, which is left out: the features are "
            f"the output of its layer {facts.layer}"
        )
    return str(directory), complete_options(handle, facts, options, progress)


def complete_options(
    handle: str, facts: Facts, options: InputOptions, progress: ProgressLogger
) -> InputOptions:
    """Return the options with pixel values, and with the size of a known network that accepts any.

    Args:
        handle: file as the user gave it.
        facts: what is known of the file.
        options: options as the user gave them.
        progress: called with one line for each assumption, and if the pixel values are not those expected.
    """
    if facts.application and not facts.has_size and not options.image_size:
        size = require_application(facts.application).image_size
        options = replace(options, image_size=(size, size))
    if options.preprocessing or options.value_range:
        if facts.mode and not _agrees(options, facts.mode):
            stated = (
                f"--preprocessing {options.preprocessing}"
                if options.preprocessing
                else "--value_range {:g},{:g}".format(*options.value_range or ())
            )
            progress(
                f"Warning: {handle} {_describe_mode(facts)}, and {stated} gives it other values. "
                "Remove that, unless it was trained with them"
            )
        return options
    if facts.mode:
        progress(f"{handle} {_describe_mode(facts)}")
        return replace(options, preprocessing=facts.mode)
    if facts.is_preceded:
        reason = f"has operations before its {facts.application}: if they are preprocess_input, set "
        reason += "--preprocessing raw"
    else:
        reason = (
            "does not state its pixel values: if it expects others, set --preprocessing, --value_range or "
        )
        reason += "--keras_application"
    progress(f"{handle} {reason}. They are scaled to 0 to 1")
    return replace(options, value_range=(0.0, 1.0))


def _agrees(options: InputOptions, mode: str) -> bool:
    """Return true if the options state the pixel values of a mode."""
    if options.preprocessing:
        return options.preprocessing == mode
    return mode not in CHANNEL_MODES and options.value_range == MODES[mode]


def _describe_mode(facts: Facts) -> str:
    """Return the predicate of a sentence about a file whose mode is known."""
    if not facts.application:
        return "scales its input itself: it takes pixels from 0 to 255"
    name = f"is {facts.application} of keras.applications"
    if facts.mode == "raw":
        return f"{name}, which scales its input itself: it takes pixels from 0 to 255"
    return f"{name}: its pixel values are those of preprocess_input (--preprocessing {facts.mode})"


def _run_conversion(handle: str, directory: Path, application: str) -> None:
    """Convert a file in a process of its own.

    Raises:
        InputError: the file cannot be converted, or the process died of it.
    """
    packages = str(Path(__file__).parents[3])  # the directory of the package trainer
    paths = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as home:
        # A home of its own: ~/.keras/keras.json may set another backend, order of the channels or type.
        environment = os.environ | {
            "PYTHONPATH": paths,
            "KERAS_HOME": home,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        try:
            # -P: files of the working directory, such as a keras.py, are not modules.
            done = subprocess.run(
                [sys.executable, "-P", "-c", _CODE, handle, str(directory), application],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIME_LIMIT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{handle} cannot be converted: {error}.") from error
    failure = directory / FAILURE
    if failure.is_file():
        what, remedy = json.loads(failure.read_text())
        raise InputError(what, remedy=remedy)
    if done.returncode:
        raise InputError(
            f"{handle} cannot be converted: {_describe_end(done)}.",
            remedy="The file may be damaged, or memory too small; if neither is the case, convert it with "
            "model.export(DIRECTORY) of Keras, and give that directory.",
        )


def _describe_end(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"the process was ended by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines()
    return lines[-1].rstrip(".") if lines else f"the process ended with exit code {done.returncode}"
