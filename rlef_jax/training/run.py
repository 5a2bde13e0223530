"""A run from where it stands to its end: iterations, validation, checkpoints, and what happens when it must stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import RunError, StoppedError
from rlef_jax.model.transformer import Params
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import Learner, TrainState
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training import episode_io
from rlef_jax.training.actor import Actor, ActorThread, RolloutRequest, Rollouts
from rlef_jax.training.bad_update import save_bad_update
from rlef_jax.training.build import ppo_settings
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.evaluator import VALID_SEED, Evaluator, UnjudgedError
from rlef_jax.training.inputs import Inputs
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.loop import (
    Stopwatch,
    learn,
    mix_metrics,
    pool_metrics,
    response_metrics,
    skipped_in_row,
    time_metrics,
)
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.processes import all_gather, broadcast_from_first, on_host
from rlef_jax.training.workdir import FROZEN, Progress, frozen_names, items_of


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that an iteration works with.

    `request` asks for this process's episodes of an iteration, whichever; all processes of a job learn from all
    episodes. The first one alone has a `writer`.
    """

    config: ConfigDict
    workdir: Path
    actor: Actor
    request: RolloutRequest
    chat: ChatFormat
    learner: Learner
    reference: Params
    evaluate: Evaluator
    writer: MetricsWriter | None
    checkpoints: Checkpoints
    display: ProgressDisplay
    stop: StopRequest
    inputs: Inputs

    def iterate(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """All iterations that are left. Returns the last state.

        Raises StoppedError after a signal, RunError after a bad update or too many skipped ones, with a checkpoint to
        go on from.
        """
        first, last = progress.iteration, self.config.train.iterations - 1
        with ActorThread(
            self.actor, self.request, first=first, last=last, max_staleness=self.config.train.max_staleness
        ) as thread:
            for step in range(first, last + 1):
                if self._ended_early(progress):
                    break
                try:
                    state, progress = self._iteration(step, state, progress, thread)
                except StoppedError as error:
                    self._save(state, progress)
                    raise StoppedError(self._stopped_line(progress)) from error
                if any(all_gather(self.stop())) and step < last:
                    self._save(state, progress)
                    raise StoppedError(self._stopped_line(progress))
        return state, progress

    def _iteration(
        self, step: int, state: TrainState, progress: Progress, thread: ActorThread
    ) -> tuple[TrainState, Progress]:
        """One iteration, written down; where they are due, a validation and a checkpoint."""
        watch, judged_before = Stopwatch(), self.actor.judge_counters()
        with watch.part("weights"):
            thread.publish(step, state.params["policy"], int(state.step))
        with watch.part("wait for rollouts"):
            # One process alone may leave in the middle of an iteration; several must agree, at its end.
            rollouts = thread.get(step, self.stop if jax.process_count() == 1 else bool)
            parts = all_gather(rollouts.episodes)
            rollouts = dataclasses.replace(rollouts, episodes=[episode for part in parts for episode in part])
        state, metrics, applied = learn(
            state, self.reference, rollouts, self.learner, seed=self.config.seed, ppo=ppo_settings(self.config),
            watch=watch, display=self.display, on_bad_update=self._on_bad_update,
        )  # fmt: skip
        metrics |= response_metrics(rollouts.episodes, self.chat)
        metrics |= mix_metrics(rollouts.episodes) if self.config.data.mix else {}
        metrics |= {} if rollouts.tally is None else rollouts.tally.metrics("failures")
        metrics |= time_metrics(rollouts, watch, synchronous=self.config.train.max_staleness == 0)
        metrics |= pool_metrics(judged_before, self.actor.judge_counters())
        longest, row = skipped_in_row(progress.skipped_in_row, applied)
        progress = dataclasses.replace(
            progress,
            iteration=step + 1,
            skipped_updates=progress.skipped_updates + applied.count(False),
            skipped_in_row=row,
        )
        stuck = 0 < self.config.train.max_skipped <= longest
        score = None
        if not stuck and self.config.eval.every and progress.iteration % self.config.eval.every == 0:
            if found := self._validate(state, progress):
                score = found[f"1@{self.config.episode.max_turns}"]
                progress = progress.after_validation(score)
                metrics |= {f"valid/{k}": v for k, v in found.items() if isinstance(v, float)}
        self._write(step, rollouts, metrics)
        if score is not None or stuck or self._checkpoint_due(progress):
            self._save(state, progress, score=score)
        if stuck:
            raise RunError(self._stuck_line(longest, progress, metrics))
        return state, progress

    def _stuck_line(self, skipped: int, progress: Progress, metrics: Mapping[str, float]) -> str:
        self.checkpoints.wait()
        why = "; the judge broke on every episode of the last iteration" if not metrics["episodes"] else ""
        return (
            f"{skipped} updates in a row were not applied (config.train.max_skipped={self.config.train.max_skipped})"
            f"{why}; saved after {progress.iteration} iterations. Mend the cause, and the same command goes on from"
            " there; --config.train.max_skipped=0 never ends a run for this"
        )

    def _write(self, step: int, rollouts: Rollouts, metrics: dict[str, float]) -> None:
        if self.writer is None:
            return
        if self.config.train.save_episodes:
            episode_io.write_episodes(episode_io.episodes_path(self.workdir, step), rollouts.episodes)
        self.writer.write(step, metrics)
        logged = step % self.config.train.log_every == 0 or step == self.config.train.iterations - 1
        if logged or metrics["skipped_updates"]:
            self.display.iteration(step, metrics)

    def _validate(self, state: TrainState, progress: Progress) -> dict[str, Any] | None:
        """The summary; None where the judge broke on every rollout, which says nothing of the policy."""
        name, split = f"valid_{progress.iteration:06d}", self.config.eval.valid_split
        # It belongs to the iteration, whose weights can't be saved without its score: a signal waits for it.
        policy, version = state.params["policy"], int(state.step)
        feedback = self.config.eval.valid_feedback or self.config.episode.feedback
        try:
            return self.evaluate(
                name, policy, split, feedback=feedback, version=version, seed=VALID_SEED, may_stop=False
            )
        except UnjudgedError as error:
            self.display.message(f"{error}; it counts as no validation")
            return None

    def _checkpoint_due(self, progress: Progress) -> bool:
        done = progress.iteration
        return done % self.config.train.checkpoint_every == 0 or done == self.config.train.iterations

    def _save(self, state: TrainState, progress: Progress, *, score: float | None = None) -> None:
        if progress.iteration and progress.iteration not in self.checkpoints.steps():
            inputs = {name: list(facts) for name, facts in self.inputs.items()}
            metadata = {**dataclasses.asdict(progress), "seed": self.config.seed, "inputs": inputs}
            metadata[FROZEN] = frozen_names(state)
            self.checkpoints.save(progress.iteration, items_of(state), metadata, score=score)

    def _ended_early(self, progress: Progress) -> bool:
        patience = self.config.eval.patience
        if not 0 < patience <= progress.since_best:
            return False
        self.display.message(
            f"no better validation in {patience} after iteration {progress.best_iteration}: training ends"
        )
        return True

    def _stopped_line(self, progress: Progress) -> str:
        self.checkpoints.wait()
        name = self.stop.signal.name if self.stop.signal is not None else "a signal"
        where = f"saved after {progress.iteration} iterations" if progress.iteration else "nothing to save yet"
        return f"{name}, {where}; the same command goes on from there"

    def _on_bad_update(
        self, state: TrainState, number: int, microbatches: Sequence[TokenBatch], metrics: dict[str, float]
    ) -> None:
        update = int(state.step) - 1
        params = on_host(state.trainable)  # what is frozen is where the run's first weights are
        folder = broadcast_from_first(lambda: save_bad_update(self.workdir, update, params, microbatches, metrics))
        line = f"update {update} was not applied: its gradient's norm is {metrics['grad_norm']:.4g}; kept in {folder}"
        if self.config.train.bad_update == "skip":
            self.display.message(line)
            return
        self.checkpoints.wait()
        raise RunError(
            f"{line}. See python -m rlef_jax.replay_batch --workdir={self.workdir} --update={update}; "
            "to go on without such updates: --config.train.bad_update=skip"
        )
