"""The version of hubhead is that of pyproject.toml, wherever a file repeats it."""

from __future__ import annotations

import re
import tomllib

from tests.support.repository import REPO

IMAGE = re.compile(r"\bhubhead:(\d+\.\d+\.\d+[\w.]*)|newName: hubhead\n\s*newTag: (\S+)")
"""Tag of the image, in a command, a Kubernetes manifest or a kustomization."""

FILES = ("k8s/base/kustomization.yaml", "k8s/toolbox.yaml", "k8s/README.md", "k8s/Dockerfile")
"""Files that must name the version: a release changes them (CONTRIBUTING.md)."""

DIRECTORIES = ("k8s", "docs", "tests/k8s", "tests/support/kubernetes")


def read_version() -> str:
    """Return the version in pyproject.toml."""
    return str(tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def list_tags() -> dict[str, set[str]]:
    """Return the tags of the image hubhead in the files below DIRECTORIES, by file."""
    found: dict[str, set[str]] = {}
    for directory in DIRECTORIES:
        for path in sorted((REPO / directory).rglob("*")):
            if path.is_file() and path.suffix not in (".png", ".svg", ".pyc"):
                text = path.read_text("utf-8", errors="replace")
                tags = {tag or new for tag, new in IMAGE.findall(text)}
                if tags:
                    found[path.relative_to(REPO).as_posix()] = tags
    return found


def test_every_tag_of_the_image_is_the_version_of_the_package() -> None:
    tags = list_tags()
    assert set(FILES) <= tags.keys()
    assert tags == {name: {read_version()} for name in tags}


def test_the_changelog_begins_with_the_version() -> None:
    sections = re.findall(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert sections[0] == read_version()
