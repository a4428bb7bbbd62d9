"""Take the pictures of the documents: `python -m tests.support.pictures [NAME ...]`.

A model is trained and photos are scored for the pictures, on photos that are drawn here: nobody else's photos
are in them. The pictures show what the commands really wrote.

    terminal        `hubhead train` at work
    report          report.html of the training
    scoring_report  report.html of the scoring
    demo_page       page of `hubhead serve`, with a drawn apple
    label_page      page of `hubhead label` after some answers
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from tests.support.browser import Browser
from tests.support.drawings import FRUIT, draw_fruit, write_dataset
from tests.support.label_command import answer_shown, run_label, wait_for_labels
from tests.support.pictures import terminal
from tests.support.repository import REPO

DIRECTORY = REPO / "docs" / "pictures"
LARGEST = 250_000
"""Largest size of a picture in bytes."""

PER_LABEL, UPLOADS_PER_LABEL, EARLIER_PER_LABEL = 60, 20, 12
WIDTH, HEIGHT = 1120, 1000
LABELS = 45
"""Labels that are given before the picture of the labelling page is taken."""

LABEL_SIZE = (1280, 800)


@dataclass(frozen=True)
class Studio:
    """Files that the pictures are of, and the browser that takes them.

    Attributes:
        top: directory with the photos, the model and the scores.
        browser: browser.
    """

    top: Path
    browser: Browser

    @property
    def training_report(self) -> str:
        """URL of the report of the training."""
        return (self.top / "models/fruit/1/assets.extra/report.html").as_uri()

    @property
    def scoring_report(self) -> str:
        """URL of the report of the scoring."""
        return (self.top / "scores/report.html").as_uri()

    def hubhead(self, *arguments: str) -> None:
        """Run a command in the directory."""
        command = [sys.executable, "-c", "import hubhead; hubhead.main()", *arguments]
        subprocess.run(
            command,
            cwd=self.top,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    def photograph(self, url: str, width: int = WIDTH, height: int | None = HEIGHT) -> bytes:
        """Return a PNG of a page; of its whole height without one."""
        self.browser.set_screen(width, height or 1000)
        self.browser.open(url)
        if height is None:
            self.browser.evaluate("[...document.images].forEach(image => { image.loading = 'eager'; })")
            whole = self.browser.evaluate("document.documentElement.scrollHeight")
            self.browser.set_screen(width, min(whole, 16_000))
        self.browser.wait_for(
            "[...document.images].every(image => image.loading === 'lazy' || image.complete)"
        )
        return self.browser.screenshot()


def train(studio: Studio) -> list[str]:
    """Train on drawn photos in a terminal; return its lines."""
    write_dataset(studio.top / "fruit", PER_LABEL)
    arguments = ["train", "--image_dir", "fruit", "--embedding_store", "store", "--cross_validate", "5"]
    return terminal.run(arguments, studio.top)


def score(studio: Studio) -> None:
    """Score drawn photos twice, the second time with more of them, and with broken ones."""
    uploads = studio.top / "uploads"
    flags = (
        "--photos",
        "uploads",
        "--model",
        "models/fruit",
        "--output",
        "scores",
        "--embedding_store",
        "store",
    )
    write_dataset(uploads, EARLIER_PER_LABEL, first=1000, by_label=False)
    studio.hubhead("score", *flags, "--run_id", "2026-11-29", "--only_new")
    write_dataset(uploads, UPLOADS_PER_LABEL, first=2000, by_label=False)
    (uploads / "empty.jpg").write_bytes(b"")
    (uploads / "notes.jpg").write_text("Not a photo.\n")
    cut = (uploads / "20000.jpg").read_bytes()
    (uploads / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    studio.hubhead("score", *flags, "--run_id", "2026-11-30", "--only_new", "--price_per_hour", "0.5")


def shoot_terminal(studio: Studio, lines: list[str]) -> bytes:
    """Return a picture of the terminal."""
    page = studio.top / "terminal.html"
    page.write_text(terminal.render(lines), encoding="utf-8")
    studio.browser.set_screen(WIDTH, 400)
    studio.browser.open(page.as_uri())
    box = "document.body.getBoundingClientRect()"
    width, height = (int(studio.browser.evaluate(f"Math.ceil({box}.{side})")) for side in ("width", "height"))
    return studio.photograph(page.as_uri(), max(width, 760), height)


def shoot_demo_page(studio: Studio, width: int = 960, height: int = 850, *, phone: bool = False) -> bytes:
    """Return a picture of the demo page after it classified a drawn apple."""
    from serving.server import ServerSettings, start

    apple = studio.top / "apple.jpg"
    draw_fruit("apple", 5001).resize((1600, 1200)).save(apple, quality=90)
    browser = studio.browser
    with start(ServerSettings(studio.top / "models" / "fruit", port=0, rest_api_port=0)) as server:
        browser.set_screen(width, height, phone=phone)
        browser.open(f"http://localhost:{server.rest_port}/")
        browser.wait_for("!document.getElementById('ask').hidden")
        browser.choose_file("#file", apple)
        browser.wait_for("document.getElementById('result').getAttribute('aria-busy') === 'false'")
        return browser.screenshot()


def shoot_label_page(studio: Studio, *, size: tuple[int, int] = LABEL_SIZE, **screen: bool) -> bytes:
    """Return a picture of the labelling page on the uploads of the scoring, of which some are labelled."""
    browser, uploads = studio.browser, studio.top / "uploads"
    # The last digit of a drawn upload is its label (drawings.write_dataset).
    truth = {path.name: list(FRUIT)[int(path.stem[-1])] for path in uploads.glob("[0-9]*.jpg")}
    arguments = (
        "--photos",
        str(uploads),
        "--labels",
        ",".join(FRUIT),
        "--by",
        "me",
        "--test_percentage",
        "25",
    )
    files = ("--output", str(studio.top / "labels.csv"), "--embedding_store", str(studio.top / "store"))
    with run_label([*arguments, *files], studio.top / "label.log") as (_, url):
        browser.set_screen(*size, **screen)
        browser.open(url)
        browser.wait_for("document.getElementById('stage').dataset.photo !== undefined")
        for done in range(int(browser.evaluate("document.getElementById('labelled').textContent")), LABELS):
            answer_shown(browser, truth)
            wait_for_labels(browser, done + 1)
            browser.wait_for(_IS_FITTED)
        browser.wait_for("[...document.images].every((image) => image.complete)")
        picture = browser.screenshot()
        browser.open("about:blank#left")
        return picture


_IS_FITTED = """
fetch("state").then((response) => response.json())
  .then(({ fitting, labelled, fitted_answers }) => !fitting && (labelled < 10 || fitted_answers > 0))
