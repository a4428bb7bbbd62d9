"""The ways to get photos through a backbone that are held against each other.

All run EfficientNet-Lite0 on the sample photos. "bare" ones are given decoded pixels; the
others begin with the bytes of the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from tests.bench.interleave import DEFAULT_THREADS, ONE_THREAD_AN_OP, Variant

PHOTOS = 256
"""Photos a round: some seconds on two cores."""


BASE = "bare: as loaded, batch 32"

VARIANTS = (
    Variant(BASE, DEFAULT_THREADS),
    Variant("bare: frozen, batch 32", DEFAULT_THREADS),
    Variant("bare: frozen, a thread a core, batch 32", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 8", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 4", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 1", ONE_THREAD_AN_OP),
    Variant("bytes: tf.data pipeline, antialiased, as loaded, batch 32", DEFAULT_THREADS),
    Variant("bytes: a plain decoder in the graph, no guard, batch 8", ONE_THREAD_AN_OP),
    Variant("bytes: serving.runtime on the bundle", ONE_THREAD_AN_OP),
    Variant("bytes: serving.runtime on the bundle, micro-batch 4", ONE_THREAD_AN_OP),
    Variant("bytes: serving.runtime on the bundle, micro-batch 16", ONE_THREAD_AN_OP),
)


def prepare(name: str, setting: str) -> Callable[[], float]:
    """A function that runs one round of a variant and gives photos/s; everything is loaded before."""
    import tensorflow as tf

    if setting == ONE_THREAD_AN_OP:
        from serving import runtime

        runtime.configure_threads(runtime.cores())
    tf.get_logger().setLevel("ERROR")
    work, batch = _work(name)
    contents = photos()[:PHOTOS]
    callers = threads() if setting == ONE_THREAD_AN_OP else 1

    def one_round() -> float:
        starts = range(0, PHOTOS, batch)
        begin = time.perf_counter()
        if batch == PHOTOS:
            work(contents)
        else:
            with ThreadPoolExecutor(callers) as pool:
                list(pool.map(lambda start: work(contents[start : start + batch]), starts))
        return PHOTOS / (time.perf_counter() - begin)

    return one_round


def _work(name: str) -> tuple[Callable[[Sequence[bytes]], Any], int]:
    """What is done with a batch, and its size."""
    import tensorflow as tf

    kind, _, rest = name.partition(": ")
    if kind == "bare":
        batch = int(rest.rpartition(" ")[2])
        pixels = tf.random.uniform([batch, 224, 224, 3], seed=0)
        function = _frozen() if "frozen" in rest else as_loaded()
        return lambda contents: function(pixels), batch
    if "tf.data" in rest:
        return _tf_data, PHOTOS
    if "plain decoder" in rest:
        plain = _plain_graph()
        return lambda contents: plain(tf.constant(contents)), 8
    from serving import contract, runtime

    model = runtime.load(template().path)
    size = int(rest.rpartition(" ")[2]) if "micro-batch" in rest else runtime.MICRO_BATCH

    def embed(contents: Sequence[bytes]) -> None:
        for _ in model.imap(contract.EMBED, contract.IMAGE_BYTES, contents, micro_batch=size):
            pass

    return embed, PHOTOS


def _tf_data(contents: Sequence[bytes]) -> None:
    """As a careful engineer would write it around a SavedModel."""
    import tensorflow as tf

    def decode(content: Any) -> Any:
        return tf.image.resize(tf.io.decode_jpeg(content, channels=3), [224, 224], antialias=True) / 255.0

    signature = as_loaded()
    dataset = tf.data.Dataset.from_tensor_slices(list(contents))
    for pixels in dataset.map(decode, num_parallel_calls=threads()).batch(32).prefetch(2):
        signature(pixels)


@cache
def _plain_graph() -> Any:
    """Decode and backbone in one frozen graph, with no guard, no orientation and no catch."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    backbone = _backbone()

    def decode(content: Any) -> Any:
        pixels = tf.io.decode_jpeg(content, channels=3)
        return tf.image.resize(pixels, [224, 224], method="bicubic", antialias=True) / 255.0

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def embed(contents: Any) -> Any:
        spec = tf.TensorSpec([224, 224, 3], tf.float32)
        return backbone.apply(tf.map_fn(decode, contents, fn_output_signature=spec))

    return convert_variables_to_constants_v2(embed.get_concrete_function())


@cache
def _backbone() -> Any:
    from trainer import backbones
    from trainer.dataset.download import cache_directory

    return backbones.load(backbones.DEFAULT, cache_directory())


@cache
def template() -> Any:
    from trainer import backbones
    from trainer.dataset.download import cache_directory
    from trainer.export.templates import prepare_template

    return prepare_template(backbones.DEFAULT, cache_directory())


@cache
def as_loaded() -> Any:
    import tensorflow as tf

    loaded = tf.saved_model.load(_backbone().path)
    signature = loaded.signatures["serving_default"]
    signature.keep = loaded  # its variables live as long as it does
    return signature


@cache
def _frozen() -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(as_loaded())


@cache
def photos() -> list[bytes]:
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    directory = fetch_sample_photos(cache_directory()).directory
    return [path.read_bytes() for path in sorted(directory.glob("*/*"))]


def threads() -> int:
    from serving import runtime

    return runtime.cores()
