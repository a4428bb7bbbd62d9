"""`hubhead label` in a process of its own, and a person who knows the labels, in a browser."""

from __future__ import annotations

import re
import selectors
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import processes
from tests.support.browser import Browser

_URL = re.compile(r"http://127\.0\.0\.1:\d+/\S+/")


@contextmanager
def run_label(arguments: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `hubhead label`; yields the process and the address of its page. It is killed at the end."""
    process = processes.start(["label", *arguments, "--port", "0", "--no_browser"], log)
    try:
        assert process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(120), log.read_text()
        found = _URL.search(process.stdout.readline())
        assert found, log.read_text()
        yield process, found[0]
    finally:
        process.kill()
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def answer_shown(browser: Browser, truth: Mapping[str, str]) -> str:
    """Label the photo that is shown, by keyboard, and wait for the next one; returns its name.

    Args:
        browser: browser with the open page.
        truth: label of each photo by its name.
    """
    browser.wait_for("document.getElementById('stage').dataset.photo !== undefined")
    name, photo = browser.evaluate(
        "[document.getElementById('name').textContent, document.getElementById('stage').dataset.photo]"
    )
    names = browser.evaluate("[...document.querySelectorAll('#choices bdi')].map((name) => name.textContent)")
    if truth[name] in names:
        browser.press(str(names.index(truth[name]) + 1))
    else:
        browser.press("/", *truth[name], "Enter")
    browser.wait_for(f"document.getElementById('stage').dataset.photo !== '{photo}'")
    return str(name)


def wait_for_labels(browser: Browser, count: int) -> None:
    """Wait until the session has kept this number of labels."""
    browser.wait_for(f"document.getElementById('labelled').textContent === '{count}'")
