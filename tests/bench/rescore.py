"""Rescoring a million photos, compared with scoring from the files: `python -m tests.bench.rescore`.

Both run as separate commands in one run of this benchmark, with a head of ten labels on the default backbone.
The embeddings are random. They are in the store as scoring leaves them, one file per shard; `--shuffled`
stores them in an order unrelated to that of the photos. Seconds and memory are those of the whole command.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from serving import bundle
from tests.bench import results
from tests.bench.variants import load_template, read_sample_photos

LABELS = [f"label {number}" for number in range(10)]
SCORED = 512
"""Number of photos that are scored from their files."""

REPO = Path(__file__).parents[2]


def export_bundle(base: Path) -> Any:
    """Export the default backbone with a head of ten labels whose weights are random."""
    from trainer.export import bundle as export
    from trainer.heads import Head, Scaling

    source, random = load_template(), np.random.default_rng(0)
    dimension = source.metadata.dimension
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    kernel = random.standard_normal((dimension, len(LABELS))).astype(np.float32)
    head = Head(scaling, kernel, np.zeros(len(LABELS), np.float32), 1.0)
    return export.export(source, export.HeadExport(head, LABELS), base)


def write_previous_scores(top: Path, model: Any, number: int, *, shuffled: bool) -> None:
    """Write the store and the scores that scoring that many photos would have left."""
    import pyarrow as pa

    from batch.embeddings import layout, to_parquet
    from batch.inputs.listing import Photo
    from batch.jobs.score import describe_model
    from batch.output.dataset import Output
    from batch.output.schema import PhotoColumns, build_scores_table
    from batch.output.shard_record import key_directory
    from batch.shards import scored_index
    from batch.shards.shard import DEFAULT_SIZE, hash_uri
    from serving.contract import Decisions
    from serving.storage import files

    uris = sorted((f"/photos/uploads/2026/05/{i:08d}.jpg" for i in range(number)), key=hash_uri)
    shas = np.frombuffer(b"".join(hashlib.sha256(uri.encode()).digest() for uri in uris), "S32")
    order, random = np.arange(number), np.random.default_rng(1)
    if shuffled:
        random.shuffle(order)
    dimension = model.metadata.dimension
    base = np.abs(random.standard_normal((DEFAULT_SIZE, dimension))).astype(np.float16)
    output, started = Output(str(top / "scores")), datetime.now(UTC)
    for shard, start in enumerate(range(0, number, DEFAULT_SIZE)):
        here = slice(start, min(start + DEFAULT_SIZE, number))
        size = here.stop - start
        ones = np.ones(size, np.int32)
        vectors = np.roll(base[:size], shard, axis=1)
        stored = {"sha256": pa.array([sha.tobytes() for sha in shas[order[here]].view("V32")], pa.binary(32))}
        stored |= {
            "embedding": layout.make_vector_column(vectors),
            "status": pa.array(["ok"] * size),
            "detail": pa.nulls(size, pa.string()),
        }
        stored |= {"height": pa.array(ones), "width": pa.array(ones)}
        name, content = layout.encode_file(
            layout.EMBEDDINGS, pa.table(stored, schema=layout.file_schema(layout.EMBEDDINGS, dimension))
        )
        files.write(f"{top}/store/{model.metadata.fingerprint}/{name}", content)
        columns = PhotoColumns(
            uris=pa.array(uris[here]),
            shas=pa.array([sha.tobytes().hex() for sha in shas[here].view("V32")]),
            status=np.zeros(size, np.int8),
            details=pa.nulls(size, pa.string()),
            heights=ones,
            widths=ones,
        )
        top_labels = np.argsort(random.random((size, len(LABELS))), axis=1)[:, :5]
        decisions = Decisions(top_labels, np.full((size, 5), 0.1, np.float32), top_labels[:, 0])
        table = build_scores_table(columns, decisions, model, started)
        rows = files.join(output.scores_directory, f"scores-{shard:032x}.parquet")
        files.write(rows, to_parquet(table, compression="zstd"))
        print(f"\r{here.stop} of {number} written", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    keys = scored_index.encode_keys(scored_index.scored_key(Photo(uri, 1, 1)) for uri in uris)
    directory = key_directory(describe_model(model)["digest"])
    files.write(f"{output.directory}/{directory}/merged-1{scored_index.SUFFIX}", keys)
    Path(output.run_file).write_text("{}")


def prepare(top: Path, number: int, *, shuffled: bool) -> Any:
    """Return a bundle, after writing the store and the scores of that many photos in a separate process.

    The memory of this process when it starts another one would count in the peak of that one.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return bundle.read(pool.submit(_prepare, top, number, shuffled).result())


def _prepare(top: Path, number: int, shuffled: bool) -> Path:
    model = export_bundle(top / "models" / "bench")
    write_previous_scores(top, model, number, shuffled=shuffled)
    return Path(model.path)


