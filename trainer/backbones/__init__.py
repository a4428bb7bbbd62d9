"""Pretrained backbones: the built-in default, a SavedModel directory, or a TensorFlow Hub handle."""

from trainer.backbones.aliases import ALIASES, DEFAULT, Alias, Architecture, find_alias, resolve_architecture
from trainer.backbones.hub import Backbone, build, load, resolve
from trainer.backbones.interface import InputOptions, input_key

__all__ = [
    "ALIASES",
    "DEFAULT",
    "Alias",
    "Architecture",
    "Backbone",
    "InputOptions",
    "build",
    "find_alias",
    "input_key",
    "load",
    "resolve",
    "resolve_architecture",
]
