"""Runs a bad update again, to find out why: python -m rlef_jax.replay_batch --workdir=runs/x [--update=12]

A gradient that isn't finite (or is over ppo.max_grad_norm) stops a run, or is skipped; its weights and batch lie in
bad_updates/. This computes the gradient once more and prints where it is not finite or large: in the weights, the
batch, the log-probabilities and values of a micro-batch, or the gradient of one parameter.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from rlef_jax import arguments
from rlef_jax import config as config_lib
from rlef_jax.command_line import errors_as_lines
from rlef_jax.errors import ConfigError
from rlef_jax.ppo.train_state import partition
from rlef_jax.training.bad_update import describe, load_bad_update, saved_updates
from rlef_jax.training.build import build_learner, build_policy


def main() -> None:
    """Prints the findings."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("--workdir", type=arguments.path, required=True, help="a run of rlef_jax.train")
    parser.add_argument("--update", type=int, help="which one (default: the last that was kept)")
    with errors_as_lines():
        args = parser.parse_args()
        print(replay(args.workdir, args.update))


def replay(workdir: Path, update: int | None = None) -> str:
    """The findings as text. Raises ConfigError where there is no such run or update."""
    config = config_lib.load_saved(workdir)
    updates = saved_updates(workdir)
    if not updates:
        raise ConfigError(f"--workdir: {workdir} has no bad updates")
    number = updates[-1] if update is None else update
    policy = build_policy(config)
    learner = build_learner(config, policy.cfg)
    state = learner.init(jax.random.PRNGKey(config.seed), policy.params)
    trained, microbatches, metrics = load_bad_update(workdir, number, state.trainable)
    shardings, _ = partition(learner.param_shardings, learner.trainable)
    state = dataclasses.replace(state, trainable=jax.device_put(trained, shardings))
    metric_text = ", ".join(f"{k} {metrics[k]}" for k in ("loss", "grad_norm", "action_tokens", "values"))
    return "\n".join([f"update {number} of {workdir}; then: {metric_text}", *describe(learner, state, microbatches)])


if __name__ == "__main__":
    main()
