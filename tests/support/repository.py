"""Paths of this checkout."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
"""The directory of pyproject.toml."""
