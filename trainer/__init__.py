"""Train an image classifier: from a folder of labelled photos to a bundle for TensorFlow Serving.

    from pathlib import Path
    from trainer import TrainSettings, train

    result = train(TrainSettings("food_images", Path("models/food_images")))

The names below are imported lazily, on first use, so that `import trainer` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.backbones import InputOptions
    from trainer.dataset import Columns, SplitSettings
    from trainer.heads import HeadSettings
    from trainer.preprocessing import Augmentation, Preprocessing
    from trainer.training.config import NearDuplicatesOption, TrainResult, TrainSettings
    from trainer.training.fine_tune_types import FineTuneSettings
    from trainer.training.run import train

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

if not TYPE_CHECKING:  # mypy would take every name for an attribute of the package

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # The module of the configuration imports the types of all its parts.
        home = "run" if name == "train" else "config"
        return getattr(importlib.import_module(f"{__name__}.training.{home}"), name)
