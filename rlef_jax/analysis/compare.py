"""Arms of a comparison side by side: python -m rlef_jax.analysis.compare recipe=runs/a0,runs/a1 token=runs/b0,runs/b1

An arm is a name and the folders of runs that differ by their seed alone. Prints 1@1 and 1@3 (percent) of each arm's
evaluation, their difference to the first arm with a 95 % interval, and reward and KL of the last iterations; --plot
draws learning curves, each arm's mean over seeds with the range of its seeds. It reads saved episodes and metrics, so
it needs neither the model nor the judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlef_jax import arguments
from rlef_jax.analysis.saved import evaluation_path, saved_evaluations
from rlef_jax.command_line import errors_as_lines
from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.metrics_writer import read_metrics

_LAST = 3  # iterations that the last columns are means of


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs of one kind, one a seed."""

    name: str
    workdirs: tuple[Path, ...]


def parse_arm(text: str) -> Arm:
    """NAME=FOLDER,FOLDER,... Raises ConfigError for another form."""
    name, equals, folders = text.partition("=")
    workdirs = tuple(arguments.path(folder) for folder in filter(None, folders.split(",")))
    if not (name and equals and workdirs):
        raise ConfigError(f"{text!r} is not of the form NAME=RUN,RUN,...")
    return Arm(name, workdirs)


def solve_rates(arm: Arm, evaluation: str) -> tuple[list[str], np.ndarray]:
    """(problems in order of their names, percent of rollouts [seeds, problems, 2] solved at turn 1 and at the end).

    Rollouts that the judge broke on don't count. Raises ConfigError where an evaluation is missing, the arm's runs were
    evaluated on different problems, or one of these has no rollout that counts.
    """
    by_run = []
    for workdir in arm.workdirs:
        path = evaluation_path(workdir, evaluation)
        if not path.is_file():
            there = ", ".join(saved_evaluations(workdir)) or "none"
            raise ConfigError(f"no evaluation {evaluation} in {workdir}; there are {there}")
        solved: dict[str, list[tuple[bool, bool]]] = {}
        for episode in read_episodes(path):
            results = solved.setdefault(episode.problem.name, [])
            if episode.end != "infra":
                results.append((episode.solved and len(episode.turns) == 1, episode.solved))
        if empty := [name for name, results in solved.items() if not results]:
            raise ConfigError(f"{path}: the judge broke on every rollout of {empty[0]}")
        by_run.append({name: 100 * np.mean(results, axis=0) for name, results in sorted(solved.items())})
    names = list(by_run[0])
    for workdir, rates in zip(arm.workdirs, by_run, strict=True):
        if list(rates) != names:
            raise ConfigError(f"{workdir} was evaluated on other problems than {arm.workdirs[0]}")
    return names, np.array([[rates[name] for name in names] for rates in by_run])


def difference(first: np.ndarray, other: np.ndarray, *, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of mean(other) - mean(first), by resampling.

    Args:
      first, other: [seeds, problems]; a column is the same problem in both.

    Problems are drawn with replacement, the same for both arms, and so are each arm's seeds, which it has few of: an
    interval over three seeds is wide for what their own scatter says, and no less.
    """
    rng = np.random.default_rng(seed)
    found = np.empty(samples)
    for sample in range(samples):
        problems = rng.integers(first.shape[1], size=first.shape[1])
        own = [arm[rng.integers(len(arm), size=len(arm))].mean(0)[problems].mean() for arm in (first, other)]
        found[sample] = own[1] - own[0]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def comparison(arms: Sequence[Arm], evaluation: str = "rlef") -> str:
    """The table, an arm a line. Raises ConfigError as `solve_rates`, or where arms have different problems."""
    rows = [("", "seeds", "1@1", "1@3", "of each seed", "difference of 1@3", "reward", "KL")]
    first: tuple[list[str], np.ndarray] | None = None
    for arm in arms:
        names, rates = solve_rates(arm, evaluation)
        first = first or (names, rates)
        if names != first[0]:
            raise ConfigError(f"{arm.name} was evaluated on other problems than {arms[0].name}")
        mean, of_seeds = rates.mean((0, 1)), rates[..., 1].mean(1)
        apart = "-"
        if arm is not arms[0]:
            low, high = difference(first[1][..., 1], rates[..., 1])
            apart = f"{mean[1] - first[1][..., 1].mean():+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append(
            (
                arm.name, str(len(arm.workdirs)), f"{mean[0]:.1f}", f"{mean[1]:.1f}",
                " ".join(f"{rate:.1f}" for rate in of_seeds), apart, f"{_last(arm, 'reward'):+.2f}",
                f"{_last(arm, 'kl_to_ref'):.3f}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    )


def _last(arm: Arm, name: str) -> float:
    """The mean of a metric over the last iterations of an arm's runs; NaN where none has it."""
    values = [r[name] for workdir in arm.workdirs for r in read_metrics(workdir)[-_LAST:] if r.get(name) is not None]
    return float(np.mean(values)) if values else float("nan")


def main() -> None:
    """Prints the comparison of the arms named on the command line."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("arms", nargs="+", metavar="NAME=RUN,RUN", help="the first is what others are compared with")
    parser.add_argument("--evaluation", default="rlef", help="a name of episodes/NAME.jsonl.gz (default: rlef)")
    parser.add_argument("--plot", type=arguments.path, metavar="FILE", help="draws learning curves to this .png file")
    with errors_as_lines():
        args = parser.parse_args()
        arms = [parse_arm(text) for text in args.arms]
        print(comparison(arms, args.evaluation))
        if args.plot is not None:
            from rlef_jax.analysis import plots  # Matplotlib takes seconds to import

            records: Mapping[str, Sequence[Sequence[plots.Record]]] = {
                arm.name: [list(read_metrics(workdir)) for workdir in arm.workdirs] for arm in arms
            }
            print(f"plot: {plots.plot_arms(records, args.plot)}")


if __name__ == "__main__":
    main()
