"""Assertions on HTML pages, for the tests of several reports."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "<script>alert('x')</script>\" onload=\"x"
VOID = {"meta", "img", "br", "link", "input", "hr"}
CHROMIUM = "chromium|chromium-browser|google-chrome"


class Page(HTMLParser):
    """A parsed page; fails if elements are not closed.

    Attributes:
        tags: name and attributes of every element, in order.
        words: the text outside of style sheets, in pieces.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """Text of the page with normalized white space."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements with that name."""
        return [attributes for name, attributes in self.tags if name == tag]


def check_self_contained(text: str) -> None:
    """Check that a page loads nothing, runs no script and has no links."""
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "a", "use", "image"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"href", "srcset", "xlink:href", "action", "data"}, (tag, name)
            if name == "src":
                assert value is not None
                assert value.startswith("data:image/jpeg;base64,"), value[:80]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?:", text)


MEASURE_SCRIPT = """<script>
addEventListener("load", () => {
  const page = document.documentElement, outer = parent.document.documentElement;
  const shown = [...document.images].filter(image => image.complete && image.naturalWidth > 0);
  const tops = [...document.querySelectorAll("h2")].map(title => title.getBoundingClientRect().top);
  const tall = [...document.querySelectorAll(".chart, .matrix, .interval")]
    .filter(part => part.getBoundingClientRect().height < 5);
  // Words of column headings and of cells that are on two lines, but for names, paths and settings.
  const broken = [...document.querySelectorAll("thead th, td:not([dir]):not(.tables td)")].flatMap(cell => {
    const words = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      if (texts.currentNode.parentElement.closest("ul, title, .matrix")) continue;
      for (const word of texts.currentNode.data.matchAll(/[^ \\n-]+-?/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, word.index);
        range.setEnd(texts.currentNode, word.index + word[0].length);
        if (range.getClientRects().length > 1) words.push(word[0]);
      }
    }
    return words;
  });
  outer.dataset.measured = JSON.stringify({
    inner: innerWidth, width: page.scrollWidth, height: Math.ceil(page.getBoundingClientRect().height),
    images: document.images.length, shown: shown.length, flat: tall.length, broken,
    ordered: tops.every((top, i) => i === 0 || top > tops[i - 1]),
  });
});
</script>"""


def run_chromium(page: Path, profile: Path, *options: str) -> str:
    """Open a page in headless Chromium, and return its standard output."""
    program = next(found for name in CHROMIUM.split("|") if (found := shutil.which(name)))
    done = subprocess.run(
        [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--window-size=1280,2000",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure_page(page: Path, directory: Path, width: int) -> dict[str, Any]:
    """Render a page at that width and return its measures; check that no part of it is blank.

    Args:
        page: HTML file.
        directory: directory for temporary files.
        width: width of the viewport, in CSS pixels.
    """
    text = page.read_text(encoding="utf-8")
    inner = text.replace("</body>", f"{MEASURE_SCRIPT}</body>").replace('loading="lazy"', "")
    # A window has a minimum width, which is larger than a phone's; a frame has none.
    frame = directory / "frame.html"
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe srcdoc="{html.escape(inner)}" '
        f'style="border:0;width:{width}px;height:2000px"></iframe></body>',
        encoding="utf-8",
    )
    dumped = run_chromium(frame, directory / "profile", "--dump-dom")
    attribute = re.search(r'<html data-measured="([^"]*)"', dumped)
    assert attribute, dumped[:200]
    measures = dict(json.loads(html.unescape(attribute[1])))

    screenshot = directory / "screenshot.png"
    tall = min(measures["height"], 14000)
    frame.write_text(frame.read_text("utf-8").replace("height:2000px", f"height:{tall}px"), encoding="utf-8")
    run_chromium(frame, directory / "other", f"--window-size=1280,{tall}", f"--screenshot={screenshot}")
    with Image.open(screenshot) as image:
        assert image.size == (1280, tall)
        pixels = np.asarray(image.convert("RGB")).astype(int)[:, :width]
    drawn = np.abs(pixels - pixels[5, 5]).max(axis=2) > 40
    assert 0.01 < drawn.mean() < 0.7
    assert all(band.any() for band in np.array_split(drawn, 8)), "a part of the page is blank"
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).sum() > 2000, "no photo and no colour"
    return measures
