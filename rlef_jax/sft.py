"""Supervised fine-tuning: python -m rlef_jax.sft --config=configs/tiny_sft.py --workdir=runs/warm_start

Trains a policy on dialogues by the learner of RLEF: its packing, meshes, checkpoints. `config.sft.source` says which:

  authors    generated dialogues about MiniContests with failed attempts, feedback and repairs (`data/dialogues.py`)
  episodes   successful episodes of runs and evaluations, which config.sft.data names (A.3)
  repairs    failed first responses of those, each before a random right program of its problem (B.4)
  solutions  right programs among the solutions of one's own problems (docs/own_problems.md)
  messages   dialogues of JSON lines, [{"role": ..., "content": ...}, ...] (docs/supervised.md)

The workdir gets config.json, metrics.jsonl, checkpoints/ and at the end policy.npz; `rlef_jax.evaluate` takes it as a
run's. A run that was stopped or killed goes on from its last checkpoint when the same command is given again, and ends
as if nothing had been.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from rlef_jax import command_line
from rlef_jax.config import SAVED_NAME
from rlef_jax.data.dialogues import CAREFUL
from rlef_jax.data.sources import Source, check_source
from rlef_jax.dialog.chat import ChatFormat, SystemMessageError
from rlef_jax.dialog.derive import note_lines
from rlef_jax.errors import ConfigError
from rlef_jax.model.lora import merged_on_host
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.settings import Likelihood, OptimizerSettings
from rlef_jax.ppo.train_state import make_optimizer
from rlef_jax.ppo.update import Learner
from rlef_jax.progress import ProgressDisplay
from rlef_jax.supervised import sources
from rlef_jax.supervised.authors import CHUNK, Authors
from rlef_jax.supervised.examples import Example, ExampleSet, Place
from rlef_jax.supervised.loop import Run, count, resumed
from rlef_jax.supervised.probe import HeldOutProbe, ReadingProbe
from rlef_jax.supervised.programs import RightPrograms
from rlef_jax.training.build import (
    build_mesh,
    build_pool,
    describe_policy,
    first_weights,
    forward_settings,
    limits_of,
    mesh_shardings,
    ppo_settings,
    rollout_settings,
    with_model_shape,
)
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.processes import add_job_arguments, broadcast_from_first, is_first, join_named, on_host
from rlef_jax.training.workdir import CHECKPOINTS, SFT, open_workdir, reference_hash

_EXAMPLES = "examples.npz"


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the recipe, or goes on with it.

    Raises ConfigError where it can't be run, RunError where loss or gradient are no longer finite, StoppedError once it
    has saved because a signal asked it to stop.
    """
    config = with_model_shape(config)  # with the tokenizer and chat format of its first weights, which authors need
    authors = _authors(config) if config.sft.source == "authors" else None
    cfg, chat, weights = describe_policy(config)
    with contextlib.ExitStack() as stack:
        log = None if is_first() else stack.enter_context(open(os.devnull, "w"))
        display = stack.enter_context(ProgressDisplay(stream=log))
        begun = (workdir / SAVED_NAME).exists()
        if begun:
            broadcast_from_first(lambda: open_workdir(workdir, config, SFT, resume=True))
        if authors is not None:
            data = _data_of_authors(config, cfg, chat, authors)
        else:
            examples = _examples(config, chat, workdir, display)
            data = _data_of_examples(config, cfg, examples, display.message)
        if not begun:  # a recipe that can't run leaves no folder behind
            broadcast_from_first(lambda: open_workdir(workdir, config, SFT, resume=True))
        if authors is None and is_first() and not (workdir / _EXAMPLES).exists():
            examples.save(workdir / _EXAMPLES)
        learner = build_supervised_learner(config, cfg, data.steps)
        first = first_weights(config, cfg, weights, learner.mesh)
        steps = f"{data.steps} steps of {config.sft.batch_rows} examples"
        for line in (f"{count(first):,} parameters, vocabulary {cfg.vocab_size}, {steps}", *note_lines(chat.notes)):
            display.message(line)
        checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, keep=config.train.keep_checkpoints))
        stack.enter_context(checkpoints.last_good_in_errors())
        stop = stack.enter_context(StopRequest())
        fresh = learner.init(jax.random.PRNGKey(config.seed), first)
        reference = reference_hash(first)
        del first
        state, progress = resumed(
            workdir, checkpoints, fresh, reference,
            checkpoint_every=config.sft.checkpoint_every, tell=display.message,
        )  # fmt: skip
        writer = None
        if is_first():
            writer = stack.enter_context(MetricsWriter(workdir, start_step=progress.place.step + 1))
        batches = data.batches(progress.place)
        stack.callback(batches.close)
        run = Run(
            learner, ppo_settings(config).packing, config.sft.steps or data.steps, config.sft.log_every,
            config.sft.checkpoint_every, data.probe, data.about, checkpoints, writer, display, stop,
        )  # fmt: skip
        state, _ = run.train(state, progress, batches)
        policy = on_host(state.params["policy"])
        if is_first():
            save_params(workdir / "policy.npz", policy if cfg.lora is None else merged_on_host(policy, cfg.lora))
            display.message(f"wrote {workdir / 'policy.npz'}")
        broadcast_from_first(lambda: None)  # a job ends when the first process has written its policy


