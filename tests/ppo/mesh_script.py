"""Run by test_update in a process with eight host devices: one update on a mesh of one and of eight."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import optax

from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, init_params
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.update import Learner, prepare_iteration


def load_factories():
    """The episode factories beside this file."""
    path = pathlib.Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("factories", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gap(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def main():
    jax.config.update("jax_disable_most_optimizations", True)  # compile quickly
    cfg = ModelConfig(vocab_size=12, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=16)
    policy = init_params(jax.random.PRNGKey(1), cfg)
    episodes = load_factories().random_episodes(13, seed=3)
    batches, _ = pack(episodes, buckets=(20,), rows=8, max_turns=3)
    results = []
    for mesh in (make_mesh(), make_mesh(data=2, fsdp=2, tensor=2)):
        learner = Learner(cfg, optax.sgd(0.1), separate_critic=True, mesh=mesh)
        state = learner.init(jax.random.PRNGKey(0), policy)
        [filled], _ = prepare_iteration(learner, state.params, learner.place_policy(policy), [batches])
        gradients = jax.device_get(learner.gradients(state.params, filled))
        after, _ = learner.update(state, filled)
        results.append((gradients, jax.device_get(after.params)))
    placed = jax.device_put(batches[0].tokens, learner.rows)
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "rows_per_device": placed.addressable_shards[0].data.shape[0],
                "gradient_size": max(float(np.abs(x).max()) for x in jax.tree.leaves(results[0][0])),
                "gradient_gap": gap(results[0][0], results[1][0]),
                "weight_gap": gap(results[0][1], results[1][1]),
            }
        )
    )


main()
