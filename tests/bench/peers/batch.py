"""Batch scoring: `hubhead score` and its peers as whole commands, from a directory of photos to Parquet."""

from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.bench.interleave import take_turns
from tests.bench.peers.model import BUNDLE
from tests.bench.processes import Cost, run_command

MIN_AGREEMENT = 0.95
"""Smallest share of photos on which a peer must have hubhead's best label: it does the same work then."""

BASE = "hubhead score"

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as the other peers; the default is 15
}


@dataclass(frozen=True)
class Peer:
    """A way to score photos.

    Attributes:
        arguments: its command's arguments for Python; the placeholders are {model}, {photos}, {run} (an empty
            directory) and {bundle}.
        scores: where in {run} it writes its scores.
        packages: modules that it needs beside hubhead's own.
    """

    arguments: tuple[str, ...]
    scores: str = "scores"
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [package for package in self.packages if not find_spec(package)]


def _make_hubhead(engine: str) -> Peer:
    options = ("--model", "{bundle}", "--photos", "{photos}", "--output", "{run}/out", "--json")
    store = ("--embedding_store", "{run}/store")
    return Peer(("-m", "hubhead", "score", *options, *store, "--engine", engine), "out/scores")


def _make_script(name: str, *packages: str) -> Peer:
    module = f"tests.bench.peers.scripts.{name}"
    return Peer(("-m", module, "{model}", "{photos}", "{run}/scores"), packages=packages)


PEERS = {
    BASE: _make_hubhead("auto"),
    "hubhead score, TensorFlow": _make_hubhead("tensorflow"),
    "serving.runtime loop": _make_script("runtime_loop"),
    "ONNX Runtime loop": _make_script("onnx_loop", "onnxruntime", "PIL"),
    "OpenVINO loop": _make_script("openvino_loop", "openvino", "PIL"),
    "tf.data": _make_script("tf_data", "tensorflow"),
    "RunInference, ONNX": _make_script("beam_onnx", "apache_beam", "onnxruntime", "PIL"),
    "RunInference, TensorFlow": _make_script("beam_tensorflow", "apache_beam", "tensorflow", "PIL"),
    "Ray Data": _make_script("ray_data", "ray", "onnxruntime", "PIL"),
}


