"""`hubhead embeddings`: inspect and maintain the embedding store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batch.commands.options import embedding_store_flag
from serving.commands.common.command import Group
from serving.commands.main import require_extra
from serving.commands.output import echo, is_quiet, say
from serving.contract import ENGINES
from serving.errors import ExitCode, InputError

if TYPE_CHECKING:
    from batch.embeddings.maintenance import MaintenanceResult, StoreSummary
    from batch.jobs.embedding_check import EngineComparison

_fingerprint = click.option(
    "--fingerprint",
    multiple=True,
    help="Select the backbone whose fingerprint begins with this text, as shown by `list`. Can be repeated.",
)


@click.group(
    cls=Group,
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Inspect and maintain the embedding store.",
)
def embeddings() -> None:
    """Inspect and maintain the embedding store that training, scoring and rescoring share.

    All sub-commands can run while photos are scored.
    """


@embeddings.command("list")
@embedding_store_flag
@click.option(
    "--models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory to search for bundles, at any depth. Lists the bundles that use each backbone; can be"
    " repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(embedding_store: str, models: tuple[Path, ...], as_json: bool) -> None:
    """List the backbones in a store.

    Shows the number of embeddings, photos and files, the size, and the bundles that use the backbone.
    """
    from batch.embeddings import maintenance

    root = _resolve_root(embedding_store)
    bundles = _find_bundles(models)
    found = [maintenance.summarize(root, fingerprint) for fingerprint in maintenance.list_fingerprints(root)]
    if as_json:
        rows = [{**vars(one), "bundles": bundles.get(one.fingerprint, [])} for one in found]
        echo(json.dumps(rows, indent=2))
        return
    if not found:
        echo(f"No embeddings in {root}.")
    for one in found:
        echo(_format_summary(one))
        for path in bundles.get(one.fingerprint, []):
            echo(f"  used by {path}")


@embeddings.command
@embedding_store_flag
@_fingerprint
@click.option(
    "--repair",
    is_flag=True,
    help="Remove damaged files and rows. Their photos are embedded again when they are needed.",
)
@click.option(
    "--against",
    type=click.Choice(ENGINES[1:]),
    help="Also embed a sample of the photos again with this engine, and compare. Needs --model.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="With --against: bundle whose backbone embedded the photos. Only its embeddings are checked.",
)
@click.option(
    "--sample", default=200, type=click.IntRange(min=1), help="With --against: number of photos to embed."
)
@click.option("--seed", default=0, help="With --against: random seed of the choice of photos.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    embedding_store: str,
    fingerprint: tuple[str, ...],
    repair: bool,
    against: str | None,
    model: Path | None,
    sample: int,
    seed: int,
    as_json: bool,
) -> None:
    """Check every file of a store for damage.

    Reports torn files, embeddings of another dimension, duplicate rows, and index entries without a row. With
    --against, stored embeddings are also compared with new ones. They may differ by rounding; the photos have
    to be readable still, and those that are not are counted.

    Exit codes: 0 no damage, or repaired; 1 damage found, or embeddings that differ by more than rounding.
    """
    from batch.embeddings import maintenance

    if (against is None) != (model is None):
        raise click.UsageError("--against ENGINE and --model BUNDLE go together.", ctx)
    if model and fingerprint:
        raise click.UsageError("--model names the backbone: remove --fingerprint.", ctx)
    root = _resolve_root(embedding_store)
    if model:
        fingerprint = (_read_fingerprint(model),)
    found = [maintenance.check(root, one) for one in _select_fingerprints(root, fingerprint)]
    compared = _compare(root, model, against, sample, seed) if model and against else None
    if as_json:
        added = {"against": vars(compared)} if compared else {}
        echo(json.dumps([vars(one) | added for one in found], indent=2))
    for one in found if not as_json else ():
        echo(_format_summary(one))
        defects = [f"torn: {name}" for name in one.torn]
        defects += [f"another dimension: {name}" for name in one.other_dimension]
        counts = {"duplicate rows": one.duplicates, "index entries without a row": one.without_rows}
        defects += [f"{number} {what}" for what, number in counts.items() if number]
        for defect in [*defects, *(_format_comparison(compared) if compared else ())]:
            echo(f"  {defect}")
    damaged = [one for one in found if one.needs_repair]
    if repair:
        for one in damaged:
            maintenance.repair(root, one)
        say(f"{len(damaged)} backbones repaired")
    if (damaged and not repair) or (compared and compared.failed):
        ctx.exit(ExitCode.FAILED)


@embeddings.command
@embedding_store_flag
@_fingerprint
def compact(embedding_store: str, fingerprint: tuple[str, ...]) -> None:
    """Merge small files into large ones.

    The merged files have no duplicates, and their rows are in the order in which photos are scored. Safe to
    kill at any point: no embedding is lost.
    """
    from batch.embeddings import maintenance

    root = _resolve_root(embedding_store)
    for one in _select_fingerprints(root, fingerprint):
        changed = maintenance.compact(root, one)
        echo(
            f"{one[:12]}: {changed.files[0]} files merged into {changed.files[1]}; {_format_removed(changed)}"
        )


@embeddings.command
@embedding_store_flag
@_fingerprint
@click.option("--gone", is_flag=True, help="Forget photos that no longer exist. Local files only.")
@click.option(
    "--older_than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Forget photos that were last modified more than this many days ago.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="FINGERPRINT",
    help="Remove the embeddings of all other backbones. Can be repeated to keep several.",
)
@click.option("--dry_run", is_flag=True, help="Print what would be removed, without removing it.")
def prune(
    embedding_store: str,
    fingerprint: tuple[str, ...],
    gone: bool,
    older_than: float | None,
    keep: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Remove embeddings that no photo refers to.

    The photos that the options select are forgotten first, which frees their embeddings. Files of the last
    hour are kept, since a running job may be about to refer to them.
    """
    from batch.embeddings import maintenance

    root = _resolve_root(embedding_store)
    verb = "would be removed" if dry_run else "removed"
    chosen = _select_fingerprints(root, fingerprint)
    kept = _select_fingerprints(root, keep) if keep else chosen
    for one in chosen:
        if one not in kept:
            contents = maintenance.summarize(root, one)
            if not dry_run:
                maintenance.delete_backbone(root, one)
            echo(f"{one[:12]}: all {contents.rows} embeddings {verb}")
            continue
        changed = maintenance.prune(root, one, gone=gone, older_than=older_than, dry_run=dry_run)
        echo(f"{one[:12]}: {_format_removed(changed, verb)}")


