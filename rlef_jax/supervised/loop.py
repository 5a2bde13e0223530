"""Supervised training from where it stands to its end: steps, probes, checkpoints, and what a signal does to it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlef_jax.errors import RunError, StoppedError
from rlef_jax.model.transformer import Params
from rlef_jax.ppo.settings import PackSettings
from rlef_jax.ppo.update import Learner, TrainState
from rlef_jax.progress import ProgressDisplay
from rlef_jax.supervised.examples import Example, Place, pack_examples
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.metrics_writer import MetricsWriter, read_metrics
from rlef_jax.training.processes import all_gather
from rlef_jax.training.workdir import FROZEN, check_nothing_was_saved, frozen_names, items_of, newest_state

VALID_LOSS = "valid/loss"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, as its checkpoints' metadata has it.

    Attributes:
      place: in the batches.
      reference: `workdir.reference_hash` of the weights that it began with.
      best_iteration: the step of the checkpoint with the lowest loss on held-out examples, `best_loss`; None before the
        first, and where none are held out. The name is that of RLEF runs, since `rlef_jax.evaluate` reads both.
    """

    place: Place = Place()
    reference: str | None = None
    best_iteration: int | None = None
    best_loss: float | None = None

    def after(self, place: Place, probed: Mapping[str, float]) -> Progress:
        """At another place, where the held-out examples were probed or not."""
        moved = dataclasses.replace(self, place=place)
        loss = probed.get(VALID_LOSS)
        if loss is None or (self.best_loss is not None and loss > self.best_loss):
            return moved
        return dataclasses.replace(moved, best_iteration=place.step, best_loss=loss)


def resumed(
    workdir: Path,
    checkpoints: Checkpoints,
    fresh: TrainState,
    reference: str | None,
    *,
    checkpoint_every: int,
    tell: Callable[[str], None],
) -> tuple[TrainState, Progress]:
    """The newest state that can be read and where the run stood; `fresh` at the beginning where none is saved yet.

    Arguments and errors as those of `workdir.newest_state` and `workdir.check_nothing_was_saved`.
    """
    newest = newest_state(checkpoints, fresh, reference, tell)
    if newest is None:
        check_nothing_was_saved(workdir, _recorded(workdir), checkpoint_every, "steps")
        return fresh, Progress(reference=reference)
    state, told = newest
    progress = Progress(Place(**told["place"]), reference, told["best_iteration"], told["best_loss"])
    tell(f"going on from step {progress.place.step}")
    return state, progress


def _recorded(workdir: Path) -> int:
    """Steps that metrics.jsonl tells of."""
    try:
        return max((record["step"] for record in read_metrics(workdir)), default=0)
    except FileNotFoundError:
        return 0


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a step works with.

    Attributes:
      learner, packing: what trains, on batches of this layout.
      steps: of the whole run.
      log_every, checkpoint_every: in steps.
      probe: what is measured of the policy wherever there is a checkpoint.
      about: of the whole run, for its first record.
      writer: of the metrics; the first process of a job alone has one.
    """

    learner: Learner
    packing: PackSettings
    steps: int
    log_every: int
    checkpoint_every: int
    probe: Callable[[Params], dict[str, float]]
    about: Mapping[str, float]
    checkpoints: Checkpoints
    writer: MetricsWriter | None
    display: ProgressDisplay
    stop: StopRequest

    def train(
        self, state: TrainState, progress: Progress, batches: Iterator[tuple[Place, list[Example]]]
    ) -> tuple[TrainState, Progress]:
        """All steps that are left, on the batches, which begin at `progress.place`.

        Raises RunError where a loss or gradient isn't finite, StoppedError once it has saved because a signal asked.
        """
        began, tokens, done = time.perf_counter(), 0, list[dict[str, float]]()
        about = {} if progress.place.step else self.about
        if progress.place.step >= self.steps:
            return state, progress
        for place, examples in batches:
            state, metrics = self.learner.update(state, pack_examples(examples, self.packing)[0])
            self._check(metrics, place)
            tokens += sum(len(example.ids) for example in examples)
            done.append(metrics)
            is_last, asked = place.step == self.steps, any(all_gather(self.stop()))
            due = place.step % self.checkpoint_every == 0 or is_last or asked
            progress = progress.after(place, {})
            if place.step % self.log_every == 0 or due:
                row = _means(done) | {"tokens_per_s": tokens / (time.perf_counter() - began)}
                if due:
                    probed = self.probe(state.params["policy"])
                    progress = progress.after(place, probed)
                    row |= probed
                    self._save(state, progress, probed.get(VALID_LOSS))
                self._write(place.step, row, about)
                about = {}
                began, tokens, done = time.perf_counter(), 0, []
            self.display.stage("steps", place.step, self.steps)
            if asked and not is_last:
                self.checkpoints.wait()
                name = self.stop.signal.name if self.stop.signal is not None else "a signal"
                raise StoppedError(f"{name}, saved after {place.step} steps; the same command goes on from there")
            if is_last:
                break
        return state, progress

    def _check(self, metrics: Mapping[str, float], place: Place) -> None:
        if metrics["applied"] or not metrics["action_tokens"]:
            return
        what = "gradient's norm" if math.isfinite(metrics["loss"]) else "loss"
        value = metrics["grad_norm"] if math.isfinite(metrics["loss"]) else metrics["loss"]
        self.checkpoints.wait()
        latest = self.checkpoints.latest
        kept = "nothing is saved yet" if latest is None else f"the checkpoint of step {latest} is kept"
        raise RunError(f"the {what} is {value} at step {place.step}: lower config.sft.learning_rate ({kept})")

    def _save(self, state: TrainState, progress: Progress, valid_loss: float | None) -> None:
        metadata = {**dataclasses.asdict(progress), FROZEN: frozen_names(state)}
        score = None if valid_loss is None else -valid_loss
        self.checkpoints.save(progress.place.step, items_of(state), metadata, score=score)

    def _write(self, step: int, row: dict[str, float], about: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, {**row, **about})
        self.display.message("  ".join(f"{k} {v:.4g}" for k, v in {"step": step, **row}.items()))


def _means(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Loss and gradient norm, over the steps that have them: one without a learned token has neither."""
    names = [name for name in ("loss", "grad_norm") if any(name in metrics for metrics in done)]
    return {name: float(np.mean([metrics[name] for metrics in done if name in metrics])) for name in names}


def count(params: Params) -> int:
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
