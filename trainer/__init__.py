"""A folder of labelled photos in, a bundle for TensorFlow Serving out.

    from pathlib import Path
    from trainer import TrainSettings, train

    result = train(TrainSettings("food_images", Path("models/food_images")))

The names below are imported on first use, so that `import trainer` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.backbone import InputOptions
    from trainer.dataset import Columns, SplitSettings
    from trainer.fine_tune import FineTuneSettings
    from trainer.graph import Augmentation, Preprocessing
    from trainer.head import HeadSettings
    from trainer.settings import NearDuplicatesOption, TrainResult, TrainSettings
    from trainer.training import train

__all__ = [
    "Augmentation",
    "Columns",
    "FineTuneSettings",
    "HeadSettings",
    "InputOptions",
    "NearDuplicatesOption",
    "Preprocessing",
    "SplitSettings",
    "TrainResult",
    "TrainSettings",
    "train",
]

_HOMES = {
    "trainer.backbone": {"InputOptions"},
    "trainer.dataset": {"Columns", "SplitSettings"},
    "trainer.fine_tune": {"FineTuneSettings"},
    "trainer.graph": {"Augmentation", "Preprocessing"},
    "trainer.head": {"HeadSettings"},
    "trainer.settings": {"NearDuplicatesOption", "TrainResult", "TrainSettings"},
    "trainer.training": {"train"},
}

if not TYPE_CHECKING:  # to mypy it would make every name one of the package's

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
