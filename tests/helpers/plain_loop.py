"""The synchronous run written as a plain loop, without threads: what `max_staleness=0` must equal."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.data.sources import Source, training_problems
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.update import prepare_iteration, split_updates
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import Policy, build_learner, build_policy, build_pool, build_sampler, rollout_settings
from rlef_jax.training.rollout import collect
from rlef_jax.types import Episode
from tests.helpers.small_run import OVERRIDES


def rollouts(config: ConfigDict, policy: Policy, sampler: Sampler, pool: ExecutionPool, step: int) -> list[Episode]:
    """An iteration's episodes, by the weights that the sampler has."""
    problems = training_problems(Source.of(config), config.data.train_split, config.seed, step, config.ppo.rollouts)
    settings = rollout_settings(config, policy.chat.stop_ids, config.episode.feedback, evaluation=False)
    return collect(sampler, policy.chat, pool, problems, seed=config.seed, step=step, settings=settings)


def run(workdir: Path, iterations: int) -> None:
    config = config_lib.load("configs/tiny.py", overrides=OVERRIDES | {"train.iterations": iterations})
    policy, p = build_policy(config), config.ppo
    learner = build_learner(config, policy.cfg)
    state = learner.init(jax.random.PRNGKey(config.seed), policy.params)
    reference = learner.place_policy(policy.params)
    sampler = build_sampler(config, policy.cfg, policy.chat.stop_ids)
    with build_pool(config.execution) as pool:
        for step in range(iterations):
            sampler.set_weights(state.params["policy"], int(state.step))
            episodes = rollouts(config, policy, sampler, pool, step)
            shape = dict(buckets=tuple(p.buckets), rows=p.microbatch_rows, max_turns=config.episode.max_turns)
            parts = split_updates(episodes, p.updates, seed=config.seed, step=step)
            packed = [pack(part, invalid_penalty=config.reward.invalid_penalty, **shape)[0] for part in parts]
            batches, _ = prepare_iteration(learner, state.params, reference, packed, TargetSettings(kl_beta=p.kl_beta))
            for microbatches in batches:
                state, _ = learner.update(state, microbatches)
    workdir.mkdir()
    save_params(workdir / "policy.npz", state.params["policy"])
