"""The name of the CPU, as run.json and the server report it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from serving import process

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\nstepping\t: 0\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(X86 * 2, "AMD EPYC 7B13"), (ARM, "aarch64"), ("model name :\n", "aarch64"), (None, "aarch64")],
)
def test_cpu_model_is_read_from_cpuinfo_or_else_the_architecture(
    content: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(process, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert process.get_cpu_model.__wrapped__() == expected
