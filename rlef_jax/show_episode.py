"""Prints one episode in full: `python -m rlef_jax.show_episode runs/x --index 3 [--step 12 | --evaluation rlef]`.

In the texts of tests, characters that a terminal doesn't show are marked: · is a space and → a tab at the end of a
line, ↵ a newline at the end of the text; other unprintable characters are written as Python escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlef_jax import arguments, config
from rlef_jax.analysis.saved import evaluation_path, saved_evaluations
from rlef_jax.command_line import errors_as_lines
from rlef_jax.dialog.load import load_tokenizer
from rlef_jax.errors import ConfigError
from rlef_jax.reward import has_weight, turn_rewards
from rlef_jax.training.episode_io import episodes_path, read_episodes, saved_steps
from rlef_jax.types import Episode, FunctionTest, Status, Test, TestResult, Turn

WIDTH = 100


def format_episode(episode: Episode, show: Callable[[Sequence[int]], str], *, invalid_penalty: float = -0.2) -> str:
    """The dialogue as the model saw it; each response is followed by its reward and its result on each test.

    Args:
      episode: any episode, finished or not.
      show: converts token ids to text with special tokens (`TextTokenizer.show`).
      invalid_penalty: the reward of a response without valid code that isn't the last (`reward.py`).
    """
    outcome = "solved" if episode.solved else "not solved"
    lines = [
        f"problem {episode.problem.name}: {outcome}, end: {episode.end or 'unfinished'}",
        f"seed {episode.seed}, step {episode.step}, index {episode.index}, {len(episode.token_ids)} tokens",
    ]
    complete = episode.end and episode.turns and all(turn.verdict is not None for turn in episode.turns)
    rewards = turn_rewards(episode, invalid_penalty=invalid_penalty) if complete else ()
    if rewards:
        ignored = "" if has_weight(episode) else ": the judge broke, so the episode has weight 0"
        lines.append(f"reward {sum(rewards):+.1f}, before the KL penalty{ignored}")
    short = {k: v for k, v in episode.problem.tags.items() if isinstance(v, str | int | float)}
    if short:
        lines.append(", ".join(f"{k}: {v}" for k, v in short.items()))
    for number, turn in enumerate(episode.turns, start=1):
        gained = f", reward {rewards[number - 1]:+.1f}" if rewards else ""
        lines += [
            _rule(
                f"turn {number}: {'context anew' if turn.restart else 'prompt'}, {len(turn.prompt_delta_ids)} tokens"
            ),
            show(turn.prompt_delta_ids),
            _rule(f"turn {number}: response, {len(turn.response_ids)} tokens, ended by {turn.finish_reason}"),
            show(turn.response_ids),
            *_verdict_lines(episode, turn, number, gained),
        ]
    return "\n".join(lines)


_PROMPT = ("prompt", "prompt, with all that is still seen")


def _verdict_lines(episode: Episode, turn: Turn, number: int, gained: str) -> Iterator[str]:
    if turn.verdict is None:
        yield _rule(f"turn {number}: not judged")
        return
    yield _rule(f"turn {number}: {turn.verdict.status}{gained}")
    problem = episode.problem
    for kind, tests, results in (
        ("public", problem.public_tests, turn.verdict.public),
        ("hidden", problem.hidden_tests, turn.verdict.hidden),
    ):
        for i, (test, result) in enumerate(zip(tests, results), start=1):
            yield from _test_lines(f"{kind} test {i} of {len(tests)}", test, result)
        if results and len(results) < len(tests):
            yield f"{kind} tests {len(results) + 1} to {len(tests)}: not run"


def _test_lines(name: str, test: Test, result: TestResult) -> Iterator[str]:
    usage = f"{1000 * result.wall_s:.0f} ms, {result.memory_bytes / 2**20:.0f} MB"
    yield f"{name}: {result.status} ({usage})"
    if result.status is Status.PASSED:
        return
    if isinstance(test, FunctionTest):
        yield _indented("test", test.text or f"{len(test.calls)} calls of {test.entry_point}")
    else:
        for label, text in (("input", test.input), ("expected", test.output), ("got", result.stdout)):
            yield _indented(label, text)
    if result.error:
        yield _indented("error", result.error)


def _indented(label: str, text: str) -> str:
    first, *rest = _visible_lines(text) or ["(empty)"]
    return "\n".join([f"    {label + ':':<10}{first}", *(" " * 14 + line for line in rest)])


def _visible_lines(text: str) -> list[str]:
    """The lines of a text, with marks for invisible characters (see the module's docstring)."""
    if not text:
        return []
    *lines, last = text.split("\n")
    visible = [_visible(line) for line in lines]
    return [*visible, _visible(last)] if last else [*visible[:-1], visible[-1] + "↵"]


def _visible(line: str) -> str:
    visible = line.rstrip(" \t")
    escaped = (c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode("ascii") for c in visible)
    return "".join(escaped) + line[len(visible) :].translate({ord(" "): "·", ord("\t"): "→"})


def _rule(title: str) -> str:
    return f"--- {title} ".ljust(WIDTH, "-")


def find_episode(workdir: Path, index: int, step: int | None = None, evaluation: str | None = None) -> Episode:
    """The saved episode with that index of an evaluation, else of an iteration (by default the last one).

    Raises ConfigError, which lists what is saved, for an unknown run, evaluation, iteration or index.
    """
    path = _saved_file(workdir, step, evaluation)
    episodes = read_episodes(path)
    for episode in episodes:
        if episode.index == index:
            return episode
    if not episodes:
        raise ConfigError(f"{path} holds no episodes")
    low, high = min(e.index for e in episodes), max(e.index for e in episodes)
    raise ConfigError(f"no episode with index {index} in {path}; indices go from {low} to {high}")


def _saved_file(workdir: Path, step: int | None, evaluation: str | None) -> Path:
    steps, evaluations = saved_steps(workdir), saved_evaluations(workdir)
    available = [f"steps {steps[0]} to {steps[-1]}"] if steps else []
    available += [f"evaluations {', '.join(evaluations)}"] if evaluations else []
    listing = f"there are {' and '.join(available)}"
    if not available:
        raise ConfigError(f"no saved episodes in {workdir}: is it the --workdir of a run?")
    if evaluation is not None:
        if evaluation not in evaluations:
            raise ConfigError(f"no evaluation {evaluation!r} in {workdir}; {listing}")
        return evaluation_path(workdir, evaluation)
    if not steps or step not in (None, *steps):
        raise ConfigError(
            f"no episodes of {'an iteration' if step is None else f'step {step}'} in {workdir}; {listing}"
        )
    return episodes_path(workdir, steps[-1] if step is None else step)


def main() -> None:
    """Prints the episode that the command line names."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("workdir", type=arguments.path)
    parser.add_argument("--index", type=int, default=0, help="which episode of the iteration or evaluation")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="which iteration (default: the last)")
    which.add_argument("--evaluation", help="which evaluation instead: warm_start, rlef, valid_000005, ...")
    with errors_as_lines():
        args = parser.parse_args()
        episode = find_episode(args.workdir, args.index, args.step, args.evaluation)
        saved = config.load_saved(args.workdir)
        tokenizer = load_tokenizer(saved.model.tokenizer)
        print(format_episode(episode, tokenizer.show, invalid_penalty=saved.reward.invalid_penalty))


if __name__ == "__main__":
    main()
