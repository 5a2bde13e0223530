"""Run by test_processes, once for each process of a job: an update over all of them, and on the first one's device."""

import json
import os

import jax
import numpy as np

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.model.finite import check_params
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.training.build import build_mesh, build_sampler_mesh
from rlef_jax.training.processes import all_gather, find_job, is_first, join, on_this_process, share_of
from tests.ppo import mesh_script
from tests.ppo.conftest import random_episodes


def refusals():
    """What is said to each key that places a part on devices of its own."""
    asked = [
        {"sampling.own_devices": True},
        {"mesh.reference": "sampler"},
        {"mesh.critic": "separate", "ppo.separate_critic": True},
    ]
    said = []
    for overrides in asked:
        config = config_lib.load("configs/tiny.py", overrides=overrides)
        for build in (build_mesh, build_sampler_mesh):
            try:
                build(config)
            except ConfigError as error:
                said.append(str(error))
    return said


def empty_update(learner, policy, batches):
    """(applied, step, the largest change of a weight) of an update in which nothing counts; and the next one's."""
    state = learner.init(jax.random.PRNGKey(0), policy)
    before = on_this_process(state.params, learner.mesh)
    told = []
    for microbatches in ([b.replace(weight=np.zeros_like(b.weight)) for b in batches], batches):
        state, metrics = learner.update(state, microbatches)
        check_params("the state", state.params)
        change = mesh_script.gap(before, on_this_process(state.params, learner.mesh))
        told.append([metrics["applied"], int(state.step), change])
    return told


def main():
    join(find_job({}, os.environ))
    policy = init_params(jax.random.PRNGKey(1), mesh_script.CFG)
    episodes = random_episodes(13, vocab=16, seed=3)
    # As a run does: each process makes its share of the episodes, and all of them learn from all.
    parts = all_gather([episodes[i] for i in share_of(len(episodes))])
    together = [episode for part in parts for episode in part]
    mesh = make_mesh(data=2, fsdp=2)
    learner = mesh_script.make_learner(mesh)
    batches = mesh_script.prepared(learner, "packed", together, policy)
    found = mesh_script.outcome(learner, batches, policy)
    empty = empty_update(learner, policy, batches)
    if is_first():
        alone = mesh_script.make_learner(make_mesh())
        expected = mesh_script.outcome(alone, mesh_script.prepared(alone, "whole", episodes, policy), policy)
        told = {
            "processes": jax.process_count(),
            "shares": [len(part) for part in parts],
            "same_episodes": together == episodes,
            "empty": empty,
            "refusals": refusals(),
            "devices": len({d.process_index for d in mesh.devices.flat}),
            "gaps": [mesh_script.gap(a, b) for a, b in zip(expected, found, strict=True)],
        }
        print(json.dumps(told), flush=True)


main()
