"""Tables of commands: as wide as the terminal, or in logs as wide as their texts."""

from __future__ import annotations

import pytest

from serving.commands.output import print_table

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
