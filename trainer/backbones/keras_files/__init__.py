"""Keras files (.keras, .h5, weights) as backbones: converted once, in the cache, to a SavedModel.

Keras is imported in a process of its own (`conversion`), and only when a file is converted.
"""
