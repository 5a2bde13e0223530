"""The learner's half of an iteration (pack, score, update) and the problems that the actor's half starts from."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlef_jax.data.sources import MIX
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.extract import ends_in_example
from rlef_jax.model.transformer import Params
from rlef_jax.ppo.metrics import episode_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import PackSettings, PpoSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import Learner, TrainState, prepare_iteration, split_updates
from rlef_jax.ppo.values import METRICS
from rlef_jax.progress import ProgressDisplay
from rlef_jax.reward import has_weight
from rlef_jax.training.actor import Rollouts
from rlef_jax.types import Episode


class Stopwatch:
    """Seconds per named part of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """`time/NAME` of each part and `time/total` since construction."""
        total = time.perf_counter() - self._began
        return {f"time/{name}": s for name, s in self.seconds.items()} | {"time/total": total}


# Called with the state after an update whose gradient was bad (its weights are as before), the update's number within
# the iteration, its micro-batches and metrics. It may raise to end the run.
type OnBadUpdate = Callable[[TrainState, int, Sequence[TokenBatch], dict[str, float]], None]


def learn(
    state: TrainState,
    reference: Params,
    rollouts: Rollouts,
    learner: Learner,
    *,
    seed: int,
    ppo: PpoSettings,
    watch: Stopwatch,
    display: ProgressDisplay,
    on_bad_update: OnBadUpdate,
) -> tuple[TrainState, dict[str, float], list[bool]]:
    """`ppo.updates` optimizer steps on an iteration's rollouts.

    Returns:
      (next state, metrics without times, whether each update was applied). What an update's metrics say is averaged
      over the updates that say it: one without a token that counts has no loss. `skipped_updates` were not applied.
    """
    episodes = rollouts.episodes
    metrics = staleness_metrics(episodes, version=int(state.step), updates=ppo.updates)
    with watch.part("pack"):
        parts = split_updates(episodes, ppo.updates, seed=seed, step=rollouts.step)
        batches = [packed(part, ppo.packing, ppo.value_kind) for part in parts]
    with watch.part("score"):
        batches, scores = prepare_iteration(learner, state.params, reference, batches, ppo.targets)
    steps: list[dict[str, float]] = []
    with watch.part("update"):
        for number, microbatches in enumerate(batches):
            display.stage("updates", number, len(batches))
            state, update_metrics = learner.update(state, microbatches)
            if not update_metrics["applied"] and update_metrics["action_tokens"]:
                on_bad_update(state, number, microbatches, update_metrics)
            steps.append(update_metrics)
        display.stage("updates", len(batches), len(batches))
    averaged = dict.fromkeys(name for s in steps for name in s if name not in METRICS.values())  # those are totals
    metrics |= scores | {name: float(np.mean([s[name] for s in steps if name in s])) for name in averaged}
    applied = [bool(s["applied"]) for s in steps]
    metrics["skipped_updates"] = float(applied.count(False))
    metrics |= episode_metrics(episodes, invalid_penalty=ppo.packing.invalid_penalty)
    return state, metrics, applied


def skipped_in_row(before: int, applied: Sequence[bool]) -> tuple[int, int]:
    """(the longest row of skipped updates that has one of these in it, the row that the last of them ends).

    `before` updates in a row were skipped just before these.
    """
    longest, row = 0, before
    for was_applied in applied:
        row = 0 if was_applied else row + 1
        longest = max(longest, row)
    return longest, row


def staleness_metrics(episodes: Sequence[Episode], *, version: int, updates: int) -> dict[str, float]:
    """How old the sampled tokens' weights are, in iterations, where the learner's are `version` updates old.

    `staleness_mean` and `staleness_max` over tokens; `mixed_versions`: the share of episodes with a token that more
    than one version of the weights had a hand in. {} where no token was sampled.
    """
    episode_versions = [
        versions for e in episodes if (versions := [v for turn in e.turns for v in turn.policy_version])
    ]
    if not episode_versions:
        return {}
    ages = np.array([(version - v) / updates for versions in episode_versions for v in versions])
    return {
        "staleness_mean": float(ages.mean()),
        "staleness_max": float(ages.max()),
        "mixed_versions": float(np.mean([len(set(versions)) > 1 for versions in episode_versions])),
    }


def response_metrics(episodes: Sequence[Episode], chat: ChatFormat) -> dict[str, float]:
    """`example_fraction`: responses whose last code block, which is the program, only shows how another one is used."""
    examples = [ends_in_example(chat.response_text(turn.response_ids)) for e in episodes for turn in e.turns]
    return {"example_fraction": float(np.mean(examples))} if examples else {}


def mix_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Of training on several sources, for each: `mix/NAME/episodes`, those that count, and `mix/NAME/solved`, the share
    of them whose last response passed all tests."""
    good = [e for e in episodes if has_weight(e) and MIX in e.problem.tags]
    names = sorted({e.problem.tags[MIX] for e in good})
    solved = {name: [e.solved for e in good if e.problem.tags[MIX] == name] for name in names}
    counts = {f"mix/{name}/episodes": float(len(each)) for name, each in solved.items()}
    return counts | {f"mix/{name}/solved": float(np.mean(each)) for name, each in solved.items()}


def time_metrics(rollouts: Rollouts, watch: Stopwatch, *, synchronous: bool) -> dict[str, float]:
    """Where the time went, and each side's share of idle time.

    In the synchronous run the wait for rollouts is the rollouts' own time, so it is shown as their parts.
    """
    sampler = rollouts.progress.sampler
    waited = watch.seconds.pop("wait for rollouts", 0.0)
    if synchronous:
        watch.seconds |= {"sample": sampler.busy_s, "wait for judge": sampler.wall_s - sampler.busy_s}
    else:
        watch.seconds["wait for rollouts"] = waited
    metrics = watch.metrics()
    tokens = sum(len(e.token_ids) for e in rollouts.episodes)
    shares = {
        "sampled_tokens_per_s": (sampler.tokens, sampler.busy_s),
        "sampler/idle_rows": (sampler.row_steps - sampler.tokens, sampler.row_steps),
        "sampler/prefill_padding": (sampler.prefill_places - sampler.prefilled_tokens, sampler.prefill_places),
        "idle/actor": (rollouts.idle_s, rollouts.idle_s + sampler.wall_s),
    }
    return metrics | {
        "memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "tokens_per_s": tokens / metrics["time/total"],
        "sampler/saved_dialogues": float(sampler.saved),
        "idle/learner": waited / metrics["time/total"],
        **{name: part / total for name, (part, total) in shares.items() if total > 0},
    }


def packed(episodes: Sequence[Episode], settings: PackSettings, value_kind: str = "turn") -> list[TokenBatch]:
    """An update's micro-batches, not filled yet, for values of this kind."""
    return pack(
        episodes,
        buckets=settings.buckets,
        rows=settings.microbatch_rows,
        max_turns=settings.max_turns,
        row_episodes=settings.row_episodes,
        invalid_penalty=settings.invalid_penalty,
        value_kind=value_kind,
    )[0]


def pool_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """What the judge's pool did between two calls of its `stats()`: `pool/status/X` counts tests that ended with X, and
    `pool/seconds/X` is their wall time."""
    metrics = {f"pool/{name}": float(after[name] - before[name]) for name in ("tests", "retries", "busy_s")}
    for status, count in after["statuses"].items():
        if (new := count - before["statuses"].get(status, 0)) > 0:  # or it would depend on what the pool saw before
            seconds = after["status_s"][status] - before["status_s"].get(status, 0.0)
            metrics |= {f"pool/status/{status}": float(new), f"pool/seconds/{status}": float(seconds)}
    return metrics
