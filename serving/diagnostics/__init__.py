"""Checks of the installation and of the machine, for `hubhead doctor`.

This process imports neither TensorFlow nor ONNX Runtime: each is tried in a process of its own, which may
crash.
"""
