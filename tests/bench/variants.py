"""Variants of a photo's way through the backbone, for `python -m tests.bench`.

All run EfficientNet-Lite0 on the sample photos. The input of "bare" variants is decoded pixels, the input
of "bytes" variants the bytes of the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from tests.bench.interleave import DEFAULT_THREADS, ONE_THREAD_PER_OP, Variant

PHOTOS = 256
"""Photos per round, which take a few seconds on two cores."""

BASE = "bare: as loaded, batch 32"

VARIANTS = (
    Variant(BASE, DEFAULT_THREADS),
    Variant("bare: frozen, batch 32", DEFAULT_THREADS),
    Variant("bare: frozen, one thread per core, batch 32", ONE_THREAD_PER_OP),
    Variant("bare: frozen, one thread per core, batch 8", ONE_THREAD_PER_OP),
    Variant("bare: frozen, one thread per core, batch 4", ONE_THREAD_PER_OP),
    Variant("bare: frozen, one thread per core, batch 1", ONE_THREAD_PER_OP),
    Variant("bytes: tf.data pipeline, antialiased, as loaded, batch 32", DEFAULT_THREADS),
    Variant("bytes: a plain decoder in the graph, no guard, batch 8", ONE_THREAD_PER_OP),
    Variant("bytes: serving.runtime on the bundle", ONE_THREAD_PER_OP),
    Variant("bytes: serving.runtime on the bundle, TensorFlow", ONE_THREAD_PER_OP),
    Variant("bytes: serving.runtime on the bundle, micro-batch 4", ONE_THREAD_PER_OP),
    Variant("bytes: serving.runtime on the bundle, micro-batch 16", ONE_THREAD_PER_OP),
)


def prepare(name: str, setting: str) -> Callable[[], float]:
    """Load what a variant needs; return a function that runs one round and returns photos/s."""
    import tensorflow as tf

    if setting == ONE_THREAD_PER_OP:
        from serving import runtime
        from serving.runtime import tensorflow_model

        tensorflow_model.configure_threads(runtime.cores())
    tf.get_logger().setLevel("ERROR")
    work, batch = _make_work(name)
    contents = read_sample_photos()[:PHOTOS]
    callers = count_cores() if setting == ONE_THREAD_PER_OP else 1

    def run_round() -> float:
        starts = range(0, PHOTOS, batch)
        begin = time.perf_counter()
        if batch == PHOTOS:
            work(contents)
        else:
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(lambda start: work(contents[start : start + batch]), starts))
        return PHOTOS / (time.perf_counter() - begin)

    return run_round


def _make_work(name: str) -> tuple[Callable[[Sequence[bytes]], Any], int]:
    """Return the function that processes a batch, and the size of the batch."""
    import tensorflow as tf

    kind, _, rest = name.partition(": ")
    if kind == "bare":
        batch = int(rest.rpartition(" ")[2])
        pixels = tf.random.uniform([batch, 224, 224, 3], seed=0)
        function = freeze_signature() if "frozen" in rest else load_signature()
        return lambda contents: function(pixels), batch
    if "tf.data" in rest:
        return _run_tf_data, PHOTOS
    if "plain decoder" in rest:
        plain = _build_plain_graph()
        return lambda contents: plain(tf.constant(contents)), 8
    from serving import contract, runtime

    engine = "tensorflow" if rest.endswith("TensorFlow") else "onnx"
    model = runtime.load(load_template().path, engine=engine)
    size = int(rest.rpartition(" ")[2]) if "micro-batch" in rest else runtime.MICRO_BATCH

    def embed(contents: Sequence[bytes]) -> None:
        for _ in model.imap(contract.EMBED, contract.IMAGE_BYTES, contents, micro_batch=size):
            pass

    return embed, PHOTOS


def _run_tf_data(contents: Sequence[bytes]) -> None:
    """Run a tf.data pipeline around a SavedModel, as a careful engineer would write it."""
    import tensorflow as tf

    def decode(content: Any) -> Any:
        return tf.image.resize(tf.io.decode_jpeg(content, channels=3), [224, 224], antialias=True) / 255.0

    signature = load_signature()
    dataset = tf.data.Dataset.from_tensor_slices(list(contents))
    for pixels in dataset.map(decode, num_parallel_calls=count_cores()).batch(32).prefetch(2):
        signature(pixels)


@cache
def _build_plain_graph() -> Any:
    """Build one frozen graph of decoder and backbone, without guard, EXIF orientation and try/catch."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    backbone = load_backbone()

    def decode(content: Any) -> Any:
        pixels = tf.io.decode_jpeg(content, channels=3)
        return tf.image.resize(pixels, [224, 224], method="bicubic", antialias=True) / 255.0

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def embed(contents: Any) -> Any:
        spec = tf.TensorSpec([224, 224, 3], tf.float32)
        return backbone.apply(tf.map_fn(decode, contents, fn_output_signature=spec))

    return convert_variables_to_constants_v2(embed.get_concrete_function())


@cache
def load_backbone() -> Any:
    """Load the default backbone."""
    from trainer.backbones import DEFAULT
    from trainer.backbones.hub import load
    from trainer.dataset.download import cache_directory

    return load(DEFAULT, cache_directory())


@cache
def load_template() -> Any:
    """Load the traced graph of the default backbone, tracing it if it is not cached."""
    from trainer.backbones import DEFAULT
    from trainer.dataset.download import cache_directory
    from trainer.export.templates import prepare_template

    return prepare_template(DEFAULT, cache_directory())


@cache
def load_signature() -> Any:
    """Load the serving_default signature of the default backbone, unchanged."""
    import tensorflow as tf

    loaded = tf.saved_model.load(load_backbone().path)
    signature = loaded.signatures["serving_default"]
    signature.keep = loaded  # the variables are deleted with the loaded object
    return signature


@cache
def freeze_signature() -> Any:
    """Convert the variables of the signature to constants."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(load_signature())


@cache
def read_sample_photos() -> list[bytes]:
    """Read all sample photos."""
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    directory = fetch_sample_photos(cache_directory()).directory
    return [path.read_bytes() for path in sorted(directory.glob("*/*"))]


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    from serving import runtime

    return runtime.cores()
