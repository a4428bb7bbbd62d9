"""The check of the software bill of materials finds packages that are missing, and other hashes."""

from __future__ import annotations

from typing import Any

from tests.support.bill_of_materials import find_differences, read_lock
from tests.support.repository import REPO

ONE, TWO = "1" * 64, "2" * 64

LOCK = f"""absl-py==2.3 \\
    --hash=sha256:{ONE} \\
    --hash=sha256:{TWO}
    # via tensorflow
colorama==0.4 ; sys_platform == 'win32' \\
    --hash=sha256:{TWO}
"""


def component(name: str, version: str, *hashes: str) -> dict[str, Any]:
    references = [
        {"url": "", "type": "distribution", "hashes": [{"alg": "SHA-256", "content": h}]} for h in hashes
    ]
    return {"type": "library", "name": name, "version": version, "externalReferences": references}


def test_a_bill_with_all_packages_and_hashes_passes() -> None:
    bill = {"components": [component("absl_py", "2.3", ONE, TWO), component("colorama", "0.4", TWO)]}
    assert find_differences(bill, read_lock(LOCK)) == []


def test_missing_packages_other_versions_and_other_hashes_are_found() -> None:
    bill = {"components": [component("absl-py", "2.3", ONE), component("colorama", "0.3", TWO)]}
    assert find_differences(bill, read_lock(LOCK)) == [
        "colorama 0.4 is missing.",
        "absl-py 2.3 has other hashes than the lock file.",
    ]


def test_every_package_of_the_lock_file_is_read_with_its_hashes() -> None:
    text = (REPO / "requirements.txt").read_text(encoding="utf-8")
    lock = read_lock(text)
    assert len(lock) == text.count("==") - sum(
        line.count("==") - 1 for line in text.splitlines() if "==" in line
    )
    assert sum(map(len, lock.values())) == text.count("--hash=")
