"""The command `hubhead label`: label photos on a local page that asks for the most useful ones first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batch.commands.options import embedding_store_flag, open_models, text_option
from serving.commands.common.command import Command
from serving.commands.engine_option import engine_flag
from serving.commands.main import require_extra
from serving.commands.output import echo, is_quiet, say, warn
from serving.commands.server_options import option_group
from trainer.commands.backbone import complete_backbone

if TYPE_CHECKING:
    from trainer.labelling.session import LabellingSession

STRATEGIES = ("mixed", "uncertain", "diverse", "novel", "random", "suspects")
"""Values of trainer.labelling.types.Strategy, which is not imported for --help."""

_input_options = option_group(
    click.option(
        "--photos",
        multiple=True,
        metavar="DIR|FILE|PATTERN",
        help="Photos to label: a directory, a file, or a quoted pattern such as 'uploads/**/*.jpg'. Can be "
        "repeated.",
    ),
    text_option(
        "--manifest",
        metavar="FILE",
        help="Dataset manifest (.csv, .tsv, .jsonl or .parquet): photos without a label are to be labelled, "
        "the others are used as those of --image_dir.",
    ),
    text_option(
        "--scores",
        metavar="DIR",
        help="Output directory of hubhead score: label the photos that it scored, whose embeddings are in "
        "the store.",
    ),
    text_option(
        "--image_dir",
        metavar="DIRECTORY",
        help="Directory of photos that have labels, one directory per label: the head is fitted on them too, "
        "as by hubhead train --image_dir DIRECTORY --manifest labels.csv.",
    ),
    text_option(
        "--model",
        metavar="BUNDLE",
        help="Bundle whose labels are suggested until the answers suffice: a version's directory, or its "
        "parent for the newest version; also s3://, gs://.",
    ),
    text_option(
        "--labels",
        metavar="A,B,C",
        help="Labels to begin with, separated by commas, besides those of the model and of labelled photos. "
        "More can be added on the page.",
    ),
    click.option(
        "--tfhub_module",
        default="efficientnet_lite0",
        shell_complete=complete_backbone,
        help="Backbone if no --model is given: an alias, the directory of a SavedModel, or a TensorFlow Hub "
        "handle. Use the one that you train with.",
    ),
)

_session_options = option_group(
    click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        default=Path("labels.csv"),
        help="Dataset manifest to write the labels to. Its journal, <output>.journal, has every answer; the "
        "same command continues where it was.",
    ),
    click.option(
        "--strategy",
        type=click.Choice(STRATEGIES),
        default="mixed",
        help="Order of the photos: uncertain and diverse ones (mixed), the least certain ones, diverse ones, "
        "those unlike the known photos, random ones, or labels of --image_dir that may be wrong "
        "(suspects).",
    ),
    click.option(
        "--test_percentage",
        type=click.FloatRange(0, 90),
        default=10.0,
        help="Percentage of the labels that go to random photos, which are marked as the test set. They give "
        "the accuracy on the page.",
    ),
    click.option(
        "--near_threshold",
        type=click.FloatRange(0, min_open=True),
        default=0.93,
        help="Cosine similarity of embeddings from which a photo is not asked for beside an answered one; "
        "above 1 to ask for all.",
    ),
    text_option("--by", metavar="NAME", show_default="your user name", help="Name for the column by."),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed of the order."),
)

_page_options = option_group(
    click.option("--host", default="127.0.0.1", help="Address to listen on."),
    click.option(
        "--port", type=click.IntRange(0, 65535), default=0, show_default="a free one", help="TCP port."
    ),
    click.option(
        "--tls_cert",
        type=click.Path(dir_okay=False, path_type=Path),
        help="PEM file of the certificate, for a --host that other machines reach.",
    ),
    click.option(
        "--tls_key",
        type=click.Path(dir_okay=False, path_type=Path),
        help="PEM file of its private key.",
    ),
    click.option(
        "--insecure",
        is_flag=True,
        help="Listen without TLS on an address that other machines reach: everybody on the way can read the "
        "photos and change the answers.",
    ),
    click.option("--no_browser", is_flag=True, help="Print the address without opening a browser."),
)


@click.command(
    cls=Command,
    short_help="Label photos on a local page, the most useful ones first.",
    epilog="\b\nExamples:\n"
    "  hubhead label --photos uploads --labels pizza,soup,sushi\n"
    "  hubhead label --photos uploads --image_dir food_images --model models/food\n"
    "  hubhead train --image_dir food_images --manifest labels.csv",
)
@_input_options
@_session_options
@_page_options
@embedding_store_flag
@engine_flag
def label(
    photos: tuple[str, ...],
    manifest: str,
    scores: str,
    image_dir: str,
    model: str,
    strategy: str,
    no_browser: bool,
    **given: Any,
) -> None:
    """Label photos on a page that asks for those first from which the head learns the most.

    The head is fitted again on all answers while you label, and the page shows its accuracy on random photos.
    Every answer is synced to disk at once. Ctrl-C ends the page; the same command continues.
    """
    require_extra("train", "tensorflow", "tensorflow_hub", "apache_beam", "pyarrow", "scipy")
    if not (photos or manifest or scores) and not (strategy == "suspects" and image_dir):
        raise click.UsageError(
            "Give photos to label with --photos, --manifest or --scores, or --strategy suspects --image_dir."
        )
    from trainer.labelling.access import PageSettings
    from trainer.labelling.app import LabellingServer
    from trainer.labelling.redirect import redirect_file

    page = PageSettings(given["host"], given["port"], given["tls_cert"], given["tls_key"], given["insecure"])
    with open_models([model] if model else []) as found:
        source = (photos, manifest, scores, image_dir, found[0] if found else None)
        session = _open(source, strategy, given)
        try:
            with LabellingServer(session, page) as server, ExitStack() as stack:
                _announce(session, server.url, page)
                if not no_browser and page.is_local and _has_display():
                    webbrowser.open(stack.enter_context(redirect_file(server.url)).as_uri())
                _wait_until_signalled()
        finally:
            session.close()
    state = session.state()
    echo(f"{state.labelled} labels in {state.output}.")


def _open(source: tuple[Any, ...], strategy: str, given: dict[str, Any]) -> LabellingSession:
    """Open the session, with a progress bar while photos are embedded."""
    from batch.embeddings import default_root
    from batch.monitoring.progress import progress_bar
    from trainer.labelling.opening import LabellingInput, open_session
    from trainer.labelling.settings import SessionSettings
    from trainer.labelling.types import Strategy
    from trainer.training.config import EmbeddingSettings
    from trainer.training.steps import Reporter

    names = [name.strip() for name in given["labels"].split(",")]
    settings = SessionSettings(
        labels=tuple(name for name in names if name),
        strategy=Strategy(strategy),
        test_percentage=given["test_percentage"],
        near_threshold=given["near_threshold"],
        seed=given["seed"],
        **({"by": given["by"]} if given["by"] else {}),
    )
    embedding = EmbeddingSettings(
        tfhub_module=given["tfhub_module"],
        embedding_store=given["embedding_store"] or default_root(),
        engine=given["engine"],
    )
    with progress_bar(not is_quiet()) as report:
        return open_session(
            LabellingInput(*source), given["output"], settings, embedding, Reporter(say, report)
        )


def _announce(session: LabellingSession, url: str, page: Any) -> None:
    """Print the address of the page."""
    state = session.state()
    if state.labelled or state.none_of_these:
        say(f"Continuing with {state.labelled} labels in {state.output}.")
    if exposure := page.describe_exposure():
        warn(exposure)
    echo(f"{state.remaining} photos to label at {url} (Ctrl-C ends)")


def _has_display() -> bool:
    """Return whether a browser with a window can be opened; one in the terminal would hide the output."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _wait_until_signalled() -> None:
    """Wait for SIGINT or SIGTERM, either of which ends the page as intended."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
