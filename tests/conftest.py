"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with its reason, what needs a program that pip cannot bring; CI brings them all."""
    for marker in item.iter_markers("needs"):
        for alternatives in marker.args:
            if not any(shutil.which(program) for program in alternatives.split("|")):
                message = f"needs {' or '.join(alternatives.split('|'))} on the PATH"
                if os.environ.get("HUBHEAD_REQUIRE_PROGRAMS"):
                    pytest.fail(f"{message}, and this run may not skip")
                pytest.skip(message)
