"""The end-to-end test: prepares what needs a network, then runs the test in namespaces without one.

`python -m tests.support.kubernetes` ends with 0 and the reasons where the machine cannot run containers.
"""

from __future__ import annotations

import sys

from serving.storage.files import cache_directory
from tests.support.kubernetes import binaries, images, isolation
from trainer.backbones import hub
from trainer.dataset.samples import fetch_sample_photos


def main() -> int:
    """Run the test; returns its exit code."""
    obstacles = isolation.find_obstacles() + images.find_obstacles()
    if obstacles:
        return _skip(*obstacles)
    try:
        binaries.build((*binaries.PROGRAMS, binaries.KUBELET))
    except binaries.GoMissing as error:
        return _skip(str(error))
    images.build()
    hub.build(cache_directory())
    fetch_sample_photos(cache_directory())
    test = ["tests/k8s/test_end_to_end.py", "-m", "containers", "--maxfail=2", "-s", *sys.argv[1:]]
    return isolation.run([sys.executable, "-m", "pytest", *test])


def _skip(*reasons: str) -> int:
    print("\n".join(["make cluster-e2e is skipped: this machine cannot run containers:", *reasons]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