"""


def compress(picture: bytes) -> bytes:
    """Return a PNG with a palette.

    Raises:
        ValueError: it is still larger than LARGEST.
    """
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    written = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    if len(written.getvalue()) > LARGEST:
        raise ValueError(
            f"the picture has {len(written.getvalue()):,} bytes; at most {LARGEST:,} are allowed"
        )
    return written.getvalue()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.pictures", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", help="pictures to take (default: all)")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="directory to write to")
    parser.add_argument(
        "--whole", action="store_true", help="whole pages, also at a phone's width, to look at"
    )
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="hubhead-pictures-", ignore_cleanup_errors=True) as top,
        Browser(Path(top) / "profile") as browser,
    ):
        studio = Studio(Path(top), browser)
        shots = prepare(studio)
        if options.whole:
            shots |= prepare_whole(studio)
        for name in options.names or shots:
            picture = shots[name]()
            path = options.directory / f"{name}.png"
            path.write_bytes(picture if options.whole else compress(picture))
            print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def prepare(studio: Studio) -> dict[str, Callable[[], bytes]]:
    """Train and score; return the functions that take the pictures, by their names."""
    lines = train(studio)
    score(studio)
    return {
        "terminal": lambda: shoot_terminal(studio, lines),
        "report": lambda: studio.photograph(studio.training_report),
        "scoring_report": lambda: studio.photograph(studio.scoring_report),
        "demo_page": lambda: shoot_demo_page(studio),
        "label_page": lambda: shoot_label_page(studio),
    }


def prepare_whole(studio: Studio) -> dict[str, Callable[[], bytes]]:
    """Return functions that take pictures of whole pages, by their names, on a desktop and on a phone."""
    pages = {"training": studio.training_report, "scoring": studio.scoring_report}
    return {
        f"{name}_{width}": partial(studio.photograph, url, width, None)
        for name, url in pages.items()
        for width in (1280, 390)
    } | {
        "demo_390": partial(shoot_demo_page, studio, 390, 844, phone=True),
        "label_390": partial(shoot_label_page, studio, size=(390, 844), phone=True),
        "label_dark": partial(shoot_label_page, studio, dark=True),
    }


if __name__ == "__main__":
    main()
