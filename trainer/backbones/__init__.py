"""Pretrained feature vectors: the default of the box, a directory, or a TensorFlow Hub handle."""

from trainer.backbones.aliases import ALIASES, DEFAULT, Alias, Architecture, alias_of, architecture
from trainer.backbones.hub import Backbone, build, load, resolve
from trainer.backbones.interface import InputOptions, input_key

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
