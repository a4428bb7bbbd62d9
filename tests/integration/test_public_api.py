"""Public Python API of `trainer`: lazy imports and types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from tests.support.repository import REPO


@pytest.mark.parametrize("name", trainer.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(trainer, name)
    assert found.__name__ == name
    assert found.__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        trainer.trian  # noqa: B018


def test_import_is_lazy_and_loads_no_tensorflow() -> None:
    look = (
        "import sys, trainer; before = 'numpy' in sys.modules; from trainer import TrainSettings, train; "
        "print(before, sorted({'tensorflow', 'apache_beam', 'pyarrow', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False []"


def test_client_loads_no_package_of_servers_and_bundles() -> None:
    look = "import sys, serving.client; print(sorted({'msgspec', 'jinja2', 'fsspec'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", look], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_of_no_command_loads_a_heavy_package() -> None:
    """All commands run in one process, so that a package is reported for the first one that loads it."""
    script = """
import sys
import click
from click.testing import CliRunner
from hubhead import hubhead

heavy = set("apache_beam duckdb fsspec grpc jinja2 msgspec numpy pyarrow scipy tensorflow".split())

def list_commands(command, path):
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from list_commands(command.get_command(context, name), [*path, name])

seen = set()
for path in list_commands(hubhead, []):
    result = CliRunner().invoke(hubhead, [*path, "--help"])
    assert result.exit_code == 0, result.output
    loaded = sorted((heavy & sys.modules.keys()) - seen)
    seen.update(loaded)
    print(" ".join(path), loaded or "")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert {"train", "backbone list", "score", "serve", "promote"} <= set(lines)
    assert not [line for line in lines if "[" in line]


def test_a_command_imports_no_module_of_the_others() -> None:
    script = """
import atexit, sys
from hubhead import main
atexit.register(lambda: print(*sorted(name for name in sys.modules if ".commands." in name)))
sys.argv = ["hubhead", "status", "--help"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True
    )
    imported = done.stdout.splitlines()[-1].split()
    assert "serving.commands.status" in imported
    assert not {name for name in imported if name.startswith(("batch.", "trainer."))}
    assert "serving.commands.predict" not in imported


def test_type_checker_sees_the_types_of_train(tmp_path: Path) -> None:
    """mypy, strict, over a user's script: right uses pass, a misspelt field does not."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from trainer import TrainResult, TrainSettings, train\n"
        'result: TrainResult = train(TrainSettings("photos", Path("models/food"), top_k=3))\n'
        "accuracy: float = result.held_out.accuracy.value\n"
        "result.acuracy\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(script)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert '"TrainResult" has no attribute "acuracy"' in done.stdout
    assert "Found 1 error" in done.stdout
