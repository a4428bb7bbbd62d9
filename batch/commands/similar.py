"""`hubhead similar`: the nearest photos to a photo, and clusters of photos without labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import embedding_store_flag, open_models, text_option
from serving.commands.common.command import Command
from serving.commands.main import require_extra
from serving.commands.output import echo, is_quiet, print_table, say

if TYPE_CHECKING:
    from batch.jobs.similar import Cluster, SimilaritySearch, SimilarPhoto

FORMATS = (".html", ".csv")
"""Endings of --output."""


@click.command(
    cls=Command,
    context_settings={"show_default": True, "max_content_width": 100},
    short_help="Find the photos that are similar to a photo, or clusters.",
    epilog="""\b
Examples:
  hubhead similar photo.jpg --scores scores
  hubhead similar photo.jpg --photos uploads --model models/food --output similar.html
  hubhead similar --label_with cluster --photos uploads --model models/food --output clusters.html
""",
)
@click.argument("photo", required=False)
@text_option(
    "--scores",
    metavar="DIR",
    help="Search among the photos in this output directory of hubhead score or rescore. No photo is read.",
)
@text_option(
    "--photos",
    help="Search among these photos: a file, a directory or a quoted glob. New ones are embedded first, by"
    " the backbone of --model.",
)
@text_option(
    "--model",
    metavar="DIR",
    help="Bundle whose backbone embeds photos that have no embedding yet; also s3://, gs://.",
)
@embedding_store_flag
@click.option("--count", type=click.IntRange(min=1), default=20, help="Number of photos to find.")
@click.option(
    "--label_with",
    type=click.Choice(["cluster"]),
    help="Group the photos into clusters instead, as a start where no label exists.",
)
@click.option(
    "--clusters",
    type=click.IntRange(min=2),
    default=20,
    help="With --label_with cluster: number of clusters.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="With --label_with cluster: random seed of the centres.",
)
@click.option(
    "--output",
    default="",
    show_default="stdout",
    metavar="FILE",
    help="File to write instead of a table: a page of thumbnails (.html), or a table (.csv) with a row per"
    " photo.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def similar(
    ctx: click.Context,
    /,
    photo: str | None,
    label_with: str | None,
    output: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the photos whose embeddings are nearest to that of PHOTO.

    The search is exact: the cosine with every photo is computed. The first search in a store writes an index
    beside the embeddings, as large as these; later ones add to it what is new.

    With --label_with cluster there is no PHOTO, and the photos are grouped by their embeddings. The CSV file
    is a dataset manifest: give the clusters names of labels, and train.
    """
    require_extra("batch", "pyarrow")
    if bool(given["scores"]) == bool(given["photos"]):
        raise click.UsageError("Give one of --scores and --photos.", ctx)
    if (photo is None) != (label_with == "cluster"):
        raise click.UsageError("Give a PHOTO, or --label_with cluster without one.", ctx)
    if output and not output.lower().endswith(FORMATS):
        raise click.UsageError(f"--output {output}: the name has to end in {' or '.join(FORMATS)}.", ctx)
    if output and as_json:
        raise click.UsageError("--json prints on stdout: remove --output.", ctx)
    # Imported here, so that --help stays fast.
    from batch.embeddings import default_root
    from batch.jobs.similar import SimilaritySearch, SimilarSettings
    from batch.monitoring.progress import progress_bar
    from serving.storage import files

    models = [given["model"]] if given["model"] else []
    with open_models(models) as paths, progress_bar(not is_quiet()) as report:
        settings = SimilarSettings(
            store_root=given["embedding_store"] or default_root(),
            scores=given["scores"],
            photos=given["photos"],
            model=paths[0] if paths else None,
        )
        search = SimilaritySearch.open(settings, report, say)
        source = settings.scores or settings.photos
        if photo is not None:
            content = _find_similar(search, photo, source, given["count"], output, as_json=as_json)
        else:
            found = search.find_clusters(given["clusters"], given["seed"])
            content = _show_clusters(found, source, output, as_json=as_json)
    if output:
        files.write(files.absolute(output), content)
        say(f"Written to {output}")


def _find_similar(
    search: SimilaritySearch, photo: str, source: str, count: int, output: str, *, as_json: bool
) -> bytes:
    """Find the nearest photos; return the content of the output file, or print them if there is none."""
    from serving.storage import files

    found = search.find_similar(photo, count)
    if output.lower().endswith(".html"):
        from batch.report.similar import build_similar

        return build_similar(files.absolute(photo), source, [(one.uri, one.similarity) for one in found])
    if output:
        return _format_csv(("uri", "similarity"), [(one.uri, f"{one.similarity:.6f}") for one in found])
    if as_json:
        nearest = [_to_dict(one) for one in found]
        echo(json.dumps({"photo": files.absolute(photo), "nearest": nearest}, ensure_ascii=False, indent=2))
    else:
        print_table(("similarity", "photo"), [(f"{one.similarity:.3f}", one.uri) for one in found])
    return b""


def _show_clusters(found: Sequence[Cluster], source: str, output: str, *, as_json: bool) -> bytes:
    """Return the content of the output file of clusters, or print them if there is none."""
    from batch.jobs.similar import CLUSTER_SAMPLES

    if output.lower().endswith(".html"):
        from batch.report.similar import build_clusters

        return build_clusters(
            source,
            [
                (
                    cluster.label,
                    len(cluster.photos),
                    [(one.uri, one.similarity) for one in cluster.photos[:CLUSTER_SAMPLES]],
                )
                for cluster in found
            ],
        )
    if output:
        rows = [
            (one.uri, cluster.label, f"{one.similarity:.6f}") for cluster in found for one in cluster.photos
        ]
        return _format_csv(("uri", "label", "similarity"), rows)
    total = sum(len(cluster.photos) for cluster in found)
    if as_json:
        shown = [
            {
                "label": cluster.label,
                "photos": len(cluster.photos),
                "samples": [_to_dict(one) for one in cluster.photos[:CLUSTER_SAMPLES]],
            }
            for cluster in found
        ]
        echo(json.dumps({"photos": total, "clusters": shown}, ensure_ascii=False, indent=2))
    else:
        print_table(
            ("cluster", "photos", "share", "nearest to the centre"),
            [
                (
                    cluster.label,
                    f"{len(cluster.photos):,}",
                    f"{len(cluster.photos) / total:.1%}",
                    cluster.photos[0].uri,
                )
                for cluster in found
            ],
        )
    return b""


def _to_dict(one: SimilarPhoto) -> dict[str, object]:
    return {"uri": one.uri, "sha256": one.sha256, "similarity": round(one.similarity, 6)}


def _format_csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue().encode("utf-8", "surrogateescape")
