"""Run by test_update in a process with eight host devices: one update on one device and on every shape of mesh.

Every factorisation of 1, 2, 4 and 8 devices over data, fsdp and tensor; on the meshes the three layouts of the batch
take turns. Prints one line of JSON.
"""

import importlib.util
import itertools
import json
import pathlib

import jax
import numpy as np
import optax

from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.update import ForwardSettings, Learner, prepare_iteration
from rlef_jax.training.processes import on_this_process

CFG = ModelConfig(vocab_size=16, d_model=8, n_layers=2, n_heads=8, n_kv_heads=8, d_head=4, d_ff=16)
# Rows a micro-batch, row lengths, episodes that may share a row: of one length, of two, and packed.
LAYOUTS = {"whole": (16, (24,), 1), "split": (8, (12, 24), 1), "packed": (8, (48,), 3)}


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


def shapes():
    """(data, fsdp, tensor) of every mesh of 1, 2, 4 and 8 devices."""
    return [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) in (1, 2, 4, 8)]


def outcome(mesh, layout, episodes, policy):
    """Loss, gradients and weights after an SGD step, on the host; and the learner."""
    rows, buckets, row_episodes = LAYOUTS[layout]
    batches, _ = pack(episodes, buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes)
    # A scan over the layers, as deep models run, and chunks of the logits.
    how = ForwardSettings(unroll=False, remat="dots", logit_tokens=32)
    learner = Learner(CFG, optax.sgd(0.1), separate_critic=True, mesh=mesh, how=how)
    state = learner.init(jax.random.PRNGKey(0), policy)
    [filled], _ = prepare_iteration(learner, state.params, learner.place_policy(policy), [batches])
    gradients = on_host(learner.gradients(state.params, filled), mesh)
    after, metrics = learner.update(state, filled)
    return (metrics["loss"], gradients, on_host(after.params, mesh)), learner, batches


def on_host(tree, mesh):
    """NumPy arrays, whole, of arrays that may lie on other processes' devices too."""
    return jax.device_get(on_this_process(tree, mesh) if mesh.size > 1 else tree)


def main():
    jax.config.update("jax_disable_most_optimizations", True)  # compile quickly
    policy = init_params(jax.random.PRNGKey(1), CFG)
    episodes = load_factories().random_episodes(13, vocab=16, seed=3)
    expected, _, _ = outcome(make_mesh(), "whole", episodes, policy)
    gaps = {}
    for number, shape in enumerate(shapes()):
        layout = list(LAYOUTS)[number % len(LAYOUTS)]
        found, learner, batches = outcome(make_mesh(*shape), layout, episodes, policy)
        gaps[f"{shape} {layout}"] = [gap(a, b) for a, b in zip(expected, found, strict=True)]
        if shape == (2, 2, 2):
            placed = jax.device_put(batches[0].tokens, learner.sides[0].rows)
            rows_per_device = placed.addressable_shards[0].data.shape[0] / placed.shape[0]
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "rows_per_device": rows_per_device,
                "gradient_size": max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[1])),
                "gaps": gaps,
            }
        )
    )


if __name__ == "__main__":
    main()
