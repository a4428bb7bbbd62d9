"""Output of commands: tables as wide as the terminal, or whole in logs; versions as words."""

from __future__ import annotations

import pytest

from serving.commands.output import print_table
from serving.commands.serve import format_versions

NAME = "/photos/smoke/" + "very-long-name-" * 20 + ".jpg"


def test_tables_in_logs_show_names_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(("photo", "label"), [(NAME, "apple"), ("short.jpg", "pear")])
    lines = capsys.readouterr().out.splitlines()
    assert any(NAME in line and "apple" in line for line in lines)
    assert len(lines) == 6
    assert max(map(len, lines)) < len(NAME) + 30


def test_columns_limits_the_width_of_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_table(("photo", "label"), [(NAME, "apple")])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((5,), "version 5"), ((12, 4), "versions 4 and 12"), ((3, 2, 1), "versions 1, 2 and 3")],
)
def test_all_served_versions_are_named(numbers: tuple[int, ...], expected: str) -> None:
    assert format_versions(numbers) == expected
