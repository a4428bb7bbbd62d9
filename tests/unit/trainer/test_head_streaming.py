"""Fits on many photos in blocks: the same head streamed and in memory, with constant memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import heads
from trainer.heads import Blocks, HeadSettings, block_training, fitter, settings
from trainer.heads.linear import Moments
from trainer.heads.streaming import ROWS, Block, ShuffledRows

STREAMED = HeadSettings(memory=0)


def clusters(count: int, dimensions: int, classes: int, *, noise: float = 1.5, seed: int = 0) -> Block:
    """Return overlapping clusters in random order, some labels rarer than others; float16 as stored."""
    random = np.random.default_rng(seed)
    shares = np.linspace(1, 3, classes)
    targets = random.choice(classes, count, p=shares / shares.sum())
    targets[:classes] = np.arange(classes)
    centres = np.random.default_rng(99).normal(size=(classes, dimensions))
    points = centres[targets] + noise * random.normal(size=(count, dimensions))
    return points.astype(np.float16), targets


@pytest.fixture(scope="module")
def many() -> Block:
    """Enough photos that one part is held out instead of five folds."""
    return clusters(6000, 24, 5)


def test_a_streamed_fit_equals_the_fit_in_memory(many: Block) -> None:
    rows, targets = many
    memory, chosen = heads.fit(rows, targets, 5)
    streamed, again = heads.fit(rows, targets, 5, settings=STREAMED)
    assert (chosen.settings["streamed"], again.settings["streamed"]) == (False, True)
    assert again.strength == chosen.strength
    unseen = clusters(500, 24, 5, seed=7)[0]
    np.testing.assert_allclose(streamed.probabilities(unseen), memory.probabilities(unseen), atol=2e-3)
    np.testing.assert_allclose(again.probabilities, chosen.probabilities, atol=2e-3)
    np.testing.assert_array_equal(again.targets, chosen.targets)


def test_the_fit_does_not_depend_on_the_block_size(many: Block) -> None:
    rows, targets = many
    unseen = clusters(500, 24, 5, seed=7)[0]
    found = [
        heads.fit_blocks(Blocks.from_array(rows, targets, size), 5, settings=STREAMED)[0].probabilities(
            unseen
        )
        for size in (ROWS, 777)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_a_streamed_fit_is_repeatable_to_the_bit(many: Block, kind: settings.Kind) -> None:
    settings = HeadSettings(kind=kind, memory=0, width=16)
    (one, selection), (other, again) = (heads.fit(*many, 5, settings=settings, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.kernel, other.kernel)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert one.temperature == other.temperature
    assert (selection.losses, selection.settings) == (again.losses, again.settings)
    if one.hidden and other.hidden:
        np.testing.assert_array_equal(one.hidden.kernel, other.hidden.kernel)


def test_the_fit_does_not_depend_on_the_number_of_threads(
    many: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    several, _ = heads.fit(*many, 5)
    monkeypatch.setattr("trainer.heads.streaming._WORKERS", 1)
    single, _ = heads.fit(*many, 5)
    np.testing.assert_array_equal(several.kernel, single.kernel)


def test_more_photos_reduce_the_log_loss() -> None:
    unseen, of_unseen = clusters(3000, 24, 5, noise=3, seed=7)
    losses = [
        heads.log_loss(heads.fit(*clusters(count, 24, 5, noise=3), 5)[0].probabilities(unseen), of_unseen)
        for count in (200, 4000, 12_000)
    ]
    assert losses[0] > losses[1] > losses[2] - 0.005


def test_candidates_are_fitted_on_a_sample_and_the_best_on_all_photos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, targets = clusters(12_000, 24, 5, noise=3)
    whole, _ = heads.fit(rows, targets, 5)
    monkeypatch.setattr(block_training, "CHOOSING", 2000)
    sampled, selection = heads.fit(rows, targets, 5)
    unseen, of_unseen = clusters(3000, 24, 5, noise=3, seed=7)
    ours, all_photos = (heads.log_loss(model.probabilities(unseen), of_unseen) for model in (sampled, whole))
    assert ours == pytest.approx(all_photos, abs=0.005)
    assert selection.method == "validation"


def test_validation_photos_are_held_out_if_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, targets = clusters(6000, 12, 3)
    few, enough = clusters(100, 12, 3, seed=1), clusters(700, 12, 3, seed=1)
    _, selection = heads.fit(rows, targets, 3, validation=enough)
    np.testing.assert_array_equal(selection.targets, enough[1])
    _, selection = heads.fit(rows, targets, 3, validation=few)
    assert len(selection.targets) == pytest.approx(6100 / heads.FOLDS, rel=0.01)
    monkeypatch.setattr(block_training, "HELD_OUT", 300)
    _, selection = heads.fit(rows, targets, 3, validation=enough)
    assert len(selection.targets) == pytest.approx(233, abs=3)


def test_few_photos_in_blocks_are_fitted_as_in_memory() -> None:
    rows, targets = clusters(300, 12, 3)
    one, selection = heads.fit_blocks(Blocks.from_array(rows, targets, 50), 3, settings=STREAMED)
    other, _ = heads.fit(rows, targets, 3)
    assert selection.method == "cross-validation"
    np.testing.assert_array_equal(one.kernel, other.kernel)


def test_a_label_with_one_photo_and_sorted_labels_are_accepted() -> None:
    rows, targets = clusters(6000, 12, 3)
    order = np.argsort(targets, kind="stable")
    rows, targets = np.vstack([rows[order], rows[:1] + 5]), np.append(targets[order], 3)
    for kind in ("linear", "hidden"):
        model, _ = heads.fit(rows, targets, 4, settings=HeadSettings(kind=kind, memory=0, width=8))  # type: ignore[arg-type]
        probabilities = model.probabilities(rows)
        assert np.isfinite(probabilities).all()
        assert (probabilities.argmax(axis=1) == targets).mean() > 0.8


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    stride=st.integers(2, 9),
    seed=st.integers(0, 100),
    size=st.integers(1, 30),
    first=st.booleans(),
)
def test_split_every_takes_every_stride_th_row_of_each_label(
    counts: list[int], stride: int, seed: int, size: int, first: bool
) -> None:
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.arange(len(targets), dtype=np.float32)[:, None]
    others, taken = Blocks.from_array(rows, targets, size).split_every(
        np.array(counts), stride, seed, first=first
    )
    both = [part.gather() for part in (others, taken)]
    assert [len(of_part) for _, of_part in both] == [others.count, taken.count]
    np.testing.assert_array_equal(np.sort(np.concatenate([part for part, _ in both]), axis=0), rows)
    for label, count in enumerate(counts):
        found = int((both[1][1] == label).sum())
        assert count // stride - 1 <= found <= -(-count // stride)
        assert found >= min(count, 1) if first else found <= max(count - 1, 0)


@given(cut=st.integers(1, 60), seed=st.integers(0, 20))
def test_moments_are_additive(cut: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, targets = random.normal(size=(61, 4)).astype(np.float32), random.integers(0, 3, 61)
    weights = np.array([1.0, 0.5, 2.0], np.float32)
    whole = Moments.from_blocks(Blocks.from_array(rows, targets, 7), weights)
    parts = Moments.from_blocks(Blocks.from_array(rows[:cut], targets[:cut]), weights) + Moments.from_blocks(
        Blocks.from_array(rows[cut:], targets[cut:]), weights
    )
    np.testing.assert_allclose(parts.counts, whole.counts, rtol=1e-6)
    np.testing.assert_allclose(parts.sums, whole.sums, atol=1e-4)
    np.testing.assert_allclose(parts.products, whole.products, atol=1e-4)
    spread = rows - rows.mean(axis=0)
    equal = Moments.from_blocks(Blocks.from_array(rows, targets), np.ones(3, np.float32))
    np.testing.assert_allclose(equal.covariance, spread.T @ spread / 61, atol=1e-4)


def test_the_scaling_of_blocks_equals_that_of_the_array() -> None:
    rows = (np.random.default_rng(0).normal(size=(5000, 6)) * [1, 2, 3, 4, 5, 0] + 7).astype(np.float32)
    found = fitter.compute_scaling(Blocks.from_array(rows, np.zeros(5000, np.int64), 300))
    wanted = heads.Scaling.from_embeddings(rows)
    np.testing.assert_allclose(found.mean, wanted.mean, rtol=1e-5)
    np.testing.assert_allclose(found.scale, wanted.scale, rtol=1e-4)


def test_shuffled_rows_in_files_yield_every_row_once_in_mixed_order(tmp_path: Path) -> None:
    targets = np.repeat(np.arange(4), 10_000)
    rows = np.arange(40_000, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    shuffled = ShuffledRows(Blocks.from_array(rows, targets), 0, tmp_path)
    random = np.random.default_rng(1)
    epochs = [list(shuffled.batches(256, random)) for _ in range(2)]
    for epoch in epochs:
        found = np.concatenate([part[:, 0] for part, _ in epoch])
        np.testing.assert_array_equal(np.sort(found), rows[:, 0])
        np.testing.assert_array_equal(np.concatenate([part for _, part in epoch]), found // 10_000)
        assert all(len(np.unique(part)) == 4 for _, part in epoch if len(part) == 256)
    assert (epochs[0][0][0] != epochs[1][0][0]).any()


def test_a_read_error_ends_the_fit_and_leaves_no_thread() -> None:
    rows, targets = clusters(20_000, 8, 2)
    before = threading.active_count()

    def torn() -> Iterator[Block]:
        yield rows[:10_000], targets[:10_000]
        raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        heads.fit_blocks(Blocks(torn, 20_000, 8), 2)
    assert threading.active_count() == before


@pytest.mark.parametrize("memory", [0, settings.MEMORY], ids=["streamed", "in memory"])
@pytest.mark.parametrize("held", [0, 100, 700], ids=["no validation", "little", "enough"])
def test_views_of_many_photos_count_as_their_photos(memory: int, held: int) -> None:
    rows, targets = clusters(6000 + held, 24, 5)
    validation = (rows[6000:], targets[6000:]) if held else None
    settings = HeadSettings(memory=memory)
    of = rows[:6000], targets[:6000], 5
    alone, _ = heads.fit(*of, validation=validation, settings=settings)
    doubled, selection = heads.fit(*of, validation=validation, views=[rows], settings=settings)
    unseen = clusters(500, 24, 5, seed=7)[0]
    # Not exactly: in the final fit photos held out count once, the others twice.
    difference = np.abs(doubled.probabilities(unseen) - alone.probabilities(unseen))
    assert difference.mean() < 5e-3
    assert difference.max() < 0.1
    assert selection.settings["streamed"] == (memory == 0)
    noise = np.random.default_rng(0).normal(size=rows.shape).astype(np.float16)
    other, again = heads.fit(*of, validation=validation, views=[rows + noise], settings=settings)
    assert np.abs(other.kernel - alone.kernel).max() > 1e-2
    np.testing.assert_array_equal(again.targets, selection.targets)