@dataclass(frozen=True)
class Figures:
    """Figures of one run of a command.

    Attributes:
        photos_per_second: over the whole command, its start included.
        steady: the rate that the command itself reports, without its start.
        processor_ms: processor milliseconds per photo, start included.
        peak_mib: peak resident memory of all its processes.
    """

    photos_per_second: float
    steady: float
    processor_ms: float
    peak_mib: float

    def __str__(self) -> str:
        return (
            f"{self.photos_per_second:7.1f} photos/s, {self.steady:7.1f} steady, {self.processor_ms:6.1f} ms"
        )


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        photos: name of the size of the photos.
        name: name of the peer.
        figures: medians over the rounds; None if it was skipped.
        ratio: hubhead's whole rate divided by that of the peer, the median over the rounds.
        steady_ratio: the same of the rates without the start.
        agreement: share of the distinct photos with hubhead's best label.
        skipped: why it did not run.
    """

    photos: str
    name: str
    figures: Figures | None = None
    ratio: float = float("nan")
    steady_ratio: float = float("nan")
    agreement: float = float("nan")
    skipped: str = ""


class Bench:
    """The peers on the photos of one size.

    Args:
        model: directory that `tests.bench.peers.model` wrote.
        distinct: directory of distinct photos, for the agreement.
        repeated: directory of the photos of a turn.
        work: directory for the output.
    """

    def __init__(self, model: Path, distinct: Path, repeated: Path, work: Path) -> None:
        self._model, self._distinct, self._repeated, self._work = model, distinct, repeated, work

    def compare(self, size: str, names: Sequence[str], rounds: int) -> list[Row]:
        """Check that the peers agree with hubhead, and run them in turns; return a row for each.

        Raises:
            RuntimeError: a peer failed, or does not agree.
        """
        skipped = {name: PEERS[name].missing for name in names if PEERS[name].missing}
        running = [name for name in dict.fromkeys([BASE, *names]) if name not in skipped]
        labels = {name: self._run(name, self._distinct)[1] for name in running}
        agreement = {name: _share_equal(labels[BASE], labels[name]) for name in running}
        for name, share in agreement.items():
            if share < MIN_AGREEMENT:
                raise RuntimeError(f"{name} has hubhead's label for {share:.1%} of the photos only.")
        turns = take_turns(running, rounds, self._measure, warm_up=False)
        return [_summarize(size, name, turns[BASE], turns[name], agreement[name]) for name in running] + [
            Row(size, name, skipped=f"not installed: {', '.join(missing)}")
            for name, missing in skipped.items()
        ]

    def _run(self, name: str, photos: Path) -> tuple[Cost, dict[str, str]]:
        """Run a peer; return its cost and the best label by file name."""
        with tempfile.TemporaryDirectory(dir=self._work) as run:
            places = {"model": self._model, "bundle": self._model / BUNDLE, "photos": photos, "run": run}
            arguments = [argument.format_map(places) for argument in PEERS[name].arguments]
            cost = run_command([sys.executable, *arguments], _ENVIRONMENT)
            return cost, _read_labels(Path(run) / PEERS[name].scores)

    def _measure(self, name: str) -> Figures:
        cost, labels = self._run(name, self._repeated)
        count = len(list(self._repeated.iterdir()))
        if len(labels) != count:
            raise RuntimeError(f"{name} wrote {len(labels)} rows for {count} photos.")
        return Figures(
            count / cost.seconds,
            _read_steady_rate(cost.output),
            1000 * cost.processor_seconds / count,
            cost.peak_mib,
        )


def _read_labels(scores: Path) -> dict[str, str]:
    """Return the best label by file name."""
    from pyarrow import dataset

    table = dataset.dataset(scores, format="parquet", partitioning=None).to_table(columns=["uri", "label"])
    names = (Path(uri).name for uri in table["uri"].to_pylist())
    return dict(zip(names, table["label"].to_pylist(), strict=True))


def _read_steady_rate(output: str) -> float:
    """Return the photos/s without start-up that a command reports: run.json, or a line of text."""
    if output.lstrip().startswith("{"):
        return float(json.loads(output)["this_run"]["photos_per_second"])
    found = re.search(r"([\d.]+) photos/s", output)
    assert found is not None
    return float(found[1])


def _share_equal(labels: dict[str, str], others: dict[str, str]) -> float:
    return sum(others.get(photo) == label for photo, label in labels.items()) / len(labels)


def _summarize(
    size: str, name: str, base: Sequence[Figures], found: Sequence[Figures], agreement: float
) -> Row:
    def median(of: Callable[[Figures, Figures], float]) -> float:
        return statistics.median(of(own, peer) for own, peer in zip(base, found, strict=True))

    figures = Figures(
        median(lambda _, peer: peer.photos_per_second),
        median(lambda _, peer: peer.steady),
        median(lambda _, peer: peer.processor_ms),
        median(lambda _, peer: peer.peak_mib),
    )
    ratio = median(lambda own, peer: own.photos_per_second / peer.photos_per_second)
    return Row(size, name, figures, ratio, median(lambda own, peer: own.steady / peer.steady), agreement)


def print_table(rows: Sequence[Row]) -> None:
    """Print one line per peer."""
    names = ("photos/s", "steady", "cpu ms", "MiB", "hubhead is", "steady", "same", "photos: peer")
    print("\n" + "  ".join(names))
    for row in rows:
        title = f"{row.photos}: {row.name}"
        if row.figures is None:
            print(f"{'skipped':>8}  {title} ({row.skipped})")
            continue
        found = row.figures
        figures = f"{found.photos_per_second:8.1f} {found.steady:7.1f} {found.processor_ms:7.1f}"
        ratios = f"{row.ratio:9.2f} x {row.steady_ratio:5.2f} x"
        print(f"{figures} {found.peak_mib:4.0f} {ratios} {row.agreement:5.0%}  {title}")
