"""Run by test_build_disjoint in a process with eight pretend devices: runs with their parts here and there.

The trainer is on devices 0 to 3; sampler, reference and critic share its devices or have 4 to 7. One judge serves all
runs; what only the first device runs is an iteration's rollouts. Arguments: a folder for them, and the names of the
layouts that run, "shared" first; without names, it says what lies where. Prints one line of JSON.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from rlef_jax import config as config_lib
from rlef_jax.train import train
from rlef_jax.training.build import build_learner, build_policy, build_pool, build_sampler
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.plain_loop import rollouts
from tests.helpers.small_run import OVERRIDES

SHAPE = {"model.n_kv_heads": 2, "ppo.separate_critic": True, "train.iterations": 2, "train.checkpoint_every": 1}
TRAINER = {"mesh.data": 2, "mesh.fsdp": 2}
SAMPLER = {"sampling.data": 2, "sampling.tensor": 2}
APART = {"sampling.own_devices": True}
LAYOUTS = {
    "alone": {},
    "shared": TRAINER | SAMPLER,
    "disjoint": TRAINER | SAMPLER | APART,
    "reference too": TRAINER | SAMPLER | APART | {"mesh.reference": "sampler"},
    "critic apart": TRAINER | SAMPLER | {"mesh.critic": "separate"},
}


def configured(name, **more):
    return config_lib.load("configs/tiny.py", overrides=OVERRIDES | SHAPE | LAYOUTS[name] | more)


def tokens(episodes):
    return [e.token_ids for e in episodes]


def first_tokens(name, judge):
    """Of the first iteration's episodes, without a run."""
    config = configured(name)
    policy = build_policy(config)
    sampler = build_sampler(config, policy.cfg, policy.chat.stop_ids)
    sampler.set_weights(policy.params, 0)
    return tokens(rollouts(config, policy, sampler, judge, step=0))


def outcome(folder):
    """What a run leaves: its weights, its episodes' tokens and the distance from the reference."""
    with np.load(folder / "policy.npz") as stored:
        weights = {key: stored[key] for key in stored.files}
    episodes = [read_episodes(folder / "episodes" / f"{step:06d}.jsonl.gz") for step in range(2)]
    return weights, [tokens(part) for part in episodes], [m["kl_to_ref"] for m in read_metrics(folder)]


def devices_of(tree):
    return sorted({d.id for a in jax.tree.leaves(tree) for d in a.devices()})


def places(name):
    """Which devices hold what, and the dtypes of the weights of a sampler in bfloat16."""
    config = configured(name, **{"model.compute_dtype": "bfloat16"})
    policy = build_policy(config)
    learner = build_learner(config, policy.cfg)
    state = learner.init(jax.random.PRNGKey(0), policy.params)
    sampler = build_sampler(config, policy.cfg, policy.chat.stop_ids)
    sampler.set_weights(state.params["policy"], 7)
    weights, version = sampler.weights()
    return {
        "trainer": devices_of(state),
        "dtypes": sorted({str(a.dtype) for a in jax.tree.leaves(weights)}),
        "reference": devices_of(learner.place_policy(policy.params)),
        "sampler": devices_of((weights, sampler.programs.new_cache())),
        "version": version,
    }


def compared(folder, runs):
    """How far each run is from the first."""
    with build_pool(configured("alone").execution) as judge:
        for name in runs:
            train(configured(name), folder / name, judge=judge)
        alone = first_tokens("alone", judge)
    found = {name: outcome(folder / name) for name in runs}
    weights, episodes, kl = found["shared"]
    told = {"alone": {"same_episodes": alone == episodes[0]}}
    for name, (other, made, other_kl) in found.items():
        told[name] = {
            "gap": max(float(np.abs(other[key] - weights[key]).max()) for key in weights),
            "moved": max(float(np.abs(weights[key] - first).max()) for key, first in first_weights().items()),
            "same_episodes": [a == b for a, b in zip(made, episodes)],
            "kl_gap": max(abs(a - b) for a, b in zip(kl, other_kl)),
        }
    return told


def first_weights():
    """By their names in policy.npz."""
    paths, _ = jax.tree_util.tree_flatten_with_path(build_policy(configured("alone")).params)
    return {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in paths}


if __name__ == "__main__":
    folder, *runs = sys.argv[1:]
    told = compared(Path(folder), runs) if runs else {"places": {name: places(name) for name in LAYOUTS}}
    print(json.dumps(told))
