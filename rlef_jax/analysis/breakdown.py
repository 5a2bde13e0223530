"""What kinds of problems a policy solves: python -m rlef_jax.analysis.breakdown runs/x [--evaluations warm_start rlef]

Prints 1@1 and 1@3 (percent) of a run's saved evaluations for groups of problems: those whose statement says all
("closed"), those that leave something open, by what it is, and those whose reference program has a shape that no
training problem has. It reads the episodes that the run saved, so it needs neither the model nor the judge.
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
    """Names of the groups that a problem is in, by its tags; a source without tags has "all" alone."""
    tags = problem.tags
    names = ["all"]
    if "open" in tags:
        kind = "open" if tags["open"] else "closed"
        names += ["open", f"open: {tags['question']}"] if tags["open"] else ["closed"]
        if "structure_held_out" in tags:
            shape = "held-out shape" if tags["structure_held_out"] else "seen shape"
            names += [shape, f"{shape}, {kind}"]
    return names


def grouped(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    """The episodes of each group: all, closed, open, the open ones by question (the largest first), then by shape."""
    found: dict[str, list[Episode]] = {}
    for episode in episodes:
        for name in groups_of(episode.problem):
            found.setdefault(name, []).append(episode)

    def rank(name: str) -> tuple[int, int, str]:
        fixed = ["all", "closed", "open"]
        place = fixed.index(name) if name in fixed else 3 if name.startswith("open: ") else 4
        return place, -len(found[name]) if place == 3 else 0, name

    return {name: found[name] for name in sorted(found, key=rank)}


def table(evaluations: Mapping[str, Sequence[Episode]], max_turns: int) -> str:
    """One line a group; for each evaluation its number of problems, 1@1 and 1@`max_turns` ("-": nobody can know)."""
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
    found = summarise(judged, max_turns=max_turns, bootstrap_samples=1)
    return _cells(str(found["problems"]), ["-" if found[m] is None else f"{found[m]:.1f}" for m in measures])


def _cells(count: str, rates: Sequence[str]) -> str:
    return f"{count:>8}" + "".join(f"{rate:>7}" for rate in rates)


def breakdown(workdir: Path, names: Sequence[str] = ()) -> str:
    """The table of a run's saved evaluations, by default those of the warm start and of the trained policy.

    Raises ConfigError, saying what there is, where the run or an evaluation isn't there.
    """
    max_turns = config.load_saved(workdir).episode.max_turns
    there = saved_evaluations(workdir)
    chosen = list(names) or [name for name in DEFAULT if name in there]
    missing = [name for name in chosen if name not in there]
    if missing or not chosen:
        wanted = ", ".join(missing or DEFAULT)
        raise ConfigError(f"no evaluation {wanted} in {workdir}; there are {', '.join(there) or 'none'}")
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
