"""Evaluates a policy, or responses that were made elsewhere, and prints n@k and what happens over turns.

    python -m rlef_jax.evaluate --workdir=runs/x [--checkpoint=best] [--split=test_500 | --benchmark=...]
    python -m rlef_jax.evaluate --config=configs/smollm2_135m.py --benchmark=human_eval_plus --data=FOLDER
    python -m rlef_jax.evaluate --judge-only=samples.jsonl --benchmark=mbpp_plus --data=FOLDER

`--samples` counts responses a problem: with `--turns=3 --samples=100` there are 33 rollouts of up to three turns, with
`--turns=1 --samples=3` three independent responses, of which one that passes the public tests is submitted (n@k,
section 3.2). Weights are those of a run's checkpoint, of its warm start (`--warm-start`), or of `config.model.init`.

Benchmarks: SOURCE/SPLIT (mini_contests/test_500, jsonl/test, ...), human_eval_plus, mbpp_plus, human_eval, mbpp,
mbpp_sanitized, livecodebench; all but the first read the published files in --data, jsonl the file of problems that it
names. Every rollout is written to --out; the same command again, after a kill too, goes on from there. The numbers are
printed as JSON on stdout, as a table on stderr, and written to OUT/results.json. Values of the configuration can be
given as with rlef_jax.train: --config.KEY=VALUE.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from rlef_jax import arguments
from rlef_jax import config as config_lib
from rlef_jax.command_line import errors_as_lines, parse
from rlef_jax.config_checks import validate
from rlef_jax.data import benchmarks
from rlef_jax.data.code_contests.references import error_rate_line
from rlef_jax.data.missing_tests import Missing
from rlef_jax.data.running import running
from rlef_jax.data.shown_tests import with_public
from rlef_jax.data.sources import CODE_CONTESTS, JSONL, Source, check_splits, fit
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.evaluation import few_shot, job
from rlef_jax.evaluation.chunk_store import saved_episodes
from rlef_jax.evaluation.repair import Repairer
from rlef_jax.metrics.n_at_k import rollouts_for
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training import episode_io
from rlef_jax.training.build import build_pool, describe_policy, first_prompt_of
from rlef_jax.training.random_feedback import check_donors
from rlef_jax.types import Problem, TestCase


def parser() -> arguments.Parser:
    """The command line."""
    p = arguments.Parser(prog="python -m rlef_jax.evaluate", description=__doc__)
    policy_source = p.add_mutually_exclusive_group()
    policy_source.add_argument("--workdir", type=arguments.path, help="a run of rlef_jax.train or rlef_jax.sft")
    policy_source.add_argument("--config", help="a configuration; its model.init are the weights")
    p.add_argument("--checkpoint", default="last", help="with --workdir: best (by validation), last, or its iteration"
                   " (of rlef_jax.sft: its step)")  # fmt: skip
    p.add_argument("--warm-start", action="store_true", help="evaluate the weights that the run started from")
    p.add_argument("--repairer", type=arguments.path, metavar="WORKDIR", help="another such run, whose policy makes"
                   " all responses but the first (docs/evaluation.md)")  # fmt: skip
    p.add_argument("--repairer-checkpoint", default="last", help="as --checkpoint (default: last)")
    p.add_argument(
        "--judge-only", type=arguments.path, metavar="FILE", help="score the responses in FILE (docs/evaluation.md)"
    )
    p.add_argument("--benchmark", help="default: the configuration's data.name and eval.split")
    p.add_argument("--data", type=arguments.path, help="folder with a benchmark's published files; jsonl: the file")
    p.add_argument("--split", help="of the configuration's data.name; default: its eval.split, or base_config's")
    p.add_argument("--turns", type=int, default=3, help="turn limit (default: 3)")
    p.add_argument("--samples", type=int, default=3, help="responses a problem, over all its rollouts (default: 3)")
    p.add_argument("--temperature", type=float, help="default: the config's eval.temperature")
    p.add_argument("--top-p", type=float, help="default: the config's eval.top_p")
    p.add_argument("--feedback", choices=("true", "random", "none"), default="true")
    p.add_argument(
        "--few-shot", type=arguments.path, metavar="FILE", help="saved episodes: solved ones stand before each prompt"
    )
    p.add_argument("--shots", type=int, default=2, help="how many of them, with --few-shot (default: 2)")
    p.add_argument("--feedback-tests", type=int, default=0, metavar="N", help="feedback from up to N tests a problem,"
                   " hidden ones too; default: from its public tests")  # fmt: skip
    p.add_argument("--since", default="", metavar="DATE", help="livecodebench: first contest date, such as 2024-05")
    p.add_argument("--until", default="", metavar="DATE", help="livecodebench: last contest date, such as 2024-10")
    p.add_argument("--n-at-k", default="", help="such as 1@1,1@3,10@100; default: 1@TURNS and 1@SAMPLES")
    p.add_argument("--problems", type=int, default=0, help="the first n; 0 = all")
    p.add_argument(
        "--out", type=arguments.path, help="folder for rollouts and numbers (default: one named after what is asked)"
    )
    p.add_argument("--chunk", type=int, default=256, help="rollouts made between two writes, about (default: 256)")
    p.add_argument("--episodes", type=arguments.path, help="also write all episodes to this .jsonl.gz file")
    return p


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; `overrides` holds what `--config.KEY=VALUE` gave.

    Raises ConfigError for a key or value that can't be; exits, with one line on stderr, for other arguments.
    """
    return parse(parser(), argv)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The numbers as printed, in percent.

    Raises ConfigError, before anything runs, where the workdir or an argument can't be used; RunError where the judge
    broke on so many rollouts that nothing can be said.
    """
    config = _changed_config(args)
    pairs = _n_at_k(args)
    if args.episodes is not None:
        _check_writable(args.episodes)
    name = args.benchmark or f"{config.data.name}/{config.eval.split}"
    source_name, slash, split = name.partition("/")
    source = _fitted(_source(args, config, source_name), config, split) if slash else None
    missing: list[Missing] = []
    with running(lambda: build_pool(config.execution)) as runner:
        published = benchmarks.load(
            name, args.data, config.eval.problems, source, runner=runner, since=args.since, until=args.until,
            tell=missing.append,
        )  # fmt: skip
    problems, extra_settings = _with_feedback_tests(published, args.feedback_tests)
    if args.feedback == "random" and args.judge_only is None and args.turns > 1:
        check_donors(problems, problems)
    for notice in missing:
        print(notice.line, file=sys.stderr)
        extra_settings |= {"missing_tests": notice.line}
    if args.judge_only is not None:
        without_tests = [left_out for notice in missing for left_out in notice.left_out]
        rollouts = job.recorded(
            config, name, problems, args.judge_only, args.turns, args.out, args.chunk, extra_settings, without_tests
        )
    else:
        shots = None if args.few_shot is None else few_shot.choose(args.few_shot, args.shots, problems)
        rollouts = job.sampled(
            config, name, problems, workdir=args.workdir, checkpoint=None if args.warm_start else args.checkpoint,
            rollouts=rollouts_for(args.samples, args.turns), feedback=args.feedback, shots=shots, out=args.out,
            chunk=args.chunk, extra_settings=extra_settings,
            repairer=None if args.repairer is None else Repairer(args.repairer, args.repairer_checkpoint),
        )  # fmt: skip
    if args.episodes is not None:
        episode_io.write_episodes(args.episodes, saved_episodes(rollouts.folder))
    try:
        return job.report(
            rollouts, pairs, bootstrap_samples=config.eval.bootstrap_samples, judge=_judge_errors(source, split),
            split_left_out=None if source is None else source.left_out.get(split),
        )  # fmt: skip
    except ConfigError:
        raise
    except ValueError as error:
        advice = f"rollouts kept in {rollouts.folder} are not judged again: give another --out"
        raise RunError(f"{error}: the judge broke on the others; {advice}") from error


def _with_feedback_tests(problems: Sequence[Problem], count: int) -> tuple[Sequence[Problem], dict[str, Any]]:
    """The problems with up to `count` public tests, and what an evaluation's settings say of it; 0 changes nothing."""
    if not count:
        return problems, {}
    if not any(isinstance(test, TestCase) for problem in problems for test in problem.tests):
        raise ConfigError(
            "--feedback-tests: hidden tests of function problems are never shown, and this benchmark has no others:"
            " leave it out"
        )
    shown = [with_public(problem, count) for problem in problems]
    moved = sum(len(p.public_tests) for p in shown) - sum(len(p.public_tests) for p in problems)
    return shown, {"feedback_tests": count, "made_public": moved}


