"""`hubhead validate`: whether a bundle may go live."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving import contract
from serving.errors import GateRejected
from serving.runtime.tensorflow_import import require_tensorflow
from trainer.gate.thresholds import RegressionLimits

if TYPE_CHECKING:
    from rich.table import Table

    from serving.registry.verdict import Check, Verdict
    from serving.storage.address import Address
    from trainer.dataset.labelled_photos import EvaluationPhoto

_HELP = {
    "accuracy": "How far the accuracy may fall; 0.02 is two points of a hundred.",
    "label": "How far the recall of a label may fall.",
    "label_photos": "Labels with fewer test photos are shown, not judged.",
    "log_loss": "How far the log-loss may rise, in nats.",
    "calibration": "How far the calibration error may rise.",
    "latency": "How many times the live version's time for a photo.",
    "size": "How many times the live version's bytes on disk.",
}


def _limit_flags(command: Any) -> Any:
    for limit in reversed(fields(RegressionLimits)):
        whole = isinstance(limit.default, int)
        command = click.option(
            f"--max_{limit.name}_ratio"
            if limit.name in ("latency", "size")
            else f"--min_{limit.name}"
            if whole
            else f"--{limit.name}_tolerance",
            limit.name,
            type=click.IntRange(min=0) if whole else click.FloatRange(min=0),
            default=limit.default,
            show_default=True,
            help=_HELP[limit.name],
        )(command)
    return command


@click.command(
    short_help="Judge a bundle against the live version; the verdict is written into it.",
    epilog="\b\nExamples:\n"
    "  hubhead validate --bundle models/food/4 --live models/food/3 --photos held_out\n"
    "  hubhead validate --bundle models/food/1",
)
@click.option(
    "--bundle",
    "candidate",
    required=True,
    metavar="DIR",
    help="The candidate: models/food/4, or models/food for its newest version; also s3:// and gs://.",
)
@click.option(
    "--live",
    metavar="DIR",
    help="The version that it would replace, or the directory above the versions for its newest. Without "
    "it, and where that directory has no version yet, the candidate is judged by itself.",
)
@click.option(
    "--model_config_file",
    type=click.Path(path_type=Path),
    help="The servers' model.config: of the versions below --live the one labelled stable there counts, not "
    "the newest, which may be a canary or one that was rolled back.",
)
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Photos to ask both about; a folder for each label makes them a test, which should stay the same.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In place of --photos: a .csv with the columns uri and label, or a path a line.",
)
@_limit_flags
@click.option("--force", is_flag=True, help="Bless it whatever is found; the verdict says so.")
@click.option("--json", "as_json", is_flag=True, help="The verdict on stdout.")
def validate(
    candidate: str,
    live: str | None,
    model_config_file: Path | None,
    photos: Path | None,
    manifest: Path | None,
    force: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Judge whether a bundle may go live.

    It must load as TensorFlow Serving loads it and in the local server, have all signatures, warm up,
    refuse what is no photo, and say the same by every path. Against --live: accuracy, recall of each
    label, log-loss and calibration by the records of both, and again on labelled photos that neither
    was trained on; time for a photo, size; labels that came and went are named.

    The verdict, with every check, its figure and its limit, is written to assets.extra/verdict.json of
    the bundle, a yes or a no; hubhead promote asks for it. It holds for this content alone.

    Ends with 0 where the bundle is blessed, with 4 where it is not.
    """
    if photos and manifest:
        raise click.UsageError("--photos and --manifest both name the photos: give one of them.")
    if model_config_file and not live:
        raise click.UsageError("--model_config_file is of a --live.")
    require_tensorflow()
    from serving.registry.stores.download import fetch_bundle
    from serving.storage.address import parse_address
    from trainer.gate import gate

    served = _live(parse_address(live), model_config_file) if live else None
    with (
        fetch_bundle(parse_address(candidate), _say) as new,
        fetch_bundle(served, _say) if served else nullcontext() as old,
    ):
        found = gate.validate(
            new.path,
            live=old.path if old else None,
            live_origin=old.origin if old else None,
            photos=_photos(new.path, photos, manifest),
            limits=RegressionLimits(**limits),
            force=force,
            say=_say,
        )
        new.write_back(contract.VERDICT_FILE)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(_table(found))
        click.echo(f"{'Blessed' if found.blessed else 'Not blessed'}{', by force' if found.forced else ''}.")
    if not found.blessed:
        from serving.registry.verdict import format_checks

        raise GateRejected(f"{candidate} is not blessed: {format_checks(found.failed)}.")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _live(address: Address, config: Path | None = None) -> Address | None:
    """None where it is the directory above the versions, and the first of them is still to come."""
    from serving.client.canary import STABLE
    from serving.registry.labels import resolve_label
    from serving.registry.stores.download import has_no_version

    if config and not isinstance(address, Path):
        raise click.UsageError(f"Of {address}, give the version's own address, not --model_config_file.")
    if has_no_version(address):
        _say(f"{address} has no version yet: the candidate is judged by itself.")
        return None
    return resolve_label(address, config, STABLE) if config and isinstance(address, Path) else address


def _photos(candidate: Path, directory: Path | None, manifest: Path | None) -> list[EvaluationPhoto]:
    from serving import bundle
    from trainer.dataset import labelled_photos

    if manifest:
        return labelled_photos.read_photos(labelled_photos.list_manifest(manifest))
    if directory:
        labels = bundle.read(candidate).metadata.labels
        return labelled_photos.read_photos(labelled_photos.list_directory(directory, labels))
    return []


def _table(found: Verdict) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "", "found", "limit", "")
    for check in found.checks:
        table.add_row(
            Text(check.name), _mark(check), _number(check.figure), _number(check.limit), Text(check.detail)
        )
    return table


def _mark(check: Check) -> str:
    return {True: "[green]yes[/green]", False: "[red]no[/red]", None: "-"}[check.passed]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
