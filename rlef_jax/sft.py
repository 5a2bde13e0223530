"""The supervised warm start: python -m rlef_jax.sft --config=configs/tiny_sft.py --workdir=runs/warm_start

Trains a model from scratch on dialogues with failed attempts, feedback and repairs (`data/dialogues.py`) and writes
`warm_start.npz` to the workdir. The loss is on the author's tokens only. Dialogues are generated in a second process;
each chunk is a function of (seed, chunk), so that a run can be repeated to the bit. A run that was stopped or killed
goes on from its last checkpoint when the same command is given again, and ends as if nothing had been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from rlef_jax import command_line
from rlef_jax.data.dialogues import dialogues
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.derive import note_lines
from rlef_jax.errors import ConfigError, RunError, StoppedError
from rlef_jax.model.parameters import decayed
from rlef_jax.model.transformer import ModelConfig, Params, forward, unembed
from rlef_jax.model.weights import save_params
from rlef_jax.training.build import build_policy, with_model_shape
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.dialogue_batches import CHUNK_PROBLEMS, PER_PROBLEM, Batch, Place, rows, stream
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.workdir import CHECKPOINTS, open_workdir


def loss_and_hits(params: Params, cfg: ModelConfig, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean negative log-likelihood of the author's tokens, and [B, T] whether each token is the likeliest one."""
    tokens = batch["tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)
    hidden = forward(params, cfg, tokens, positions, batch["segments"])
    logits = unembed(params, cfg, hidden[:, :-1])
    target = jnp.arange(cfg.vocab_size, dtype=tokens.dtype)[None, None, :] == tokens[:, 1:, None]
    chosen = jnp.sum(jnp.where(target, logits, 0.0), axis=-1)
    logp = chosen - jax.nn.logsumexp(logits, axis=-1)
    mask = batch["mask"][:, 1:].astype(jnp.float32)
    hits = jnp.pad(chosen >= jnp.max(logits, axis=-1), ((0, 0), (1, 0)))
    return -jnp.sum(logp * mask) / jnp.maximum(jnp.sum(mask), 1.0), hits


def make_optimizer(cfg: ModelConfig, sft: ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW under a linear warm-up and a cosine to a twentieth of the peak, gradients clipped by global norm."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, sft.learning_rate, sft.warmup_steps, steps, end_value=sft.learning_rate / 20
    )
    adamw = optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=sft.weight_decay, mask=decayed(cfg))
    return optax.chain(optax.clip_by_global_norm(sft.clip_norm), adamw)


