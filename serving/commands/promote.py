"""`hubhead promote` and `hubhead rollback`: change the live version or move a version label."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from serving.commands.common.command import Command
from serving.commands.common.completers import complete_directory, complete_label, complete_version
from serving.commands.output import echo, say
from serving.commands.target_options import open_target, target_change_flags

if TYPE_CHECKING:
    from serving.registry.promote import Change

_REASON = click.option(
    "--reason", default="", show_default=False, help="Reason of the change, recorded in the audit log."
)
_OPERATION = click.option(
    "--operation_id",
    metavar="ID",
    default="",
    show_default=False,
    help="Identifier of this change, such as the name and UID of a Job. Repeating the command with it "
    "completes an interrupted change, and never makes the change twice.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.command(
    cls=Command,
    short_help="Publish a validated bundle and make it live, or move a label to it.",
    epilog="\b\nExamples:\n"
    "  hubhead promote models/food/4 --model_base_path /srv/models/food\n"
    "  hubhead promote models/food/4 --label canary --model_base_path /srv/models/food \\\n"
    "      --model_config_file /srv/models/model.config --server localhost:8500\n"
    "  hubhead promote --model_version 4 --label stable --model_base_path /srv/models/food \\\n"
    "      --model_config_file /srv/models/model.config --server localhost:8500 --keep 3",
)
@click.argument("bundle", required=False, shell_complete=complete_directory)
@click.option(
    "--model_version",
    type=click.IntRange(min=1),
    shell_complete=complete_version,
    help="Number of a version that is already published, to use instead of BUNDLE.",
)
@click.option(
    "--label",
    shell_complete=complete_label,
    help="With --model_config_file: version label to move.  [default: stable]",
)
@click.option(
    "--force",
    is_flag=True,
    help="Promote a version whose verdict is not blessed. The audit log records it.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Delete all but the newest N versions afterwards. Versions that are served, have a label, or are "
    "needed for a rollback are never deleted.",
)
@_REASON
@_OPERATION
@_JSON
@target_change_flags
def promote(
    bundle: str | None,
    model_version: int | None,
    label: str | None,
    force: bool,
    keep: int | None,
    reason: str,
    operation_id: str,
    as_json: bool,
    **flags: Any,
) -> None:
    """Publish BUNDLE and make it the live version, or move a version label to it.

    BUNDLE is copied next to the existing versions and then renamed to its number, so that no server loads
    half of it. It needs a blessed verdict of hubhead validate; without one the command exits with 4.

    Without --model_config_file, a server serves the newest version: publishing makes it live.

    With --model_config_file, versions are served by number ("specific") and requests name a label
    (--label stable). The new version is added to the configuration; with --server the command waits until
    it is AVAILABLE; then the label moves, and versions without a label are unloaded. Requests that name
    no label get the newest version that is served, which may be a canary: let all of them name one.

    A server that starts with labels needs --allow_version_labels_for_unavailable_models. It reads a changed
    file only with --model_config_file_poll_wait_seconds; otherwise give --reload. Without --server, all
    changes are written at once, and a server that polls the file moves the label once the version is
    loaded.

    Every change is recorded in DIR/audit.jsonl. An interrupted promotion is completed by the same command.

    DIR, BUNDLE and FILE may be on an object store: s3://... (extra s3) or gs://... (extra gs).
    """
    from serving.client.canary import STABLE
    from serving.registry import promote as registry
    from serving.registry.stores.download import fetch_bundle
    from serving.storage.address import parse_address

    if (bundle is None) == (model_version is None):
        raise click.UsageError("Give exactly one of BUNDLE and --model_version N.")
    with (
        open_target(flags, label) as target,
        fetch_bundle(parse_address(bundle)) if bundle else nullcontext() as local,
    ):
        change = registry.promote(
            target,
            source=local,
            version=model_version,
            label=label or STABLE,
            force=force,
            reason=reason,
            keep=keep,
            operation=operation_id,
        )
    _print_change(change, as_json, polled=bool(target.config))


@click.command(
    cls=Command,
    short_help="Return to the previous version.",
    epilog="\b\nExamples:\n"
    "  hubhead rollback --model_base_path /srv/models/food\n"
    "  hubhead rollback --model_base_path /srv/models/food --model_config_file /srv/models/model.config \\\n"
    "      --server localhost:8500 --reason 'calls chard spinach'",
)
@click.option(
    "--label",
    shell_complete=complete_label,
    help="With --model_config_file: version label to move back.  [default: stable]",
)
@click.option(
    "--to",
    type=click.IntRange(min=1),
    metavar="N",
    shell_complete=complete_version,
    help="Version to return to.  [default: the previous version]",
)
@_REASON
@_OPERATION
@_JSON
@target_change_flags
def rollback(
    label: str | None, to: int | None, reason: str, operation_id: str, as_json: bool, **flags: Any
) -> None:
    """Return to the previous version.

    With --model_config_file, the label returns to its previous version according to the audit log: that
    version is loaded, the label moves, and the version it leaves is unloaded. If the label is stable,
    other labels on that version move along; --label canary moves the canary label alone, to the stable
    version.

    Without --model_config_file, the server serves the newest version. So the newest version is moved to
    DIR/.withdrawn, where it is kept; its number is not used again. The server loads the previous version
    before it unloads the withdrawn one.

    The verdict is not checked, since the version was live before. A second rollback goes one version further
    back. The same command after an interruption only completes the rollback.
    """
    from serving.client.canary import STABLE
    from serving.registry import rollback as registry

    with open_target(flags, label) as target:
        change = registry.rollback(
            target, label=label or STABLE, to=to, reason=reason, operation=operation_id
        )
    _print_change(change, as_json, polled=bool(target.config))


def _print_change(change: Change, as_json: bool, *, polled: bool) -> None:
    if as_json:
        echo(json.dumps(change.to_dict(), ensure_ascii=False))
        return
    labels = ", ".join((change.label or "live", *change.also))
    previous = "" if change.old in (None, change.new) else f" (previously {change.old})"
    echo(f"{change.model}: {labels} = version {change.new}{previous}.")
    if change.removed:
        echo(f"Deleted: version {', '.join(map(str, change.removed))}.")
    if not change.waited:
        when = "when it next polls its configuration file" if polled else "when it next polls the directory"
        say(f"No server was contacted: it applies the change {when}. --server waits for it.")
