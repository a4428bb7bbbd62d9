"""The command `hubhead compare`: compare two served versions on the same photos."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.common.completers import complete_label
from serving.commands.output import echo, print_table
from serving.commands.server_options import connection_flags, pop_required_client_config

if TYPE_CHECKING:
    from serving.client import Client, ClientConfig
    from serving.contract import Prediction
    from serving.registry.agreement import Agreement

_MAX_ROWS = 20
"""Disagreements shown in the table; --json lists all."""


@click.command(
    cls=Command,
    short_help="Compare two served versions on the same photos.",
    epilog="\b\nExamples:\n"
    "  hubhead compare stable canary --server localhost:8500 --model_name food --photos uploads\n"
    "  hubhead compare 3 4 --server localhost:8500 --model_name food --photos 'uploads/*.jpg' --json",
)
@click.argument("first", shell_complete=complete_label)
@click.argument("second", shell_complete=complete_label)
@click.option(
    "--photos",
    multiple=True,
    required=True,
    metavar="DIR|FILE|PATTERN",
    help="Photos to classify: a directory, a dataset manifest, a file, or a pattern such as "
    "'uploads/**/*.jpg'. Can be repeated.",
)
@click.option(
    "--min_agreement",
    type=click.FloatRange(0, 1),
    help="Smallest accepted fraction of photos on which the versions agree; below it the exit code is 4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@connection_flags
def compare(
    first: str,
    second: str,
    photos: tuple[str, ...],
    min_agreement: float | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Classify the same photos with versions FIRST and SECOND of a served model.

    FIRST and SECOND are version labels or version numbers. Prints the fraction of photos on which they
    agree, the mean change of the score, and the photos on which they disagree.
    """
    from serving.errors import GateRejected
    from serving.registry import agreement

    server = pop_required_client_config(flags)
    names = _list_files(photos)
    with _client_for(server, first) as one, _client_for(server, second) as two:
        found = agreement.measure_agreement(agreement.classify_with_both(one, two, names))
    if as_json:
        echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _print_agreement(found, first, second)
    if min_agreement is not None and found.rate < min_agreement:
        raise GateRejected(f"{first} and {second} agree on {found.rate:.1%}, less than {min_agreement:.1%}.")


def _client_for(server: ClientConfig, name: str) -> Client:
    from serving.client import Client

    chosen: dict[str, Any] = {"version": int(name)} if name.isdecimal() else {"label": name}
    return Client(replace(server, **chosen))


def _list_files(photos: tuple[str, ...]) -> list[str]:
    from batch.inputs.listing import find_photos
    from batch.inputs.manifest import is_manifest
    from trainer.dataset import list_photos

    found: list[str] = []
    for place in photos:
        if is_manifest(place):
            found += [listed.photo.uri for listed in list_photos(place).photos]
        else:
            found += [photo.uri for photo in find_photos(place)]
    return found


def _print_agreement(found: Agreement, first: str, second: str) -> None:
    versions = [", ".join(map(str, numbers)) or "?" for numbers in found.versions]
    echo(f"{first}: version {versions[0]}; {second}: version {versions[1]}.")
    echo(
        f"They agree on {found.agreeing} of {found.compared} photos ({found.rate:.1%}); the best probability "
        f"changes by {found.score_change:+.3f} on average."
    )
    rejected = found.photos - found.compared - found.statuses_differ
    if rejected or found.statuses_differ:
        echo(f"Rejected by both: {rejected}; by one only: {found.statuses_differ}.")
    if found.disagreements:
        shown = found.disagreements[:_MAX_ROWS]
        rows = ((photo, _format_prediction(one), _format_prediction(two)) for photo, one, two in shown)
        print_table(("photo", first, second), rows)
    if len(found.disagreements) > _MAX_ROWS:
        echo(f"And {len(found.disagreements) - _MAX_ROWS} more; --json lists all.")


def _format_prediction(prediction: Prediction) -> str:
    if not prediction.status.usable:
        return prediction.status.value
    return f"{prediction.label or 'none of these'} {prediction.score or 0:.2f}"
