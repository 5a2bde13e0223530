"""Run by test_update_critic_apart in a process with eight pretend devices: policy and critic on one mesh or on two.

Arguments: "numbers" for places, scores, gradients and what is refused, or "checkpoints" for what is restored and which
programs run; a folder. Prints one line of JSON.
"""

import collections
import dataclasses
import functools
import gzip
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.train_state import clip_by_norm, learning_rates
from rlef_jax.ppo.update import ForwardSettings, Learner, prepare_iteration
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.workdir import items_of, state_of
from tests.ppo.conftest import random_episodes
from tests.ppo.mesh_script import CFG, gap

KEY = jax.random.PRNGKey(0)


def meshes(name):
    """Of the policy, and of the critic where it has one of its own."""
    policy = {"mesh": make_mesh(2, 2, 1)}
    return policy if name == "shared" else policy | {"critic_mesh": make_mesh(1, 1, 2, jax.devices()[4:])}


# Below each part's norm, so that by its own norm each would be clipped less.
CLIP = 0.25


@functools.cache
def make_learner(name, max_grad_norm=0.0):
    """With AdamW, whose first steps with this eps don't follow the signs of near-zero gradients, and clipping. Each is
    compiled once."""
    adam = optax.chain(clip_by_norm(CLIP), optax.adamw(learning_rates(1.0, 2), eps=1.0))
    forward_settings = ForwardSettings(unroll=False, remat="dots", logit_tokens=32)
    return Learner(CFG, adam, forward_settings=forward_settings, max_grad_norm=max_grad_norm, **meshes(name))


def updated(learner, policy, microbatches):
    """The state before and after an update, on the host, and its metrics."""
    state = learner.init(KEY, policy)
    before = jax.tree.map(np.array, jax.device_get(state))
    after, metrics = learner.update(state, microbatches)
    return before, jax.device_get(after), metrics


def metric_gap(one, other):
    return max(abs(one[name] - other[name]) for name in one)


def devices_of(tree):
    return sorted({d.id for a in jax.tree.leaves(tree) for d in a.devices()})


def places(learner, policy):
    state = learner.init(KEY, policy)
    adam = state.opt_state[1][0]
    return {
        "policy": devices_of([state.params["policy"], adam.mu["policy"], adam.nu["policy"]]),
        "critic": devices_of([state.params["critic"], adam.mu["critic"], adam.nu["critic"]]),
        "counts": devices_of([state.step, adam.count]),
    }


def programs_run(learner, policy, microbatches, folder):
    """How often each compiled function was called in an update, once everything is compiled."""
    state, _ = learner.update(learner.init(KEY, policy), microbatches)
    with jax.profiler.trace(str(folder)):
        state, _ = learner.update(state, microbatches)
        jax.block_until_ready(state)
    [path] = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    calls = sorted((e for e in events if e.get("name", "").startswith("PjitFunction(")), key=lambda e: e["ts"])
    counts, end = collections.Counter(), 0.0
    for call in calls:
        if call["ts"] >= end:  # else it is a call's own second record
            counts[call["name"].removeprefix("PjitFunction(").removesuffix(")")] += 1
            end = call["ts"] + call["dur"]
    return counts


def compared(policy, batches):
    """Per layout of the parts: gaps to the shared mesh in scores, gradients and a clipped update."""
    expected, told = None, {}
    for name in ("shared", "apart"):
        learner = make_learner(name)
        params = learner.init(KEY, policy).params
        [filled], scores = prepare_iteration(learner, params, learner.place_policy(policy), [batches])
        gradients = jax.device_get(learner.gradients(params, filled))
        _, after, metrics = updated(learner, policy, filled)
        found = [filled, gradients, after.params]
        expected = expected or (found, scores | metrics)
        told[name] = [*map(gap, expected[0], found), metric_gap(expected[1], scores | metrics)]
    return told, expected[0][0], expected[0][1], expected[1]


def refused(policy, microbatches, max_grad_norm=0.0):
    """Whether an update was applied, and what it changed but for the count of updates."""
    before, after, metrics = updated(make_learner("apart", max_grad_norm), policy, microbatches)
    moved = gap((before.params, before.opt_state), (after.params, after.opt_state))
    return {"applied": metrics["applied"], "moved": moved, "step": int(after.step)}


def refusals():
    """What a learner says to meshes that can't be."""
    overlapping = {"mesh": make_mesh(4), "critic_mesh": make_mesh(4, devices=jax.devices()[3:])}
    said = []
    for case in (overlapping, {**meshes("apart"), "separate_critic": False}):
        try:
            Learner(CFG, optax.sgd(0.1), **case)
        except ValueError as error:
            said.append(str(error))
    return said


def restored(policy, microbatches, folder):
    """Checkpoints written with and restored into each layout, and a second update after it."""
    told = {}
    for source in ("shared", "apart"):
        learner = make_learner(source)
        state, _ = learner.update(learner.init(KEY, policy), microbatches)
        saved = jax.tree.map(np.array, jax.device_get(state))
        with Checkpoints(folder / source) as checkpoints:
            checkpoints.save(1, items_of(state), {})
        further = jax.device_get(learner.update(state, microbatches)[0])
        for target in ("shared", "apart"):
            learner = make_learner(target)
            fresh = learner.init(KEY, policy)
            with Checkpoints(folder / source) as checkpoints:
                found = state_of(checkpoints.restore(1, items_of(fresh)), fresh.frozen)
            pairs = zip(jax.tree.leaves(fresh), jax.tree.leaves(found), strict=True)
            told[f"{source} to {target}"] = {
                "gap": gap(saved, found),
                "same_places": all(a.sharding == b.sharding for a, b in pairs),
                "gap_further": gap(further, jax.device_get(learner.update(found, microbatches)[0])),
            }
    return told


def main(which, folder):
    policy = init_params(jax.random.PRNGKey(1), CFG)
    episodes = random_episodes(12, vocab=16, seed=3)
    # Three micro-batches of one length: two groups, whose gradients are added up.
    batches, _ = pack(episodes, buckets=(24,), rows=4, max_turns=3, row_episodes=1)
    assert len(batches) == 3
    gaps, filled, gradients, metrics = compared(policy, batches)
    if which == "checkpoints":
        programs = {
            name: programs_run(make_learner(name), policy, filled, folder / f"trace {name}")
            for name in ("shared", "apart")
        }
        print(json.dumps({"restored": restored(policy, filled, folder), "programs": programs}))
        return
    norms = {name: float(optax.tree.norm(tree)) for name, tree in gradients.items()} | {"both": metrics["grad_norm"]}
    # Over it is the norm of both together, but of neither alone.
    between = (max(norms["policy"], norms["critic"]) + norms["both"]) / 2
    before, after, _ = updated(make_learner("shared"), policy, filled)
    broken = [dataclasses.replace(b, returns=b.returns * np.float32("nan")) for b in filled]
    told = {
        "places": {name: places(make_learner(name), policy) for name in ("shared", "apart")},
        "gaps": gaps,
        "gradient_size": max(float(np.abs(x).max()) for x in jax.tree.leaves(gradients)),
        "norms": norms,
        "clip": CLIP,
        "moved": gap(before.params, after.params),
        "refused": {
            "over": refused(policy, filled, between),
            "nothing": refused(policy, filled),
            "critic not finite": refused(policy, broken),
        },
        "refusals": refusals(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
