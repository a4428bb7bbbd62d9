"""Shell completion in processes of its own: what it imports, its scripts, and a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.commands.common.completion import SHELLS, VARIABLE

HUBHEAD = Path(sys.executable).with_name("hubhead")
HEAVY = ("tensorflow", "apache_beam", "pyarrow", "onnxruntime")


@pytest.mark.parametrize(
    "words", ["", "train --tfhub_module ", "promote --model_base_path models/food --model_version "]
)
def test_completion_imports_no_library_that_takes_long(words: str) -> None:
    code = (
        "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from hubhead import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "COMP_WORDS": f"hubhead {words}",
            "COMP_CWORD": str(len(words.split(" "))),
            VARIABLE: "bash_complete",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout
    assert "click" in done.stderr.split()
    assert not set(HEAVY) & set(done.stderr.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_printed_for_each_shell(shell: str) -> None:
    done = subprocess.run([HUBHEAD, "completion", shell], capture_output=True, text=True, check=True)
    assert f"{VARIABLE}={shell}_complete" in done.stdout


def test_unknown_shell_is_a_usage_error() -> None:
    done = subprocess.run([HUBHEAD, "completion", "tcsh"], capture_output=True, text=True, check=False)
    assert (done.returncode, "'bash', 'zsh', 'fish'" in done.stderr) == (2, True)


@pytest.mark.needs("bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    for version in ("3", "10"):
        (tmp_path / "models" / "food" / version).mkdir(parents=True)
    script = """
eval "$(hubhead completion bash)"
COMP_WORDS=(hubhead promote --model_base_path models/food --model_version 1) COMP_CWORD=5
_hubhead_completion hubhead && echo "${COMPREPLY[@]}"
complete -p hubhead
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{HUBHEAD.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[0] == "10"
    assert "_hubhead_completion hubhead" in done.stdout
