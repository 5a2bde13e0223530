"""RLEF training: python -m rlef_jax.train --config=configs/tiny.py --workdir=runs/x [--config.KEY=VALUE ...]

Evaluates the warm start, trains, evaluates again. The workdir gets config.json, metrics.jsonl and TensorBoard files,
episodes/, evaluations/, checkpoints/, and at the end summary.json, plots/ and policy.npz. The same command again goes
on where the run stopped; --resume=never refuses to. On SIGINT or SIGTERM it finishes the update, saves, exits with 75.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax import command_line
from rlef_jax.analysis.report import write_report
from rlef_jax.analysis.summary import write_summary
from rlef_jax.data.sources import Source, check_splits, evaluation_problems, fit, split_bounds
from rlef_jax.errors import StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.transformer import Params
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.update import TrainState
from rlef_jax.training.actor import Actor
from rlef_jax.training.checkpoint import Checkpoints, content_hash
from rlef_jax.training.evaluator import Evaluator
from rlef_jax.training.interrupt import StopRequest
from rlef_jax.training.loop import ProblemFeed
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.parts import (
    build_learner,
    build_mesh,
    build_policy,
    build_pool,
    build_samplers,
    complete,
    first_prompt_of,
)
from rlef_jax.training.processes import NAMES, find_job, from_first, gathered, is_first, join, on_this_process, share_of
from rlef_jax.training.progress import ProgressDisplay
from rlef_jax.training.run import Run
from rlef_jax.training.workdir import CHECKPOINTS, Progress, open_workdir, resume


def train(config: ConfigDict, workdir: Path, *, go_on: bool = True, judge: ExecutionPool | None = None) -> None:
    """Runs the whole job, or what is left of it; `go_on=False` refuses a workdir that holds a run.

    `judge`, if given, stays open afterwards; otherwise the config's own is made.

    Raises ConfigError, RunError, StoppedError: see `rlef_jax.errors`.
    """
    e, d = config.eval, config.data
    evaluated = {"eval.split": e.split} | ({"eval.valid_split": e.valid_split} if e.every else {})
    source = Source.of(config)
    check_splits(source, train=d.train_split, evaluated=evaluated)
    config = complete(config)
    policy = build_policy(config, build_mesh(config))
    learner = build_learner(config, policy.cfg)
    with contextlib.ExitStack() as stack:
        samplers = build_samplers(config, policy, 2)  # the training rollouts' and the evaluations'
        pool = stack.enter_context(build_pool(config.execution)) if judge is None else judge
        from_first(lambda: open_workdir(workdir, config, resume=go_on))
        stop = stack.enter_context(StopRequest())
        checkpoints = stack.enter_context(Checkpoints(workdir / CHECKPOINTS, keep=config.train.keep_checkpoints))
        stack.enter_context(checkpoints.told_in_errors())
        log = None if is_first() else stack.enter_context(open(os.devnull, "w"))
        display = stack.enter_context(ProgressDisplay(stream=log))
        count = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
        where = f"{jax.device_count()} {jax.default_backend()} device(s)"
        others = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        display.message(f"{count:,} parameters on {where}{others}")
        state, progress = resume(
            workdir, checkpoints,
            fresh=learner.init(jax.random.PRNGKey(config.seed), policy.params),
            start=Progress(iteration=0, reference=content_hash(policy.params)),
            checkpoint_every=config.train.checkpoint_every, tell=display.message,
        )  # fmt: skip
        splits = [d.train_split, *filter(None, evaluated.values())]
        source = fit(source, splits, first_prompt_of(config, policy.chat), tell=display.message, report=display.stage)
        feed = ProblemFeed(
            source, d.train_split, config.seed, config.ppo.rollouts, share=share_of(config.ppo.rollouts),
            last=config.train.iterations - 1,
        )  # fmt: skip
        stack.callback(feed.close)
        writer = None
        if is_first():
            writer = stack.enter_context(MetricsWriter(workdir, start_step=progress.iteration))
        actor, eval_actor = (Actor(sampler, policy, pool) for sampler in samplers)
        evaluate = Evaluator(config, eval_actor, workdir, display, stop, source)
        summary: dict[str, Any] = {}
        if e.split:
            summary |= from_first(lambda: _scores(evaluate, "warm_start", policy.params, 0))
        run = Run(
            config, workdir, actor, learner, learner.place_policy(policy.params), evaluate, feed, writer, checkpoints,
            display, stop,
        )  # fmt: skip
        state, progress = run.iterate(state, progress)
        checkpoints.wait()
        chosen, iteration = _chosen(checkpoints, state, progress)
        best = on_this_process(chosen, learner.mesh)
        if is_first():
            save_params(workdir / "policy.npz", best)
            if e.split:
                summary |= _scores(evaluate, "rlef", best, iteration * config.ppo.updates)
                summary["bounds"] = split_bounds(source, evaluation_problems(source, e.split, e.problems))
                write_summary(workdir, summary)
        gathered(None)  # the others wait for the last evaluation
        if is_first():
            print(write_report(workdir), flush=True)


def _scores(evaluate: Evaluator, prefix: str, params: Params, version: int) -> dict[str, dict[str, Any]]:
    try:
        return evaluate.under_both_feedbacks(prefix, params, version)
    except StoppedError as error:
        raise StoppedError(f"while it evaluated ({prefix}); the same command goes on from there") from error


def _chosen(checkpoints: Checkpoints, state: TrainState, progress: Progress) -> tuple[Params, int]:
    """The best policy by validation [A.1], the last one where nothing was validated; and its iteration."""
    last: Params = state.params["policy"]
    if progress.best_iteration is None or progress.best_iteration == progress.iteration:
        return last, progress.iteration
    return checkpoints.restore(progress.best_iteration, {"policy": last})["policy"], progress.best_iteration


def main() -> None:
    """Reads the arguments, --resume and what names a job beside the common ones, and trains."""
    parser = command_line.config_parser(__doc__)
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="auto: go on where the workdir's run stopped"
    )
    for name, told in (
        ("coordinator", "HOST:PORT where the job's processes meet"),
        ("processes", 'how many there are, or "auto" under SLURM and Kubernetes'),
        ("process", "which one this is, from 0"),
    ):
        parser.add_argument(f"--{name}", help=f"in a job of several processes (docs/cluster.md): {told}")

    def run(config: ConfigDict, args: argparse.Namespace) -> None:
        join(find_job({name: getattr(args, name) for name in NAMES}, os.environ))
        train(config, args.workdir, go_on=args.resume == "auto")

    command_line.with_arguments(run, parser)


if __name__ == "__main__":
    main()