@dataclasses.dataclass(frozen=True)
class _Data:
    """What is trained on: the steps that it gives, its batches from a place on, what is measured, and metrics that say
    what was used and left out."""

    steps: int
    batches: Callable[[Place], Generator[tuple[Place, list[Example]]]]
    probe: Callable[[Params], dict[str, float]]
    about: Mapping[str, float] = dataclasses.field(default_factory=dict)


def _data_of_authors(config: ConfigDict, cfg: ModelConfig, chat: ChatFormat, authors: Authors) -> _Data:
    try:
        chat.first_prompt("", CAREFUL)
    except SystemMessageError as error:
        raise ConfigError(
            'config.sft.source: "authors" write dialogues with a system message, which the chat template doesn\'t take:'
            " set another source, or a template in config.model.chat that does"
        ) from error
    rows, packing = config.sft.batch_rows, ppo_settings(config).packing
    probe = ReadingProbe(
        cfg, chat, config.seed + 1, authors.settings, packing, forward_settings(config), config.sft.probe_problems
    )
    return _Data(authors.steps(rows), functools.partial(authors.batches, rows), probe)


def _data_of_examples(config: ConfigDict, cfg: ModelConfig, examples: ExampleSet, tell: Callable[[str], None]) -> _Data:
    """Raises ConfigError where the examples give no step."""
    s, packing = config.sft, ppo_settings(config).packing
    learned, held_out = examples.split(s.valid_share, config.seed)
    if s.valid_share:
        tell(f"{len(held_out)} of {len(examples)} examples are held out")
    steps = learned.steps(s.batch_rows, s.epochs)
    if not steps:
        raise ConfigError(
            f"config.sft.batch_rows: at most the {len(learned)} examples that are trained on (config.sft.valid_share ="
            f" {s.valid_share} holds out {len(held_out)}); it is {s.batch_rows}"
        )
    check_steps(s, steps, f"{s.epochs} epochs of {len(learned)} examples give")
    probe = HeldOutProbe(cfg, held_out.some(range(len(held_out))), packing, forward_settings(config))

    def batches(start: Place) -> Generator[tuple[Place, list[Example]]]:
        return learned.batches(s.batch_rows, s.epochs, config.seed, start)

    return _Data(steps, batches, probe, examples.tally.metrics("examples"))


