"""Networks of keras.applications: their classes, the pixel values that they expect, and their input sizes."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from serving.errors import InputError


@dataclass(frozen=True, slots=True)
class Application:
    """One network of keras.applications.

    Attributes:
        name: name of its class.
        mode: mode of its `preprocess_input` (trainer.backbones.pixel_values); "raw" if it scales its input.
        image_size: height and width that its published weights were trained with, in pixels.
    """

    name: str
    mode: str
    image_size: int


def _list_applications() -> list[Application]:
    """Return the networks of Keras 3.15, from the sources of keras/src/applications."""
    sizes = {
        "caffe": {"ResNet50": 224, "ResNet101": 224, "ResNet152": 224, "VGG16": 224, "VGG19": 224},
        "tf": {
            "InceptionResNetV2": 299,
            "InceptionV3": 299,
            "MobileNet": 224,
            "MobileNetV2": 224,
            "NASNetLarge": 331,
            "NASNetMobile": 224,
            "ResNet50V2": 224,
            "ResNet101V2": 224,
            "ResNet152V2": 224,
            "Xception": 299,
        },
        "torch": {"DenseNet121": 224, "DenseNet169": 224, "DenseNet201": 224},
        "raw": {
            **{f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
            **{
                f"EfficientNetB{number}": size
                for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
            },
            **{f"EfficientNetV2B{number}": size for number, size in enumerate((224, 240, 260, 300))},
            **{f"EfficientNetV2{letter}": size for letter, size in (("S", 384), ("M", 480), ("L", 480))},
            "MobileNetV3Large": 224,
            "MobileNetV3Small": 224,
        },
    }
    return [Application(name, mode, size) for mode, named in sizes.items() for name, size in named.items()]


def _simplify(name: str) -> str:
    """Return a name without case and punctuation, and without MobileNet's width and size, as `_1.00_224`."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_\d\.\d+_(\d+|None)$", "", name).lower())


APPLICATIONS = {_simplify(application.name): application for application in _list_applications()}
"""Name in lower case, as the user gives it -> network."""


def find_application(name: str) -> Application | None:
    """Return the network with a name of the user's, or that a model has in a file; None if there is none."""
    return APPLICATIONS.get(_simplify(name))


def require_application(name: str) -> Application:
    """Return the network with this name.

    Raises:
        InputError: keras.applications has none.
    """
    if found := find_application(name):
        return found
    close = difflib.get_close_matches(_simplify(name), APPLICATIONS, n=3, cutoff=0.5)
    raise InputError(
        f"{name} is not a network of keras.applications.",
        remedy=f"Did you mean {' or '.join(close)}?" if close else f"Give one of {', '.join(APPLICATIONS)}.",
    )


def guess_application(file_name: str) -> Application | None:
    """Return the network whose name is the beginning of a file's, such as resnet50_weights_notop.h5."""
    simple = re.sub(r"[^a-z0-9]", "", file_name.lower())
    found = [name for name in APPLICATIONS if simple.startswith(name)]
    return APPLICATIONS[max(found, key=len)] if found else None
