"""Evaluates a run's policy: python -m rlef_jax.evaluate --workdir=runs/x [--split=test_500] [--turns=3] [--samples=3]

`--samples` counts responses a problem: with `--turns=3 --samples=3` one rollout of up to three turns, with `--turns=1
--samples=3` three independent responses, of which one that passes the public tests is submitted (n@k, section 3.2).
The weights are those of a checkpoint, or the warm start's with `--warm-start`. Prints JSON, in percent; `left_out`
counts the problems that are not in `1@SAMPLES` because the judge broke on one of their rollouts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.command_line import errors_as_lines
from rlef_jax.config_checks import validate
from rlef_jax.data.sources import check_splits, evaluation_problems
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.evaluation.n_at_k import rollouts_for
from rlef_jax.evaluation.report import n_at_k_percent, summarise
from rlef_jax.training import episode_io
from rlef_jax.training.actor import Actor
from rlef_jax.training.evaluator import EVAL_SEED
from rlef_jax.training.parts import build_policy, build_pool, build_samplers, rollout_settings
from rlef_jax.training.progress import ProgressDisplay
from rlef_jax.training.workdir import saved_policy


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run of rlef_jax.train")
    parser.add_argument("--checkpoint", default="last", help="best (by validation), last, or its iteration")
    parser.add_argument("--warm-start", action="store_true", help="evaluate the weights that the run started from")
    parser.add_argument("--split", help="default: the run's eval.split, or if it has none, base_config's")
    parser.add_argument("--turns", type=int, default=3, help="turn limit")
    parser.add_argument("--samples", type=int, default=3, help="responses a problem, over all its rollouts")
    parser.add_argument("--temperature", type=float, help="default: the config's eval.temperature")
    parser.add_argument("--top-p", type=float, help="default: the config's eval.top_p")
    parser.add_argument("--feedback", choices=("true", "random", "none"), default="true")
    parser.add_argument("--problems", type=int, default=0, help="the first n of the split; 0 = all")
    parser.add_argument("--episodes", type=Path, help="also write the episodes to this .jsonl.gz file")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The numbers as printed, in percent.

    Raises ConfigError, before anything runs, where the workdir or an argument can't be used; RunError where the judge
    broke on so many rollouts that nothing can be said.
    """
    config = _changed_config(args)
    if args.episodes is not None:
        _check_writable(args.episodes)
    policy = build_policy(config)
    params = policy.params if args.warm_start else saved_policy(args.workdir, args.checkpoint, policy.params)
    e = config.eval
    problems = evaluation_problems(config.data.name, e.split, e.problems)
    rollouts = rollouts_for(args.samples, args.turns)
    with build_pool(config.execution) as pool, ProgressDisplay() as display:
        actor = Actor(build_samplers(config, policy, 1)[0], policy, pool)
        actor.sampler.set_weights(params, version=0)
        episodes, _ = actor.episodes(
            [p for p in problems for _ in range(rollouts)],
            seed=config.seed + EVAL_SEED,
            step=0,
            settings=rollout_settings(config, policy.chat, args.feedback, evaluation=True),
            display=display,
        )
    if args.episodes is not None:
        episode_io.write_episodes(args.episodes, episodes)
    try:
        percent, left_out = n_at_k_percent(episodes, 1, args.samples, turns=args.turns)
        found = summarise(episodes, max_turns=args.turns, bootstrap_samples=e.bootstrap_samples)
    except ValueError as error:
        raise RunError(f"{error}: the judge broke on the others") from error
    return {f"1@{args.samples}": percent, "left_out": left_out} | found


# Where the command line's values go in the config, whose checks then hold for them too.
_FLAGS = {
    "turns": "episode.max_turns",
    "split": "eval.split",
    "temperature": "eval.temperature",
    "top_p": "eval.top_p",
    "problems": "eval.problems",
}


def _changed_config(args: argparse.Namespace) -> ConfigDict:
    """The run's configuration with the command line's values. Raises ConfigError, naming the flags, for bad ones."""
    config = config_lib.load_saved(args.workdir)
    given = {key: value for name, key in _FLAGS.items() if (value := getattr(args, name)) is not None}
    config_lib.apply_overrides(config, given)
    config.eval.split = config.eval.split or config_lib.base_config().eval.split
    try:
        validate(config)
        check_splits(config.data.name, train=config.data.train_split, evaluated={"eval.split": config.eval.split})
    except ConfigError as error:
        line = "; ".join(str(error).splitlines())
        for name, key in _FLAGS.items():
            line = line.replace(f"config.{key}:", f"--{name.replace('_', '-')}:")
        raise ConfigError(line) from error
    if args.samples < args.turns:
        raise ConfigError(f"--samples={args.samples} must be at least --turns={args.turns}")
    return config


def _check_writable(path: Path) -> None:
    """Raises ConfigError where no file can be written: better now than after the evaluation."""
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.open("wb").close()
        part.unlink()
    except OSError as error:
        raise ConfigError(f"--episodes: cannot be written: {error}") from error


def main() -> None:
    """Prints the numbers as JSON."""
    args = _arguments()
    logging.set_verbosity(logging.FATAL)  # or Orbax talks of every folder that it looks at
    with errors_as_lines():
        print(json.dumps(evaluate(args), indent=2))


if __name__ == "__main__":
    main()
