"""Accuracy and log-loss of heads on the sample photos: `python -m tests.bench.heads`.

Compared are the kinds of hubhead's head, scikit-learn's logistic regression, and retrain.py's head, by
stratified five-fold cross-validation, averaged over the seeds, with the same features, folds and seeds. The
settings of a head (regularisation strength, temperature) are selected inside the training folds. Then the
out-of-fold calibration error of the default kind is printed, with the confidence band of a calibrated model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tests.bench import results
from tests.support.head import of_length_one, predict, sample_features, yardstick
from tests.support.trained import train_once
from trainer import heads
from trainer.dataset.download import cache_directory
from trainer.dataset.samples import fetch_sample_photos
from trainer.evaluation.cross_validation import CrossValidationScheme, cross_validate
from trainer.evaluation.metrics import proportion
from trainer.heads import Floats, HeadSettings, Ints

FOLDS = 5
KINDS = ("linear", "hidden")

Fit = Callable[[Floats, Ints, Floats, int, int], Floats]
"""Takes training features and targets, held-out features, number of labels, seed; returns probabilities."""


def fit_retrain_head(
    features: heads.Floats, targets: heads.Ints, classes: int, seed: int
) -> NDArray[np.float64]:
    """Fit retrain.py's head: 4,000 steps of gradient descent, each on 100 photos drawn uniformly by label.

    The steps never leave the span of the features, so they are computed in that smaller space.

    Returns:
        Kernel and bias as one matrix [D+1,K].
    """
    random = np.random.default_rng(seed)
    basis, triangle = np.linalg.qr(features.T)
    photos = np.ascontiguousarray(triangle.T)
    weights, bias = np.zeros((photos.shape[1], classes), np.float32), np.zeros(classes, np.float32)
    by_label = np.argsort(targets, kind="stable")
    counts = np.bincount(targets, minlength=classes)
    drawn = random.integers(0, classes, (4000, 100))
    places = np.cumsum(counts)[drawn] - 1 - (random.random(drawn.shape) * counts[drawn]).astype(int)
    expected = np.eye(classes, dtype=np.float32)
    for labels, rows in zip(drawn, by_label[places], strict=True):
        batch = photos[rows]
        error = (heads.softmax(batch @ weights + bias) - expected[labels]) / np.float32(100)
        weights -= np.float32(0.01) * (batch.T @ error)
        bias -= np.float32(0.01) * error.sum(axis=0)
    return np.vstack([basis @ weights, bias])


def fit_kind(kind: str) -> Fit:
    """Return the function that fits one of hubhead's kinds of heads."""

    def fit(rows: Floats, targets: Ints, held_out: Floats, classes: int, seed: int) -> Floats:
        settings = HeadSettings(kind=kind)  # type: ignore[arg-type]
        return heads.fit(rows, targets, classes, settings=settings, seed=seed)[0].probabilities(held_out)

    return fit


def fit_scikit_learn(rows: Floats, targets: Ints, held_out: Floats, classes: int, seed: int) -> Floats:
    """Fit scikit-learn's logistic regression with C=30 on features of length one; return probabilities."""
    return predict(of_length_one(held_out), yardstick(of_length_one(rows), targets, 30.0))


def fit_retrain(rows: Floats, targets: Ints, held_out: Floats, classes: int, seed: int) -> Floats:
    """Fit retrain.py's head; return probabilities."""
    return predict(held_out, fit_retrain_head(rows, targets, classes, seed))


def predict_out_of_fold(features: Floats, targets: Ints, classes: int, fit: Fit, seed: int) -> Floats:
    """Return out-of-fold probabilities float32 [N,K]."""
    found = np.zeros((len(targets), classes), np.float32)
    for rows, held_out in heads.stratified_folds(targets, FOLDS, seed=100 + seed):
        found[held_out] = fit(features[rows], targets[rows], features[held_out], classes, seed)
    return found


def compare(
    features: Floats, targets: Ints, classes: int, fits: Mapping[str, Fit], seeds: int
) -> dict[str, tuple[float, float]]:
    """Return accuracy and log-loss of each head, averaged over the seeds."""
    from threadpoolctl import threadpool_limits

    figures = {}
    with threadpool_limits(1, user_api="blas"):
        for name, fit in fits.items():
            runs = [predict_out_of_fold(features, targets, classes, fit, seed) for seed in range(seeds)]
            accuracy = float(np.mean([(run.argmax(axis=1) == targets).mean() for run in runs]))
            figures[name] = accuracy, float(np.mean([heads.log_loss(run, targets) for run in runs]))
    return figures


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.heads", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=4, help="number of cross-validations with different folds (default 4)"
    )
    results.add_output_option(parser)
    options = parser.parse_args()
    cache = cache_directory()
    trained = train_once(cache, fetch_sample_photos(cache))
    features, targets, classes = sample_features(trained)
    fits: dict[str, Fit] = {kind: fit_kind(kind) for kind in KINDS}
    fits |= {"scikit-learn, C=30": fit_scikit_learn, "retrain.py": fit_retrain}
    for name, (accuracy, loss) in compare(features, targets, classes, fits, options.seeds).items():
        interval = proportion(round(accuracy * len(targets)), len(targets))
        print(
            f"{name:20} {interval}, log-loss {loss:.3f}, mean of {options.seeds} x {FOLDS} folds", flush=True
        )
        row = {"head": name, "accuracy": str(interval), "log-loss": round(loss, 3)}
        results.add_row(f"Heads on {len(targets)} sample photos with {classes} labels", row)
    validated = cross_validate(
        features,
        targets,
        list(trained.result.labels),
        scheme=CrossValidationScheme(repeats=options.seeds, seed=100),
    )
    for run in validated.runs:
        assert run.calibration
        print(f"out-of-fold calibration error: {run.calibration}, p = {run.calibration.p_value:.2f}")
        row = {"calibration error": str(run.calibration), "p": round(run.calibration.p_value, 2)}
        results.add_row("Out-of-fold calibration error, by repetition", row)
    print(f"macro F1, first of {options.seeds} repetitions: {validated.runs[0].macro.f1}")
    results.add_note(f"Means of {options.seeds} cross-validations with {FOLDS} folds each.")
    results.write(options.output, "heads")


if __name__ == "__main__":
    main()
