"""The ways to get photos through a backbone that are held against each other.

All run EfficientNet-Lite0 on the sample photos. "bare" ones are given decoded pixels; the
others begin with the bytes of the files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DEFAULT_THREADS = "default threads"
ONE_THREAD_AN_OP = "one thread an op"

PHOTOS = 256
"""Photos a round: some seconds on two cores."""


@dataclass(frozen=True)
class Variant:
    """A name for the table, and the setting of TensorFlow's threads that it needs."""

    name: str
    setting: str


BASE = "bare: as loaded, batch 32"

VARIANTS = (
    Variant(BASE, DEFAULT_THREADS),
    Variant("bare: frozen, batch 32", DEFAULT_THREADS),
    Variant("bare: frozen, a thread a core, batch 32", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 8", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 4", ONE_THREAD_AN_OP),
    Variant("bare: frozen, a thread a core, batch 1", ONE_THREAD_AN_OP),
    Variant("bytes: tf.data pipeline, antialiased, as loaded, batch 32", DEFAULT_THREADS),
    Variant("bytes: a plain decoder in the graph, no guard, batch 4", ONE_THREAD_AN_OP),
    Variant("bytes: serving.runtime on the bundle", ONE_THREAD_AN_OP),
    Variant("files: the batch job, listing to Parquet", ONE_THREAD_AN_OP),
)


def prepare(name: str, setting: str) -> Callable[[], float]:
    """A function that runs one round of a variant and gives photos/s; everything is loaded before."""
    import tensorflow as tf

    if setting == ONE_THREAD_AN_OP:
        from serving import runtime

        runtime.one_thread_an_op(runtime.cores())
    tf.get_logger().setLevel("ERROR")
    if name.startswith("files:"):
        return _batch_job()
    work, batch = _work(name)
    contents = _photos()[:PHOTOS]
    threads = _threads() if setting == ONE_THREAD_AN_OP else 1

    def one_round() -> float:
        starts = range(0, PHOTOS, batch)
        begin = time.perf_counter()
        if batch == PHOTOS:
            work(contents)
        else:
            with ThreadPoolExecutor(threads) as pool:
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
        function = _frozen() if "frozen" in rest else _as_loaded()
        return lambda contents: function(pixels), batch
    if "tf.data" in rest:
        return _tf_data, PHOTOS
    if "plain decoder" in rest:
        plain = _plain_graph()
        return lambda contents: plain(tf.constant(contents)), 4
    from serving import contract, runtime

    model = runtime.load(_template().path)
    return lambda contents: list(model.imap(contract.EMBED, contract.IMAGE_BYTES, contents)), PHOTOS


def _tf_data(contents: Sequence[bytes]) -> None:
    """As a careful engineer would write it around a SavedModel."""
    import tensorflow as tf

    def decode(content: Any) -> Any:
        return tf.image.resize(tf.io.decode_jpeg(content, channels=3), [224, 224], antialias=True) / 255.0

    signature = _as_loaded()
    dataset = tf.data.Dataset.from_tensor_slices(list(contents))
    for pixels in (
        dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)
    ):
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


def _batch_job() -> Callable[[], float]:
    """The Beam job on files that no store knows; each round scores as many as it takes to be steady."""
    import numpy as np

    from batch.pipeline import ScoreSettings, score
    from trainer import export
    from trainer.head import Head, Scaling

    top = Path(tempfile.mkdtemp(prefix="hubhead-bench-"))
    photos = top / "photos"
    photos.mkdir()
    for number in range(4):
        for index, content in enumerate(_photos()[:PHOTOS]):
            # Bytes behind the end of a JPEG do not change it, and make it a photo of its own.
            (photos / f"{number}-{index}.jpeg").write_bytes(content + bytes([number]))
    source = _template()
    dimension = source.manifest.dimension
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    head = Head(scaling, np.zeros((dimension, 2), np.float32), np.zeros(2, np.float32), 1.0)
    bundle = export.export(source, export.HeadExport(head, ["a", "b"]), top / "models" / "bench")
    rounds = iter(range(1000))

    def one_round() -> float:
        number = next(rounds)
        summary = score(
            ScoreSettings(str(photos), bundle.path, str(top / f"out{number}"), str(top / f"store{number}"))
        )
        rate = summary.photos_per_second
        assert rate is not None
        return rate

    return one_round


@cache
def _backbone() -> Any:
    from trainer import backbone
    from trainer.fetch import cache_directory

    return backbone.load(backbone.DEFAULT, cache_directory())


@cache
def _template() -> Any:
    from trainer import backbone, export
    from trainer.fetch import cache_directory

    return export.template(backbone.DEFAULT, cache_directory())


@cache
def _as_loaded() -> Any:
    import tensorflow as tf

    loaded = tf.saved_model.load(_backbone().path)
    signature = loaded.signatures["serving_default"]
    signature.keep = loaded  # its variables live as long as it does
    return signature


@cache
def _frozen() -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(_as_loaded())


@cache
def _photos() -> list[bytes]:
    from trainer.fetch import cache_directory
    from trainer.samples import sample_photos

    directory = sample_photos(cache_directory()).directory
    return [path.read_bytes() for path in sorted(directory.glob("*/*"))]


def _threads() -> int:
    from serving import runtime

    return runtime.cores()
