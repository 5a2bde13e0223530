"""A finished run's table and plots: `python -m rlef_jax.analysis.report runs/x`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlef_jax import arguments, config
from rlef_jax.analysis.summary import FILE_NAME, read_summary, summary_table
from rlef_jax.command_line import errors_as_lines
from rlef_jax.training.metrics_writer import read_metrics


def write_report(workdir: Path, *, plots: bool = True) -> str:
    """Draws the plots that the workdir's files allow into `plots/`, unless told not to; returns the table and the
    plots' paths as text.

    Raises FileNotFoundError or ConfigError if the folder holds no run.
    """
    records = [r for r in read_metrics(workdir) if r.get("solved") is not None]
    summary = read_summary(workdir) if (workdir / FILE_NAME).exists() else None
    text = _why_no_table(workdir) if summary is None else summary_table(summary)
    drawn = _draw(workdir / "plots", records, summary) if plots else []
    return "\n".join([text, *(f"plot: {path}" for path in drawn)])


def _draw(folder: Path, records: list[dict[str, Any]], summary: dict[str, Any] | None) -> list[Path]:
    from rlef_jax.analysis import plots  # Matplotlib takes seconds to import, and only the end of a run needs it

    drawn = []
    if records:
        drawn.append(plots.plot_learning(records, folder / "learning.png"))
        drawn.append(plots.plot_drift(records, folder / "drift.png"))
        drawn.append(plots.plot_error_kinds(records, folder / "error_kinds.png"))
    if summary is not None:
        drawn.append(plots.plot_summary(summary, folder / "summary.png"))
    return drawn


def _why_no_table(workdir: Path) -> str:
    if config.read_saved(workdir)["eval.split"]:
        return "no table yet: the run evaluates when it ends"
    return (
        "no table: this run evaluates nothing (eval.split is empty); "
        f"python -m rlef_jax.evaluate --workdir={workdir} evaluates its policy"
    )


def main() -> None:
    """Prints the table of the run named on the command line and draws its plots."""
    parser = arguments.Parser(description="Prints a run's table and draws its plots.")
    parser.add_argument("workdir", type=arguments.path)
    with errors_as_lines():
        args = parser.parse_args()
        print(write_report(args.workdir))


if __name__ == "__main__":
    main()
