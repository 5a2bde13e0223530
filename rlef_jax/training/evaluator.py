"""Evaluations within a run: fixed splits, random numbers of their own, kept so that a resumed run repeats none."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rlef_jax.data.sources import Source, evaluation_problems
from rlef_jax.errors import RunError
from rlef_jax.files import write_json
from rlef_jax.metrics.summary import summarise
from rlef_jax.model.transformer import Params
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training import episode_io
from rlef_jax.training.actor import Actor, RolloutRequest, Starts, shard_range
from rlef_jax.training.build import rollout_settings
from rlef_jax.training.processes import all_gather, broadcast_from_first, is_first
from rlef_jax.types import Episode

EVAL_SEED = 1_000_003  # added to the run's seed: an evaluation draws tokens of its own ...
VALID_SEED = 2_000_003  # ... and model selection others than the final score
FOLDER = "evaluations"


class UnjudgedError(RunError):
    """An evaluation of which the judge broke on every rollout: nothing is known of its policy."""


@dataclasses.dataclass(frozen=True)
class SplitProblems:
    """Finds the problems of fixed splits, the first `limit` of each (0 = all), each `rollouts` times in a row."""

    source: Source
    limit: int
    rollouts: int = 1

    def __call__(self, request: RolloutRequest) -> Starts:
        """The problems of a request's episodes, and those that random feedback may come from: all of the split."""
        problems = evaluation_problems(self.source, request.split, self.limit)
        return Starts([problems[i // self.rollouts] for i in request.indexes], problems)


class Evaluator:
    """Evaluates weights on a fixed split: `eval.rollouts` a problem, at the evaluation's temperature.

    Every evaluation draws the same random numbers, whatever the weights: what differs between two is their doing.

    In a job of several processes each of them makes its share of the rollouts, and the first one writes them down: all
    must call, as weights that lie on the devices of all of them reach a sampler only if all take part.
    """

    def __init__(
        self,
        config: ConfigDict,
        actor: Actor,
        stop_ids: tuple[int, ...],
        workdir: Path,
        display: ProgressDisplay,
        source: Source,
    ) -> None:
        """Args: actor: finds problems in the same `source` (`SplitProblems`). stop_ids: end a response."""
        self._config, self._actor, self._stop_ids = config, actor, stop_ids
        self._workdir, self._display, self._source = workdir, display, source

    def __call__(
        self,
        name: str,
        params: Params,
        split: str,
        *,
        feedback: str = "true",
        version: int,
        seed: int = EVAL_SEED,
        may_stop: bool = True,
    ) -> dict[str, Any]:
        """The split's summary in percent. Episodes go to episodes/NAME.jsonl.gz, the summary to evaluations/NAME.json.

        A summary of the same `version` (updates) is read back. Raises StoppedError if the run is asked to stop, where
        it `may_stop` and is a job of one process; UnjudgedError where no rollout was judged.
        """
        path = self._workdir / FOLDER / f"{name}.json"
        if (saved := broadcast_from_first(lambda: _saved_summary(path, version))) is not None:
            return saved
        e, began = self._config.eval, time.perf_counter()
        self._actor.set_weights(params, version)
        episodes = self._episodes(name, split, feedback, version, seed, may_stop)
        if is_first():
            episode_io.write_episodes(self._workdir / "episodes" / f"{name}.jsonl.gz", episodes)
        if all(e.end == "infra" for e in episodes):
            raise UnjudgedError(f"{name}: the judge broke on all {len(episodes)} rollouts (INFRA_ERROR): no score")
        summary = summarise(episodes, max_turns=self._config.episode.max_turns, bootstrap_samples=e.bootstrap_samples)
        left_out = self._source.left_out.get(split)
        if left_out is not None:  # what the percentages aren't of
            summary["split_left_out"] = dataclasses.asdict(left_out)
        if is_first():
            path.parent.mkdir(exist_ok=True)
            write_json(path, {"version": version, "split": split, "summary": summary})
        rates = "  ".join(f"{k} {v:.1f}" for k, v in summary.items() if "@" in k and isinstance(v, float))
        infra_note = f", {summary['infra']} of them broken by the judge" if summary["infra"] else ""
        self._display.message(
            f"{name}: {len(episodes)} rollouts of {len(episodes) // e.rollouts} problems of {split}"
            f"{'' if left_out is None else f' ({left_out})'}{infra_note},"
            f" {rates} ({time.perf_counter() - began:.0f} s)"
        )
        return summary

    def _episodes(self, name: str, split: str, feedback: str, version: int, seed: int, may_stop: bool) -> list[Episode]:
        """The split's episodes: this process's share is made here, the others' come from where they are made."""
        e = self._config.eval
        count = len(evaluation_problems(self._source, split, e.problems)) * e.rollouts
        request = RolloutRequest(
            split, self._config.seed + seed, step=0, count=count,
            indexes=shard_range(count, jax.process_index(), jax.process_count()),
            settings=rollout_settings(self._config, self._stop_ids, feedback, evaluation=True), version=version,
            stage=name,
            may_stop=may_stop and jax.process_count() == 1,  # nobody may leave while others wait for its share
        )  # fmt: skip
        return [episode for part in all_gather(self._actor.episodes(request).episodes) for episode in part]

    def under_both_feedbacks(self, prefix: str, params: Params, version: int) -> dict[str, dict[str, Any]]:
        """The summary's entries for some weights: under true feedback and, if asked for, under random feedback."""
        e = self._config.eval
        kinds = {prefix: "true"} | ({f"{prefix}_random_feedback": "random"} if e.random_feedback else {})
        return {name: self(name, params, e.split, feedback=kind, version=version) for name, kind in kinds.items()}


def scored_version(workdir: Path, name: str) -> int | None:
    """The version of the weights that evaluations/NAME.json is of; None where there is no such evaluation."""
    try:
        return json.loads((workdir / FOLDER / f"{name}.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _saved_summary(path: Path, version: int) -> dict[str, Any] | None:
    """The saved summary of these weights; None where it must be computed (again)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["summary"] if record["version"] == version else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
