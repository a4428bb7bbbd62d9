"""Shell completion in processes of its own: what it imports, its scripts, and a real bash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.commands.common.completion import VARIABLE
from serving.commands.common.completion_scripts import SHELLS
from tests.support.interactive_shell import InteractiveShell

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


LINES = {
    "doc": "doctor",
    "train --near_dup": "train --near_duplicates",
    "train --near_duplicates t": "train --near_duplicates together",
    "train --near_duplicates=t": "train --near_duplicates=together",
    "train --tfhub_module=mobilenet_v2_100_2": "train --tfhub_module=mobilenet_v2_100_224",
    "backbone show efficientnet_lite0_2": "backbone show efficientnet_lite0_260",
    "train --image_dir pho": "train --image_dir photos",
    "train --image_dir=pho": "train --image_dir=photos",
    "predict photos/my": "predict photos/my photo.jpg",
    "promote --model_base_path models/food --model_version 1": (
        "promote --model_base_path models/food --model_version 10"
    ),
    "promote --model_base_path 'my models/food' --model_version ": (
        "promote --model_base_path my models/food --model_version 7"
    ),
}
"""Line after `hubhead` -> the completed line, without quotes and the slash after a directory."""

SOURCES = {
    "bash": 'eval "$(hubhead completion bash)"',
    "zsh": 'eval "$(hubhead completion zsh)"',
    "fish": "hubhead completion fish | source",
}


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs(name)) for name in SHELLS])
def test_interactive_shell_completes_lines_with_the_script(name: str, tmp_path: Path) -> None:
    for version in ("models/food/3", "models/food/10", "my models/food/7", "photos"):
        (tmp_path / version).mkdir(parents=True)
    (tmp_path / "photos" / "my photo.jpg").touch()
    (tmp_path / "home").mkdir()
    environment = {
        "PATH": f"{HUBHEAD.parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
    }
    with InteractiveShell(name, tmp_path, environment) as shell:
        shell.run(SOURCES[name])
        completed = {line: shell.complete(f"hubhead {line}") for line in LINES}
    assert {line: " ".join(words[1:]).rstrip("/") for line, words in completed.items()} == LINES


@pytest.mark.needs("bash")
def test_bash_completes_a_program_below_the_home_directory(tmp_path: Path) -> None:
    (tmp_path / "hubhead").symlink_to(HUBHEAD)
    environment = {"PATH": f"{HUBHEAD.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    with InteractiveShell("bash", tmp_path, environment) as shell:
        shell.run(SOURCES["bash"])
        shell.run(f"PATH={os.environ['PATH']}")
        assert shell.complete("~/hubhead doc")[1:] == ["doctor"]
