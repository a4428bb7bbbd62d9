"""Completion of values in the shell: version labels and version numbers, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from serving.errors import HubheadError
from serving.text import escape_controls

_USUAL_LABELS = ("stable", "canary")


def select(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Return the names that begin with a text; those with control characters are left out."""
    return [
        CompletionItem(name)
        for name in names
        if name.startswith(incomplete) and escape_controls(name, newlines=True) == name
    ]


def complete_directory(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete a directory."""
    return [CompletionItem(incomplete, type="dir")]


def complete_label(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a version label: those of --model_config_file if it is a local file, else the usual ones."""
    return select(_list_labels(context.params.get("model_config_file")) or _USUAL_LABELS, incomplete)


def complete_version(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the number of a version below a local --model_base_path, newest first."""
    from serving import bundle

    base = context.params.get("model_base_path")
    numbers: list[int] = []
    with suppress(OSError):
        numbers = bundle.versions(Path(base)) if base else []
    return select(map(str, reversed(numbers)), incomplete)


def _list_labels(config: str | Path | None) -> list[str]:
    if not config or not Path(config).is_file():
        return []
    from serving.registry import model_config

    with suppress(HubheadError, OSError):
        models = model_config.parse(Path(config)).model_config_list.config
        return sorted({label for model in models for label in model.version_labels})
    return []
