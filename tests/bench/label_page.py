"""Time from an answer to the next photo on the labelling page: `python -m tests.bench.label_page`.

A session with synthetic embeddings, refitted in the background, is answered by keyboard in headless
Chromium. The time runs from the key to the first frame after the next photo was decoded and shown. The
photos are drawn, and have the size of those of a phone.
"""

from __future__ import annotations

import argparse
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.bench import results
from tests.bench.head import DIMENSION, LABELS, fill_embeddings
from tests.support.browser import Browser
from tests.support.drawings import FRUIT, draw_fruit
from trainer.labelling.app import LabellingServer
from trainer.labelling.candidates import Candidates
from trainer.labelling.session import LabellingSession
from trainer.labelling.settings import SessionSettings

PHOTO = (4032, 3024)
FILES = 40
"""Drawn files; the candidates share them, and each is decoded again for each candidate."""

_WATCH = """
window.milliseconds = [];
{
  const stage = document.getElementById("stage");
  let pressed = 0, shown = stage.dataset.photo;
  addEventListener("keydown", () => { pressed = performance.now(); }, true);
  new MutationObserver(async () => {
    if (stage.dataset.photo === shown) return;
    const since = pressed;
    shown = stage.dataset.photo;
    await stage.querySelector("img").decode();
    await new Promise(requestAnimationFrame);
    await new Promise((done) => setTimeout(done));
    window.milliseconds.push(performance.now() - since);
  }).observe(stage, { attributes: true, childList: true });
}
"""
_KEY = """
(() => {
  const names = [...document.querySelectorAll("#choices bdi")].map((name) => name.textContent);
  return [Number(document.getElementById("stage").dataset.photo), names];
})()
"""


def make_candidates(top: Path, count: int) -> tuple[Candidates, list[str]]:
    """Return synthetic candidates and the label of each."""
    files = []
    for number in range(FILES):
        files.append(str(top / f"{number}.jpg"))
        draw_fruit(list(FRUIT)[number % len(FRUIT)], number).resize(PHOTO).save(files[-1], quality=90)
    embeddings = np.lib.format.open_memmap(top / "embeddings.npy", "w+", np.float16, (count, DIMENSION))
    targets = fill_embeddings(count, 1, embeddings)
    digests = np.frombuffer(secrets.token_bytes(32 * count), "S32")
    uris = [files[row % FILES] for row in range(count)]
    return Candidates(uris, digests, embeddings), [f"label {target}" for target in targets]


def measure(count: int, answers: int, pause: float) -> None:
    """Answer photos in a browser, and print the times."""
    with tempfile.TemporaryDirectory(prefix="hubhead-bench-") as directory:
        top = Path(directory)
        candidates, truth = make_candidates(top, count)
        names = tuple(f"label {number}" for number in range(LABELS))
        session = LabellingSession(candidates, top / "labels.csv", SessionSettings(labels=names))
        try:
            with LabellingServer(session) as server, Browser(top / "profile") as browser:
                browser.set_screen(1280, 800)
                browser.open(server.url)
                browser.wait_for("document.querySelector('#stage img')?.complete")
                browser.evaluate(_WATCH)
                for number in range(answers):
                    photo, shown = browser.evaluate(_KEY)
                    if truth[photo] in shown:
                        browser.press(str(shown.index(truth[photo]) + 1))
                    else:
                        browser.press("/", *truth[photo], "Enter")
                    browser.wait_for(f"window.milliseconds.length === {number + 1}")
                    time.sleep(pause)
                times = np.array(browser.evaluate("window.milliseconds"))
                requests = browser.evaluate(
                    "performance.getEntriesByType('resource').filter(({name}) => /answer$|next$/.test(name))"
                    ".map(({duration}) => duration)"
                )
                assert browser.messages == []
            state = session.state()
        finally:
            session.close()
    row: dict[str, results.Value] = {"photos": count, "answers": answers, "fitted on": state.fitted_answers}
    for name, values in (("next photo", times), ("request", np.array(requests))):
        for percentage in (50, 95, 100):
            row[f"{name} p{percentage}, ms"] = round(float(np.percentile(values, percentage)), 1)
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    results.add_row("Time from an answer to the next photo", row)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.label_page", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", type=int, nargs="+", default=[100_000], help="numbers of candidates")
    parser.add_argument("--answers", type=int, default=200, help="number of answers")
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between answers")
    results.add_output_option(parser)
    options = parser.parse_args()
    for count in options.photos:
        measure(count, options.answers, options.pause)
    results.write(options.output, "label-page")


if __name__ == "__main__":
    main()
