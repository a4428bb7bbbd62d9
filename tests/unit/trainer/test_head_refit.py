"""Refit: a head with known settings equals the head for which they were selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer import heads
from trainer.heads import Blocks, HeadSettings
from trainer.heads.streaming import Block


def points(count: int, seed: int = 0) -> Block:
    """Return four labels with two clusters each, one label rare; float16 as stored."""
    random = np.random.default_rng(seed)
    targets = random.choice(4, count, p=[0.1, 0.3, 0.3, 0.3])
    centres = np.random.default_rng(99).normal(size=(8, 12))
    cloud = 2 * targets + random.integers(0, 2, count)
    return (centres[cloud] + 0.7 * random.normal(size=(count, 12))).astype(np.float16), targets


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_refit_on_the_same_few_photos_gives_the_same_head(kind: Any, class_weight: Any) -> None:
    data, unseen = points(400), points(200, seed=1)[0]
    settings = HeadSettings(kind, class_weight, width=16)
    fitted, selection = heads.fit(*data, 4, settings=settings, seed=3)
    again = heads.refit(Blocks.from_array(*data), 4, selection)
    assert (again.hidden is not None) == bool(selection.settings.get("epochs"))
    if kind == "hidden":
        assert again.hidden is not None  # with two clusters per label the hidden layer helps
    # The original descent began at the minima of other candidates.
    np.testing.assert_allclose(again.probabilities(unseen), fitted.probabilities(unseen), atol=5e-3)


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_refit_on_many_photos_is_as_good_streamed_or_in_memory(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, (unseen, of_unseen) = points(6000), points(2000, seed=1)
    fitted, selection = heads.fit(*data, 4, settings=HeadSettings(kind, width=16))
    blocks = Blocks.from_array(*data, chosen=np.arange(0, 6000))
    memory = heads.refit(blocks, 4, selection)
    streamed = heads.refit(blocks, 4, selection, settings=HeadSettings(memory=0))
    wanted = heads.log_loss(fitted.probabilities(unseen), of_unseen)
    for again in (memory, streamed):
        assert heads.log_loss(again.probabilities(unseen), of_unseen) == pytest.approx(wanted, abs=0.02)
    if kind != "hidden":
        np.testing.assert_allclose(streamed.probabilities(unseen), memory.probabilities(unseen), atol=1e-4)


def test_refit_uses_the_recorded_shrinkage() -> None:
    _, selection = heads.fit(*points(6000), 4)
    few = points(300, seed=2)
    fitted = heads.refit(Blocks.from_array(*few), 4, selection)
    other = selection.settings | {"shrinkage": 0.99}
    blunt = heads.refit(Blocks.from_array(*few), 4, heads.Selection(**{**vars(selection), "settings": other}))
    assert np.abs(fitted.kernel - blunt.kernel).max() > 0.01


def test_a_label_without_photos_gets_almost_no_probability() -> None:
    embeddings, targets = points(400)
    _, selection = heads.fit(embeddings, targets, 4)
    rest = np.flatnonzero(targets != 2)
    fitted = heads.refit(Blocks.from_array(embeddings, targets, chosen=rest), 4, selection)
    assert fitted.probabilities(embeddings[rest])[:, 2].mean() < 0.01
