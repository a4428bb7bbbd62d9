"""The check of the prose sees what it is meant to see, and lets the rest pass."""

from __future__ import annotations

import pytest

from tests.support.language import check_document, check_python


@pytest.mark.parametrize(
    "text",
    [
        "The user is told about it.",
        "Scores are held\nagainst those of the bundle.",
        "It holds the new version against the live one.",
        "What became of the photo",
        "It is nobody's business.",
    ],
)
def test_phrases_are_found_across_lines(text: str) -> None:
    (found,) = check_document("README.md", f"A first line.\n{text}\n")
    assert (found.path, found.line) == ("README.md", 2)


@pytest.mark.parametrize("text", ["A lock is held while it runs.", "told apart", "protects against overload"])
def test_plain_sentences_pass(text: str) -> None:
    assert not list(check_document("README.md", text))


def test_strings_comments_and_docstrings_are_checked_and_names_are_not() -> None:
    source = '''"""For the bytes."""

x = 1  # who asks

def who_asks(told):
    """Of the manifest."""
    return "users are told"
'''
    assert [found.line for found in check_python("a.py", source)] == [3, 7, 1, 6]
