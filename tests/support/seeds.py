"""Files that the pages of docs/seeds assume, with drawn photos in place of the data sets."""

from __future__ import annotations

import csv
import random
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from tests.support.docs.markdown import fences
from tests.support.docs.session import open_session
from tests.support.docs.shell import Recorded, split_plain
from tests.support.docs.workspace import link_cache as link_cache
from tests.support.drawings import FRUIT, draw_fruit

FOOD = {"apple_pie": "apple", "hamburger": "orange", "sushi": "banana", "waffles": "pear"}
"""Label of Food-101 -> what is drawn for it."""

TRAINED, TESTED = 24, 8
"""Photos of each label in train.txt and test.txt."""

UPLOADS = {"1": "hamburger", "2": "sushi", "3": "sushi"}
"""Number of an uploaded photo -> its label."""

RESTAURANTS = (
    ("hamburger", "Burger Bar", 46.950, 7.451),
    ("hamburger", "Far Away Burgers", 47.377, 8.540),
    ("sushi", "Sushi Go", 46.946, 7.440),
    ("sushi", "Bento", 46.956, 7.447),
    ("waffles", "Waffle Wagon", 46.948, 7.448),
)


def write_food_101(directory: Path) -> None:
    """Write food-101.tar.gz, in the layout of the real one, and the files that the page uses beside it."""
    top = directory / "archive" / "food-101"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, drawn in FOOD.items():
        (top / "images" / label).mkdir(parents=True)
        for number in range(TRAINED + TESTED):
            name = f"{label}/{1000 + number}"
            draw_fruit(drawn, number).save(top / "images" / f"{name}.jpg", quality=88)
            lists["train" if number < TRAINED else "test"].append(name)
    (top / "meta").mkdir()
    for name, lines in lists.items():
        (top / "meta" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        (top / "meta" / f"{name}.json").write_text("{}")
    (top / "meta" / "classes.txt").write_text("\n".join(FOOD) + "\n")
    (top / "README.txt").write_text("Drawn photos in the layout of Food-101.\n")
    with tarfile.open(directory / "food-101.tar.gz", "w:gz") as archive:
        archive.add(top, "food-101")
    draw_fruit(FOOD["hamburger"], 900).save(directory / "burger.jpg", quality=88)
    (directory / "uploads").mkdir()
    with (directory / "uploads.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["uri", "lat", "lon"])
        for number, label in UPLOADS.items():
            path = Path("uploads") / f"{number}.jpg"
            draw_fruit(FOOD[label], 910 + int(number)).save(directory / path, quality=88)
            rows.writerow([path, 46.948, 7.447])
    with (directory / "restaurants.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "name", "lat", "lon"])
        rows.writerows(RESTAURANTS)


def write_labels(directory: Path, labels: int, photos: int) -> None:
    """Write `directory/NAME/NUMBER.jpg`: a pattern in two colours for each label, moved in each photo."""
    for label in range(labels):
        top = directory / f"kind {label:03}"
        top.mkdir(parents=True)
        own = random.Random(label)
        ground, ink = (tuple(own.randrange(256) for _ in range(3)) for _ in range(2))
        shapes = [(own.random(), own.random(), own.uniform(0.1, 0.4)) for _ in range(4)]
        for number in range(photos):
            chance = random.Random(f"{label} {number}")
            image = Image.new("RGB", (120, 90), ground)
            pen = ImageDraw.Draw(image)
            for across, down, size in shapes:
                x, y = 120 * across + chance.uniform(-9, 9), 90 * down + chance.uniform(-9, 9)
                pen.ellipse((x, y, x + 90 * size, y + 90 * size), fill=ink)
            image.save(top / f"{number}1.jpg", quality=90)


def write_fruit(directory: Path, labels: int, photos: int) -> None:
    """Write `directory/LABEL/NUMBER.jpg`: drawn fruit."""
    for label in list(FRUIT)[:labels]:
        (directory / label).mkdir(parents=True)
        for number in range(photos):
            draw_fruit(label, number).save(directory / label / f"{number}1.jpg", quality=88)


def write_scenes(directory: Path, photos: dict[str, int]) -> None:
    """Write `directory/SET/LABEL/NUMBER.jpg`: hills (rural) and houses (urban).

    Args:
        directory: directory to write to.
        photos: set -> number of photos of each label.
    """
    for subset, count in photos.items():
        for label in ("rural", "urban"):
            top = directory / subset / label
            top.mkdir(parents=True)
            for number in range(1, count + 1):
                _draw_scene(label, f"{subset} {number}").save(top / f"{number}.jpg", quality=88)


def _draw_scene(label: str, seed: str) -> Image.Image:
    """Return a photo of hills or of houses below the sky."""
    chance = random.Random(f"{label} {seed}")
    image = Image.new("RGB", (240, 180), (150 + chance.randrange(60), 190, 230))
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        left, top, shade = chance.randrange(-60, 200), chance.randrange(60, 120), chance.randrange(60)
        if label == "rural":
            pen.ellipse((left, top, left + 160, top + 200), fill=(60 + shade, 120 + shade, 40))
            continue
        pen.rectangle((left, top - 40, left + 50, 180), fill=(90 + shade,) * 3)
        for window in range(top - 30, 180, 16):
            pen.rectangle((left + 8, window, left + 42, window + 6), fill=(230, 220, 150))
    return image


def list_commands(document: str) -> list[Recorded]:
    """Return all commands of a page, in their order; servers run beside the others."""
    blocks = fences(document, "sh", "console")
    return [command for block in blocks for command in split_plain(block)]


def write_queries(document: str, directory: Path) -> None:
    """Write the SQL of a page to the file that the text before it names."""
    for fence in fences(document, "sql"):
        (directory / "nearest.sql").write_text(fence.text)


def run_page(document: str, directory: Path, cache: Path, *, omitted: str = "\0") -> dict[str, list[str]]:
    """Run the commands of a page in a directory; returns the lines that each of them printed.

    Args:
        document: the page.
        directory: directory that the commands run in.
        cache: cache directory.
        omitted: commands that contain this text are not run.
    """
    commands = [one for one in list_commands(document) if omitted not in one.command]
    printed: dict[str, list[str]] = {}
    with open_session(directory, cache, commands) as session:
        for command in commands:
            lines, code = session.run(command)
            assert code == 0, f"{command.command}\n" + "\n".join(lines)
            printed[command.command] = lines
    return printed


def find_output(printed: dict[str, list[str]], start: str) -> str:
    """Return what the first command with this beginning printed."""
    return "\n".join(next(lines for command, lines in printed.items() if command.startswith(start)))
