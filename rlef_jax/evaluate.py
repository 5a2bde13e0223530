"""Evaluates a run's policy: python -m rlef_jax.evaluate --workdir=runs/x [--split=test_500] [--turns=3] [--samples=3]

`--samples` counts responses a problem: with `--turns=3 --samples=3` one rollout of up to three turns, with `--turns=1
--samples=3` three independent responses, of which one that passes the public tests is submitted (n@k, section 3.2).
The weights are the run's last (policy.npz), or its warm start's with `--warm-start`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from rlef_jax import config as config_lib
from rlef_jax.data.sources import evaluation_problems
from rlef_jax.evaluation.n_at_k import rollouts_for
from rlef_jax.evaluation.report import n_at_k_percent, summarise
from rlef_jax.model.weights import load_params
from rlef_jax.training import episode_io
from rlef_jax.training.loop import EVAL_SEED, Actor
from rlef_jax.training.parts import build_policy, build_pool, build_sampler, rollout_settings
from rlef_jax.training.progress import ProgressDisplay


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a run of rlef_jax.train")
    parser.add_argument("--warm-start", action="store_true", help="evaluate the weights that the run started from")
    parser.add_argument("--split", help="default: the config's eval.split")
    parser.add_argument("--turns", type=int, default=3, help="turn limit")
    parser.add_argument("--samples", type=int, default=3, help="responses a problem, over all its rollouts")
    parser.add_argument("--temperature", type=float, help="default: the config's eval.temperature")
    parser.add_argument("--top-p", type=float, help="default: the config's eval.top_p")
    parser.add_argument("--feedback", choices=("true", "random", "none"), default="true")
    parser.add_argument("--problems", type=int, default=0, help="the first n of the split; 0 = all")
    parser.add_argument("--episodes", type=Path, help="also write the episodes to this .jsonl.gz file")
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The numbers as printed, in percent. Raises ConfigError where the workdir or an argument can't be used."""
    if not (args.workdir / "config.json").is_file():
        raise config_lib.ConfigError(f"--workdir: {args.workdir} holds no run (no config.json)")
    if args.turns < 1 or args.samples < args.turns:
        raise config_lib.ConfigError(f"--samples={args.samples} must be at least --turns={args.turns}, and that 1")
    config = config_lib.load_saved(args.workdir)
    config.episode.max_turns = args.turns
    policy = build_policy(config)
    params = policy.params
    if not args.warm_start:
        path = args.workdir / "policy.npz"
        if not path.is_file():
            raise config_lib.ConfigError(f"--workdir: no {path}; the run writes it when it ends")
        params = load_params(path, policy.cfg, jnp.dtype(config.model.param_dtype))
    temperature = config.eval.temperature if args.temperature is None else args.temperature
    top_p = config.eval.top_p if args.top_p is None else args.top_p
    problems = evaluation_problems(config.data.name, args.split or config.eval.split, args.problems)
    rollouts = rollouts_for(args.samples, args.turns)
    with build_pool(config.execution) as pool, ProgressDisplay() as display:
        actor = Actor(build_sampler(config, policy, temperature=temperature, top_p=top_p, top_k=0), policy, pool)
        actor.sampler.set_weights(params, version=0)
        episodes, _ = actor.episodes(
            [p for p in problems for _ in range(rollouts)],
            seed=config.seed + EVAL_SEED,
            step=0,
            settings=rollout_settings(config, args.feedback),
            display=display,
        )
    if args.episodes is not None:
        episode_io.write_episodes(args.episodes, episodes)
    found = summarise(episodes, max_turns=args.turns, bootstrap_samples=config.eval.bootstrap_samples)
    return {f"1@{args.samples}": n_at_k_percent(episodes, 1, args.samples, turns=args.turns)} | found


def main() -> None:
    """Prints the numbers as JSON; a bad argument is one line and exit 1."""
    args = _arguments()
    try:
        print(json.dumps(evaluate(args), indent=2))
    except (config_lib.ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
