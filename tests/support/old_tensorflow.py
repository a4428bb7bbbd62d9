"""Score photos with a bundle as TensorFlow Serving does, under any TensorFlow; see test_old_tensorflow.py.

    python old_tensorflow.py BUNDLE PHOTOS RESULTS

PHOTOS has one photo in base64 per line. RESULTS is written as JSON: the version of TensorFlow, and the
status and best score of each photo.
"""

import base64
import json
import sys
from pathlib import Path

import tensorflow as tf

BATCH = 16


def main(bundle: str, photos: str, results: str) -> None:
    """Run the signature serving_default in a TF1-style session, and write the results."""
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
    Path(results).write_text(json.dumps({"version": tf.__version__, "rows": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
