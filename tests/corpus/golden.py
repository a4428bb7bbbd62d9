"""Generation of the golden file with the results that only the decoder determines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from tests.corpus import flips
from tests.corpus.case import Case


def answers(found: Iterable[Case], batch: int = 16) -> dict[str, list[Any]]:
    """Return name -> [status, height, width] by trainer.preprocessing with its default settings."""
    import tensorflow as tf

    from trainer import preprocessing

    decode = tf.function(
        lambda contents: preprocessing.decode_photos(contents, preprocessing.Preprocessing())[1:],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    waiting, results = list(found), {}
    for start in range(0, len(waiting), batch):
        some = waiting[start : start + batch]
        columns = (column.numpy().tolist() for column in decode(tf.constant([case.content for case in some])))
        for case, status, height, width in zip(some, *columns, strict=True):
            results[case.name] = [str(preprocessing.STATUSES[status]), height, width]
    return results


def write(*, anew: bool = False) -> None:
    """Write flips.json; `anew` also regenerates the photos to damage."""
    from tests.corpus import generate

    photos = {name: base64.b64encode(content).decode() for name, content in flips.photos().items()}
    if not anew and flips.GOLDEN_FILE.exists():
        photos = flips.golden()["photos"]
    _save({"photos": photos, "answers": {}})
    _save({"photos": photos, "answers": answers(case for case in generate() if case.golden)})


def _save(content: dict[str, Any]) -> None:
    flips.GOLDEN_FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    flips.golden.cache_clear()
