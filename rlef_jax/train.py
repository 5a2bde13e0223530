"""RLEF training: python -m rlef_jax.train --config=configs/tiny.py --workdir=runs/x [--config.KEY=VALUE ...]

Evaluates the warm start, trains, evaluates again. The workdir gets config.json, metrics.jsonl and TensorBoard files,
episodes/, checkpoints/, and at the end summary.json and plots/.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.analysis.report import write_report
from rlef_jax.analysis.summary import write_summary
from rlef_jax.data.sources import evaluation_problems, split_bounds
from rlef_jax.evaluation.report import summarise
from rlef_jax.model.transformer import Params
from rlef_jax.model.weights import save_params
from rlef_jax.ppo.update import TrainState
from rlef_jax.training import episode_io
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.loop import EVAL_SEED, Actor, PpoSettings, ProblemFeed, pool_metrics, run_iteration
from rlef_jax.training.metrics_writer import MetricsWriter
from rlef_jax.training.parts import (
    Policy,
    build_learner,
    build_policy,
    build_pool,
    build_sampler,
    rollout_settings,
)
from rlef_jax.training.progress import ProgressDisplay


class Evaluator:
    """Evaluates weights on a fixed split: one rollout a problem, at the evaluation's temperature."""

    def __init__(self, config: ConfigDict, actor: Actor, workdir: Path, display: ProgressDisplay) -> None:
        self._config, self._actor, self._workdir, self._display = config, actor, workdir, display

    def __call__(self, name: str, params: Params, split: str, *, feedback: str, version: int) -> dict[str, Any]:
        """The split's summary in percent; its episodes go to episodes/NAME.

        Every evaluation draws the same random numbers, whatever the weights: what differs between two is their doing.
        """
        e, began = self._config.eval, time.perf_counter()
        problems = evaluation_problems(self._config.data.name, split, e.problems)
        self._actor.sampler.set_weights(params, version=version)
        episodes, _ = self._actor.episodes(
            problems,
            seed=self._config.seed + EVAL_SEED,
            step=0,
            settings=rollout_settings(self._config, feedback),
            display=self._display,
            stage=name,
        )
        episode_io.write_episodes(self._workdir / "episodes" / f"{name}.jsonl.gz", episodes)
        found = summarise(episodes, max_turns=self._config.episode.max_turns, bootstrap_samples=e.bootstrap_samples)
        rates = "  ".join(f"{k} {v:.1f}" for k, v in found.items() if "@" in k and isinstance(v, float))
        self._display.message(
            f"{name}: {len(episodes)} problems of {split}, {rates} ({time.perf_counter() - began:.0f} s)"
        )
        return found


def evaluate_both(
    evaluate: Evaluator, config: ConfigDict, prefix: str, params: Params, version: int
) -> dict[str, dict[str, Any]]:
    """The summary's entries for some weights: under true feedback and, if asked for, under random feedback."""
    kinds = {prefix: "true"} | ({f"{prefix}_random_feedback": "random"} if config.eval.random_feedback else {})
    return {
        name: evaluate(name, params, config.eval.split, feedback=kind, version=version) for name, kind in kinds.items()
    }


def train(config: ConfigDict, workdir: Path) -> None:
    """Runs the whole job."""
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.save(config, workdir)
    policy = build_policy(config)
    s, e = config.sampling, config.eval
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(build_pool(config.execution))
        feed = ProblemFeed(config.data.name, config.data.train_split, config.seed, config.ppo.rollouts)
        stack.callback(feed.close)
        writer = stack.enter_context(MetricsWriter(workdir))
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", keep=config.train.keep_checkpoints))
        display = stack.enter_context(ProgressDisplay())
        count = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
        display.message(f"{count:,} parameters on {jax.device_count()} {jax.default_backend()} device(s)")
        actor = Actor(
            build_sampler(config, policy, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k), policy, pool
        )
        eval_actor = Actor(
            build_sampler(config, policy, temperature=e.temperature, top_p=e.top_p, top_k=0), policy, pool
        )
        evaluate = Evaluator(config, eval_actor, workdir, display)
        summary: dict[str, Any] = {}
        if e.split:
            summary |= evaluate_both(evaluate, config, "warm_start", policy.params, 0)
        state = _iterate(config, policy, actor, evaluate, feed, writer, checkpoints, display, workdir)
        if e.split:
            summary |= evaluate_both(evaluate, config, "rlef", state.params["policy"], int(state.step))
            summary["bounds"] = split_bounds(
                config.data.name, evaluation_problems(config.data.name, e.split, e.problems)
            )
            write_summary(workdir, summary)
        save_params(workdir / "policy.npz", state.params["policy"])
    print(write_report(workdir), flush=True)


def _iterate(
    config: ConfigDict, policy: Policy, actor: Actor, evaluate: Evaluator, feed: ProblemFeed, writer: MetricsWriter,
    checkpoints: Checkpoints, display: ProgressDisplay, workdir: Path,
) -> TrainState:  # fmt: skip
    """All iterations; returns the last state."""
    learner = build_learner(config, policy.cfg)
    state = learner.init(jax.random.PRNGKey(config.seed), policy.params)
    reference = learner.place_policy(policy.params)
    settings, ppo = rollout_settings(config, config.episode.feedback), PpoSettings.of(config)
    last = config.train.iterations - 1
    for step in range(config.train.iterations):
        problems, before = feed.get(step, last), actor.pool.stats()
        state, episodes, metrics = run_iteration(
            step, state, reference, problems, actor, learner,
            seed=config.seed, settings=settings, ppo=ppo, display=display,
        )  # fmt: skip
        metrics |= pool_metrics(before, actor.pool.stats())
        if config.eval.every and (step + 1) % config.eval.every == 0:
            found = evaluate(
                "valid", state.params["policy"], config.eval.valid_split, feedback="true", version=int(state.step)
            )
            metrics |= {f"valid/{k}": v for k, v in found.items() if isinstance(v, float)}
        writer.write(step, metrics)
        if step % config.train.log_every == 0 or step == last:
            display.iteration(step, metrics)
        if config.train.save_episodes:
            episode_io.write_episodes(episode_io.episodes_path(workdir, step), episodes)
        if (step + 1) % config.train.checkpoint_every == 0 or step == last:
            checkpoints.save(int(state.step), state, {"iteration": step + 1})
    return state


if __name__ == "__main__":
    config_lib.main(train)
