"""Run by test_processes, once for each process of a job: an update over all of them, and on the first one's device."""

import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from rlef_jax import config as config_lib
from rlef_jax.data.sources import Source, training_problems
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import ConfigError
from rlef_jax.model.finite import check_params
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training.actor import LocalActor, RolloutRequest, Starts, shard_range
from rlef_jax.training.build import (
    build_learner,
    build_mesh,
    build_pool,
    build_sampler,
    build_sampler_mesh,
    describe_policy,
    first_weights,
    rollout_settings,
)
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.evaluator import EVAL_SEED, Evaluator, SplitProblems
from rlef_jax.training.processes import all_gather, find_job, is_first, join, on_this_process
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.small_run import OVERRIDES
from tests.helpers.tiny_tokenizer import tiny_tokenizer
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


def random_feedback():
    """Tokens of an iteration's episodes under random feedback, as one process makes them and as all of them do."""
    config, chat = config_lib.load("configs/tiny.py"), ChatFormat(tiny_tokenizer())
    settings = rollout_settings(config, chat.stop_ids, "random", evaluation=False)
    settings = dataclasses.replace(settings, context=4096, max_failures=1, max_chars=40)

    def find(request):
        whole = training_problems("mini_contests", request.split, request.seed, request.step, request.count)
        return Starts(whole[request.indexes.start : request.indexes.stop], whole)

    def made(indexes):
        sampler = ScriptedSampler(chat, lambda index, turn: "```python\nprint('no')\n```")
        actor = LocalActor(sampler, chat, pool, find)
        actor.set_weights(None, 0)
        request = RolloutRequest("train", 0, 1, count=6, indexes=indexes, settings=settings)
        return [episode.token_ids for episode in actor.episodes(request).episodes]

    with build_pool(config.execution) as pool:
        parts = all_gather(made(shard_range(6, jax.process_index(), jax.process_count())))
        return made(range(6)) if is_first() else None, [ids for part in parts for ids in part]


def evaluation(workdir):
    """(tokens of an evaluation's episodes, scores read back) of weights that lie on all processes' devices, and the
    tokens of the same on one device. All processes make episodes, of which there is one less than processes at first:
    one has none to make."""
    values = OVERRIDES | {"mesh.data": 2, "mesh.fsdp": 2, "eval.problems": jax.process_count() - 1}
    config = config_lib.load("configs/tiny.py", overrides=values)
    cfg, chat, _ = describe_policy(config)
    params = first_weights(config, cfg, None)
    learner = build_learner(config, cfg)
    source = Source.of(config)
    find = SplitProblems(source, config.eval.problems)
    sampler = build_sampler(config, cfg, chat.stop_ids)
    with build_pool(config.execution) as pool, ProgressDisplay(stream=io.StringIO()) as display:
        actor = LocalActor(sampler, chat, pool, find)
        evaluate = Evaluator(config, actor, chat.stop_ids, workdir, display, source)
        placed = learner.init(jax.random.PRNGKey(0), params).params["policy"]
        scores = [evaluate("some", placed, "valid", version=3) for _ in range(2)]
        if not is_first():
            return None
        actor.set_weights(params, 0)
        settings = rollout_settings(config, chat.stop_ids, "true", evaluation=True)
        count = config.eval.problems
        whole = RolloutRequest("valid", config.seed + EVAL_SEED, 0, count, range(count), settings)
        alone = [episode.token_ids for episode in actor.episodes(whole).episodes]
    written = read_episodes(workdir / "episodes" / "some.jsonl.gz")
    return [episode.token_ids for episode in written] == alone, scores[0] == scores[1], len(alone)


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
    own = shard_range(len(episodes), jax.process_index(), jax.process_count())
    parts = all_gather([episodes[i] for i in own])
    together = [episode for part in parts for episode in part]
    mesh = make_mesh(data=2, fsdp=2)
    learner = mesh_script.make_learner(mesh)
    batches = mesh_script.prepared(learner, "packed", together, policy)
    found = mesh_script.outcome(learner, batches, policy)
    empty = empty_update(learner, policy, batches)
    one, all_of_them = random_feedback()
    evaluated = evaluation(Path(sys.argv[1]))
    if is_first():
        alone = mesh_script.make_learner(make_mesh())
        expected = mesh_script.outcome(alone, mesh_script.prepared(alone, "whole", episodes, policy), policy)
        told = {
            "processes": jax.process_count(),
            "shares": [len(part) for part in parts],
            "same_episodes": together == episodes,
            "random_feedback": [one == all_of_them, len({tuple(ids) for ids in all_of_them})],
            "evaluation": evaluated,
            "empty": empty,
            "refusals": refusals(),
            "devices": len({d.process_index for d in mesh.devices.flat}),
            "gaps": [mesh_script.gap(a, b) for a, b in zip(expected, found, strict=True)],
        }
        print(json.dumps(told), flush=True)


main()
