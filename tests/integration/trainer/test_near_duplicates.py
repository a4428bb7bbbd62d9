"""Near-duplicates of the sample photos at the default threshold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batch.embeddings import EmbeddingStore
from batch.inputs import listing
from batch.jobs import score
from trainer.dataset.near_duplicates import find_near_duplicates
from trainer.dataset.samples import SampleSummary

# --- The threshold, on real photos ----------------------------------------------------------------------


@pytest.mark.tf
@pytest.mark.beam
@pytest.mark.slow
def test_the_threshold_finds_copies_of_the_sample_photos_only(
    cache: Path, sample: SampleSummary, tmp_path: Path
) -> None:
    from trainer.export.templates import prepare_template
    from trainer.preprocessing import Preprocessing

    for number, path in enumerate(sorted(sample.directory.rglob("*.jpeg"))):
        (tmp_path / f"{number:03d}.jpeg").write_bytes(path.read_bytes())
        if number % 8 == 0:
            with Image.open(path) as photo:
                width, height = photo.size
                copies = {
                    "recoded": photo.copy(),
                    "scaled": photo.resize((2 * width, 2 * height), Image.Resampling.BICUBIC),
                    "cropped": photo.crop((width // 40, height // 40, width * 39 // 40, height * 39 // 40)),
                }
            for name, copy in copies.items():
                content = io.BytesIO()
                copy.save(content, "JPEG", quality=85)
                (tmp_path / f"{number:03d}-{name}.jpeg").write_bytes(content.getvalue())
    base = prepare_template("efficientnet_lite0", cache, Preprocessing())
    store = EmbeddingStore(str(tmp_path / "store"), base.metadata.fingerprint, base.metadata.dimension)
    found = listing.find_photos(f"{tmp_path}/*.jpeg")
    score.embed(found, base.path, store)
    shas = store.lookup_digests(found)
    rows = store.get(shas.values())
    names = [Path(photo.uri).stem for photo in found]
    near = find_near_duplicates(rows.vectors[[rows.row_by_digest()[shas[photo]] for photo in found]])
    joined = {names[row]: {names[other] for other in alike} for alike in near.together for row in alike}
    # No two distinct photos are linked.
    assert all(len({name[:3] for name in group}) == 1 for group in joined.values())
    originals = [name for name in names if f"{name}-recoded" in names]
    for kind, share in (("recoded", 1.0), ("scaled", 1.0), ("cropped", 0.9)):
        hits = [f"{name}-{kind}" in joined.get(name, ()) for name in originals]
        assert np.mean(hits) >= share, kind
