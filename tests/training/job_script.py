"""Run by test_processes_local_job, in each process of a job or alone: the gradients of a run's first update.

Usage: WORKDIR DATA OUTPUT. They are made from the run's own recorded rollouts, on `DATA` devices along the axis `data`.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from rlef_jax.config import load_saved
from rlef_jax.ppo.update import prepare_iteration, split_updates
from rlef_jax.training.build import build_learner, build_policy, ppo_settings
from rlef_jax.training.episode_io import episodes_path, read_episodes
from rlef_jax.training.loop import packed
from rlef_jax.training.processes import find_job, is_first, join, on_this_process


def main(workdir, data, output):
    join(find_job({}, os.environ))
    config = load_saved(workdir)
    config.mesh.data = data
    policy = build_policy(config)
    learner = build_learner(config, policy.cfg)
    params = learner.init(jax.random.PRNGKey(config.seed), policy.params).params
    ppo = ppo_settings(config)
    parts = split_updates(read_episodes(episodes_path(workdir, 0)), ppo.updates, seed=config.seed, step=0)
    batches = [packed(part, ppo.packing) for part in parts]
    filled, _ = prepare_iteration(learner, params, learner.place_policy(policy.params), batches, ppo.targets)
    gradients = on_this_process(learner.gradients(params, filled[0]), learner.mesh)
    if is_first():
        np.savez(output, *(np.asarray(leaf) for leaf in jax.tree.leaves(gradients)))


main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
