"""Drift: merging of moments, counts and sample photos over shards; PSI and embedding shift of two runs."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.monitoring import drift, sample_photos
from batch.monitoring.drift import Change, DecisionCounts, Moments
from batch.monitoring.sample_photos import MAX_LABELS, MAX_PER_LABEL, MAX_PER_STATUS, Examples
from batch.monitoring.stats import Stats

LABEL_NAMES = ["apple", "bread", "cheese", None]


def rows(numbers: Sequence[int], model: str = "food", version: int = 1) -> pa.Table:
    """Rows of synthetic photos; one in seven is rejected, one in eleven a copy of photo 0."""
    found: list[dict[str, Any]] = []
    for number in numbers:
        content = 0 if number % 11 == 0 else number
        label = LABEL_NAMES[content % 4]
        rejected = content % 7 == 3
        found.append(
            {
                "uri": f"photos/{number:05}.jpg",
                "sha256": hashlib.sha256(f"{content}".encode()).hexdigest(),
                "status": "corrupt" if rejected else "ok",
                "detail": "truncated file" if rejected else None,
                "label": None if rejected else label,
                "score": None if rejected else (content % 97) / 97,
                "model": model,
                "version": version,
            }
        )
    kinds = {"score": pa.float32(), "version": pa.int64(), "label": pa.string(), "detail": pa.string()}
    return pa.Table.from_pylist(found, pa.schema([(name, kinds.get(name, pa.string())) for name in found[0]]))


def embeddings(count: int, *, seed: int = 0, shift: float = 0.0) -> Any:
    """Embeddings float16 [count,1280] whose mean is `shift` standard deviations away from zero."""
    random = np.random.default_rng(seed)
    # Each dimension has unit variance, so the standard deviation of all is sqrt(1280).
    offset = np.full(1280, shift)
    return (random.normal(size=(count, 1280)) + offset).astype(np.float16)


def count_rows(table: pa.Table) -> DecisionCounts:
    """Reference implementation of the counts of a table."""
    good = [row for row in table.to_pylist() if row["status"] == "ok"]
    labels = Counter(row["label"] for row in good if row["label"])
    scores = DecisionCounts.histogram(np.array([row["score"] for row in good], np.float32))
    return DecisionCounts(labels, len(good) - labels.total(), scores)


def sketch(table: pa.Table, vectors: Any) -> Stats:
    """Statistics that a shard keeps of its rows."""
    chosen = sample_photos.choose_examples({"food/1": table})
    return Stats(
        models={"food/1": count_rows(table)}, embeddings=Moments.from_embeddings(vectors), examples=chosen
    )


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=400))
def test_merged_shards_equal_the_statistics_of_the_whole(shards: list[int]) -> None:
    vectors = np.random.default_rng(1).normal(size=(len(shards), 8))
    parts = [[row for row, shard in enumerate(shards) if shard == wanted] for wanted in range(3)]
    merged = sum((sketch(rows(part), vectors[part]) for part in parts if part), Stats())
    whole = sketch(rows(range(len(shards))), vectors)
    assert merged.models == whole.models
    assert merged.examples == whole.examples
    assert merged.embeddings.count == whole.embeddings.count == len(shards)
    np.testing.assert_allclose(merged.embeddings.mean, whole.embeddings.mean, atol=1e-9)
    np.testing.assert_allclose(merged.embeddings.scatter, whole.embeddings.scatter, rtol=1e-6, atol=1e-9)


def test_merged_moments_match_mean_and_variance_of_the_projection() -> None:
    vectors = embeddings(500)
    found = (
        Moments.from_embeddings(vectors[:100])
        + Moments.from_embeddings(vectors[100:130])
        + Moments.from_embeddings(vectors[130:])
    )
    projected = vectors.astype(np.float64) @ drift._projection(1280)
    np.testing.assert_allclose(found.mean, projected.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.scatter / 499, projected.var(axis=0, ddof=1), rtol=1e-3)
    # The projection preserves lengths: the total variance is that of 1280 dimensions of unit variance.
    assert found.scatter.sum() / 499 == pytest.approx(1280, rel=0.05)


def test_random_projection_is_pinned_by_its_hash() -> None:
    signs = drift._projection(1280) * math.sqrt(drift.PROJECTION_DIMENSIONS)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert hashlib.sha256(np.signbit(signs).tobytes()).hexdigest().startswith("3e1062d89bbe6272")


def test_stats_survive_a_json_roundtrip_and_are_small() -> None:
    table = rows(range(8192))
    stats = sketch(table, embeddings(300))
    text = json.dumps(stats.to_json())
    assert len(text) < 8_000
    back = Stats.from_json(json.loads(text))
    assert back.models == stats.models
    assert back.examples == stats.examples
    np.testing.assert_allclose(back.embeddings.mean, stats.embeddings.mean, rtol=1e-6)
    two = sample_photos.choose_examples({"food/1": table, "food/2": table})
    assert list(two.models) == ["food/1", "food/2"]
    assert Examples.from_json(json.loads(json.dumps(two.to_json()))) == two


@pytest.mark.parametrize("values", [{}, {"count": 1}, {"count": 1, "mean": "AAAA", "scatter": "?"}, []])
def test_from_json_rejects_malformed_moments_and_counts(values: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected|missing|buffer"):
        Moments.from_json(values)
    with pytest.raises(ValueError, match=r"Expected|missing"):
        DecisionCounts.from_json(values)


def test_histogram_has_equal_bins() -> None:
    found = DecisionCounts.histogram(np.array([0, 0.049, 0.051, 0.5, 0.999, 1.0], np.float32))
    assert [(at, count) for at, count in enumerate(found) if count] == [(0, 2), (1, 1), (10, 1), (19, 2)]


def test_sample_photos_of_a_label_contain_no_copies() -> None:
    table = rows([*range(0, 440, 11), 4, 8, 12, 16, 1, 5])  # forty copies of photo 0
    chosen = sample_photos.choose_examples({"food/1": table}).models["food/1"]
    assert len(chosen["apple"]) == MAX_PER_LABEL
    assert len({example.key for example in chosen["apple"]}) == MAX_PER_LABEL
    assert len(chosen["bread"]) == 2


def test_sample_photos_of_frequent_labels_and_rejected_statuses_are_limited() -> None:
    table = rows(range(3000))
    many = [f"label {min(row % 100, 60)}" if row % 3 else None for row in range(3000)]
    table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(many, pa.string()))
    found = sample_photos.choose_examples({"food/1": table})
    chosen = found.models["food/1"]
    assert len(chosen) == MAX_LABELS
    assert "label 60" in chosen
    assert [example.detail for example in found.rejected["corrupt"]] == ["truncated file"] * MAX_PER_STATUS
    uris = [example.uri for example in found.rejected["corrupt"]]
    assert (
        uris == sorted(row["uri"] for row in table.to_pylist() if row["status"] == "corrupt")[:MAX_PER_STATUS]
    )


def test_shard_of_rejected_photos_has_no_counts_and_no_moments() -> None:
    found = sketch(rows([3]), embeddings(0))
    assert found.models["food/1"] == DecisionCounts()
    assert found.embeddings.count == 0
    assert found.examples.models == {"food/1": {}}
    assert found.examples.rejected["corrupt"][0].uri == "photos/00003.jpg"


# --- Differences ------------------------------------------------------------------------------------------


def test_psi_of_one_population_rarely_exceeds_chance() -> None:
    random = np.random.default_rng(0)
    fractions = random.dirichlet(np.ones(10))
    alarms = 0
    for _ in range(400):
        now, before = random.multinomial(3000, fractions), random.multinomial(800, fractions)
        change = drift.population_stability_index(now.tolist(), before.tolist())
        assert change is not None
        alarms += change.value > change.chance
    assert alarms <= 5


def test_psi_matches_the_formula() -> None:
    change = drift.population_stability_index([60_000, 40_000], [50_000, 50_000])
    assert change is not None
    expected = 0.1 * math.log(0.6 / 0.5) - 0.1 * math.log(0.4 / 0.5)
    assert change.value == pytest.approx(expected, rel=1e-3)
    assert change.chance < 0.001
    assert change.level == "none", "significant, but below the moderate threshold"
    worse = drift.population_stability_index([80_000, 20_000], [50_000, 50_000])
    assert worse is not None
    assert worse.level == "large"


def test_psi_of_a_new_label_is_finite() -> None:
    change = drift.population_stability_index([900, 100], [1000, 0])
    assert change is not None
    assert 0.25 < change.value < 10
    assert drift.population_stability_index([0, 0], [3, 4]) is None
    assert drift.population_stability_index([5], [7]) == Change(0.0, 0.0, drift.MODERATE_PSI, drift.LARGE_PSI)


def test_embedding_shift_detects_another_population() -> None:
    before = Moments.from_embeddings(embeddings(2000, seed=1))
    same = drift.embedding_shift(Moments.from_embeddings(embeddings(500, seed=2)), before)
    assert same is not None
    assert same.value < same.chance
    assert same.level == "none"
    for wanted in (0.3, 0.6):
        other = drift.embedding_shift(Moments.from_embeddings(embeddings(500, seed=3, shift=wanted)), before)
        assert other is not None
        assert other.value == pytest.approx(wanted, rel=0.3)
        assert other.level == ("large" if wanted > 0.5 else "moderate")
    assert drift.embedding_shift(Moments(), before) is None
    assert (
        drift.embedding_shift(
            Moments.from_embeddings(np.ones((9, 1280))), Moments.from_embeddings(np.ones((9, 1280)))
        )
        is None
    )


def test_compare_counts_reports_labels_and_scores() -> None:
    one, other = (count_rows(rows(range(count))) for count in (5000, 9000))
    found = drift.compare_counts(one, other)
    assert list(found) == ["labels", "scores"]
    assert {change.level for change in found.values()} == {"none"}
    counts = drift.list_label_counts(one, other)
    assert counts[-1][0] == drift.ABSTAINED
    assert counts[:-1] == sorted(counts[:-1], key=lambda row: (-row[1], row[0]))
    assert drift.compare_counts(one, DecisionCounts()) == {}


def test_a_label_in_another_unicode_form_is_the_same_label() -> None:
    now, before = (
        DecisionCounts(Counter({unicodedata.normalize(form, "crème"): 5, "soup": 2}))
        for form in ("NFC", "NFD")
    )
    assert drift.list_label_counts(now, before) == [
        (unicodedata.normalize("NFC", "crème"), 5, 5),
        ("soup", 2, 2),
    ]
