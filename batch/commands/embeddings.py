"""`hubhead embeddings`: look after the embedding store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from serving.commands.main import FAILED
from serving.errors import InputError

if TYPE_CHECKING:
    from batch.embeddings.maintenance import MaintenanceResult, StoreSummary

_store = click.option(
    "--embedding_store",
    default="",
    show_default="embeddings below the cache directory",
    help="The store.",
)
_fingerprint = click.option(
    "--fingerprint",
    multiple=True,
    help="Only this backbone: the beginning of its fingerprint, as `list` shows it. May be repeated.",
)


@click.group(context_settings={"max_content_width": 100}, short_help="Look after the embedding store.")
def embeddings() -> None:
    """Look after the store of embeddings that training, scoring and rescoring share.

    All of these may run while photos are scored.
    """


@embeddings.command("list", context_settings={"show_default": True})
@_store
@click.option(
    "--models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory with bundles, at any depth: those of each backbone are listed. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(embedding_store: str, models: tuple[Path, ...], as_json: bool) -> None:
    """List the backbones in a store: rows, photos, files, bytes, and the bundles that use them."""
    from batch.embeddings import maintenance

    root = _root(embedding_store)
    users = _users(models)
    found = [maintenance.summarize(root, fingerprint) for fingerprint in maintenance.list_fingerprints(root)]
    if as_json:
        rows = [{**vars(one), "bundles": users.get(one.fingerprint, [])} for one in found]
        click.echo(json.dumps(rows, indent=2))
        return
    if not found:
        click.echo(f"No embeddings in {root}.")
    for one in found:
        click.echo(_describe(one))
        for path in users.get(one.fingerprint, []):
            click.echo(f"  used by {path}")


@embeddings.command(context_settings={"show_default": True})
@_store
@_fingerprint
@click.option(
    "--repair", is_flag=True, help="Remove what is wrong; its photos are embedded again when needed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    ctx: click.Context, embedding_store: str, fingerprint: tuple[str, ...], repair: bool, as_json: bool
) -> None:
    """Read every file: torn ones, other dimensions, contents twice, index entries without a row.

    The exit code is 1 where something is wrong and was not repaired.
    """
    from batch.embeddings import maintenance

    root = _root(embedding_store)
    found = [maintenance.check(root, one) for one in _chosen(root, fingerprint)]
    if as_json:
        click.echo(json.dumps([vars(one) for one in found], indent=2))
    for one in found if not as_json else ():
        click.echo(_describe(one))
        for name in one.torn:
            click.echo(f"  torn: {name}")
        for name in one.other_dimension:
            click.echo(f"  of another dimension: {name}")
        for number, what in (
            (one.duplicates, "rows twice"),
            (one.without_rows, "index entries without a row"),
        ):
            if number:
                click.echo(f"  {number} {what}")
    wrong = [one for one in found if one.needs_repair]
    if repair:
        for one in wrong:
            maintenance.repair(root, one)
        click.echo(f"{len(wrong)} backbones repaired", err=True)
    elif wrong:
        ctx.exit(FAILED)


@embeddings.command(context_settings={"show_default": True})
@_store
@_fingerprint
def compact(embedding_store: str, fingerprint: tuple[str, ...]) -> None:
    """Merge small files into large ones, each content once, in the order in which photos are scored.

    Killed at any point, nothing is lost.
    """
    from batch.embeddings import maintenance

    root = _root(embedding_store)
    for one in _chosen(root, fingerprint):
        changed = maintenance.compact(root, one)
        click.echo(f"{one[:12]}: {changed.files[0]} files became {changed.files[1]}; {_went(changed)}")


@embeddings.command(context_settings={"show_default": True})
@_store
@_fingerprint
@click.option("--gone", is_flag=True, help="Forget photos that are no longer there (on the local disk).")
@click.option(
    "--older_than", type=click.FloatRange(min=0), metavar="DAYS", help="Forget photos modified longer ago."
)
@click.option(
    "--keep",
    multiple=True,
    metavar="FINGERPRINT",
    help="Remove all backbones but this one. May be given several times.",
)
@click.option("--dry_run", is_flag=True, help="Only say what would go.")
def prune(
    embedding_store: str,
    fingerprint: tuple[str, ...],
    gone: bool,
    older_than: float | None,
    keep: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Remove embeddings that no photo refers to, after forgetting the photos that the options name.

    Files of the last hour stay, since a running job may be about to refer to them.
    """
    from batch.embeddings import maintenance

    root = _root(embedding_store)
    would = "would go" if dry_run else "went"
    chosen = _chosen(root, fingerprint)
    kept = _chosen(root, keep) if keep else chosen
    for one in chosen:
        if one not in kept:
            holdings = maintenance.summarize(root, one)
            if not dry_run:
                maintenance.delete_backbone(root, one)
            click.echo(f"{one[:12]}: all {holdings.rows} embeddings {would}")
            continue
        changed = maintenance.prune(root, one, gone=gone, older_than=older_than, dry_run=dry_run)
        click.echo(f"{one[:12]}: {_went(changed, would)}")


def _root(store: str) -> str:
    from batch.embeddings import default_root
    from serving.storage import files

    return files.absolute(store or default_root())


def _chosen(root: str, beginnings: tuple[str, ...]) -> list[str]:
    """The backbones of a store that are meant, all where none are named."""
    from batch.embeddings import maintenance

    there = maintenance.list_fingerprints(root)
    for beginning in beginnings:
        number = sum(one.startswith(beginning) for one in there)
        if number != 1:
            raise InputError(
                f"{number} backbones in {root} begin with {beginning!r}.",
                remedy="hubhead embeddings list shows them all.",
            )
    return [one for one in there if not beginnings or one.startswith(beginnings)]


def _users(models: tuple[Path, ...]) -> dict[str, list[str]]:
    """The bundles below some directories, by the fingerprint of their backbone."""
    from serving import bundle, contract
    from serving.errors import BundleError

    found: dict[str, list[str]] = {}
    for top in models:
        for path in sorted(top.rglob(contract.SAVED_MODEL_FILE)):
            try:
                metadata = bundle.read(path.parent).metadata
            except BundleError:
                continue
            found.setdefault(metadata.fingerprint, []).append(str(path.parent))
    return found


def _describe(one: StoreSummary) -> str:
    text = (
        f"{one.fingerprint}: {one.rows} embeddings of {one.dimension} in {one.files} files,"
        f" {one.photos} photos in {one.index_files} files, {one.size / 1e6:.1f} MB"
    )
    wrong: Any = len(one.torn) + len(one.other_dimension)
    return text + (f"; {wrong} files cannot be used" if wrong else "")


def _went(changed: MaintenanceResult, word: str = "went") -> str:
    return f"{changed.rows} embeddings and {changed.photos} index entries {word}"
