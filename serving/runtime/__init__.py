"""A SavedModel loaded for the highest throughput on CPU cores."""

from serving.runtime.errors import RunError
from serving.runtime.model import MICRO_BATCH, Model, cores, load

__all__ = ["MICRO_BATCH", "Model", "RunError", "cores", "load"]