def _resolve_root(store: str) -> str:
    """Return the absolute path or address of the store; the default store unless one is given."""
    from batch.embeddings import default_root
    from serving.storage import files

    return files.absolute(store or default_root())


def _select_fingerprints(root: str, beginnings: tuple[str, ...]) -> list[str]:
    """Return the fingerprints in a store that begin with one of the texts; all if there are none.

    Raises:
        InputError: a text matches no fingerprint, or several.
    """
    from batch.embeddings import maintenance

    fingerprints = maintenance.list_fingerprints(root)
    for beginning in beginnings:
        number = sum(one.startswith(beginning) for one in fingerprints)
        if number != 1:
            raise InputError(
                f"{number} fingerprints in {root} begin with {beginning!r}; expected exactly one.",
                remedy="Run `hubhead embeddings list` to see all fingerprints.",
            )
    return [one for one in fingerprints if not beginnings or one.startswith(beginnings)]


def _read_fingerprint(model: Path) -> str:
    from serving import bundle

    return bundle.read(model).metadata.fingerprint


def _compare(root: str, model: Path, engine: str, sample: int, seed: int) -> EngineComparison:
    from batch.embeddings import EmbeddingStore
    from batch.jobs.embedding_check import compare_with_engine
    from batch.monitoring.progress import progress_bar
    from serving import bundle

    require_extra("serve", "tensorflow")
    chosen = bundle.read(model)
    store = EmbeddingStore(root, chosen.metadata.fingerprint, chosen.metadata.dimension)
    with progress_bar(not is_quiet()) as report:
        return compare_with_engine(store, chosen, engine, sample=sample, seed=seed, progress=report)


def _format_comparison(one: EngineComparison) -> list[str]:
    """Return lines about the embeddings of a sample of photos and those of an engine."""
    lines = [f"{one.compared} of {one.sampled} sampled photos compared with {one.engine} on {one.cpu}"]
    if one.numbers:
        lines.append(
            f"{one.equal / one.numbers:.2%} of {one.numbers} numbers are equal; largest difference"
            f" {one.largest_difference:.2g}, {one.largest_units} units in the last place of float16"
        )
    counts = {"can no longer be read": one.unreadable, "have changed since they were embedded": one.changed}
    lines += [f"{number} photos {what}" for what, number in counts.items() if number]
    for uris, what in ((one.other_status, "another status"), (one.beyond, "differences beyond rounding")):
        if uris:
            lines.append(f"{len(uris)} photos have {what}, such as {uris[0]}")
    if one.other_status or one.beyond:
        lines.append("To embed all photos again, delete the embeddings of this backbone.")
    return lines


def _find_bundles(directories: tuple[Path, ...]) -> dict[str, list[str]]:
    """Return the bundles below some directories, by the fingerprint of their backbone."""
    from serving import bundle, contract
    from serving.errors import BundleError

    found: dict[str, list[str]] = {}
    for top in directories:
        for path in sorted(top.rglob(contract.SAVED_MODEL_FILE)):
            try:
                metadata = bundle.read(path.parent).metadata
            except BundleError:  # some other SavedModel
                continue
            found.setdefault(metadata.fingerprint, []).append(str(path.parent))
    return found


def _format_summary(one: StoreSummary) -> str:
    text = (
        f"{one.fingerprint}: {one.rows} embeddings of dimension {one.dimension} in {one.files} files,"
        f" {one.photos} photos in {one.index_files} index files, {one.size / 1e6:.1f} MB"
    )
    damaged = len(one.torn) + len(one.other_dimension)
    return text + (f"; {damaged} files cannot be used" if damaged else "")


def _format_removed(changed: MaintenanceResult, verb: str = "removed") -> str:
    return f"{changed.rows} embeddings and {changed.photos} index entries {verb}"
