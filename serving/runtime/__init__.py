"""A SavedModel loaded for the highest throughput on CPU cores."""

from serving.runtime.model import MICRO_BATCH, Model, RunError, configure_threads, cores, load

__all__ = ["MICRO_BATCH", "Model", "RunError", "configure_threads", "cores", "load"]
