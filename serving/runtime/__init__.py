"""A loaded SavedModel at full speed."""

from serving.runtime.model import MICRO_BATCH, Model, RunError, cores, load, one_thread_an_op, own_words

__all__ = ["MICRO_BATCH", "Model", "RunError", "cores", "load", "one_thread_an_op", "own_words"]
