"""Kinds of heads, and weights of labels: each does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.head import blobs, sample_features
from tests.support.head_kinds import KINDS, fitted
from trainer import heads
from trainer.evaluation.metrics import proportion
from trainer.heads import HeadSettings

if TYPE_CHECKING:
    from tests.support.trained import Trained


@pytest.mark.parametrize("count", [200, 6000])
def test_the_logits_of_a_cosine_head_are_cosines_times_a_scale(count: int) -> None:
    rows, targets = blobs(count, 20, 4)
    model, selection = fitted((rows, targets), 4, kind="cosine")
    lengths = np.linalg.norm(model.kernel, axis=0)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    features = model.scaling.features(rows)
    logits = np.log(model.probabilities(rows))
    wanted = (lengths[0] * features @ (model.kernel / lengths) + model.bias) / model.temperature
    np.testing.assert_allclose(logits - logits[:, :1], wanted - wanted[:, :1], atol=1e-2)
    assert selection.strength in heads.choose.SCALE_LADDER
    assert (model.probabilities(rows).argmax(axis=1) == targets).mean() > 0.9


# --- The sample photos ----------------------------------------------------------------------------------

REPEATS = 4


@pytest.mark.tf
@pytest.mark.slow
def test_on_the_sample_photos_no_kind_is_better_than_linear(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    features, targets, classes = sample_features(trained)
    figures = {}
    for kind in KINDS:
        runs = []
        for seed in range(REPEATS):
            run = np.zeros((len(targets), classes), np.float32)
            for rows, held_out in heads.stratified_folds(targets, 5, seed=100 + seed):
                model, _ = heads.fit(
                    features[rows],
                    targets[rows],
                    classes,
                    settings=HeadSettings(kind=kind),
                    seed=seed,  # type: ignore[arg-type]
                )
                run[held_out] = model.probabilities(features[held_out])
            runs.append(run)
        accuracy = float(np.mean([(run.argmax(axis=1) == targets).mean() for run in runs]))
        figures[kind] = accuracy, float(np.mean([heads.log_loss(run, targets) for run in runs]))
    with capsys.disabled():
        print()
        for kind, (accuracy, loss) in figures.items():
            share = proportion(round(accuracy * len(targets)), len(targets))
            print(f"{kind}: {share}, log-loss {loss:.3f}, mean of {REPEATS} x 5 folds")
    assert figures["hidden"][1] == pytest.approx(figures["linear"][1], abs=0.01)
    assert figures["hidden"][0] == pytest.approx(figures["linear"][0], abs=0.01)
    assert figures["linear"][1] + 0.02 < figures["cosine"][1] < figures["linear"][1] + 0.08
    assert figures["cosine"][0] >= figures["linear"][0] - 0.025
