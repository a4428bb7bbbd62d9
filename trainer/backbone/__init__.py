"""Pretrained feature vectors: the default of the box, a directory, or a TensorFlow Hub handle."""

from trainer.backbone.aliases import ALIASES, DEFAULT, Alias, Architecture, alias_of, architecture
from trainer.backbone.hub import Backbone, build, load, resolve
from trainer.backbone.interface import InputOptions, input_key

__all__ = [
    "ALIASES",
    "DEFAULT",
    "Alias",
    "Architecture",
    "Backbone",
    "InputOptions",
    "alias_of",
    "architecture",
    "build",
    "input_key",
    "load",
    "resolve",
]
