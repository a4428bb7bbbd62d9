"""Names of directories that operating systems make, and the Unicode form by which names are compared."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

_SYSTEM_NAMES = frozenset(
    (
        *("__macosx", ".trashes", ".trash", ".spotlight-v100", ".fseventsd", ".appledouble"),  # macOS
        *("network trash folder", "temporary items", "thevolumesettingsfolder"),
        *("$recycle.bin", "recycler", "system volume information", "$extend", "config.msi"),  # Windows
        *("$winreagent", "$sysreset", "$windows.~bt", "$windows.~ws", "msdownld.tmp", "_vti_cnf"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),  # files there, which some tools unpack as directories
        *("lost+found", ".thumbnails", "lost.dir", "__pycache__"),  # Linux, Android
        *("@eadir", "@tmp", "@sharebin", "@sharesnap", "#recycle", "#snapshot"),  # Synology
        *("@appstore", "@appdata", "@database", "@synoresource"),
        *("@recycle", "@recently-snapshot", "@__thumb", ".@__thumb"),  # QNAP
        *("~snapshot", ".snapshot"),  # NetApp
    )
)
_SYSTEM_PATTERN = re.compile(r"found\.\d{3}|\.trash-\d+|__macosx \d+")
"""Fragments that Windows recovers, the trash of a user on Linux, and what macOS calls a second __MACOSX."""


def is_system_directory(name: str) -> bool:
    """Return whether a directory of this name is the system's: thumbnails, trash, metadata, fragments."""
    name = name.casefold().strip()
    return name in _SYSTEM_NAMES or bool(_SYSTEM_PATTERN.fullmatch(name))


def matched_start(path: str, pattern: str) -> int:
    """Return where the part of a path that a glob matched begins; what it spells out does not count."""
    literal = glob.escape(pattern).partition("[")[0]
    return literal.rfind("/") + 1 if path.startswith(literal) else 0


def find_system_directory(path: str, pattern: str) -> str:
    """Return the path up to the first directory of the system that a glob matched; "" if there is none."""
    position = matched_start(path, pattern)
    while (end := path.find("/", position)) >= 0:
        if is_system_directory(path[position:end]):
            return path[:end]
        position = end + 1
    return ""


def describe_system_directories(directories: set[str]) -> str:
    """Return the sentence that says which directories of the system were left out."""
    names = sorted({path.rpartition("/")[2] for path in directories}, key=str.casefold)
    count = f"{len(directories)} director{'y' if len(directories) == 1 else 'ies'}"
    return f"{count} of operating systems left out: {', '.join(names)}."


def normalize(name: str) -> str:
    """Return the form by which labels, file names and columns are compared: Unicode's NFC."""
    return unicodedata.normalize("NFC", name)


def find_spelling(path: str) -> str:
    """Return the path of a file whose names are in another Unicode form; `path` itself if there is none.

    Archives and discs of macOS have decomposed names, and lists of them are often composed.

    Args:
        path: absolute path.
    """
    if path.isascii() or os.path.lexists(path):
        return path
    found = ""
    for part in path.strip("/").split("/"):
        name = part
        if not os.path.lexists(f"{found}/{part}"):
            try:
                changed = os.stat(found or "/").st_mtime_ns  # noqa: PTH116 # a Path takes longer
                name = _list_names(found or "/", changed)[normalize(part)]
            except (OSError, KeyError):
                return path
        found = f"{found}/{name}"
    return found


@lru_cache(maxsize=16)
def _list_names(directory: str, _changed: int) -> dict[str, str]:
    """Return the names in a directory by their Unicode form; `_changed` is its time of modification."""
    return {normalize(name): name for name in os.listdir(directory)}  # noqa: PTH208 # names, not paths


def respell(names: Iterable[str], like: Iterable[str]) -> tuple[str, ...]:
    """Return names in the spelling of equal ones of another list: those with the same Unicode form."""
    spelling = {normalize(name): name for name in like}
    return tuple(spelling.get(normalize(name), name) for name in names)


def describe_respelled(names: Sequence[str], like: Sequence[str]) -> str:
    """Return which names `respell` changes; "" if it changes none."""
    changed = [name for name, other in zip(names, respell(names, like), strict=True) if name != other]
    return f"{', '.join(map(repr, changed))}: the same in another Unicode form" if changed else ""
