"""One iteration of training (roll out, judge, update) and the parts that it is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rlef_jax.data.sources import training_problems
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.transformer import Params
from rlef_jax.ppo.metrics import episode_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.update import Learner, TrainState, prepare_iteration, split_updates
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.parts import Policy
from rlef_jax.training.progress import ProgressDisplay
from rlef_jax.training.rollout import RolloutProgress, RolloutSettings, collect
from rlef_jax.types import Episode, Problem, TokenBatch

EVAL_SEED = 1_000_003  # added to the run's seed: an evaluation draws tokens of its own


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
        """`time/NAME` of each part and `time/total` since this was made."""
        total = time.perf_counter() - self._began
        return {f"time/{name}": s for name, s in self.seconds.items()} | {"time/total": total}


class ProblemFeed:
    """The problems of each iteration, the next one's made in a process beside while this one's are in use."""

    def __init__(self, name: str, split: str, seed: int, count: int) -> None:
        self._arguments = (name, split, seed)
        self._count = count
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._ahead: dict[int, Future[list[Problem]]] = {}

    def get(self, step: int, last: int) -> list[Problem]:
        """Problems of iteration `step`; starts on `step + 1` unless `step` is the last."""
        for wanted in range(step, min(step + 1, last) + 1):
            if wanted not in self._ahead:
                self._ahead[wanted] = self._pool.submit(training_problems, *self._arguments, wanted, self._count)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class PpoSettings:
    """Shape of an iteration's updates (config section `ppo`)."""

    updates: int
    microbatch_rows: int
    buckets: tuple[int, ...]
    kl_beta: float
    normalize_advantages: bool
    invalid_penalty: float
    max_turns: int

    @classmethod
    def of(cls, config: ConfigDict) -> PpoSettings:
        p = config.ppo
        return cls(
            updates=p.updates,
            microbatch_rows=p.microbatch_rows,
            buckets=tuple(p.buckets),
            kl_beta=p.kl_beta,
            normalize_advantages=p.normalize_advantages,
            invalid_penalty=config.reward.invalid_penalty,
            max_turns=config.episode.max_turns,
        )


@dataclasses.dataclass(frozen=True)
class Actor:
    """What makes episodes: a sampler (which holds its own weights), the chat format and the judge's pool."""

    sampler: Sampler
    policy: Policy
    pool: ExecutionPool

    def episodes(
        self,
        problems: Sequence[Problem],
        *,
        seed: int,
        step: int,
        settings: RolloutSettings,
        display: ProgressDisplay | None = None,
        stage: str = "rollouts",
    ) -> tuple[list[Episode], RolloutProgress]:
        """One episode per problem, and where the time went."""
        seen: list[RolloutProgress] = []

        def report(progress: RolloutProgress) -> None:
            seen[:] = [progress]
            if display is not None:
                display.stage(stage, progress.ended, progress.total)

        made = collect(
            self.sampler, self.policy.chat, self.pool, problems, seed=seed, step=step, settings=settings,
            on_progress=report,
        )  # fmt: skip
        return made, seen[0]


def run_iteration(
    step: int,
    state: TrainState,
    reference: Params,
    problems: Sequence[Problem],
    actor: Actor,
    learner: Learner,
    *,
    seed: int,
    settings: RolloutSettings,
    ppo: PpoSettings,
    display: ProgressDisplay,
) -> tuple[TrainState, list[Episode], dict[str, float]]:
    """One iteration: rollouts under the current policy, then `ppo.updates` optimizer steps on them.

    Returns (next state, episodes, metrics).
    """
    watch = Stopwatch()
    with watch.part("weights"):
        actor.sampler.set_weights(state.params["policy"], version=int(state.step))
    episodes, progress = actor.episodes(problems, seed=seed, step=step, settings=settings, display=display)
    watch.seconds |= {"sample": progress.sampling_s, "wait for judge": progress.waiting_s}
    with watch.part("pack"):
        parts = split_updates(episodes, ppo.updates, seed=seed, step=step)
        batches = [_packed(part, ppo) for part in parts]
    with watch.part("score"):
        batches, metrics = prepare_iteration(
            learner, state.params, reference, batches, kl_beta=ppo.kl_beta,
            normalize_advantages=ppo.normalize_advantages,
        )  # fmt: skip
    steps: list[dict[str, float]] = []
    with watch.part("update"):
        for number, microbatches in enumerate(batches):
            display.stage("updates", number, len(batches))
            state, update_metrics = learner.update(state, microbatches)
            steps.append(update_metrics)
    metrics |= {name: float(np.mean([s[name] for s in steps])) for name in steps[0]}
    metrics |= episode_metrics(episodes, invalid_penalty=ppo.invalid_penalty)
    metrics |= watch.metrics()
    tokens = sum(len(e.token_ids) for e in episodes)
    metrics["memory_peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    metrics["tokens_per_s"] = tokens / metrics["time/total"]
    metrics["sampled_tokens_per_s"] = progress.sampled_tokens / max(progress.sampling_s, 1e-9)
    return state, episodes, metrics


def _packed(episodes: Sequence[Episode], ppo: PpoSettings) -> list[TokenBatch]:
    return pack(
        episodes,
        buckets=ppo.buckets,
        rows=ppo.microbatch_rows,
        max_turns=ppo.max_turns,
        invalid_penalty=ppo.invalid_penalty,
    )[0]


def pool_metrics(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """What the judge's pool did between two calls of its `stats()`."""
    return {f"pool/{name}": float(after[name] - before[name]) for name in ("tests", "retries", "busy_s")}
