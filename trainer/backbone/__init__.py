"""Pretrained feature vectors: the default of the box, a directory, or a TensorFlow Hub handle."""

from trainer.backbone.hub import ALIASES, DEFAULT, Alias, Backbone, build, load, resolve

__all__ = ["ALIASES", "DEFAULT", "Alias", "Backbone", "build", "load", "resolve"]
