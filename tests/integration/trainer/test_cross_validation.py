"""Every photo is held against a head that knows nothing of it, nor of what belongs with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.head import sample_features
from trainer.evaluation.cross_validation import CrossValidation, cross_validate

if TYPE_CHECKING:
    from tests.support.trained import Trained


# --- The sample photos ----------------------------------------------------------------------------------

REPEATS = 4


@pytest.fixture(scope="module")
def validated(trained: Trained) -> CrossValidation:
    embeddings, targets, classes = sample_features(trained)
    labels = trained.result.bundle.metadata.labels
    assert len(labels) == classes
    return cross_validate(embeddings, targets, labels, repeats=REPEATS, seed=100)


@pytest.mark.tf
@pytest.mark.slow
def test_the_calibration_error_of_the_sample_photos_is_that_of_a_calibrated_model(
    validated: CrossValidation, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print()
        for run in validated.runs:
            assert run.calibration
            print(f"calibration error out of fold: {run.calibration}, p = {run.calibration.p_value:.2f}")
        print(f"accuracy {validated.accuracy}, log-loss {validated.figures['log_loss']}")
        print(f"macro F1, first of {REPEATS} repeats: {validated.runs[0].macro.f1}")
    for run in validated.runs:
        assert run.calibration
        assert run.calibration.inside
    assert validated.figures["calibration_error"].mean <= 0.07
    assert validated.accuracy.value >= 0.74
    assert validated.log_loss <= 0.785
    assert validated.figures["macro_f1"].mean >= 0.66
