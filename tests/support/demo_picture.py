"""Screenshot of the demo page for the README: `python -m tests.support.demo_picture models/food_images`.

The photo is drawn here; the result shown is that of the model.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from serving.server import ServerSettings, start
from tests.support.browser import Browser
from tests.support.colour_model import draw_photo

OUTPUT = Path(__file__).with_name("demo_page.png")
WIDTH, HEIGHT = 960, 850


def main(base: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        start(ServerSettings(base, port=0, rest_api_port=0)) as server,
        Browser(Path(directory) / "profile") as browser,
    ):
        browser.set_screen(WIDTH, HEIGHT)
        browser.open(f"http://localhost:{server.rest_port}/")
        browser.wait_for("!document.getElementById('ask').hidden")
        browser.choose_file("#file", draw_photo(Path(directory) / "apple.jpg", (190, 20, 25)))
        browser.wait_for("document.getElementById('result').getAttribute('aria-busy') === 'false'")
        OUTPUT.write_bytes(browser.screenshot())
    print(f"{OUTPUT}: {OUTPUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