def _authors(config: ConfigDict) -> Authors:
    """The simulated authors. Raises ConfigError where their dialogues give no step."""
    s, model = config.sft, config.model
    settings = {
        "marked_share": s.marked_share,
        "right_repairs": s.unmarked_right_repairs,
        "habit": s.unmarked_habit,
        "context": config.episode.context,
        "families": tuple(config.data.families),
        "even_questions": config.data.even_questions,
    }
    check_source(Source.of(config))
    authors = Authors((model.tokenizer, model.chat, model.chat_options), config.seed, s.dialogues, settings)
    if s.dialogues < CHUNK:
        raise ConfigError(f"config.sft.dialogues: at least one chunk of {CHUNK}; it is {s.dialogues}")
    if s.batch_rows > CHUNK:
        raise ConfigError(f"config.sft.batch_rows: at most a chunk of {CHUNK}; it is {s.batch_rows}")
    check_steps(s, authors.steps(s.batch_rows), f"config.sft.dialogues={s.dialogues} gives")
    return authors


def check_steps(sft: ConfigDict, steps: int, given: str) -> None:
    """Raises ConfigError where the warm-up or the steps asked for are more than there are."""
    one_pass = f"{steps} steps, all that {given}"
    if sft.warmup_steps >= steps:
        raise ConfigError(f"config.sft.warmup_steps: below {one_pass}; it is {sft.warmup_steps}")
    if sft.steps > steps:
        raise ConfigError(f"config.sft.steps: at most {one_pass}; it is {sft.steps}")


def _examples(config: ConfigDict, chat: ChatFormat, workdir: Path, display: ProgressDisplay) -> ExampleSet:
    """The examples that `config.sft.data` leads to. They are made once and kept in the workdir: a run that goes on has
    the ones that it began with, whatever has become of the files."""
    kept = workdir / _EXAMPLES

    def make() -> ExampleSet:
        if kept.exists():
            examples = ExampleSet.load(kept)
            display.message(f"of {kept}: {examples}")
        else:
            examples = sources.collected(_found(config, chat, display.stage), max(config.ppo.buckets))
            display.message(str(examples))
        return examples

    return broadcast_from_first(make)


def _found(config: ConfigDict, chat: ChatFormat, report: sources.Report) -> Iterator[sources.Found]:
    s, paths = config.sft, [Path(path) for path in config.sft.data]
    every = s.learned == "all"
    if s.source == "episodes":
        yield from sources.successes(paths, chat, config.episode.system_prompt, all_responses=every, report=report)
    elif s.source == "messages":
        yield from sources.messages(paths, chat, config.episode.system_prompt, all_responses=every)
    else:
        settings = rollout_settings(config, chat.stop_ids, config.episode.feedback, evaluation=False)
        with build_pool(config.execution) as pool:
            programs = RightPrograms(pool, limits_of(config.execution), config.execution.max_wall_s or None)
            if s.source == "solutions":
                yield from sources.solutions(paths, chat, config.episode.system_prompt, programs, report)
            else:
                yield from sources.repairs(paths, chat, settings, programs, config.seed, report)


def build_supervised_learner(config: ConfigDict, cfg: ModelConfig, steps: int) -> Learner:
    """The learner of a policy alone: AdamW under a linear warm-up and a cosine over so many steps, likelihood loss.

    Raises ConfigError where the devices don't match the mesh, or the mesh doesn't divide the model.
    """
    s = config.sft
    rates = optax.warmup_cosine_decay_schedule(
        0.0, s.learning_rate, s.warmup_steps, steps, end_value=s.learning_rate * s.final_rate
    )
    settings = OptimizerSettings(weight_decay=s.weight_decay, clip_norm=s.clip_norm, adam_b2=s.adam_b2)
    mesh = build_mesh(config)
    mesh_shardings(mesh, cfg)  # whether it divides the model
    return Learner(
        cfg, make_optimizer(cfg, settings, rates), loss=Likelihood(), critic=False, separate_critic=False, mesh=mesh,
        forward_settings=forward_settings(config),
    )  # fmt: skip


def main() -> None:
    """Trains with the command line's configuration."""
    parser = command_line.config_parser(__doc__)
    add_job_arguments(parser)

    def run(config: ConfigDict, args: argparse.Namespace) -> None:
        join_named(args)
        train(config, args.workdir)

    command_line.with_arguments(run, parser)


if __name__ == "__main__":
    main()
