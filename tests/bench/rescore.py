"""Rescoring a million photos from the embedding store, beside scoring photos from their files.

Both run as commands of their own, in one run of this bench, with a head of ten labels on the
default backbone. The embeddings are random, and stand in the store as scoring leaves them: a
file for each shard. `--shuffled` has them in an order that has nothing to do with the photos'.
Seconds and memory are of the whole command, from its start to its end.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.variants import photos, template

LABELS = [f"label {number}" for number in range(10)]
SCORED = 512
"""Photos that are scored from their files."""

REPO = Path(__file__).parents[2]


def bundle(base: Path) -> Any:
    """The default backbone with a head of ten labels that knows nothing."""
    from trainer.export import bundle as export
    from trainer.heads import Head, Scaling

    source, draw = template(), np.random.default_rng(0)
    dimension = source.metadata.dimension
    scaling = Scaling(np.zeros(dimension, np.float32), np.ones(dimension, np.float32))
    kernel = draw.standard_normal((dimension, len(LABELS))).astype(np.float32)
    head = Head(scaling, kernel, np.zeros(len(LABELS), np.float32), 1.0)
    return export.export(source, export.HeadExport(head, LABELS), base)


def earlier_scoring(top: Path, model: Any, number: int, *, shuffled: bool) -> None:
    """A store and scores of that many photos, as a scoring of them would have left them."""
    import pyarrow as pa

    from batch.embeddings import layout
    from batch.monitoring.stats import Stats
    from batch.output.dataset import Output
    from batch.output.schema import PhotoColumns, build_scores_table
    from batch.shards.shard import DEFAULT_SIZE, hash_uri
    from serving.contract import Decisions

    uris = sorted((f"/photos/uploads/2026/05/{i:08d}.jpg" for i in range(number)), key=hash_uri)
    shas = np.frombuffer(b"".join(hashlib.sha256(uri.encode()).digest() for uri in uris), "S32")
    order, draw = np.arange(number), np.random.default_rng(1)
    if shuffled:
        draw.shuffle(order)
    dimension = model.metadata.dimension
    base = np.abs(draw.standard_normal((DEFAULT_SIZE, dimension))).astype(np.float16)
    output, started = Output(str(top / "scores")), datetime.now(UTC)
    for shard, start in enumerate(range(0, number, DEFAULT_SIZE)):
        here = slice(start, min(start + DEFAULT_SIZE, number))
        size = here.stop - start
        ones = np.ones(size, np.int32)
        vectors = np.roll(base[:size], shard, axis=1)
        embedding = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=layout.embeddings_schema(dimension).field("embedding").type
        )
        kept = {"sha256": pa.array([sha.tobytes() for sha in shas[order[here]].view("V32")], pa.binary(32))}
        kept |= {
            "embedding": embedding,
            "status": pa.array(["ok"] * size),
            "detail": pa.nulls(size, pa.string()),
        }
        kept |= {"height": pa.array(ones), "width": pa.array(ones)}
        layout.write_file(
            str(top / "store" / model.metadata.fingerprint),
            layout.EMBEDDINGS,
            pa.table(kept, schema=layout.embeddings_schema(dimension)),
        )
        about = PhotoColumns(
            uris=pa.array(uris[here]),
            shas=pa.array([sha.tobytes().hex() for sha in shas[here].view("V32")]),
            status=np.zeros(size, np.int8),
            details=pa.nulls(size, pa.string()),
            heights=ones,
            widths=ones,
        )
        drawn = np.argsort(draw.random((size, len(LABELS))), axis=1)[:, :5]
        said = Decisions(drawn, np.full((size, 5), 0.1, np.float32), drawn[:, 0])
        table = build_scores_table(about, said, model, started)
        output.commit(f"{shard:032x}", "bench", table, Stats(photos=size), {}, date="2026-05-31")
        print(f"\r{here.stop} of {number} made", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    Path(output.run_file).write_text("{}")


def command(*arguments: str) -> tuple[float, float]:
    """Run hubhead: seconds, and MiB resident at the peak."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, str(REPO / "hubhead.py"), *arguments], env=environment, stdout=sys.stderr
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hubhead {arguments[0]} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 2**20


def scoring(top: Path, model: Any) -> float:
    """Photos/s of `hubhead score`, without its start."""
    folder = top / "photos"
    folder.mkdir()
    contents = photos()
    for number in range(SCORED):
        # Bytes behind the end of a JPEG do not change it, and make it a photo of its own.
        content = contents[number % len(contents)] + number.to_bytes(2, "big")
        (folder / f"{number}.jpeg").write_bytes(content)
    arguments = ["--model", str(model.path), "--output", str(top / "scored"), "--embedding_store"]
    command("score", "--photos", str(folder), *arguments, str(top / "store of the photos"))
    run = json.loads((top / "scored" / "run.json").read_text())
    return float(run["this_run"]["photos_per_second"])


def head_alone(model: Any, rows: int = 32768) -> tuple[float, float, float]:
    """Seconds to load the model, and for a million rows through its signature and through numpy."""
    from batch.scoring import head_runner
    from serving import contract
    from serving.runtime import single_signature
    from trainer.export.head_file import load_head

    vectors = np.abs(np.random.default_rng(2).standard_normal((rows, model.metadata.dimension)))
    vectors, usable = vectors.astype(np.float16), np.ones(rows, bool)
    start = time.perf_counter()
    run = single_signature.load(model.path, contract.CLASSIFY_EMBEDDING, threads=1)
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
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.rescore", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=int, default=1_000_000, help="that are rescored (default a million)")
    parser.add_argument("--shuffled", action="store_true", help="the store in an order of its own")
    parser.add_argument("--head", action="store_true", help="the head alone too: its signature, and numpy")
    parser.add_argument("--directory", type=Path, help="for the store: 2.6 GB a million (default: temporary)")
    options = parser.parse_args(arguments)
    top = Path(tempfile.mkdtemp(prefix="hubhead-bench-", dir=options.directory))
    try:
        model = bundle(top / "models" / "bench")
        earlier_scoring(top, model, options.photos, shuffled=options.shuffled)
        place = ["--output", str(top / "rescored"), "--embedding_store", str(top / "store")]
        seconds, peak = command(
            "rescore", "--scores", str(top / "scores"), "--model", str(model.path), *place
        )
        run = json.loads((top / "rescored" / "run.json").read_text())
        assert run["rows"] == options.photos
        rate = scoring(top, model)
        print(f"\n{os.cpu_count()} cores, {options.photos} embeddings of {model.metadata.dimension}")
        print(f"{seconds:9.1f} s       hubhead rescore, the whole command")
        print(f"{peak:9.0f} MiB     resident at its peak")
        for stage, spent in run["this_run"]["seconds_by_stage"].items():
            print(f"{spent:9.1f} s       of it: {stage}")
        print(f"{options.photos / seconds:9.0f} photos/s with the start of the command")
        print(f"{rate:9.1f} photos/s by hubhead score from the files, without its start")
        print(f"{options.photos / seconds / rate:9.0f} times faster")
        if options.head:
            load, served, plain = head_alone(model)
            print(f"{load:9.1f} s       to load TensorFlow and the head")
            print(f"{served:9.1f} s       a million rows through classify_embedding, one core")
            print(f"{plain:9.1f} s       the same in numpy, probabilities alone")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
