"""A policy's first responses, and a repairer's to those that failed: the pair of appendix B.4.

"We estimate 1@3 solve rates by generating an initial program with the RL-trained model followed by up to two
independent samples from the repair model." Each repair sees the problem, the first response and its feedback, and
nothing of the repair before it, which is what the repairer was trained on. None follows one that passes the public
tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax import episode as machine
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import ConfigError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.transformer import Params
from rlef_jax.model.weights import LORA_KEYS, SHAPE_KEYS
from rlef_jax.training.build import build_policy, build_sampler_mesh, with_model_shape
from rlef_jax.training.failures import repair_prompt
from rlef_jax.training.rollout import RolloutProgress, RolloutSettings, SamplerLike, collect
from rlef_jax.training.workdir import begun_as, saved_policy
from rlef_jax.types import Episode, Problem, Status, Verdict

FIRST, REPAIRER = 0, 1
"""`Turn.policy_version` of the two models' tokens in a pair's episodes."""


@dataclasses.dataclass(frozen=True)
class Repairer:
    """Where a repairer is: a run of `rlef_jax.train` or `rlef_jax.sft`, and one of its checkpoints (best, last, or its
    iteration or step)."""

    workdir: Path
    checkpoint: str = "last"


def repairer_params(repairer: Repairer, config: ConfigDict) -> Params:
    """The repairer's weights, where the sampler of `config` has its own.

    Raises ConfigError where it is another model than `config`'s, or there is no such checkpoint.
    """
    own = with_model_shape(config_lib.load_saved(repairer.workdir)).model
    model = with_model_shape(config).model
    for key in (*SHAPE_KEYS, *LORA_KEYS, "tokenizer", "chat", "chat_options"):
        if own[key] != model[key]:
            raise ConfigError(
                f"--repairer: {repairer.workdir} has model.{key}={own[key]!r}, the policy before it {model[key]!r}:"
                " both must be of one architecture, with one tokenizer"
            )
    begun = begun_as(config, repairer.workdir)
    begun.model.init, begun.model.lora_init = own.init, own.lora_init
    first = build_policy(begun, build_sampler_mesh(config)).params
    try:
        return saved_policy(repairer.workdir, repairer.checkpoint, first, lambda: first, (config.model.compute_dtype,))
    except ConfigError as error:
        message = str(error).replace("--workdir:", "--repairer:").replace("--checkpoint=", "--repairer-checkpoint=")
        raise ConfigError(message) from error


def pair_episodes(
    sampler: SamplerLike,
    chat: ChatFormat,
    pool: ExecutionPool,
    problems: Sequence[Problem],
    *,
    seed: int,
    indexes: Sequence[int],
    settings: RolloutSettings,
    first: Params,
    repairer: Params,
    on_progress: Callable[[RolloutProgress], None] | None = None,
) -> list[Episode]:
    """Makes one episode for each entry of `problems`, judged and in that order.

    Its first response is by the weights `first`, up to `settings.max_turns - 1` repairs by those of `repairer`: turns
    whose context begins anew. Response t (from 0) is a function of its model's weights and (seed, t, index).

    Args:
      sampler: of both models; its weights change.
      settings: with feedback "true".
      others: as `collect`'s.

    Raises ConfigError as `collect`.
    """
    alone = dataclasses.replace(settings, max_turns=1)
    sampler.set_weights(first, FIRST)
    responses = collect(
        sampler, chat, pool, problems, seed=seed, step=0, settings=alone, indexes=indexes, on_progress=on_progress
    )
    made = [[episode] for episode in responses]
    sampler.set_weights(repairer, REPAIRER)
    for attempt in range(1, settings.max_turns):
        prompts = {
            row: prompt
            for row, episodes in enumerate(made)
            if len(episodes) == attempt and not pair_of(episodes, settings.max_turns).end
            if (prompt := repair_prompt(episodes[0], chat, settings)) is not None
        }
        if not prompts:
            break
        repairs = collect(
            sampler, chat, pool, [problems[row] for row in prompts], seed=seed, step=attempt, settings=alone,
            indexes=[indexes[row] for row in prompts], prompts=list(prompts.values()), on_progress=on_progress,
        )  # fmt: skip
        for row, repair in zip(prompts, repairs, strict=True):
            made[row].append(repair)
    return [_ended(pair_of(episodes, settings.max_turns), episodes[-1]) for episodes in made]


def pair_of(episodes: Sequence[Episode], max_turns: int) -> Episode:
    """One episode of the responses of several, each of which has one; unfinished where another repair may follow."""
    first = episodes[0]
    whole = machine.start(first.problem, seed=first.seed, step=first.step, index=first.index)
    for number, episode in enumerate(episodes):
        [turn] = episode.turns
        turn = dataclasses.replace(turn, restart=number > 0, verdict=_public_alone(machine.last_verdict(episode)))
        whole = machine.step(whole, turn, max_turns=max_turns)
    return whole


def _public_alone(verdict: Verdict) -> Verdict:
    """Without hidden results, which only an episode's last response has."""
    return verdict if verdict.status is Status.INFRA_ERROR else Verdict(verdict.public_status, verdict.public)


def _ended(whole: Episode, last: Episode) -> Episode:
    """With its last response judged on hidden tests too, as in `last`. One that isn't over has no room for a repair."""
    return machine.judge_last(whole if whole.end else machine.end_by_context(whole), machine.last_verdict(last))
