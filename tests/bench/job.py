"""The batch job, from files on disk to Parquet, compared with alternatives: `python -m tests.bench.job`.

Variants, for small photos (the samples, 307 x 173) and for photos of a camera (4000 x 3000):

* loop: reads the files and runs hubhead's graph on all cores, and nothing else
* job: `hubhead score`, from the listing to run.json and report.html
* job on TensorFlow: the same with --engine tensorflow
* ONNX Runtime: the careful short script: Pillow's draft mode and ONNX Runtime, a thread for each core, one
  photo per call, from the files to embeddings in memory
* tf.data: a pipeline with antialiased resizing around the backbone's signature as loaded
* RunInference: Beam's transform with a plain TensorFlow handler, from the files to Parquet

Start-up (imports, loading the model) is excluded for all of them. The last two process every fifth photo:
they are slow, and all photos would not change their rate.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.bench import camera
from tests.bench.interleave import DEFAULT_THREADS, ONE_THREAD_PER_OP, Variant, measure, print_table
from tests.bench.variants import count_cores, load_signature, load_template, read_sample_photos

SIZES = {"small": 4000, "camera": 2000}
"""Photos per round. They take half a minute on two cores, so that the fixed cost of a run weighs as little
as in real work."""

KINDS = {
    "loop": ONE_THREAD_PER_OP,
    "job": ONE_THREAD_PER_OP,
    "job on TensorFlow": ONE_THREAD_PER_OP,
    "ONNX Runtime": ONE_THREAD_PER_OP,
    "tf.data": DEFAULT_THREADS,
    "RunInference": DEFAULT_THREADS,
}
_ALL, _FIFTH = "*.jpeg", "*[05].jpeg"
_PHOTOS = dict.fromkeys(KINDS, _ALL) | {"tf.data": _FIFTH, "RunInference": _FIFTH}
_BATCH = 32


def prepare(name: str, setting: str) -> Callable[[], float]:
    """Load what a variant needs; return a function that runs one round and returns photos/s."""
    import tensorflow as tf

    if setting == ONE_THREAD_PER_OP:
        from serving.runtime.tensorflow_model import configure_threads

        configure_threads(count_cores())
    tf.get_logger().setLevel("ERROR")
    size, _, kind = name.partition(": ")
    top = _photo_directory(size)
    makers = {
        "loop": _make_loop,
        "job": _make_job,
        "job on TensorFlow": partial(_make_job, engine="tensorflow"),
        "ONNX Runtime": _make_onnx_loop,
        "tf.data": _make_tf_data,
        "RunInference": _make_run_inference,
    }
    work = makers[kind](top)
    number = len(_list_paths(top, _PHOTOS[kind]))

    def run_round() -> float:
        begin = time.perf_counter()
        start_up_seconds = work() or 0.0
        return number / (time.perf_counter() - begin - start_up_seconds)

    return run_round


def _photo_directory(size: str) -> Path:
    """Return the directory of the photos of a round."""
    return Path(tempfile.gettempdir()) / f"hubhead-bench-{size}"


def _write_photos(size: str, contents: Sequence[bytes]) -> None:
    """Write as many photo files as a round processes, all with different bytes."""
    top = _photo_directory(size)
    shutil.rmtree(top, ignore_errors=True)  # a previous run may have left files with other names
    top.mkdir()
    for number in range(SIZES[size]):
        # Bytes after the end of a JPEG do not change the picture, but make its content distinct.
        content = contents[number % len(contents)] + number.to_bytes(2, "big")
        (top / f"{number:05d}.jpeg").write_bytes(content)


def _list_paths(top: Path, pattern: str) -> list[Path]:
    return sorted(top.glob(pattern))


def _make_loop(top: Path) -> Callable[[], None]:
    """Return the bare loop over the files and the model."""
    from serving import contract, runtime

    model = runtime.load(load_template().path)

    def work() -> None:
        contents = (path.read_bytes() for path in _list_paths(top, _ALL))
        for _ in model.imap(contract.EMBED, contract.IMAGE_BYTES, contents):
            pass

    return work


def _make_onnx_loop(top: Path) -> Callable[[], None]:
    """Return the loop that a good engineer writes without hubhead."""
    import io

    import numpy as np
    import onnxruntime
    from PIL import Image

    from serving import contract

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = load_template().path / contract.ONNX_FILE
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(path: Path) -> Any:
        photo = Image.open(io.BytesIO(path.read_bytes()))
        photo.draft("RGB", (448, 448))  # decodes at a fraction of the size, but at twice the target at least
        pixels = photo.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        return session.run(None, {name: np.asarray(pixels)[None]})[0]

    def work() -> None:
        with ThreadPoolExecutor(count_cores()) as pool:
            np.concatenate(list(pool.map(embed, _list_paths(top, _ALL))))

    return work


def _make_job(top: Path, engine: str = "auto") -> Callable[[], float]:
    """Return `hubhead score` with an empty store, as a function that returns its start-up seconds."""
    from batch.jobs.score import ScoreSettings, score

    directory = Path(tempfile.mkdtemp(prefix="hubhead-bench-job-"))
    model = export_bundle(directory / "models" / "bench")
    rounds = iter(range(1000))

    def work() -> float:
        number = next(rounds)
        settings = ScoreSettings(
            (model,),
            str(directory / f"out{number}"),
            str(top),
            embedding_store=str(directory / f"store{number}"),
            engine=engine,
        )
        return score(settings).this_run.seconds["start"]

    return work


def export_bundle(base: Path) -> Path:
    """Export the default backbone with a head of two labels whose weights are zero; return its directory."""
    import numpy as np

    from trainer.export import bundle
    from trainer.heads import Head, Scaling

    source = load_template()
    dimension = source.metadata.dimension
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    head = Head(scaling, np.zeros((dimension, 2), np.float32), np.zeros(2, np.float32), 1.0)
    return bundle.export(source, bundle.HeadExport(head, ["a", "b"]), base).path


def _decode(content: Any) -> Any:
    import tensorflow as tf

    return tf.image.resize(tf.io.decode_jpeg(content, channels=3), [224, 224], antialias=True) / 255.0


def _make_tf_data(top: Path) -> Callable[[], None]:
    """Return a tf.data pipeline around the signature."""
    import tensorflow as tf

    signature = load_signature()

    def work() -> None:
        dataset = tf.data.Dataset.from_tensor_slices([str(path) for path in _list_paths(top, _FIFTH)])
        dataset = dataset.map(lambda path: _decode(tf.io.read_file(path)), num_parallel_calls=count_cores())
        for pixels in dataset.batch(_BATCH).prefetch(2):
            signature(pixels)

    return work


def _make_run_inference(top: Path) -> Callable[[], None]:
    """Return a Beam pipeline with RunInference."""
    import apache_beam as beam
    import pyarrow as pa
    from apache_beam.io import fileio
    from apache_beam.ml.inference.base import ModelHandler, RunInference

    class Handler(ModelHandler[tuple[str, bytes], dict[str, Any], Any]):  # type: ignore[misc]
        """Decodes a batch, resizes it with antialiasing, and calls the signature as loaded."""

        def load_model(self) -> Any:
            return load_signature()

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
    directory = Path(tempfile.mkdtemp(prefix="hubhead-bench-beam-"))
    rounds = iter(range(1000))

    def work() -> None:
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = (
                pipeline
                | fileio.MatchFiles(str(top / _FIFTH))
                | fileio.ReadMatches()
                | beam.Map(lambda file: (file.metadata.path, file.read()))
                | RunInference(Handler())
                | beam.io.WriteToParquet(str(directory / f"{next(rounds)}"), schema)
            )

    return work


@cache
def _read_photos(size: str) -> list[bytes]:
    """Read the distinct photos of a size."""
    if size == "small":
        return read_sample_photos()
    return camera.read_resized_photos(camera.find_directory(), 4000, 3000, 8)


def _list_variants(sizes: Iterable[str], kinds: Iterable[str]) -> Iterator[Variant]:
    for size in sizes:
        for kind in kinds:
            yield Variant(f"{size}: {kind}", KINDS[kind])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.job", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of counted rounds (default 3)")
    parser.add_argument(
        "--size", choices=SIZES, action="append", help="size of the photos; can be repeated (default: both)"
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        action="append",
        help="variant to compare with the loop; can be repeated (default: all)",
    )
    options = parser.parse_args()
    kinds = dict.fromkeys(["loop", *(options.kind or KINDS)])
    for size in options.size or SIZES:
        _write_photos(size, _read_photos(size))
        print_table(measure(list(_list_variants([size], kinds)), options.rounds, f"{size}: loop", prepare))


if __name__ == "__main__":
    main()
