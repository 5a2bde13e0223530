"""Solve rates by kind of problem: python -m rlef_jax.analysis.breakdown runs/x [--evaluations warm_start rlef]

Prints 1@1 and 1@3 (percent) of a run's saved evaluations for groups of problems: those with a complete statement
("closed"), those with an open question, by question, and those whose reference program has a shape that no training
problem has. It reads the saved episodes, so it needs neither the model nor the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlef_jax import arguments, config
from rlef_jax.analysis.saved import evaluation_path, saved_evaluations
from rlef_jax.command_line import errors_as_lines
from rlef_jax.errors import ConfigError
from rlef_jax.metrics.summary import summarise
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.types import Episode, Problem

DEFAULT = ("warm_start", "rlef")


def groups_of(problem: Problem) -> list[str]:
    """Names of a problem's groups, from its tags; without tags only "all"."""
    tags = problem.tags
    names = ["all"]
    if "open" in tags and "question" in tags:  # MiniContests'
        kind = "open" if tags["open"] else "closed"
        names += ["open", f"open: {tags['question']}"] if tags["open"] else ["closed"]
        if "structure_held_out" in tags:
            shape = "held-out shape" if tags["structure_held_out"] else "seen shape"
            names += [shape, f"{shape}, {kind}"]
    return names


def grouped(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """{group: episodes}, in the order all, closed, open, open by question (largest first), shapes."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        for name in groups_of(episode.problem):
            groups.setdefault(name, []).append(episode)

    def rank(name: str) -> tuple[int, int, str]:
        leading = ["all", "closed", "open"]
        position = leading.index(name) if name in leading else 3 if name.startswith("open: ") else 4
        return position, -len(groups[name]) if position == 3 else 0, name

    return {name: groups[name] for name in sorted(groups, key=rank)}


def table(evaluations: Mapping[str, Sequence[Episode]], max_turns: int) -> str:
    """One line per group: number of problems, 1@1 and 1@`max_turns` of each evaluation ("-": unknown)."""
    by_name = {name: grouped(episodes) for name, episodes in evaluations.items()}
    rows = list(dict.fromkeys(row for groups in by_name.values() for row in groups))
    measures = tuple(dict.fromkeys(("1@1", f"1@{max_turns}")))
    columns = [["", "", *rows]]
    for name, groups in by_name.items():
        columns.append([name, _cells("problems", measures)])
        columns[-1] += [_rates(groups.get(row, ()), measures, max_turns) for row in rows]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        f"{row:<{widths[0]}}" + "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for row, *cells in lines
    )


def _rates(episodes: Sequence[Episode], measures: Sequence[str], max_turns: int) -> str:
    judged = [e for e in episodes if e.end != "infra"]
    if not judged:
        return _cells("0", ["-"] * len(measures))
    summary = summarise(judged, max_turns=max_turns, bootstrap_samples=1)
    return _cells(str(summary["problems"]), ["-" if summary[m] is None else f"{summary[m]:.1f}" for m in measures])


def _cells(count: str, rates: Sequence[str]) -> str:
    return f"{count:>8}" + "".join(f"{rate:>7}" for rate in rates)


def breakdown(workdir: Path, names: Sequence[str] = ()) -> str:
    """The table of a run's saved evaluations, by default those of the warm start and of the trained policy.

    Raises ConfigError, which lists the saved evaluations, if the run or an evaluation doesn't exist.
    """
    max_turns = config.load_saved(workdir).episode.max_turns
    available = saved_evaluations(workdir)
    chosen = list(names) or [name for name in DEFAULT if name in available]
    missing = [name for name in chosen if name not in available]
    if missing or not chosen:
        absent = ", ".join(missing or DEFAULT)
        raise ConfigError(f"no evaluation {absent} in {workdir}; there are {', '.join(available) or 'none'}")
    return table({name: read_episodes(evaluation_path(workdir, name)) for name in chosen}, max_turns)


def main() -> None:
    """Prints the table of the run named on the command line."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("workdir", type=arguments.path)
    parser.add_argument("--evaluations", nargs="+", default=(), help="names of episodes/NAME.jsonl.gz")
    with errors_as_lines():
        args = parser.parse_args()
        print(breakdown(args.workdir, args.evaluations))


if __name__ == "__main__":
    main()
