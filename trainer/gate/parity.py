"""The ways to a bundle's answers: a classic session, the runtime, the local server. They must agree."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

Run = Callable[[str, Mapping[str, Any]], Mapping[str, NDArray[Any]]]
"""From the name of a signature and its inputs to its outputs."""

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
def served(directory: Path, model: Model) -> Iterator[Client]:
    """A client of a local server that has loaded and warmed the bundle.

    Args:
        directory: the bundle.
        model: the bundle as the runtime loaded it, so that it is not loaded twice.

    Raises:
        BundleError: the server refuses it, or a warm-up request fails.
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


def run_all(run: Run, photos: Sequence[bytes], labels: int) -> dict[str, Any]:
    """Ask every signature; the outputs that are compared, by name.

    Args:
        run: the path.
        photos: N encoded photos.
        labels: K.

    Returns:
        Arrays of N rows.

    Raises:
        HubheadError: what `run` raises.
        BundleError: an output is missing or has another shape than serving/contract.py says.
    """
    images = np.array(photos, object)
    found: list[dict[str, Any]] = []
    for begin in range(0, len(images), _BATCH):
        rows = {contract.IMAGE_BYTES: images[begin : begin + _BATCH]}
        count = len(rows[contract.IMAGE_BYTES])
        default = run(contract.SERVING_DEFAULT, rows)
        probabilities = run(contract.PROBABILITIES, rows)
        embedded = run(contract.EMBED, rows)
        again = run(contract.CLASSIFY_EMBEDDING, {contract.EMBEDDING: embedded[contract.EMBEDDING]})
        answer = {
            "probabilities": probabilities[contract.PROBABILITIES],
            "of the embedding": again[contract.PROBABILITIES],
            "best score": default[contract.SCORES][:, 0],
            "label": default[contract.LABEL],
            "status": default[contract.STATUS],
        }
        for name, shape in (("probabilities", (count, labels)), ("of the embedding", (count, labels))):
            if answer[name].shape != shape:
                raise BundleError(f"{name}: {list(answer[name].shape)}, where {list(shape)} was expected.")
        found.append(answer)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def agreement(answers: Mapping[str, Mapping[str, Any]], tolerance: float) -> list[Check]:
    """Whether all paths say the same as the first of them.

    Args:
        answers: of `run_all`, by the name of the path.
        tolerance: largest difference of a probability.
    """
    (first, reference), *others = answers.items()
    usable = np.array([Status(status.decode()).usable for status in reference["status"]], bool)
    checks = [_within_one(first, reference, usable, tolerance)]
    for name, answer in others:
        checks.append(_within_one(name, answer, usable, tolerance))
        difference = _largest(answer["probabilities"], reference["probabilities"])
        same = bool((answer["status"] == reference["status"]).all())
        detail = f"largest difference of a probability {difference:.2g} over {len(usable)} photos"
        if not same:
            detail += "; statuses differ"
        checks.append(
            Check(
                f"{name} answers as {first}", same and difference <= tolerance, difference, tolerance, detail
            )
        )
    return checks


def _within_one(name: str, answer: Mapping[str, Any], usable: NDArray[np.bool_], tolerance: float) -> Check:
    """Whether the signatures of one path say the same."""
    rows = answer["probabilities"][usable]
    difference = max(
        _largest(answer["of the embedding"][usable], rows),
        _largest(answer["best score"][usable], rows.max(axis=1, initial=0.0)),
    )
    detail = f"largest difference of a probability {difference:.2g}"
    return Check(f"signatures agree by {name}", difference <= tolerance, difference, tolerance, detail)


def _largest(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one.astype(np.float64) - other).max(initial=0.0))


def probabilities(model: Model, photos: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """float32 [N,K] of N photos, and bool [N], which of them the model takes."""
    parts = list(model.imap(contract.PROBABILITIES, contract.IMAGE_BYTES, photos))
    rows = np.concatenate([part[contract.PROBABILITIES] for part in parts])
    statuses = [status for part in parts for status in part[contract.STATUS]]
    return rows, np.array([Status(status.decode()).usable for status in statuses], bool)


def seconds_a_photo(models: Sequence[Model], photos: Sequence[bytes]) -> list[float]:
    """What a photo alone takes each model, in seconds: the median over photos of the best of some rounds.

    The models take turns, so that what else the machine does slows all of them alike.
    """
    best = [[float("inf")] * len(photos) for _ in models]
    for _ in range(_ROUNDS):
        for place, photo in enumerate(photos):
            for own, model in zip(best, models, strict=True):
                begin = time.perf_counter()
                model.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: [photo]})
                own[place] = min(own[place], time.perf_counter() - begin)
    return [statistics.median(own) for own in best]