def make_step(cfg: ModelConfig, optimizer: optax.GradientTransformation) -> Any:
    """The jitted training step (params, opt_state, batch) -> (params, opt_state, loss); its arguments are donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, opt_state: Any, batch: dict[str, jax.Array]) -> tuple[Params, Any, jax.Array]:
        (loss, _), grads = jax.value_and_grad(loss_and_hits, has_aux=True)(params, cfg, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


class ReadingProbe:
    """How many responses of held-out dialogues the model would write word for word: does it read the feedback?

    A careful author's repairs are right, so exact repairs when marked are the share of right repairs (a lower bound:
    other programs may be right too). Teacher forcing makes this exactly greedy decoding, token by token.
    """

    def __init__(self, cfg: ModelConfig, chat: ChatFormat, seed: int, settings: dict[str, Any], problems: int = 96):
        careful = {**settings, "marked_share": 1.0}
        self.dialogues = dialogues(seed, 0, chat, split="valid", problems=problems, per_problem=2, **careful)
        self._batch = rows(self.dialogues, settings["context"])
        self._hits = jax.jit(lambda params, batch: loss_and_hits(params, cfg, batch)[1])

    def __call__(self, params: Params) -> dict[str, float]:
        """Percent of exact first responses to closed problems, of exact repairs, and of repairs per question."""
        size = 32
        parts = [{k: v[i : i + size] for k, v in self._batch.items()} for i in range(0, len(self.dialogues), size)]
        hits = np.concatenate([np.asarray(self._hits(params, part)) for part in parts])
        exact: dict[str, list[bool]] = {}
        for row, dialogue in enumerate(self.dialogues):
            tags = dialogue.problem.tags
            for turn, span in enumerate(_spans(dialogue.action_mask)):
                if turn == 0 and not (not tags["open"] and dialogue.passed[0]):
                    continue
                names = ["first"] if turn == 0 else ["repair", f"repair/{tags['question'] or 'closed'}"]
                for name in names:
                    exact.setdefault(name, []).append(bool(hits[row, span[0] : span[1]].all()))
        return {name: 100 * float(np.mean(values)) for name, values in sorted(exact.items())}


def _spans(mask: tuple[int, ...]) -> list[tuple[int, int]]:
    """Start and end of each run of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def schedule(sft: ConfigDict) -> tuple[int, int]:
    """(chunks, steps) of one pass over the dialogues. Raises ConfigError where there is nothing to train on or with."""
    per_chunk = CHUNK_PROBLEMS * PER_PROBLEM
    chunks = sft.dialogues // per_chunk
    steps = chunks * (per_chunk // sft.batch_rows)
    one_pass = f"{steps} steps, all that config.sft.dialogues={sft.dialogues} gives"
    faults = {
        "dialogues": (chunks < 1, f"at least one chunk of {per_chunk}; it is {sft.dialogues}"),
        "batch_rows": (sft.batch_rows > per_chunk, f"at most a chunk of {per_chunk}; it is {sft.batch_rows}"),
        "warmup_steps": (sft.warmup_steps >= steps, f"below {one_pass}; it is {sft.warmup_steps}"),
        "steps": (sft.steps > steps, f"at most {one_pass}; it is {sft.steps}"),
    }
    for key, (violated, fault) in faults.items():
        if violated:
            raise ConfigError(f"config.sft.{key}: {fault}")
    return chunks, steps


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the recipe, or goes on with it; writes metrics.jsonl, checkpoints and warm_start.npz.

    Raises ConfigError where it can't be run, RunError where the loss or the weights are no longer finite, StoppedError
    once it has saved because a signal asked it to stop.
    """
    chunks, steps = schedule(config.sft)
    config = with_model_shape(config)
    policy = build_policy(config)
    open_workdir(workdir, config, resume=True)
    sft, probe_settings = config.sft, _dialogue_settings(config)
    optimizer = make_optimizer(policy.cfg, sft, steps)
    count = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
    print(f"{count:,} parameters, vocabulary {policy.cfg.vocab_size}, {steps} steps of {sft.batch_rows} dialogues")
    for line in note_lines(policy.chat.notes):
        print(line, flush=True)
    probe = ReadingProbe(policy.cfg, policy.chat, config.seed + 1, probe_settings)
    with Checkpoints(workdir / CHECKPOINTS, keep=1) as checkpoints, StopRequest() as stop:
        first = {"policy": policy.params, "optimizer": optimizer.init(policy.params)}
        state, place = _resumed(checkpoints, first)
        tokenizer = (config.model.tokenizer, config.model.chat, config.model.chat_options)
        batches = stream(tokenizer, config.seed, chunks, probe_settings, sft.batch_rows, place)
        with MetricsWriter(workdir, start_step=place.step + 1) as log, contextlib.closing(batches):
            records = _Records(workdir, checkpoints, log, probe)
            _steps(state, place, batches, make_step(policy.cfg, optimizer), sft, records, stop)


@dataclasses.dataclass(frozen=True)
class _Records:
    """Where a run leaves what it has."""

    workdir: Path
    checkpoints: Checkpoints
    log: MetricsWriter
    probe: ReadingProbe

    def save(self, params: Params, opt_state: Any, place: Place) -> None:
        """Writes the weights, and a checkpoint unless there is one of this step. RunError where they aren't finite."""
        save_params(self.workdir / "warm_start.npz", params)
        if place.step not in self.checkpoints.steps():
            items = {"policy": params, "optimizer": opt_state}
            self.checkpoints.save(place.step, items, {"place": dataclasses.asdict(place)})


def _steps(
    state: dict[str, Any],
    place: Place,
    batches: Iterator[tuple[Place, Batch]],
    step_fn: Any,
    sft: ConfigDict,
    records: _Records,
    stop: StopRequest,
) -> None:
    """Trains on the batches, which begin at `place`; see `train` for what it raises."""
    params, opt_state = state["policy"], state["optimizer"]
    began, tokens, losses = time.perf_counter(), 0, []
    if 0 < place.step == sft.steps:
        batches = iter(())
    for place, batch in batches:
        if batch["mask"][:, 1:].any():  # without a counted token the gradient is zero, and weights would decay
            params, opt_state, loss = step_fn(params, opt_state, batch)
            losses.append(loss)
        tokens += int((batch["segments"] > 0).sum())
        is_last, asked = place.step == sft.steps, stop.signal
        due = place.step % sft.checkpoint_every == 0 or is_last or asked is not None
        if place.step % sft.log_every == 0 or due:
            row = {"tokens_per_s": tokens / (time.perf_counter() - began)} | _mean_loss(losses, place.step)
            losses = []
            if due:
                row |= records.probe(params)
                records.save(params, opt_state, place)
            records.log.write(place.step, row)
            print("  ".join(f"{k} {v:.4g}" for k, v in {"step": place.step, **row}.items()), flush=True)
        if asked is not None:
            raise StoppedError(f"{asked.name}, saved after {place.step} steps; the same command goes on from there")
        if is_last:
            break
    records.save(params, opt_state, place)
    print(f"wrote {records.workdir / 'warm_start.npz'}")


def _dialogue_settings(config: ConfigDict) -> dict[str, Any]:
    """How dialogues are written, as `dialogues` takes it."""
    return {
        "marked_share": config.sft.marked_share,
        "right_repairs": config.sft.unmarked_right_repairs,
        "habit": config.sft.unmarked_habit,
        "context": config.episode.context,
        "even_questions": config.data.even_questions,
    }


def _resumed(checkpoints: Checkpoints, first: dict[str, Any]) -> tuple[dict[str, Any], Place]:
    """The state saved last and where the run stood; `first` where none is."""
    if (latest := checkpoints.latest) is None:
        return first, Place()
    place = Place(**checkpoints.metadata(latest)["place"])
    print(f"going on from step {place.step}", flush=True)
    return checkpoints.restore(latest, first), place


def _mean_loss(losses: list[jax.Array], step: int) -> dict[str, float]:
    """{"loss": the mean}, {} for none. Raises RunError where it isn't finite."""
    if not losses:
        return {}
    loss = float(jnp.mean(jnp.stack(losses)))
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss} at step {step}: lower config.sft.learning_rate (warm_start.npz is older)")
    return {"loss": loss}


def main() -> None:
    """Trains with the command line's configuration."""
    command_line.main(train, command_line.config_parser(__doc__))


if __name__ == "__main__":
    main()
