"""A SavedModel loaded for the highest throughput on CPU cores."""

from serving.runtime.model import (
    MICRO_BATCH,
    Model,
    RunError,
    clean_error_message,
    configure_threads,
    cores,
    load,
)

# Former names, kept for code that imports them.
own_words = clean_error_message
one_thread_an_op = configure_threads

__all__ = [
    "MICRO_BATCH",
    "Model",
    "RunError",
    "clean_error_message",
    "configure_threads",
    "cores",
    "load",
    "one_thread_an_op",
    "own_words",
]
