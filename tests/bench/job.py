"""The batch job from the files on a disk to Parquet, beside what else would do its work.

The rows, for small photos (the samples, 307 x 173) and for those of a camera (4000 x 3000):

* loop: reads the files and runs our graph on all cores, and does nothing else
* job: `hubhead score`, from the listing to run.json and report.html
* tf.data: a pipeline with antialiased resizing around the backbone's signature as loaded
* RunInference: Beam's, with a plain TensorFlow handler, from the files to Parquet

Start-up (imports, loading the model) counts for none of them. The last two get every fifth photo:
they are slow, and would be no faster with all.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench import camera
from tests.bench.interleave import DEFAULT_THREADS, ONE_THREAD_AN_OP, Variant, measure, show
from tests.bench.variants import as_loaded, photos, template, threads

SIZES = {"small": 4000, "camera": 2000}
"""Photos a round: half a minute on two cores, so that a run's own second or so weighs as little as it
does in the work that the job is for."""

KINDS = {
    "loop": ONE_THREAD_AN_OP,
    "job": ONE_THREAD_AN_OP,
    "tf.data": DEFAULT_THREADS,
    "RunInference": DEFAULT_THREADS,
}
_ALL, _FIFTH = "*.jpeg", "*[05].jpeg"
_PHOTOS = {"loop": _ALL, "job": _ALL, "tf.data": _FIFTH, "RunInference": _FIFTH}
_BATCH = 32


def prepare(name: str, setting: str) -> Callable[[], float]:
    """A function that runs one round of a variant and gives photos/s; everything is loaded before."""
    import tensorflow as tf

    if setting == ONE_THREAD_AN_OP:
        from serving import runtime

        runtime.configure_threads(threads())
    tf.get_logger().setLevel("ERROR")
    size, _, kind = name.partition(": ")
    top = _directory(size)
    work = {"loop": _loop, "job": _job, "tf.data": _tf_data, "RunInference": _run_inference}[kind](top)
    number = len(_paths(top, _PHOTOS[kind]))

    def one_round() -> float:
        begin = time.perf_counter()
        start_up = work() or 0.0
        return number / (time.perf_counter() - begin - start_up)

    return one_round


def _directory(size: str) -> Path:
    """As many photo files as a round takes, all of different bytes."""
    return Path(tempfile.gettempdir()) / f"hubhead-bench-{size}"


def _write_photos(size: str, contents: Sequence[bytes]) -> None:
    top = _directory(size)
    shutil.rmtree(top, ignore_errors=True)  # an earlier version of this file may have left other names
    top.mkdir()
    for number in range(SIZES[size]):
        # Bytes behind the end of a JPEG do not change it, and make it a photo of its own.
        content = contents[number % len(contents)] + number.to_bytes(2, "big")
        (top / f"{number:05d}.jpeg").write_bytes(content)


def _paths(top: Path, pattern: str) -> list[Path]:
    return sorted(top.glob(pattern))


def _loop(top: Path) -> Callable[[], None]:
    from serving import contract, runtime

    model = runtime.load(template().path)

    def work() -> None:
        contents = (path.read_bytes() for path in _paths(top, _ALL))
        for _ in model.imap(contract.EMBED, contract.IMAGE_BYTES, contents):
            pass

    return work


def _job(top: Path) -> Callable[[], float]:
    """`hubhead score` of files that no store knows; gives the seconds that its start-up took."""
    from batch.jobs.score import ScoreSettings, score

    place = Path(tempfile.mkdtemp(prefix="hubhead-bench-job-"))
    model = _bundle(place / "models" / "bench")
    rounds = iter(range(1000))

    def work() -> float:
        number = next(rounds)
        settings = ScoreSettings(
            (model,), str(place / f"out{number}"), str(top), embedding_store=str(place / f"store{number}")
        )
        return score(settings).this_run.seconds["start"]

    return work


def _bundle(base: Path) -> Path:
    """A bundle of the default backbone with a head of two labels that knows nothing."""
    import numpy as np

    from trainer.export import bundle
    from trainer.heads import Head, Scaling

    source = template()
    dimension = source.metadata.dimension
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    head = Head(scaling, np.zeros((dimension, 2), np.float32), np.zeros(2, np.float32), 1.0)
    return bundle.export(source, bundle.HeadExport(head, ["a", "b"]), base).path


def _decode(content: Any) -> Any:
    import tensorflow as tf

    return tf.image.resize(tf.io.decode_jpeg(content, channels=3), [224, 224], antialias=True) / 255.0


def _tf_data(top: Path) -> Callable[[], None]:
    import tensorflow as tf

    signature = as_loaded()

    def work() -> None:
        dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in _paths(top, _FIFTH)])
        dataset = dataset.map(lambda path: _decode(tf.io.read_file(path)), num_parallel_calls=threads())
        for pixels in dataset.batch(_BATCH).prefetch(2):
            signature(pixels)

    return work


def _run_inference(top: Path) -> Callable[[], None]:
    import apache_beam as beam
    import pyarrow as pa
    from apache_beam.io import fileio
    from apache_beam.ml.inference.base import ModelHandler, RunInference

    class Handler(ModelHandler[tuple[str, bytes], dict[str, Any], Any]):  # type: ignore[misc]
        """Decodes a batch, resizes it with antialiasing, calls the signature as loaded."""

        def load_model(self) -> Any:
            return as_loaded()

        def batch_elements_kwargs(self) -> dict[str, Any]:
            return {"min_batch_size": _BATCH, "max_batch_size": _BATCH}

        def run_inference(
            self, batch: Sequence[tuple[str, bytes]], model: Any, inference_args: Any = None
        ) -> Iterable[dict[str, Any]]:
            import tensorflow as tf

            embeddings = next(iter(model(tf.stack([_decode(content) for _, content in batch])).values()))
            for (path, _), embedding in zip(batch, embeddings.numpy(), strict=True):
                yield {"uri": path, "embedding": embedding.tolist()}

    schema = pa.schema([("uri", pa.string()), ("embedding", pa.list_(pa.float32()))])
    place = Path(tempfile.mkdtemp(prefix="hubhead-bench-beam-"))
    rounds = iter(range(1000))

    def work() -> None:
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = (
                pipeline
                | fileio.MatchFiles(str(top / _FIFTH))
                | fileio.ReadMatches()
                | beam.Map(lambda file: (file.metadata.path, file.read()))
                | RunInference(Handler())
                | beam.io.WriteToParquet(str(place / f"{next(rounds)}"), schema)
            )

    return work


@cache
def _contents(size: str) -> list[bytes]:
    return photos() if size == "small" else camera.resized(camera.directory(), 4000, 3000, 8)


def _variants(sizes: Iterable[str], kinds: Iterable[str]) -> Iterator[Variant]:
    for size in sizes:
        for kind in kinds:
            yield Variant(f"{size}: {kind}", KINDS[kind])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.job", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--size", choices=SIZES, action="append", help="only these (default all)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="beside the loop, only these")
    options = parser.parse_args()
    kinds = dict.fromkeys(["loop", *(options.kind or KINDS)])
    for size in options.size or SIZES:
        _write_photos(size, _contents(size))
        show(measure(list(_variants([size], kinds)), options.rounds, f"{size}: loop", prepare))


if __name__ == "__main__":
    main()
