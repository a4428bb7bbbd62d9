"""Predictions of a bundle under an older TensorFlow, in an environment of its own: `make old-tensorflow`.

Model servers are often older than the TensorFlow that trained the model. HUBHEAD_OLD_TENSORFLOW is the
path of a Python with an older one; without it the test is skipped.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from serving import contract
from serving.contract import Status
from serving.runtime.session import PARITY_TOLERANCE, ClassicSession
from tests import corpus
from tests.support.repository import REPO

if TYPE_CHECKING:
    from tests.support.trained import Trained

PYTHON = os.environ.get("HUBHEAD_OLD_TENSORFLOW", "")
SCRIPT = REPO / "tests" / "support" / "old_tensorflow.py"
WEBP_SINCE = (2, 20)

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(not PYTHON, reason="HUBHEAD_OLD_TENSORFLOW is not set: make old-tensorflow"),
]


def test_older_tensorflow_gives_the_same_predictions(trained: Trained, tmp_path: Path) -> None:
    model = trained.result.bundle
    cases = corpus.cases()[::4]
    photos = [Path(uri).read_bytes() for uri, _ in trained.result.test_photos]
    contents = [*photos, *(case.content for case in cases)]
    inputs, outputs = tmp_path / "photos", tmp_path / "answers"
    inputs.write_text("".join(base64.b64encode(content).decode() + "\n" for content in contents))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": os.environ["PATH"]}
    command = [PYTHON, str(SCRIPT), str(model.path), str(inputs), str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(outputs.read_text())
    print("TensorFlow", answers["version"])
    statuses = [Status(status) for status, _ in answers["rows"]]
    scores = np.array([score for _, score in answers["rows"]])

    assert statuses[: len(photos)] == [Status.OK] * len(photos)
    version = tuple(int(part) for part in answers["version"].split(".")[:2])
    # Without a WebP decoder the status is `unsupported_format`, also for broken WebP files.
    lacking = {
        Status.OK: [Status.UNSUPPORTED_FORMAT],
        Status.CORRUPT: [Status.UNSUPPORTED_FORMAT, Status.CORRUPT],
    }
    for case, status in zip(cases, statuses[len(photos) :], strict=True):
        unknown = version < WEBP_SINCE and case.content[8:12] == b"WEBP"
        assert status in (lacking if unknown else {}).get(case.status, [case.status]), case.name
    with ClassicSession(model.path) as session:
        ours = session.run(contract.SERVING_DEFAULT, {contract.IMAGE_BYTES: photos})
    np.testing.assert_allclose(scores[: len(photos)], ours[contract.SCORES][:, 0], atol=PARITY_TOLERANCE)
