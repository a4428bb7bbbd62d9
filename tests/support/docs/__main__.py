"""Record the outputs that the documents show: `python -m tests.support.docs [PAGE ...]`.

The commands of the `console` blocks of each page run in order in one directory, with labelled photos in
food_images and others in uploads; a command that ends with `&` runs until the end of the page. What they
print replaces the output on the page.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.support.docs.compare import elide
from tests.support.docs.markdown import DOCUMENTS, fences
from tests.support.docs.session import CommandFailed, open_session, prepare
from tests.support.docs.shell import Recorded, split_console
from tests.support.repository import REPO

RECORDED = tuple(document for document in DOCUMENTS if not document.startswith("k8s/"))
"""Documents whose commands run on this machine, and not in a cluster."""


def main(arguments: list[str]) -> None:
    """Record the named pages, or all pages with recorded commands."""
    named = [Path(argument).resolve().relative_to(REPO).as_posix() for argument in arguments]
    for document in named or RECORDED:
        if commands := read_commands(document):
            print(document, flush=True)
            record(document, commands)


def read_commands(document: str) -> list[Recorded]:
    """Return the commands of the `console` blocks of a document."""
    return [command for fence in fences(document, "console") for command in split_console(fence)]


def record(document: str, commands: list[Recorded]) -> None:
    """Run the commands of a document, and write what they print into it."""
    from trainer.dataset.download import cache_directory
    from trainer.dataset.samples import fetch_sample_photos

    user_cache = cache_directory()
    photos = fetch_sample_photos(user_cache).directory
    outputs: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as top:
        directory, cache = prepare(Path(top), user_cache, photos)
        with open_session(directory, cache, commands) as session:
            for index, command in enumerate(commands):
                began = time.monotonic()
                output, code = session.run(command)
                print(f"  {time.monotonic() - began:5.1f} s  {command.command}", flush=True)
                shows_code = any(next_.command == "echo $?" for next_ in commands[index + 1 : index + 2])
                if code and not shows_code:
                    lines = "\n".join(output)
                    raise CommandFailed(
                        f"{document}: `{command.command}` ended with exit code {code}:\n{lines}"
                    )
                outputs.append(elide(command.output, output))
    write_outputs(document, commands, outputs)


def write_outputs(document: str, commands: list[Recorded], outputs: list[list[str]]) -> None:
    """Replace the outputs on a page."""
    path = REPO / document
    lines = path.read_text(encoding="utf-8").splitlines()
    at = {fence.line: fence for fence in fences(document, "console")}
    for line in sorted(at, reverse=True):
        own = [(c, o) for c, o in zip(commands, outputs, strict=True) if c.fence.line == line]
        indent = lines[line - 2][: len(lines[line - 2]) - len(lines[line - 2].lstrip())]
        block = [text for command, output in own for text in (*command.lines, *output)]
        size = len(at[line].text.splitlines())
        lines[line - 1 : line - 1 + size] = [(indent + text).rstrip() for text in block]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
