"""Saved texts of compiled programs, in tests/planning/texts: what XLA printed, without names of source lines."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "planning" / "texts"


def saved(name: str) -> str:
    """The text of a program."""
    return (FOLDER / f"{name}.txt").read_text()
