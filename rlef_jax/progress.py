"""Progress display of a run: one line per iteration, and on a terminal a bar for the current stage.

Metric names are those of docs/metrics.md; a missing metric shows as a dash.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Column(NamedTuple):
    """One column of the line: heading, metric, factor applied before printing, format."""

    heading: str
    metric: str
    factor: float
    format: str


COLUMNS = (
    Column("turn 1 %", "solved_turn1", 100, "{:.1f}"),
    Column("end %", "solved", 100, "{:.1f}"),
    Column("reward", "reward", 1, "{:+.2f}"),
    Column("KL ref", "kl_to_ref", 1, "{:.4f}"),
    Column("mismatch", "mismatch_mean", 1, "{:.1e}"),
    Column("clip %", "clip_fraction", 100, "{:.1f}"),
    Column("expl.var", "explained_variance", 1, "{:+.2f}"),
    Column("tok/s", "tokens_per_s", 1, "{:,.0f}"),
    Column("seconds", "time/total", 1, "{:.1f}"),
)


def header_line() -> str:
    """The headings of `iteration_line`'s columns."""
    return " ".join(["    step", *(f"{c.heading:>8}" for c in COLUMNS), " time went to"])


def iteration_line(step: int, metrics: Mapping[str, float]) -> str:
    """One iteration's metrics in columns, then the shares of its time, largest first, then what didn't count."""
    cells = [f"{step:8d}"]
    for column in COLUMNS:
        value = metrics.get(column.metric)
        cells.append(f"{'-' if value is None else column.format.format(column.factor * value):>8}")
    return " ".join([*cells, "", time_split(metrics), *(f"| {note}" for note in not_counted(metrics))])


def not_counted(metrics: Mapping[str, float]) -> list[str]:
    """Notes on what an iteration's metrics leave out: episodes on which the judge broke, updates not applied."""
    broken, judged = metrics.get("infra_episodes", 0.0), metrics.get("episodes", 0.0)
    skipped = metrics.get("skipped_updates", 0.0)
    notes = []
    if broken:
        notes.append(f"{broken:.0f} episodes broken by the judge" if judged else "no episode judged (INFRA_ERROR)")
    if skipped:
        notes.append(f"{skipped:.0f} updates not applied")
    return notes


def time_split(metrics: Mapping[str, float]) -> str:
    """ "sample 61 % update 30 % ...": shares of `time/total`, down to 1 %."""
    total = metrics.get("time/total", 0.0)
    parts = {n.removeprefix("time/"): v for n, v in metrics.items() if n.startswith("time/") and n != "time/total"}
    if total <= 0:
        return ""
    largest_first = sorted(parts.items(), key=lambda item: -item[1])
    return " ".join(f"{name} {100 * seconds / total:.0f}%" for name, seconds in largest_first if seconds >= total / 100)


class ProgressDisplay:
    """Prints iterations; if the stream is a terminal, also shows a bar for each unfinished stage."""

    def __init__(self, *, stream: TextIO | None = None, header_every: int = 20) -> None:
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._header_every = header_every
        self._lines = 0
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, name: str, done: int, total: int) -> None:
        """Updates the bar of stage `name`: `done` of `total` units. A complete stage has no bar."""
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total)
        self._bar.update(self._tasks[name], completed=done, total=total, visible=done < total)
        if done >= total:
            self._bar.reset(self._tasks[name], start=True, visible=False)

    def iteration(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints an iteration's line, and the headings every `header_every` lines."""
        if self._lines % self._header_every == 0:
            self.message(header_line())
        self._lines += 1
        self.message(iteration_line(step, metrics))

    def message(self, text: str) -> None:
        """Prints a line above the bars."""
        self._console.print(text, markup=False)
