"""RLEF training: python -m rlef_jax.train --config=configs/tiny.py --workdir=runs/x [--config.KEY=VALUE ...]

Evaluates the warm start, trains, evaluates again. The workdir gets config.json, inputs.json, metrics.jsonl and
TensorBoard files, episodes/, evaluations/, checkpoints/, and at the end summary.json, plots/ and policy.npz. The same
command again goes on where the run stopped; --resume=never refuses to, and --resume=anyway goes on even where the data,
tokenizer, weights or Python behind the configuration's names are others now. On SIGINT or SIGTERM it finishes the
update, saves, exits with 75.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax import command_line
from rlef_jax.analysis.report import write_report
from rlef_jax.analysis.summary import write_summary
from rlef_jax.data.sources import (
    Source,
    check_splits,
    evaluation_problems,
    fit,
    split_bounds,
    training_problems,
)
from rlef_jax.dialog.derive import note_lines
from rlef_jax.errors import StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.lora import merged_on_host, split
from rlef_jax.model.transformer import Params
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.train_state import TrainState, combine
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training.actor import LocalActor, RolloutRequest, shard_range
from rlef_jax.training.build import (
    build_learner,
    build_mesh,
    build_pool,
    build_sampler,
    describe_policy,
    first_prompt_of,
    first_weights,
    kinds_drawn,
    rollout_settings,
    with_model_shape,
)
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.evaluator import Evaluator, SplitProblems
from rlef_jax.training.failures import FailedResponses
from rlef_jax.training.inputs import Inputs, agreed, check_inputs, identities
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.problem_feed import ProblemFeed, TrainingProblems
from rlef_jax.training.processes import (
    add_job_arguments,
    all_gather,
    broadcast_from_first,
    is_first,
    join_named,
    on_host,
)
from rlef_jax.training.random_feedback import check_donors
from rlef_jax.training.run import Run
from rlef_jax.training.workdir import (
    CHECKPOINTS,
    TRAIN,
    Progress,
    drop_scores,
    has_results,
    open_workdir,
    reference_hash,
    resume,
)


def train(
    config: ConfigDict, workdir: Path, *, go_on: bool = True, anyway: bool = False, judge: ExecutionPool | None = None
) -> None:
    """Runs the whole job, or what is left of it.

    Args:
      config, workdir: as the command has them.
      go_on: False refuses a workdir that holds a run.
      anyway: goes on over other inputs than the run was begun with (`training.inputs`) instead of refusing to.
      judge: stays open afterwards; None starts one as the config has it.

    Raises ConfigError, RunError, StoppedError: see `rlef_jax.errors`.
    """
    e, d = config.eval, config.data
    evaluated = {"eval.split": e.split} | ({"eval.valid_split": e.valid_split} if e.every else {})
    source = Source.of(config)
    check_splits(source, train=d.train_split, evaluated=evaluated)
    config = with_model_shape(config)
    cfg, chat, weights = describe_policy(config)
    failures = FailedResponses.of(config) if d.failures else None
    mesh, learner = build_mesh(config), build_learner(config, cfg)
    with contextlib.ExitStack() as stack:
        kinds = kinds_drawn(config, evaluates=any(evaluated.values()))
        sampler = build_sampler(config, cfg, chat.stop_ids, kinds)  # rollouts and evaluations take turns with it
        pool = stack.enter_context(build_pool(config.execution)) if judge is None else judge
        log = None if is_first() else stack.enter_context(open(os.devnull, "w"))
        display = stack.enter_context(ProgressDisplay(stream=log))
        broadcast_from_first(lambda: open_workdir(workdir, config, TRAIN, resume=go_on))
        trained = [] if failures or source.mix else [d.train_split]  # `fit` knows of a mix
        splits = list(dict.fromkeys([*trained, *filter(None, evaluated.values())]))
        source = fit(source, splits, first_prompt_of(config, chat), tell=display.message, report=display.stage)
        broadcast_from_first(lambda: _check_donors(config, source))
        own_inputs = dict(identities(config, pool.interpreter, source, splits))
        if failures:
            own_inputs["failed responses (config.data.failures)"] = failures.identity()
        inputs = agreed(all_gather(own_inputs))
        broadcast_from_first(lambda: _check_inputs(workdir, inputs, accept=anyway, tell=display.message))
        first = first_weights(config, cfg, weights, mesh)
        stop = stack.enter_context(StopRequest())
        checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, keep=config.train.keep_checkpoints))
        stack.enter_context(checkpoints.last_good_in_errors())
        for line in (_size(first), *note_lines(chat.notes)):
            display.message(line)
        state, progress = resume(
            workdir, checkpoints,
            fresh=learner.init(jax.random.PRNGKey(config.seed), first),
            start=Progress(iteration=0, reference=reference_hash(first)),
            checkpoint_every=config.train.checkpoint_every, tell=display.message, accept=anyway,
        )  # fmt: skip
        feed = ProblemFeed(failures or TrainingProblems(source), last=config.train.iterations - 1)
        stack.callback(feed.close)
        writer = None
        if is_first():
            writer = stack.enter_context(MetricsWriter(workdir, start_step=progress.iteration))
        actor = LocalActor(sampler, chat, pool, feed, display=display)
        split_problems = SplitProblems(source, e.problems, e.rollouts)
        eval_actor = LocalActor(sampler, chat, pool, split_problems, display=display, should_stop=stop)
        evaluate = Evaluator(config, eval_actor, chat.stop_ids, workdir, display, source)
        summary: dict[str, Any] = {}
        if e.split:
            summary |= _scores(evaluate, "warm_start", first, 0)
        run = Run(
            config, workdir, actor, _request(config, chat.stop_ids), chat, learner,
            learner.place_policy(first), evaluate, writer, checkpoints, display, stop, inputs,
        )  # fmt: skip
        state, progress = run.iterate(state, progress)
        checkpoints.wait()
        chosen, iteration = _chosen(checkpoints, state, progress)
        host = on_host(chosen)
        if is_first():
            save_params(workdir / "policy.npz", host if cfg.lora is None else merged_on_host(host, cfg.lora))
        if e.split:
            summary |= _scores(evaluate, "rlef", chosen, iteration * config.ppo.updates)
        if is_first():
            if e.split:
                summary["bounds"] = split_bounds(source, evaluation_problems(source, e.split, e.problems))
                write_summary(workdir, summary)
            print(write_report(workdir, plots=config.train.plots), flush=True)
        all_gather(None)  # a job ends when the first process has written its report


def _size(params: Params) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    adapters = sum(array.size for array in split(params["layers"])[1].values())
    trained = f", of which {adapters:,} are trained," if adapters else ""
    others = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{count:,} parameters{trained} on {jax.device_count()} {jax.default_backend()} device(s){others}"


def _request(config: ConfigDict, stop_ids: tuple[int, ...]) -> RolloutRequest:
    """For this process's share of an iteration's episodes."""
    count = config.ppo.rollouts
    indexes = shard_range(count, jax.process_index(), jax.process_count())
    settings = rollout_settings(config, stop_ids, config.episode.feedback, evaluation=False)
    group_size = config.ppo.group_size
    return RolloutRequest(config.data.train_split, config.seed, 0, count, indexes, settings, group_size=group_size)


def _check_donors(config: ConfigDict, source: Source) -> None:
    """Raises ConfigError where random feedback would have no other problem to come from."""
    e, d = config.eval, config.data
    if config.episode.max_turns == 1:
        return
    if config.episode.feedback == "random":
        trained = training_problems(source, d.train_split, config.seed, 0, config.ppo.rollouts // config.ppo.group_size)
        check_donors(trained, trained)
    if e.every and (e.valid_feedback or config.episode.feedback) == "random":
        validated = evaluation_problems(source, e.valid_split, e.problems)
        check_donors(validated, validated)
    if e.split and e.random_feedback:
        evaluated = evaluation_problems(source, e.split, e.problems)
        check_donors(evaluated, evaluated)


def _check_inputs(workdir: Path, inputs: Inputs, *, accept: bool, tell: Callable[[str], None]) -> None:
    """`check_inputs` of a run, whose scores before and after training must be of the same problems."""
    mend = "Put them back, give another --workdir, or go on over what there is now with --resume=anyway"
    begun = has_results(workdir)
    if check_inputs(workdir, inputs, begun=begun, mend=mend, tell=tell, accept=accept):
        drop_scores(workdir)


def _scores(evaluate: Evaluator, prefix: str, params: Params, version: int) -> dict[str, dict[str, Any]]:
    try:
        return evaluate.under_both_feedbacks(prefix, params, version)
    except StoppedError as error:
        raise StoppedError(f"while it evaluated ({prefix}); the same command goes on from there") from error


def _chosen(checkpoints: Checkpoints, state: TrainState, progress: Progress) -> tuple[Params, int]:
    """The best policy by validation [A.1], the last one where nothing was validated; and its iteration."""
    if progress.best_iteration is None or progress.best_iteration == progress.iteration:
        return state.params["policy"], progress.iteration
    best = checkpoints.restore(progress.best_iteration, {"policy": state.trainable["policy"]})
    return combine(best, {"policy": state.frozen["policy"]})["policy"], progress.best_iteration


def main() -> None:
    """Reads the arguments, --resume and what names a job beside the common ones, and trains."""
    parser = command_line.config_parser(__doc__)
    parser.add_argument(
        "--resume", choices=("auto", "never", "anyway"), default="auto",
        help="auto: go on where the workdir's run stopped; never: refuse; anyway: go on over other data, tokenizer,"
        " weights or Python too",
    )  # fmt: skip
    add_job_arguments(parser)

    def run(config: ConfigDict, args: argparse.Namespace) -> None:
        join_named(args)
        train(config, args.workdir, go_on=args.resume != "never", anyway=args.resume == "anyway")

    command_line.with_arguments(run, parser)


if __name__ == "__main__":
    main()
