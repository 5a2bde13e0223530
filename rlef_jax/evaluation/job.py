"""Runs an evaluation: samples rollouts or reads recorded ones, judges them in saved chunks, and reports metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlef_jax.data.sources import LeftOut
from rlef_jax.dialog.derive import note_lines
from rlef_jax.dialog.extract import program_of
from rlef_jax.errors import ConfigError
from rlef_jax.evaluation.chunk_store import CHUNKS, all_chunks, open_folder, settings_hash, write_results
from rlef_jax.evaluation.few_shot import Shots, opening
from rlef_jax.evaluation.metrics import text_report, whole_report
from rlef_jax.evaluation.recorded import judge_recorded, read_recorded
from rlef_jax.evaluation.repair import Repairer, pair_episodes, repairer_params
from rlef_jax.metrics.outcome import Outcome, outcome_of
from rlef_jax.metrics.summary import n_at_k_percent, summarise
from rlef_jax.model.transformer import Params
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training.actor import LocalActor, RolloutRequest, Starts
from rlef_jax.training.build import (
    build_policy,
    build_pool,
    build_sampler,
    build_sampler_mesh,
    limits_of,
    rollout_settings,
    with_model_shape,
)
from rlef_jax.training.checkpoint import content_hash
from rlef_jax.training.episode_io import problem_json
from rlef_jax.training.evaluator import EVAL_SEED
from rlef_jax.training.inputs import Inputs, check_inputs, python_identity, tokenizer_identity
from rlef_jax.training.rollout import RolloutSettings
from rlef_jax.training.workdir import begun_as, saved_policy
from rlef_jax.types import Episode, Problem


@dataclasses.dataclass(frozen=True)
class EvaluationRollouts:
    """What is known of an evaluation's rollouts. Their episodes are in the folder (`chunk_store.saved_episodes`).

    Attributes:
      outcomes: of all rollouts, grouped by problem.
      turns: number of responses that a rollout counts as.
      samples: number of responses per problem.
      folder: the folder where they are saved.
      about: the settings of the evaluation, for its reader.
    """

    outcomes: list[Outcome]
    turns: int
    samples: int
    folder: Path
    about: dict[str, Any]


def sampled(
    config: ConfigDict,
    name: str,
    problems: Sequence[Problem],
    *,
    workdir: Path | None,
    checkpoint: str | None,
    rollouts: int,
    feedback: str,
    shots: Shots | None,
    out: Path | None,
    chunk: int,
    extra_settings: Mapping[str, Any],
    repairer: Repairer | None = None,
) -> EvaluationRollouts:
    """Samples rollouts of a policy: of a run's checkpoint, or of `config.model.init` if that is None.

    `shots` are dialogues in front of each prompt (`evaluation.few_shot`). With a `repairer` the policy gives first
    responses alone (`evaluation.repair`). `extra_settings` are added to the recorded settings. Every rollout depends
    only on the weights, the seed and its index, as in a run's own evaluations. Raises ConfigError for weights,
    dialogues or a folder that can't be used.
    """
    config = with_model_shape(config)
    mesh = build_sampler_mesh(config)  # a model that fills several devices is never on one
    policy = build_policy(config if workdir is None else begun_as(config, workdir), mesh)
    params = policy.params
    if workdir is not None and checkpoint is not None:
        first = policy.params
        params = saved_policy(workdir, checkpoint, first, lambda: first, (config.model.compute_dtype,))
    settings = rollout_settings(config, policy.chat.stop_ids, feedback, evaluation=True)
    if shots is not None:
        settings = dataclasses.replace(settings, opening=opening(policy.chat, shots, settings.system_prompt))
    repairs = None if repairer is None else repairer_params(repairer, config)
    about = {
        "benchmark": name,
        "problems": len(problems),
        "rollouts": rollouts,
        "seed": config.seed,
        "chunk": chunk,
        **_about_samples(problems, params, settings, shots, repairs),
        **extra_settings,
    }
    folder = out or (workdir or Path("runs")) / "benchmarks" / _folder_name(name, about)
    rows = [p for p in problems for _ in range(rollouts)]

    def find(request: RolloutRequest) -> Starts:
        return Starts(rows[request.indexes.start : request.indexes.stop], problems)

    with build_pool(config.execution) as pool, ProgressDisplay(stream=sys.stderr) as display:
        tokenizer = tokenizer_identity(config.model.tokenizer, config.model.chat)
        _open(folder, about, tokenizer | python_identity(pool.interpreter))
        for line in note_lines(policy.chat.notes):
            display.message(line)
        sampler = build_sampler(config, policy.cfg, policy.chat.stop_ids, [settings.kind])
        actor = LocalActor(sampler, policy.chat, pool, find, display=display)
        actor.set_weights(params, version=0)

        def make(first: int, size: int) -> list[Episode]:
            indexes, seed = range(first, first + size), config.seed + EVAL_SEED
            if repairs is not None:
                return pair_episodes(
                    sampler, policy.chat, pool, rows[first : first + size], seed=seed, indexes=indexes,
                    settings=settings, first=params, repairer=repairs,
                    on_progress=lambda p: display.stage("this chunk", p.ended, p.total),
                )  # fmt: skip
            return actor.episodes(
                RolloutRequest(name, seed, 0, len(rows), indexes, settings, stage="this chunk")
            ).episodes  # fmt: skip

        text = policy.chat.response_text
        sizes = _sizes(len(problems), rollouts, chunk)
        outcomes = [
            outcome_of(e, [program_of(e.problem, text(t.response_ids)) for t in e.turns])
            for episodes in all_chunks(folder, sizes, make, lambda d, t: display.stage("rollouts", d, t))
            for e in episodes
        ]
    turns = config.episode.max_turns
    return EvaluationRollouts(outcomes, turns, max(rollouts * turns, turns), folder, about)


def recorded(
    config: ConfigDict,
    name: str,
    problems: Sequence[Problem],
    path: Path,
    turns: int,
    out: Path | None,
    chunk: int,
    extra_settings: Mapping[str, Any],
    left_out: Collection[str] = (),
) -> EvaluationRollouts:
    """Judges the rollouts in a file (`evaluation.recorded`). If all have a single response, each counts as one sample.

    `extra_settings` are added to the settings. Samples of the problems named in `left_out` are skipped.
    """
    rollouts = read_recorded(path, problems, left_out)
    if not rollouts:
        raise ConfigError(f"--judge-only: {path} holds no samples")
    turns = turns if any(len(r.programs) > 1 for r in rollouts) else 1
    per_problem: dict[int, int] = {}
    for rollout in rollouts:
        per_problem[id(rollout.problem)] = per_problem.get(id(rollout.problem), 0) + 1
    execution = config.execution.to_dict()
    about = {
        "benchmark": name,
        "problems": len(problems),
        "without_samples": len(problems) - len(per_problem),
        "samples": hashlib.sha256(path.read_bytes()).hexdigest(),
        "turns": turns,
        "chunk": chunk,
        "settings": json.loads(json.dumps({k: v for k, v in execution.items() if k != "workers"})),
        "tests": _content(problems),
        **extra_settings,
    }
    folder = out or Path("runs") / "benchmarks" / _folder_name(f"{name}_{path.stem}", about)
    with build_pool(config.execution) as pool, ProgressDisplay(stream=sys.stderr) as display:
        _open(folder, about, python_identity(pool.interpreter))

        def make(first: int, size: int) -> list[Episode]:
            return judge_recorded(
                pool, rollouts[first : first + size], limits_of(config.execution), max_turns=turns,
                max_wall_s=config.execution.max_wall_s or None, first_index=first,
                stop_at_first_failure=config.execution.stop_hidden_at_first_failure,
                on_progress=lambda d, t: display.stage("this chunk", d, t),
            )  # fmt: skip

        sizes = [min(chunk, len(rollouts) - i) for i in range(0, len(rollouts), chunk)]
        chunks = all_chunks(folder, sizes, make, lambda d, t: display.stage("rollouts", d, t))
        outcomes = [outcome_of(e, rollouts[e.index].programs) for episodes in chunks for e in episodes]
    return EvaluationRollouts(outcomes, turns, min(per_problem.values()) * turns, folder, about)


def report(
    rollouts: EvaluationRollouts,
    pairs: Sequence[tuple[int, int]],
    *,
    bootstrap_samples: int,
    judge: str = "",
    split_left_out: LeftOut | None = None,
) -> dict[str, Any]:
    """The metrics, which are also written to the folder's results.json.

    `judge` is a line about the judge's own errors, `split_left_out` what the source's rules left out.

    Raises ValueError if the judge broke on too many rollouts.
    """
    turns, samples = rollouts.turns, rollouts.samples
    chosen = list(pairs) or list(dict.fromkeys(((1, turns), (1, samples))))
    for n, k in chosen:
        if k < turns and k != 1:
            raise ConfigError(f"--n-at-k: {n}@{k} is less than one rollout of {turns} turns; only 1@1 is known of it")
    percent, left_out = n_at_k_percent(rollouts.outcomes, 1, samples, turns=turns)
    results: dict[str, Any] = {f"1@{samples}": percent, "left_out": left_out}
    results |= summarise(rollouts.outcomes, max_turns=turns, bootstrap_samples=bootstrap_samples)
    pairs = [(n, k) for n, k in chosen if k >= turns]
    results |= whole_report(rollouts.outcomes, pairs, turns=turns, problem_resamplings=bootstrap_samples)
    results |= {"evaluation": rollouts.about, "folder": str(rollouts.folder), "judge": judge}
    if split_left_out is not None:
        results["split_left_out"] = dataclasses.asdict(split_left_out)
    write_results(rollouts.folder, results)
    return results


def text_of(results: dict[str, Any]) -> str:
    """The metrics as text."""
    lines = [text_report(results)]
    first = results["first_responses"]
    if first["percent"] is not None:
        (low, high), (least, most) = first["samples_ci"], first["problems_ci"]
        lines.append(
            f"1@1 {first['percent']:.1f} % (first responses; over samples {low:.1f} to {high:.1f}, over problems"
            f" {least:.1f} to {most:.1f})"
        )
    if left_out := results.get("split_left_out"):
        lines.append(
            f"percentages are of {results['problems']} problems of {results['evaluation']['benchmark']}:"
            f" {LeftOut(**left_out)}"
        )
    if missing := results["evaluation"].get("without_samples"):
        lines.append(f"{missing} problems of {results['evaluation']['benchmark']} have no sample and don't count")
    if count := results["evaluation"].get("feedback_tests"):
        lines.append(
            f"feedback, and the choice of what is submitted, from up to {count} tests a problem:"
            f" {results['evaluation']['made_public']} hidden tests were made public"
        )
    if repairer := results["evaluation"].get("repairer"):
        lines.append(f"first responses by the policy, later ones by the repairer {repairer}")
    if shots := results["evaluation"].get("few_shot"):
        lines.append(f"few-shot dialogues in front: {', '.join(shots)}")
    if results["judge"]:
        lines.append(results["judge"])
    return "\n".join([*lines, f"rollouts and numbers are kept in {results['folder']}"])


def _open(folder: Path, about: dict[str, Any], inputs: Inputs) -> None:
    """Creates the folder, or reopens it. Raises ConfigError if it holds another evaluation or has other inputs."""
    open_folder(folder, about)
    check_inputs(
        folder, inputs, begun=any((folder / CHUNKS).iterdir()), mend="Put them back, or give another --out",
        tell=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip


def _about_samples(
    problems: Sequence[Problem],
    params: Params,
    settings: RolloutSettings,
    shots: Shots | None,
    repairs: Params | None,
) -> dict[str, Any]:
    """What sampled responses depend on beside the seed; what isn't used has no key."""
    about: dict[str, Any] = {
        "weights": content_hash(params),
        "settings": _plain(settings),
        "tests": _content(problems),
    }
    if shots is not None:
        about["few_shot"] = shots.names
    if repairs is not None:
        about["repairer"] = content_hash(repairs)
    return about


def _sizes(problems: int, rollouts: int, chunk: int) -> list[int]:
    """The number of rollouts of each chunk: whole problems, at least one, within `chunk` rollouts."""
    each = max(1, chunk // rollouts)
    return [rollouts * min(each, problems - i) for i in range(0, problems, each)]


def _plain(settings: RolloutSettings) -> dict[str, Any]:
    """Settings as JSON data; the tokens in front of each prompt are replaced by their hash."""
    fields = dataclasses.asdict(settings)
    if not settings.cut_thinking:  # as evaluations were named before there was this
        del fields["cut_thinking"]
    if not settings.temperature_range:
        del fields["temperature_range"]
    if ids := fields.pop("opening"):
        fields["opening"] = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return json.loads(json.dumps(fields))


def _content(problems: Sequence[Problem]) -> str:
    """A hash of statements and tests."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(problem_json(problem).encode("ascii"))
    return digest.hexdigest()


def _folder_name(name: str, about: dict[str, Any]) -> str:
    return f"{name.replace('/', '_')}_{settings_hash(about)}"