def run_hubhead(*arguments: str) -> tuple[float, float]:
    """Run hubhead; return its seconds and its peak resident memory in MiB."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, str(REPO / "hubhead.py"), *arguments], env=environment, stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hubhead {arguments[0]} failed with exit code {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 2**20


def measure_score(top: Path, model: Any) -> float:
    """Return the photos/s of `hubhead score`, without its start-up."""
    folder = top / "photos"
    folder.mkdir()
    contents = read_sample_photos()
    for number in range(SCORED):
        # Bytes after the end of a JPEG do not change the picture, but make its content distinct.
        content = contents[number % len(contents)] + number.to_bytes(2, "big")
        (folder / f"{number}.jpeg").write_bytes(content)
    arguments = ["--model", str(model.path), "--output", str(top / "scored"), "--embedding_store"]
    run_hubhead("score", "--photos", str(folder), *arguments, str(top / "store of the photos"))
    run = json.loads((top / "scored" / "run.json").read_text())
    return float(run["this_run"]["photos_per_second"])


def measure_head(model: Any, rows: int = 32768) -> tuple[float, float, float]:
    """Return the seconds to load the head, and per million rows by its signature and by numpy."""
    from batch.scoring import head_runner
    from serving import contract
    from serving.runtime.subgraph import Subgraph
    from trainer.export.head_file import load_head

    vectors = np.abs(np.random.default_rng(2).standard_normal((rows, model.metadata.dimension)))
    vectors, usable = vectors.astype(np.float16), np.ones(rows, bool)
    start = time.perf_counter()
    inputs = [contract.EMBEDDING]
    graph = Subgraph(model.path, [contract.CLASSIFY_EMBEDDING], threads=1, float16_inputs=inputs)
    run = partial(graph.run, contract.CLASSIFY_EMBEDDING)
    head_runner.classify_embeddings(run, model, vectors[:1], usable[:1])
    load = time.perf_counter() - start
    start = time.perf_counter()
    head_runner.classify_embeddings(run, model, vectors, usable)
    served = time.perf_counter() - start
    weights, _ = load_head(model.path / contract.HEAD_FILE)
    start = time.perf_counter()
    for first in range(0, rows, head_runner.BLOCK_ROWS):
        weights.probabilities(vectors[first : first + head_runner.BLOCK_ROWS].astype(np.float32))
    return load, served / rows * 1e6, (time.perf_counter() - start) / rows * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.rescore", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--photos", type=int, default=1_000_000, help="number of photos to rescore (default a million)"
    )
    parser.add_argument("--shuffled", action="store_true", help="store the embeddings in random order")
    parser.add_argument(
        "--head", action="store_true", help="also measure the head alone: its signature, and numpy"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="directory for the store, 2.6 GB per million photos (default: a temporary one)",
    )
    results.add_output_option(parser)
    options = parser.parse_args(arguments)
    top = Path(tempfile.mkdtemp(prefix="hubhead-bench-", dir=options.directory))
    try:
        model = prepare(top, options.photos, shuffled=options.shuffled)
        output = ["--output", str(top / "rescored"), "--embedding_store", str(top / "store")]
        seconds, peak = run_hubhead(
            "rescore", "--scores", str(top / "scores"), "--model", str(model.path), *output
        )
        run = json.loads((top / "rescored" / "run.json").read_text())
        assert run["rows"] == options.photos
        rate = measure_score(top, model)
        print(f"\n{os.cpu_count()} cores, {options.photos} embeddings of {model.metadata.dimension}")
        print(f"{seconds:9.1f} s       hubhead rescore, the whole command")
        print(f"{peak:9.0f} MiB     peak resident memory")
        for stage, stage_seconds in run["this_run"]["seconds_by_stage"].items():
            print(f"{stage_seconds:9.1f} s       of these: {stage}")
        print(f"{options.photos / seconds:9.0f} photos/s, start-up included")
        print(f"{rate:9.1f} photos/s by hubhead score from the files, start-up excluded")
        print(f"{options.photos / seconds / rate:9.0f} times faster")
        row = {
            "photos": options.photos,
            "seconds": seconds,
            "photos/s": options.photos / seconds,
            "peak MiB": peak,
        }
        row |= {
            "`hubhead score` from the files, photos/s": rate,
            "times as fast": options.photos / seconds / rate,
        }
        results.add_row("`hubhead rescore`, the whole command", row)
        results.add_row("Seconds by stage", run["this_run"]["seconds_by_stage"])
        if options.head:
            load, signature, plain = measure_head(model)
            print(f"{load:9.1f} s       to load TensorFlow and the head")
            print(f"{signature:9.1f} s       a million rows by classify_embedding, on one core")
            print(f"{plain:9.1f} s       a million rows by numpy, probabilities only")
        results.write(options.output, "rescore")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