def _source(args: argparse.Namespace, config: ConfigDict, name: str) -> Source:
    """Where SOURCE leads: `config.data`, with its rules, where that is of this source.

    Responses from elsewhere are scored whatever the length of the prompts that this configuration's model sees.
    """
    source = Source.of(config) if name == config.data.name else Source(name)
    source = dataclasses.replace(source, mix=())  # training's
    if name == JSONL and args.data is None and config.data.name != JSONL:
        raise ConfigError("--data: name the file of problems, e.g. --data=own.jsonl")
    if args.data is not None:
        path = str(args.data)
        source = source.reading(path) if name == JSONL else dataclasses.replace(source, dir=path)
    return source if args.judge_only is None else dataclasses.replace(source, max_prompt_tokens=0)


def _fitted(source: Source, config: ConfigDict, split: str) -> Source:
    """The source with its rules applied to the split; what they leave out is reported on stderr."""
    check_splits(source, train="", evaluated={"eval.split": split})
    prompts = functools.cache(lambda: first_prompt_of(config, describe_policy(config)[1]))  # reads a tokenizer
    with ProgressDisplay(stream=sys.stderr) as display:
        return fit(source, [split], lambda problem: prompts()(problem), tell=display.message, report=display.stage)


def _judge_errors(source: Source | None, split: str) -> str:
    """What is known of the judge's own errors on these problems: a line, or nothing to say."""
    if source is None or source.name != CODE_CONTESTS:
        return ""
    return error_rate_line(Path(source.dir), split)


