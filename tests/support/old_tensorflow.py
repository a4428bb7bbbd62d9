"""Ask a bundle under whatever TensorFlow runs this, as TensorFlow Serving would; see test_old_tensorflow.py.

    python old_tensorflow.py BUNDLE PHOTOS ANSWERS

PHOTOS has one photo in base64 a line. ANSWERS gets JSON: the version, and for each photo its status
and best score.
"""

import base64
import json
import sys
from pathlib import Path

import tensorflow as tf

BATCH = 16


def main(bundle: str, photos: str, answers: str) -> None:
    """Run signature serving_default in a classic session."""
    contents = [base64.b64decode(line) for line in Path(photos).read_text().splitlines()]
    rows = []
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], bundle)
        definition = meta.signature_def["serving_default"]
        fed = definition.inputs["image_bytes"].name
        fetched = [definition.outputs[name].name for name in ("status", "scores")]
        for start in range(0, len(contents), BATCH):
            statuses, scores = session.run(fetched, {fed: contents[start : start + BATCH]})
            rows += [[status.decode(), float(row[0])] for status, row in zip(statuses, scores, strict=True)]
    Path(answers).write_text(json.dumps({"version": tf.__version__, "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
