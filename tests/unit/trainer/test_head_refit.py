"""A head of known settings is the head that was chosen with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer import heads
from trainer.heads import Blocks, HeadSettings
from trainer.heads.streaming import Block


def points(count: int, seed: int = 0) -> Block:
    """Four labels in two clouds each, one of them rare; float16 as stored."""
    random = np.random.default_rng(seed)
    targets = random.choice(4, count, p=[0.1, 0.3, 0.3, 0.3])
    centres = np.random.default_rng(99).normal(size=(8, 12))
    cloud = 2 * targets + random.integers(0, 2, count)
    return (centres[cloud] + 0.7 * random.normal(size=(count, 12))).astype(np.float16), targets


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("kind", ["linear", "hidden", "cosine"])
def test_on_the_same_few_photos_it_is_the_same_head(kind: Any, class_weight: Any) -> None:
    data, unseen = points(400), points(200, seed=1)[0]
    settings = HeadSettings(kind, class_weight, width=16)
    fitted, selection = heads.fit(*data, 4, settings=settings, seed=3)
    again = heads.refit(Blocks.from_array(*data), 4, selection)
    assert (again.hidden is not None) == bool(selection.settings.get("epochs"))
    if kind == "hidden":
        assert again.hidden is not None  # two clouds a label: a layer pays
    # The descent of the one begins at other candidates' minima.
    np.testing.assert_allclose(again.probabilities(unseen), fitted.probabilities(unseen), atol=5e-3)


@pytest.mark.parametrize("kind", ["linear", "hidden", "cosine"])
def test_of_many_photos_it_is_as_good_streamed_or_not(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_shrinkage_that_many_photos_chose_holds_on_few() -> None:
    _, selection = heads.fit(*points(6000), 4)
    few = points(300, seed=2)
    fitted = heads.refit(Blocks.from_array(*few), 4, selection)
    other = selection.settings | {"shrinkage": 0.99}
    blunt = heads.refit(Blocks.from_array(*few), 4, heads.Selection(**{**vars(selection), "settings": other}))
    assert np.abs(fitted.kernel - blunt.kernel).max() > 0.01


def test_a_label_without_photos_gets_next_to_no_probability() -> None:
    embeddings, targets = points(400)
    _, selection = heads.fit(embeddings, targets, 4)
    rest = np.flatnonzero(targets != 2)
    fitted = heads.refit(Blocks.from_array(embeddings, targets, chosen=rest), 4, selection)
    assert fitted.probabilities(embeddings[rest])[:, 2].mean() < 0.01
