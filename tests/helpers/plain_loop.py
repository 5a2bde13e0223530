"""The synchronous run written as a plain loop, without threads: what `max_staleness=0` must equal. Usage: WORKDIR."""

import sys
from pathlib import Path

import jax

from rlef_jax import config as config_lib
from rlef_jax.data.sources import Source, training_problems
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.update import prepare_iteration, split_updates
from rlef_jax.training.build import build_learner, build_policy, build_pool, build_samplers, rollout_settings
from rlef_jax.training.rollout import collect
from tests.helpers.small_run import OVERRIDES


def main(workdir: Path, iterations: int) -> None:
    config = config_lib.load("configs/tiny.py", overrides=OVERRIDES)
    policy, p = build_policy(config), config.ppo
    learner = build_learner(config, policy.cfg)
    state = learner.init(jax.random.PRNGKey(config.seed), policy.params)
    reference = learner.place_policy(policy.params)
    [sampler] = build_samplers(config, policy.cfg, policy.chat.stop_ids, 1)
    with build_pool(config.execution) as pool:
        for step in range(iterations):
            sampler.set_weights(state.params["policy"], int(state.step))
            problems = training_problems(Source.of(config), config.data.train_split, config.seed, step, p.rollouts)
            settings = rollout_settings(config, policy.chat.stop_ids, config.episode.feedback, evaluation=False)
            episodes = collect(sampler, policy.chat, pool, problems, seed=config.seed, step=step, settings=settings)
            shape = dict(buckets=tuple(p.buckets), rows=p.microbatch_rows, max_turns=config.episode.max_turns)
            parts = split_updates(episodes, p.updates, seed=config.seed, step=step)
            packed = [pack(part, invalid_penalty=config.reward.invalid_penalty, **shape)[0] for part in parts]
            batches, _ = prepare_iteration(learner, state.params, reference, packed, TargetSettings(kl_beta=p.kl_beta))
            for microbatches in batches:
                state, _ = learner.update(state, microbatches)
    workdir.mkdir()
    save_params(workdir / "policy.npz", state.params["policy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
