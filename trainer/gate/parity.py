"""Parity of all inference paths of a bundle: classic TensorFlow session, runtime and local server."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving import contract
from serving.contract import Status
from serving.errors import BundleError
from serving.registry.verdict import Check

if TYPE_CHECKING:
    from serving.client import Client
    from serving.runtime import Model
    from trainer.heads import Head

Run = Callable[[str, Mapping[str, Any]], Mapping[str, NDArray[Any]]]
"""Function from a signature name and its inputs to its outputs."""

SIGNATURES = (
    contract.SERVING_DEFAULT,
    contract.PROBABILITIES,
    contract.EMBED,
    contract.CLASSIFY_PIXELS,
    contract.CLASSIFY_EMBEDDING,
    contract.CLASSIFY,
)

_ROUNDS = 3
_BATCH = contract.WARMUP_BATCH_SIZES[-1]


@contextmanager
def serve_locally(directory: Path, model: Model) -> Iterator[Client]:
    """Serve a bundle by a local server and yield a client once it is loaded and warmed up.

    Args:
        directory: directory of the bundle.
        model: the bundle as loaded by the runtime, so that it is not loaded twice.

    Raises:
        BundleError: the server does not load the bundle, or a warm-up request fails.
    """
    from serving.client import Client
    from serving.server import ServerSettings, start

    with tempfile.TemporaryDirectory(prefix="hubhead-validate-") as top:
        base = Path(top) / "candidate"
        base.mkdir()
        (base / "1").symlink_to(directory.resolve(), target_is_directory=True)
        settings = ServerSettings(model_base_path=base, port=0)
        with (
            start(settings, loader=lambda _: model) as server,
            Client(f"localhost:{server.port}", model=base.name, timeout=300.0) as client,
        ):
            yield client


def run_signatures(run: Run, photos: Sequence[bytes], labels: int) -> dict[str, Any]:
    """Run every signature on the photos and return the outputs to compare, by name.

    Args:
        run: inference path.
        photos: N encoded photos.
        labels: number of labels, K.

    Returns:
        Arrays of N rows each.

    Raises:
        HubheadError: raised by `run`.
        BundleError: an output is missing or does not have the shape that serving/contract.py states.
    """
    images = np.array(photos, object)
    found: list[dict[str, Any]] = []
    for begin in range(0, len(images), _BATCH):
        rows = {contract.IMAGE_BYTES: images[begin : begin + _BATCH]}
        default = run(contract.SERVING_DEFAULT, rows)
        probabilities = run(contract.PROBABILITIES, rows)
        embedded = run(contract.EMBED, rows)
        again = run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embedded[contract.EMBEDDING]})
        answer = {
            "probabilities": probabilities[contract.PROBABILITIES],
            "probabilities from the embedding": again[contract.PROBABILITIES],
            "best score": default[contract.SCORES][:, 0],
            "label": default[contract.LABEL],
            "status": default[contract.STATUS],
            "embedding": embedded[contract.EMBEDDING],
        }
        expected = [len(rows[contract.IMAGE_BYTES]), labels]
        for name in ("probabilities", "probabilities from the embedding"):
            if (shape := list(answer[name].shape)) != expected:
                raise BundleError(f"{name}: shape {shape}, expected {expected}.")
        found.append(answer)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def check_agreement(answers: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[Check]:
    """Check that all paths give the outputs of the first path.

    Args:
        answers: outputs of `run_signatures`, by the name of the path.
        tolerance: largest allowed difference of a probability.
    """
    (first, reference), *others = answers.items()
    usable = np.array([Status(status.decode()).usable for status in reference["status"]], bool)
    checks = [_check_signatures(first, reference, usable, tolerance)]
    for name, answer in others:
        checks.append(_check_signatures(name, answer, usable, tolerance))
        difference = _max_difference(answer["probabilities"], reference["probabilities"])
        check = _check_difference(f"{name} agrees with {first}", difference, tolerance, len(usable))
        if not (answer["status"] == reference["status"]).all():
            check = replace(check, passed=False, detail=f"{check.detail}; statuses differ")
        checks.append(check)
    return checks


def _check_signatures(
    name: str, answer: Mapping[str, Any], usable: NDArray[np.bool_], tolerance: float
) -> Check:
    """Check that the signatures of one path agree with each other."""
    rows = answer["probabilities"][usable]
    difference = max(
        _max_difference(answer["probabilities from the embedding"][usable], rows),
        _max_difference(answer["best score"][usable], rows.max(axis=1, initial=0.0)),
    )
    return _check_difference(f"signatures agree in {name}", difference, tolerance)


def _check_difference(name: str, difference: float, tolerance: float, photos: int | None = None) -> Check:
    """Check the largest difference of a probability; the detail states the number of photos, if given."""
    over = "" if photos is None else f" over {photos} photos"
    if math.isnan(difference):  # an overflow in float16, which JSON could not represent
        return Check(name, False, None, tolerance, f"a probability is not a number{over}")
    detail = f"largest difference of a probability {difference:.2g}{over}"
    return Check(name, difference <= tolerance, difference, tolerance, detail)


def _max_difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def check_head(head: Head, run: Run, photos: Sequence[bytes], tolerance: float) -> Check:
    """Check that the head file, by which versions are compared, gives the probabilities of the graph."""
    embedded = run(contract.EMBED, {contract.IMAGE_BYTES: np.array(photos[:_BATCH], object)})
    served = run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embedded[contract.EMBEDDING]})
    difference = _max_difference(
        head.probabilities(embedded[contract.EMBEDDING]), served[contract.PROBABILITIES]
    )
    return _check_difference("the head file agrees with the graph", difference, tolerance)


def measure_latency(models: Sequence[Model], photos: Sequence[bytes]) -> list[float]:
    """Return the seconds per single-photo request of each model.

    The figure is the median over the photos of the fastest of `_ROUNDS` requests. The models take turns, so
    that other load on the machine slows all of them alike.
    """
    best = [[float("inf")] * len(photos) for _ in models]
    for _ in range(_ROUNDS):
        for position, photo in enumerate(photos):
            for own, model in zip(best, models, strict=True):
                begin = time.perf_counter()
                model.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [photo]})
                own[position] = min(own[position], time.perf_counter() - begin)
    return [statistics.median(own) for own in best]
