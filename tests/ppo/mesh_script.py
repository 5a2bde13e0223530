"""Run by test_update in a process with eight host devices: one update on one device and on meshes of several.

Argument: "one" for a mesh over which everything is split, and a model with adapters; "all" for every factorisation of
1, 2, 4 and 8 devices over data, fsdp and tensor, by turns with three layouts of the batch, and all models. Prints one
line of JSON.
"""

import dataclasses
import itertools
import json
import sys

import jax
import numpy as np
import optax

from rlef_jax.model.lora import LoraConfig, split
from rlef_jax.model.parameters import init_params, with_adapters
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.update import ForwardSettings, Learner, prepare_iteration
from rlef_jax.training.processes import on_this_process
from tests.ppo.conftest import random_episodes

CFG = ModelConfig(
    vocab_size=16, d_model=8, n_layers=2, n_heads=8, n_kv_heads=8, d_head=4, d_ff=16, tie_embeddings=False
)
# Other models, whose biases and norms are split over `tensor` too, and adapters; of each, what values are, and the
# targets. On a packed layout, the critic's trunk the policy's.
OTHERS = {
    "token": (
        dict(n_layers=1, tie_embeddings=True, qkv_bias=True, qk_norm=True, n_kv_heads=4),
        TargetSettings(kl="product", gamma=0.9, gae_lambda=0.8),
    ),
    "none": (
        dict(qk_norm=True, qk_norm_whole=True, norms="after", lora=LoraConfig(2, 4.0, layers=1)),
        TargetSettings(baseline="grpo", group_size=3, normalize_advantages=False),
    ),
}
# Rows a micro-batch, row lengths, episodes that may share a row: of one length, of two, and packed.
LAYOUTS = {"whole": (16, (24,), 1), "split": (8, (12, 24), 1), "packed": (8, (48,), 3)}


def gap(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def cases(which):
    """(mesh, layout) of each case. Every program takes seconds to compile."""
    if which == "one":
        return [((2, 2, 2), "packed")]
    every = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(s) <= 8]
    return list(zip(every, itertools.cycle(LAYOUTS)))


def make_learner(mesh, cfg=CFG, remat="full"):
    """With a scan over the layers, as deep models run, and chunks of the logits."""
    forward_settings = ForwardSettings(unroll=False, remat=remat, logit_tokens=32)
    return Learner(cfg, optax.sgd(0.1), separate_critic=True, mesh=mesh, forward_settings=forward_settings)


def other_gap(kind, episodes):
    """How far gradients of another model, whose values are of this kind, on eight devices are from those on one.

    In units of the largest where that is over 1: norms behind layers divide by what is small at first.
    """
    change, settings = OTHERS[kind]
    cfg = dataclasses.replace(CFG, **change)
    policy = init_params(jax.random.PRNGKey(2), cfg)
    if cfg.lora:  # at first, half of the adapters are zeros
        adapters = {name: a + 0.1 for name, a in split(policy["layers"])[1].items()}
        policy = with_adapters(policy, adapters)
    rows, buckets, row_episodes = LAYOUTS["packed"]
    packed, _ = pack(
        episodes, buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes, value_kind=kind
    )  # fmt: skip
    found = []
    for mesh in (make_mesh(), make_mesh(2, 2, 2)):
        learner = Learner(
            cfg, optax.sgd(0.1), critic=kind != "none", separate_critic=False, mesh=mesh,
            forward_settings=ForwardSettings(unroll=False, remat="dots", logit_tokens=32, keep_below=bool(cfg.lora)),
        )  # fmt: skip
        params = first_state(learner, policy).params
        [filled], _ = prepare_iteration(learner, params, learner.place_policy(policy), [packed], settings)
        found.append(on_host(learner.gradients(params, filled), learner.mesh))
    sizes = [float(np.abs(a).max()) for a in jax.tree.leaves(found[0])]
    assert max(sizes) > 1e-2 and (not cfg.lora or min(sizes) > 1e-4)
    return gap(*found) / max(1.0, *sizes)


def first_state(learner, policy):
    return learner.init(jax.random.PRNGKey(0), policy)


def prepared(learner, layout, episodes, policy):
    """The micro-batches of a layout with all of their fields, scored by the learner."""
    rows, buckets, row_episodes = LAYOUTS[layout]
    batches, _ = pack(episodes, buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes)
    params = first_state(learner, policy).params
    [filled], _ = prepare_iteration(learner, params, learner.place_policy(policy), [batches])
    return filled


def outcome(learner, filled, policy):
    """Loss, gradients and weights after an SGD step, on the host."""
    state = first_state(learner, policy)
    gradients = on_host(learner.gradients(state.params, filled), learner.mesh)
    after, metrics = learner.update(state, filled)
    return metrics["loss"], gradients, on_host(after.params, learner.mesh)


def on_host(tree, mesh):
    """NumPy arrays, whole, of arrays that may lie on other processes' devices too."""
    return jax.device_get(on_this_process(tree, mesh) if mesh.size > 1 else tree)


def main(which):
    policy = init_params(jax.random.PRNGKey(1), CFG)
    episodes = random_episodes(13, vocab=16, seed=3)
    alone = make_learner(make_mesh(), remat="dots")
    expected = outcome(alone, prepared(alone, "whole", episodes, policy), policy)
    gaps, filled, rows_per_device = {}, {}, {}
    for shape, layout in cases(which):
        learner = make_learner(make_mesh(*shape))
        if layout not in filled:
            filled[layout] = prepared(learner, layout, episodes, policy)
        found = outcome(learner, filled[layout], policy)
        gaps[f"{shape} {layout}"] = [gap(a, b) for a, b in zip(expected, found, strict=True)]
        tokens = filled[layout][0].tokens
        placed = jax.device_put(tokens, learner.trainers[0].rows)
        rows_per_device[str(shape)] = placed.addressable_shards[0].data.shape[0] / len(tokens)
    for kind in OTHERS if which == "all" else ["none"]:
        gaps[f"values: {kind}"] = [other_gap(kind, episodes)]
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
    main(sys.argv[1])
