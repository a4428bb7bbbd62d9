"""Pretrained backbones: the built-in default, a SavedModel directory, or a TensorFlow Hub handle.

`trainer.backbones.hub` loads them. The names below do not import numpy, so that every --help is fast.
"""

from trainer.backbones.aliases import ALIASES, DEFAULT, Alias, Architecture, find_alias, resolve_architecture
from trainer.backbones.interface import InputOptions, input_key

__all__ = [
    "ALIASES",
    "DEFAULT",
    "Alias",
    "Architecture",
    "InputOptions",
    "find_alias",
    "input_key",
    "resolve_architecture",
]
