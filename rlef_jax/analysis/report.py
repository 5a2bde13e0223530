"""A finished run's table and plots: `python -m rlef_jax.analysis.report runs/x`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlef_jax.analysis import plots
from rlef_jax.analysis.summary import FILE_NAME, read_summary, summary_table
from rlef_jax.command_line import errors_as_lines
from rlef_jax.training.metrics_writer import read_metrics


def write_report(workdir: Path) -> str:
    """Draws what the workdir's files allow into `plots/`; returns the table and the names of the plots.

    Raises FileNotFoundError if the folder holds no run.
    """
    records = [r for r in read_metrics(workdir) if r.get("solved") is not None]
    drawn = []
    if records:
        drawn.append(plots.plot_learning(records, workdir / "plots" / "learning.png"))
        drawn.append(plots.plot_error_kinds(records, workdir / "plots" / "error_kinds.png"))
    text = "no summary yet: the run writes it when it ends"
    if (workdir / FILE_NAME).exists():
        summary = read_summary(workdir)
        drawn.append(plots.plot_summary(summary, workdir / "plots" / "summary.png"))
        text = summary_table(summary)
    return "\n".join([text, *(f"plot: {path}" for path in drawn)])


def main() -> None:
    """Prints the table of the run named on the command line and draws its plots."""
    parser = argparse.ArgumentParser(description="Prints a run's table and draws its plots.")
    parser.add_argument("workdir", type=Path)
    args = parser.parse_args()
    with errors_as_lines():
        print(write_report(args.workdir))


if __name__ == "__main__":
    main()
