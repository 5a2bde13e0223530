"""Prints one episode in full: `python -m rlef_jax.show_episode runs/x --index 3 [--step 12]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlef_jax import config
from rlef_jax.command_line import errors_as_lines
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError
from rlef_jax.model.weights import resolve
from rlef_jax.training.episode_io import episodes_path, read_episodes, saved_steps
from rlef_jax.types import Episode, Status, TestCase, TestResult, Turn

WIDTH = 100


def format_episode(episode: Episode, show: Callable[[Sequence[int]], str]) -> str:
    """The dialogue as the model saw it, each response followed by its verdict test by test.

    Args:
      episode: any episode, finished or not.
      show: token ids to text, special tokens spelled out (`Tokenizer.show`).
    """
    outcome = "solved" if episode.solved else "not solved"
    lines = [
        f"problem {episode.problem.name}: {outcome}, end: {episode.end or 'unfinished'}",
        f"seed {episode.seed}, step {episode.step}, index {episode.index}, {len(episode.token_ids)} tokens",
    ]
    short = {k: v for k, v in episode.problem.tags.items() if isinstance(v, str | int | float)}
    if short:
        lines.append(", ".join(f"{k}: {v}" for k, v in short.items()))
    for number, turn in enumerate(episode.turns, start=1):
        lines += [
            _rule(f"turn {number}: prompt, {len(turn.prompt_delta_ids)} tokens"),
            show(turn.prompt_delta_ids),
            _rule(f"turn {number}: response, {len(turn.response_ids)} tokens, ended by {turn.finish_reason}"),
            show(turn.response_ids),
            *_verdict_lines(episode, turn, number),
        ]
    return "\n".join(lines)


def _verdict_lines(episode: Episode, turn: Turn, number: int) -> Iterator[str]:
    if turn.verdict is None:
        yield _rule(f"turn {number}: not judged")
        return
    yield _rule(f"turn {number}: {turn.verdict.status}")
    problem = episode.problem
    for kind, tests, results in (
        ("public", problem.public_tests, turn.verdict.public),
        ("hidden", problem.hidden_tests, turn.verdict.hidden),
    ):
        for i, (test, result) in enumerate(zip(tests, results), start=1):
            yield from _test_lines(f"{kind} test {i} of {len(tests)}", test, result)
        if results and len(results) < len(tests):
            yield f"{kind} tests {len(results) + 1} to {len(tests)}: not run"


def _test_lines(name: str, test: TestCase, result: TestResult) -> Iterator[str]:
    usage = f"{1000 * result.wall_s:.0f} ms, {result.memory_bytes / 2**20:.0f} MB"
    yield f"{name}: {result.status} ({usage})"
    if result.status is Status.PASSED:
        return
    for label, text in (("input", test.input), ("expected", test.output), ("got", result.stdout)):
        yield _indented(label, text)
    if result.error:
        yield _indented("error", result.error)


def _indented(label: str, text: str) -> str:
    first, *rest = text.splitlines() or ["(empty)"]
    return "\n".join([f"    {label + ':':<10}{first}", *(" " * 14 + line for line in rest)])


def _rule(title: str) -> str:
    return f"--- {title} ".ljust(WIDTH, "-")


def find_episode(workdir: Path, index: int, step: int | None = None) -> Episode:
    """The saved episode of an iteration (the last by default) with that index.

    Raises ConfigError, saying what there is, for no such run, iteration or index.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise ConfigError(f"no saved episodes in {workdir}: is it the --workdir of a run?")
    if step is not None and step not in steps:
        raise ConfigError(f"no episodes of step {step} in {workdir}; there are steps {steps[0]} to {steps[-1]}")
    episodes = read_episodes(episodes_path(workdir, steps[-1] if step is None else step))
    for episode in episodes:
        if episode.index == index:
            return episode
    if not episodes:
        raise ConfigError(f"no episodes in the file of this step in {workdir}")
    low, high = min(e.index for e in episodes), max(e.index for e in episodes)
    raise ConfigError(f"no episode with index {index} in this step; indices go from {low} to {high}")


def main() -> None:
    """Prints the episode that the command line names."""
    parser = argparse.ArgumentParser(description="Prints one episode of a run in full.")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--index", type=int, default=0, help="which episode of the iteration")
    parser.add_argument("--step", type=int, help="which iteration (default: the last)")
    args = parser.parse_args()
    with errors_as_lines():
        episode = find_episode(args.workdir, args.index, args.step)
        name = config.load_saved(args.workdir).model.tokenizer
        tokenizer = Tokenizer.load(resolve(name, ".model", "model.tokenizer"))
        print(format_episode(episode, tokenizer.show))


if __name__ == "__main__":
    main()
