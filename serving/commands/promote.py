"""`hubhead promote` and `hubhead rollback`: which version answers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from serving.commands.target_options import open_target, target_change_flags

if TYPE_CHECKING:
    from serving.registry.promote import Change

_REASON = click.option("--reason", default="", help="Kept in the audit log.")
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


@click.command(
    short_help="Publish a blessed bundle and move a label to it.",
    epilog="\b\nExamples:\n"
    "  hubhead promote models/food/4 --model_base_path /srv/models/food\n"
    "  hubhead promote models/food/4 --label canary --model_base_path /srv/models/food \\\n"
    "      --model_config_file /srv/models/model.config --server localhost:8500\n"
    "  hubhead promote --model_version 4 --label stable --model_base_path /srv/models/food \\\n"
    "      --model_config_file /srv/models/model.config --server localhost:8500 --keep 3",
)
@click.argument("bundle", required=False)
@click.option(
    "--model_version", type=click.IntRange(min=1), help="A version that is there, in place of BUNDLE."
)
@click.option("--label", help="With --model_config_file: the label that moves; stable where none is given.")
@click.option("--force", is_flag=True, help="Also without a blessed verdict; the audit log says so.")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Then delete all but the newest N versions; never one that serves, has a label, or is the way back.",
)
@_REASON
@_JSON
@target_change_flags
def promote(
    bundle: str | None,
    model_version: int | None,
    label: str | None,
    force: bool,
    keep: int | None,
    reason: str,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make BUNDLE, or a version that is there, the one that callers get.

    BUNDLE is copied beside the versions and renamed to its number, so that no server sees half of it.
    It needs the verdict of hubhead validate (exit code 4 without; --force).

    Without --model_config_file a server follows the newest version: publishing is going live.

    With it, versions serve by number ("specific") and callers ask for labels (--label stable). First the
    new version joins the policy; with --server the command waits until it is AVAILABLE there; then the
    label moves; then versions without a label are let go of. Callers who name no label get the
    newest version that serves, a canary too, so let them all name one. A server that starts with labels
    needs --allow_version_labels_for_unavailable_models, and reads the file again only with
    --model_config_file_poll_wait_seconds; else give --reload. Without --server all is written at once:
    a server that polls the file moves the label when the version is loaded.

    Every change is a line of DIR/audit.jsonl.

    DIR, BUNDLE and FILE may be addresses of an object store, s3://... (extra s3) or gs://... (extra gs).
    There BUNDLE is uploaded aside, then copied to its number, saved_model.pb last, and counts once a record
    in DIR/.hubhead says that it is whole. What was cut off is gone on with by the same command.
    """
    from serving.client.canary import STABLE
    from serving.registry import promote as lifecycle
    from serving.registry.stores.download import fetch_bundle
    from serving.storage.address import parse_address

    if (bundle is None) == (model_version is None):
        raise click.UsageError("Give exactly one of BUNDLE and --model_version N.")
    if label and not flags["model_config_file"]:
        raise click.UsageError("--label needs --model_config_file: labels are part of it.")
    with (
        open_target(flags) as place,
        fetch_bundle(parse_address(bundle)) if bundle else nullcontext() as found,
    ):
        change = lifecycle.promote(
            place,
            source=found.path if found else None,
            origin=found.origin if found else None,
            version=model_version,
            label=label or STABLE,
            force=force,
            reason=reason,
            keep=keep,
        )
    _tell(change, as_json, polled=bool(place.config))


@click.command(
    short_help="Go back to the version before.",
    epilog="\b\nExamples:\n"
    "  hubhead rollback --model_base_path /srv/models/food\n"
    "  hubhead rollback --model_base_path /srv/models/food --model_config_file /srv/models/model.config \\\n"
    "      --server localhost:8500 --reason 'calls chard spinach'",
)
@click.option(
    "--label",
    help="With --model_config_file: the label that goes back; stable where none is given.",
)
@click.option("--to", type=click.IntRange(min=1), metavar="N", help="This version, not the one before.")
@_REASON
@_JSON
@target_change_flags
def rollback(label: str | None, to: int | None, reason: str, as_json: bool, **flags: Any) -> None:
    """Go back to the version that answered before.

    With --model_config_file the label returns to where the audit log says it was: that version joins
    the policy and is loaded, the label moves, and the version left behind is let go of. A
    canary on it returns too. --label canary alone brings the canary to the stable version.

    Without it the server follows the newest version, and only a newer one's absence makes it go back:
    the newest is moved to DIR/.withdrawn, where nothing is lost and its number is not used again. The
    server loads the version before, then lets go of the withdrawn one.

    No verdict is asked for: what is gone back to was live. A second rollback goes further back.
    """
    from serving.client.canary import STABLE
    from serving.registry import rollback as lifecycle

    if label and not flags["model_config_file"]:
        raise click.UsageError("--label needs --model_config_file: labels are part of it.")
    with open_target(flags) as place:
        change = lifecycle.rollback(place, label=label or STABLE, to=to, reason=reason)
    _tell(change, as_json, polled=bool(place.config))


def _tell(change: Change, as_json: bool, *, polled: bool) -> None:
    if as_json:
        click.echo(json.dumps(change.to_dict(), ensure_ascii=False))
        return
    what = f"{change.model}: {', '.join((change.label or 'live', *change.also))}"
    before = "" if change.old in (None, change.new) else f" (before: {change.old})"
    click.echo(f"{what} = version {change.new}{before}.")
    if change.removed:
        click.echo(f"Removed: version {', '.join(map(str, change.removed))}.")
    if not change.waited:
        how = "once it reads the file again" if polled else "once it looks at the directory"
        click.echo(f"No server was asked: it follows {how} (--server waits for it).", err=True)
