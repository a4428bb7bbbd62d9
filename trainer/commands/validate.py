"""The command `hubhead validate`: run the gate on a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import embedding_store_flag
from serving import contract
from serving.commands.main import require_extra
from serving.commands.output import Cell, echo, print_table
from serving.commands.server_options import option_group
from serving.errors import GateRejected
from trainer.commands.options import say
from trainer.gate.thresholds import RegressionLimits

if TYPE_CHECKING:
    from serving.registry.verdict import Check
    from serving.storage.address import Address
    from trainer.dataset import LabelledPhoto

_LIMITS = (
    (
        "accuracy_tolerance",
        "Largest decrease of the accuracy; 0.02 is two percentage points. The check fails if the "
        "decrease is larger with 95 % confidence.",
    ),
    ("label_tolerance", "Largest decrease of the recall of a label; 0.1 is ten percentage points."),
    (
        "min_label_photos",
        "Number of photos from which the recall of a label is checked; with fewer it is only shown.",
    ),
    ("log_loss_tolerance", "Largest increase of the log-loss, in nats."),
    ("calibration_tolerance", "Largest increase of the expected calibration error."),
    ("max_latency_ratio", "Largest time per photo, as a multiple of that of the live version."),
    ("max_size_ratio", "Largest size on disk, as a multiple of that of the live version."),
    (
        "min_photos",
        "Number of photos that both versions must be compared on; with fewer the bundle is not blessed.",
    ),
)
"""Name and help of the flag for each attribute of RegressionLimits."""

_limit_options = option_group(
    *(
        click.option(
            f"--{flag}",
            limit.name,
            type=click.IntRange(min=0) if isinstance(limit.default, int) else click.FloatRange(min=0),
            default=limit.default,
            help=text,
        )
        for limit, (flag, text) in zip(fields(RegressionLimits), _LIMITS, strict=True)
    )
)


@click.command(
    short_help="Check a bundle against the live version, and write the verdict into it.",
    epilog="\b\nExamples:\n"
    "  hubhead validate --bundle models/food/4 --live models/food/3 --photos held_out\n"
    "  hubhead validate --bundle models/food/1",
)
@click.option(
    "--bundle",
    "candidate",
    required=True,
    metavar="DIR",
    help="Candidate: a version such as models/food/4, or models/food for its newest version. Addresses of "
    "s3:// and gs:// work too.",
)
@click.option(
    "--live",
    metavar="DIR",
    help="Live version to compare with, or the directory above the versions for the newest one. Without it, "
    "or if that directory has no version yet, the candidate is checked alone.",
)
@click.option(
    "--model_config_file",
    metavar="FILE",
    help="model.config of the servers, a path or an address: compare with the version labelled stable in it "
    "instead of the newest version below --live. Use it if the newest may be a canary or was rolled back.",
)
@click.option(
    "--photos",
    "directory",
    metavar="DIR",
    help="Directory of photos for the checks, with one directory per label as for hubhead train. Both "
    "versions are compared on the labelled ones, in addition to the candidate's test photos.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    help="Dataset manifest to use instead of --photos, in any format of hubhead train; labels are optional.",
)
@embedding_store_flag
@_limit_options
@click.option("--force", is_flag=True, help="Bless the bundle even if checks fail; the verdict records that.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON on stdout.")
def validate(
    candidate: str,
    live: str | None,
    model_config_file: str | None,
    directory: str | None,
    manifest: str | None,
    embedding_store: str,
    force: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Check whether a bundle may go live, and write the verdict into it.

    The bundle must load in TensorFlow Serving's loader and in the local server, have all signatures,
    warm up, reject invalid photos, and give the same results by every inference path. With --live it
    is compared with the live version on photos that neither was trained on, those of the candidate's
    test set and of --photos: accuracy, recall of each label, log-loss and calibration; and by time per
    photo and size on disk. Added and removed labels are listed. A figure fails only if it is worse by
    more than its tolerance with 95 % confidence; if there are too few photos to tell, the verdict
    states how many are needed. Without common photos the recorded accuracies are compared.

    The verdict contains every check with its figure and its limit. It is written to
    assets.extra/verdict.json of the bundle and is valid for this content only; hubhead promote
    requires it.

    Exit code: 0 if the bundle is blessed, 4 if it is not.
    """
    if directory and manifest:
        raise click.UsageError("Give only one of --photos and --manifest.")
    if model_config_file and not live:
        raise click.UsageError("--model_config_file needs --live.")
    require_extra("train", "tensorflow", "pyarrow", "scipy")
    from serving.registry.stores.download import fetch_bundle
    from serving.storage.address import parse_address
    from trainer.gate import gate

    config = parse_address(model_config_file) if model_config_file else None
    served = _resolve_live(parse_address(live), config) if live else None
    with (
        fetch_bundle(parse_address(candidate), say) as new,
        fetch_bundle(served, say) if served else nullcontext() as old,
    ):
        found = gate.validate(
            new.path,
            live=old.path if old else None,
            live_origin=old.origin if old else None,
            photos=_list_photos(directory or manifest),
            embedding_store=embedding_store,
            limits=RegressionLimits(**limits),
            force=force,
            say=say,
        )
        new.write_back(contract.VERDICT_FILE)
    if as_json:
        echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print_table(("check", "passed", "figure", "limit", "details"), map(_format_check, found.checks))
        echo(f"{'Blessed' if found.blessed else 'Not blessed'}{', by force' if found.forced else ''}.")
    if not found.blessed:
        from serving.registry.verdict import format_checks

        raise GateRejected(f"{candidate} is not blessed: {format_checks(found.failed)}.")


def _resolve_live(address: Address, config: Address | None = None) -> Address | None:
    """Return the address of the live version; None if its directory has no version yet."""
    from serving.client.canary import STABLE
    from serving.registry.labels import resolve_label
    from serving.registry.stores.download import has_no_version

    if has_no_version(address):
        say(f"{address} has no version yet: the candidate is checked alone.")
        return None
    return resolve_label(address, config, STABLE) if config else address


def _list_photos(place: str | None) -> Sequence[LabelledPhoto]:
    """Return the photos of a directory or manifest; entries that cannot be used are reported."""
    from trainer.dataset import list_photos

    if not place:
        return ()
    listing = list_photos(place)
    for note in listing.notes:
        say(note)
    for path, reason in listing.left_out:
        say(f"{path} is left out: {reason}")
    return listing.photos


def _format_check(check: Check) -> tuple[Cell, ...]:
    passed: dict[bool | None, Cell] = {True: ("yes", "green"), False: ("no", "red"), None: "-"}
    figures = ("" if value is None else f"{value:.4g}" for value in (check.figure, check.limit))
    return check.name, passed[check.passed], *figures, check.detail
