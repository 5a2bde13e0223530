"""Files that take long are started first, so that no worker is left with one at the end of a run.

How long a file takes is what it took in the last run of several workers here. Before the first one, files marked `long`
go first, in the order of their names.
"""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from tests.helpers.compiled import BASE

PATH = BASE / "seconds.json"
LONG_S = 30.0  # of a marked file that was never timed: before those that were, but for the longest

seconds: dict[str, float] = collections.defaultdict(float)  # this run's, by file


def file_of(node: str) -> str:
    """The file of a test's id."""
    return node.partition("::")[0]


def timed(path: Path = PATH) -> dict[str, float]:
    """What files took in the last run; none where it can't be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def order(items: list[Any], known: dict[str, float]) -> None:
    """Sorts tests in place by their file's time; a file's own stay together and in their order."""
    long = {file_of(item.nodeid) for item in items if item.get_closest_marker("long")}

    def cost(item: Any) -> float:
        name = file_of(item.nodeid)
        return known.get(name, LONG_S if name in long else 0.0)

    items.sort(key=cost, reverse=True)


def add(report: Any) -> None:
    """Counts a part of a test."""
    seconds[file_of(report.nodeid)] += report.duration


def keep(ran: dict[str, float], path: Path = PATH) -> None:
    """Writes a run's times over the last one's."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(timed(path) | ran, indent=1))