def _n_at_k(args: argparse.Namespace) -> list[tuple[int, int]]:
    """The (n, k) asked for; empty for the default. Raises ConfigError."""
    pairs = []
    for item in filter(None, args.n_at_k.split(",")):
        n, _, k = item.partition("@")
        if not (n.isdecimal() and k.isdecimal() and int(n) > 0 and int(k) > 0):
            raise ConfigError(f"--n-at-k: {item!r} is not of the form 10@100")
        if args.judge_only is None and not (int(k) == 1 or args.turns <= int(k) <= args.samples):
            raise ConfigError(
                f"--n-at-k: k of {item} must be 1, or from --turns={args.turns} to --samples={args.samples}"
            )
        pairs.append((int(n), int(k)))
    return pairs


# Where the command line's values go in the config, whose checks then hold for them too.
_FLAGS = {
    "turns": "episode.max_turns",
    "split": "eval.split",
    "temperature": "eval.temperature",
    "top_p": "eval.top_p",
    "problems": "eval.problems",
}


def _changed_config(args: argparse.Namespace) -> ConfigDict:
    """The run's configuration with the command line's values. Raises ConfigError, naming the flags, for bad ones."""
    if args.workdir is not None:
        config = config_lib.load_saved(args.workdir)
    elif args.config:
        config = config_lib.load(args.config)
    elif args.judge_only is not None:
        config = config_lib.base_config()
    else:
        raise ConfigError("one of --workdir, --config and --judge-only is needed")
    config_lib.make_paths_local(config_lib.apply_overrides(config, args.overrides))
    flag_values = {key: value for name, key in _FLAGS.items() if (value := getattr(args, name)) is not None}
    config_lib.apply_overrides(config, flag_values)
    config.eval.split = config.eval.split or config_lib.base_config().eval.split
    config.eval.random_feedback = args.feedback == "random"
    config.sampling.own_devices = False  # nothing trains beside it
    config.data.failures = ""  # what a repairer was trained on: here it is a policy as any other
    try:
        validate(config)
        if not args.benchmark:
            source = _source(args, config, config.data.name)
            check_splits(source, train="", evaluated={"eval.split": config.eval.split})
    except ConfigError as error:
        line = "; ".join(str(error).splitlines())
        for name, key in _FLAGS.items():
            line = line.replace(f"config.{key}:", f"--{name.replace('_', '-')}:")
        raise ConfigError(line) from error
    if args.benchmark and args.split:
        raise ConfigError("--split: --benchmark=SOURCE/SPLIT names the split; give one of the two")
    for flag, least in (("chunk", 1), ("shots", 1), ("feedback_tests", 0)):
        if getattr(args, flag) < least:
            raise ConfigError(f"--{flag.replace('_', '-')}: {least} or more; it is {getattr(args, flag)}")
    if args.few_shot is not None and args.judge_only is not None:
        raise ConfigError("--few-shot: responses made elsewhere were made with prompts of their own; leave it out")
    if args.repairer is not None:
        _check_repairer(args)
    if args.samples < args.turns and args.judge_only is None:
        raise ConfigError(f"--samples={args.samples} must be at least --turns={args.turns}")
    return config


def _check_repairer(args: argparse.Namespace) -> None:
    """Raises ConfigError for what a repairer's contexts, which begin anew at each repair, can't be."""
    if args.turns < 2:
        raise ConfigError(f"--repairer: makes the second response and those after it, and --turns={args.turns}")
    if args.feedback != "true":
        raise ConfigError(f"--repairer: is for --feedback=true, not {args.feedback}")
    for name in ("judge_only", "few_shot"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--repairer: can't go with --{name.replace('_', '-')}; leave one of the two out")


def _check_writable(path: Path) -> None:
    """Raises ConfigError where no file can be written: better now than after the evaluation."""
    part = path.with_name(path.name + ".part")
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        part.open("wb").close()
        part.unlink()
    except OSError as error:
        raise ConfigError(f"--episodes: cannot be written: {error}") from error


def main() -> None:
    """Prints the numbers: a table on stderr, JSON on stdout."""
    logging.set_verbosity(logging.FATAL)  # or Orbax talks of every folder that it looks at
    with errors_as_lines():
        results = evaluate(parsed())
        print(job.text_of(results), file=sys.stderr)
        print(json.dumps(results, indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
