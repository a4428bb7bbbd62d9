"""A bundle under an older TensorFlow, in an environment of its own: `make old-tensorflow`.

Model servers are older than what trains for them. HUBHEAD_OLD_TENSORFLOW names the Python that
has one; without it the test is skipped.
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

if TYPE_CHECKING:
    from tests.support.trained import Trained

PYTHON = os.environ.get("HUBHEAD_OLD_TENSORFLOW", "")
SCRIPT = Path(__file__).with_name("old_tensorflow.py")
WEBP_SINCE = (2, 20)

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(not PYTHON, reason="HUBHEAD_OLD_TENSORFLOW names no Python: make old-tensorflow"),
]


def test_an_older_tensorflow_gives_the_same_answers(trained: Trained, tmp_path: Path) -> None:
    model = trained.result.bundle
    cases = corpus.cases()[::4]
    photos = [Path(uri).read_bytes() for uri, _ in trained.result.test_photos]
    contents = [*photos, *(case.content for case in cases)]
    asked, told = tmp_path / "photos", tmp_path / "answers"
    asked.write_text("".join(base64.b64encode(content).decode() + "\n" for content in contents))
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PATH": os.environ["PATH"]}
    command = [PYTHON, str(SCRIPT), str(model.path), str(asked), str(told)]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(told.read_text())
    print("TensorFlow", answers["version"])
    statuses = [Status(status) for status, _ in answers["rows"]]
    scores = np.array([score for _, score in answers["rows"]])

    assert statuses[: len(photos)] == [Status.OK] * len(photos)
    version = tuple(int(part) for part in answers["version"].split(".")[:2])
    # Without a decoder for WebP it says so, of broken ones too.
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
