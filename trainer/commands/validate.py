"""The command `hubhead validate`: run the gate on a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import embedding_store_flag
from serving import contract
from serving.commands.common.command import Command
from serving.commands.main import require_extra
from serving.commands.output import Cell, echo, print_table
from serving.commands.server_options import (
    forbid_server_flags,
    option_group,
    pop_client_config,
    refuse,
    require_model_name,
    server_flags,
)
from serving.errors import GateRejected
from trainer.commands.options import say
from trainer.gate.thresholds import RegressionLimits, ServerLimits

if TYPE_CHECKING:
    from serving.client import ClientConfig
    from serving.registry.verdict import Check, Verdict
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

_SERVER_LIMITS = (
    ("min_label_agreement", "With --server: smallest fraction of the photos with the same label."),
    ("probability_tolerance", "With --server: largest difference of a probability."),
    (
        "embedding_tolerance",
        "With --server: largest distance of two embeddings of a photo, as a fraction of their length.",
    ),
)
"""Name and help of the flag for each attribute of ServerLimits."""

_server_options = option_group(
    *(
        click.option(f"--{flag}", flag, type=click.FloatRange(0, 1), default=limit.default, help=text)
        for limit, (flag, text) in zip(fields(ServerLimits), _SERVER_LIMITS, strict=True)
    ),
    click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="With --server: seconds to wait until the server answers and has loaded the version.",
    ),
)

_GATE_FLAGS = ("live", "model_config_file", "force", "embedding_store", *(flag for flag, _ in _LIMITS))
"""Flags of the gate, which a comparison with a server does not run."""

_limit_options = option_group(
    *(
        click.option(
            f"--{flag}",
            flag,
            type=click.IntRange(min=0) if isinstance(limit.default, int) else click.FloatRange(min=0),
            default=limit.default,
            help=text,
        )
        for limit, (flag, text) in zip(fields(RegressionLimits), _LIMITS, strict=True)
    )
)


@click.command(
    cls=Command,
    short_help="Check a bundle against the live version, and write the verdict into it.",
    epilog="\b\nExamples:\n"
    "  hubhead validate --bundle models/food/4 --live models/food/3 --photos held_out\n"
    "  hubhead validate --bundle models/food/1\n"
    "  hubhead validate --bundle models/food/4 --server gpu-host:8500 --model_name food --photos held_out",
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
@_server_options
@server_flags
@click.pass_context
def validate(
    context: click.Context,
    /,
    candidate: str,
    live: str | None,
    model_config_file: str | None,
    directory: str | None,
    manifest: str | None,
    embedding_store: str,
    force: bool,
    as_json: bool,
    **flags: Any,
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

    With --server no verdict is made. Instead the results of that server are compared with those of the bundle
    in float32 on this machine, on the same photos: labels, probabilities, embeddings and statuses. Use it to
    judge settings that change results, such as mixed precision, where they run. The server is asked for the
    version that the bundle's directory names, unless --model_version or --label is given.

    Exit code: 0 if the bundle is blessed or the server agrees, 4 if not.
    """
    if directory and manifest:
        raise click.UsageError("Give only one of --photos and --manifest.")
    if model_config_file and not live:
        raise click.UsageError("--model_config_file needs --live.")
    require_extra("train", "tensorflow", "pyarrow", "scipy")
    own_limits = ServerLimits(*(flags.pop(flag) for flag, _ in _SERVER_LIMITS))
    if (server := pop_client_config(flags)) is not None:
        refuse(context, _GATE_FLAGS, "cannot be combined with --server")
        place = directory or manifest
        _compare_with_server(candidate, require_model_name(server), place, own_limits, flags["wait"], as_json)
        return
    forbid_server_flags(context, "wait", *(flag for flag, _ in _SERVER_LIMITS))
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
            limits=RegressionLimits(*(flags[flag] for flag, _ in _LIMITS)),
            force=force,
            say=say,
        )
        new.write_back(contract.VERDICT_FILE)
    _report_verdict(found, candidate, as_json)


def _report_verdict(found: Verdict, candidate: str, as_json: bool) -> None:
    """Print a verdict.

    Raises:
        GateRejected: the bundle is not blessed.
    """
    from serving.registry.verdict import format_checks

    if as_json:
        echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _print_checks(found.checks)
        echo(f"{'Blessed' if found.blessed else 'Not blessed'}{', by force' if found.forced else ''}.")
    if not found.blessed:
        raise GateRejected(f"{candidate} is not blessed: {format_checks(found.failed)}.")


def _compare_with_server(
    candidate: str,
    server: ClientConfig,
    place: str | None,
    limits: ServerLimits,
    wait: float,
    as_json: bool,
) -> None:
    """Compare a server's results with those of its bundle, and print the checks.

    Raises:
        GateRejected: one of them failed.
    """
    from serving.registry.stores.download import fetch_bundle
    from serving.registry.verdict import format_checks
    from serving.storage.address import parse_address
    from trainer.gate.served import compare_with_server

    with fetch_bundle(parse_address(candidate), say) as local:
        photos = _list_photos(place, labels_matter=False)
        checks = compare_with_server(local.path, server, photos, limits, wait, say)
    failed = [check for check in checks if check.passed is False]
    target = server.target
    if as_json:
        record = {
            "agrees": not failed,
            "server": server.target,
            "checks": [asdict(check) for check in checks],
        }
        echo(json.dumps(record, ensure_ascii=False))
    else:
        _print_checks(checks)
    if failed:
        raise GateRejected(
            f"{target} does not give the results of {candidate}: {format_checks(failed)}.",
            remedy="Undo the setting of the server that changes them, or allow larger differences.",
        )


def _print_checks(checks: Sequence[Check]) -> None:
    print_table(("check", "passed", "figure", "limit", "details"), map(_format_check, checks))


def _resolve_live(address: Address, config: Address | None = None) -> Address | None:
    """Return the address of the live version; None if its directory has no version yet."""
    from serving.client.canary import STABLE
    from serving.registry.labels import resolve_label
    from serving.registry.stores.download import has_no_version

    if has_no_version(address):
        say(f"{address} has no version yet: the candidate is checked alone.")
        return None
    return resolve_label(address, config, STABLE) if config else address


def _list_photos(place: str | None, *, labels_matter: bool = True) -> Sequence[LabelledPhoto]:
    """Return the photos of a directory or manifest; entries that cannot be used are reported.

    Args:
        place: directory or manifest; None for no photos.
        labels_matter: False if photos without a label are used like the others, and need no mention.
    """
    from trainer.dataset import list_photos

    if not place:
        return ()
    listing = list_photos(place)
    for note in listing.notes if labels_matter else ():
        say(note)
    for path, reason in listing.left_out:
        say(f"{path} is left out: {reason}")
    return listing.photos


def _format_check(check: Check) -> tuple[Cell, ...]:
    passed: dict[bool | None, Cell] = {True: ("yes", "green"), False: ("no", "red"), None: "-"}
    figures = ("" if value is None else f"{value:.4g}" for value in (check.figure, check.limit))
    return check.name, passed[check.passed], *figures, check.detail
