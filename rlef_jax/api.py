"""The public interface, for scripts and notebooks: what `import rlef_jax as rj` offers (docs/api.md).

Everything else in the package is internal: it may change from version to version.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax import evaluate as evaluate_command
from rlef_jax.analysis.saved import evaluation_path, saved_evaluations
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import ConfigError
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.show_episode import format_episode
from rlef_jax.training import episode_io
from rlef_jax.training.build import (
    build_policy,
    build_pool,
    build_sampler,
    describe_policy,
    limits_of,
    rollout_settings,
    with_model_shape,
)
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.training.rollout import collect
from rlef_jax.training.workdir import CHECKPOINTS, begun_as, saved_policy
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict

__all__ = [
    "Episode", "Policy", "Problem", "Run", "Status", "TestCase", "TestResult", "Turn", "Verdict",
    "judge_programs", "load_policy", "read_run", "run_evaluation", "sample", "show", "solve",
]  # fmt: skip

# What a published model is given where nothing else is asked for: base_config's are the tiny model's.
_ROOM = {
    "episode.context": 2048, "episode.max_new_tokens": 512, "ppo.buckets": (2048,), "sampling.rows": 8,
    "sampling.workers": 1, "sampling.cache_lengths": (512, 1024), "sampling.prefill_chunks": (64, 256),
}  # fmt: skip


class Policy:
    """A model with its tokenizer and chat format, made by `load_policy`.

    Attributes:
      config: every setting, as `config.json` of a run has them.
      cfg: the model's sizes.
      params: its weights, a pytree of JAX arrays.
      chat: messages to tokens and back.
    """

    def __init__(self, config: ConfigDict, cfg: ModelConfig, params: Params, chat: ChatFormat) -> None:
        self.config, self.cfg, self.params, self.chat = config, cfg, params, chat

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"Policy({count:,} parameters, {self.config.model.init or 'random weights'})"

    @functools.cached_property
    def _sampler(self) -> Sampler:
        sampler = build_sampler(self.config, self.cfg, self.chat.stop_ids)
        sampler.set_weights(self.params, version=0)
        return sampler


class Run:
    """What a run of `rlef_jax.train` has left in its workdir, made by `read_run`. Files are read when asked for.

    Attributes:
      workdir: the folder.
      config: the run's settings.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir, self.config = workdir, config_lib.load_saved(workdir)

    def __repr__(self) -> str:
        return f"Run({str(self.workdir)!r}, {len(self.steps)} iterations)"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A record per iteration, as docs/metrics.md names its entries; `step` is the iteration."""
        return read_metrics(self.workdir)

    @property
    def summary(self) -> dict[str, Any]:
        """The scores before and after training, {} while the run hasn't ended."""
        path = self.workdir / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def steps(self) -> list[int]:
        """Iterations whose episodes are saved."""
        return episode_io.saved_steps(self.workdir)

    @property
    def evaluations(self) -> list[str]:
        """Names of the evaluations whose episodes are saved: `warm_start`, `rlef`, `valid_000005`, ..."""
        return saved_evaluations(self.workdir)

    def episodes(self, which: int | str) -> list[Episode]:
        """The episodes of an iteration, or of an evaluation by its name. Raises FileNotFoundError for none."""
        if isinstance(which, int):
            return episode_io.read_episodes(episode_io.episodes_path(self.workdir, which))
        return episode_io.read_episodes(evaluation_path(self.workdir, which))


def load_policy(source: str | Path, *, checkpoint: str = "last", overrides: Mapping[str, Any] | None = None) -> Policy:
    """A policy to sample from.

    Args:
      source: the workdir of a run, a Hugging Face folder, a .gguf file, or `package:warm_start`.
      checkpoint: of a run: "last", "best" (by validation) or an iteration (of fine-tuning: a step).
      overrides: config keys by their names, such as {"sampling.rows": 32}.

    Raises ConfigError where it can't be loaded, naming the file or the key.
    """
    path, values = Path(source), dict(overrides or {})
    of_run = (path / CHECKPOINTS).is_dir()
    if of_run:
        config = config_lib.load_saved(path)
    else:
        published = path.is_dir() or path.suffix == ".gguf"
        config = config_lib.base_config()
        values = {"model.init": str(source)} | (_ROOM if published else {}) | values
    config_lib.make_paths_local(config_lib.apply_overrides(config, values))
    config = with_model_shape(config)
    if not of_run:
        policy = build_policy(config)
        return Policy(config, policy.cfg, policy.params, policy.chat)
    cfg, chat, _ = describe_policy(config)
    sharding = SingleDeviceSharding(jax.devices()[0])
    abstract = abstract_params(cfg, config.model.param_dtype, sharding)
    params = saved_policy(path, checkpoint, abstract, lambda: build_policy(begun_as(config, path)).params)
    return Policy(config, cfg, params, chat)


def sample(
    policy: Policy,
    messages: Sequence[str],
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Responses to single user messages: `count` texts for each.

    The system message is the policy's `config.episode.system_prompt`. A response depends on the weights, the seed and
    its place alone. `max_new_tokens` is the policy's `config.episode.max_new_tokens` where it is None.

    Raises ConfigError for a message that leaves no room in `config.episode.context`.
    """
    episode = policy.config.episode
    token_limit = max_new_tokens or episode.max_new_tokens
    sampling = SamplingConfig(temperature, top_p, 0, policy.chat.stop_ids, token_limit)
    prompts = [policy.chat.first_prompt(text, episode.system_prompt) for text in messages for _ in range(count)]
    if (longest := max(map(len, prompts), default=0)) >= episode.context:
        raise ConfigError(f"config.episode.context: {episode.context} has no room for a prompt of {longest} tokens")
    with policy._sampler.session() as session:
        dialogues = [session.dialogue(seed=seed, step=0, episode=i) for i in range(len(prompts))]
        futures = [session.respond(d, p, sampling, turn=0, last=True) for d, p in zip(dialogues, prompts, strict=True)]
        texts = [policy.chat.response_text(future.result().ids) for future in futures]
    return [texts[i : i + count] for i in range(0, len(texts), count)]


def solve(
    policy: Policy, problems: Sequence[Problem], *, count: int = 1, feedback: str = "true", seed: int = 0
) -> list[Episode]:
    """Whole dialogues about problems, judged: `count` for each, those of a problem side by side.

    `policy.config.episode` sets their length, `.sampling` how tokens are drawn; `feedback` is "true", "random" or
    "none". Programs run in the sandbox (docs/executor.md).
    """
    config = policy.config
    settings = rollout_settings(config, policy.chat.stop_ids, feedback, evaluation=False)
    rows = [problem for problem in problems for _ in range(count)]
    with build_pool(config.execution) as pool:
        return collect(
            policy._sampler, policy.chat, pool, rows, seed=seed, step=0, settings=settings, donors=list(problems)
        )


def judge_programs(
    programs: Sequence[str], problem: Problem, *, overrides: Mapping[str, Any] | None = None
) -> list[Verdict]:
    """Verdicts on programs (Python texts): all public and hidden tests of a problem, in the sandbox.

    `overrides` are keys of `config.execution` by their names, such as {"execution.python": "3.10"}.
    """
    execution = config_lib.apply_overrides(config_lib.base_config(), dict(overrides or {})).execution
    limits = limits_for(problem, limits_of(execution), execution.max_wall_s or None)
    with build_pool(execution) as pool:
        public = [future.result() for future in [submit_public(pool, p, problem, limits) for p in programs]]
        hidden = [
            submit_hidden(pool, p, problem, verdict, limits, stop_at_first_failure=False)
            for p, verdict in zip(programs, public, strict=True)
        ]
        return [future.result() for future in hidden]


def run_evaluation(*, out: str | Path | None = None, **flags: Any) -> dict[str, Any]:
    """Scores of a policy on a benchmark, in percent: what `python -m rlef_jax.evaluate` computes.

    Args:
      out: the folder for rollouts and numbers.
      flags: the command's flags with underscores: `workdir="runs/x"`, `benchmark="mini_contests/test"`, `samples=3`,
        `turns=3`, `problems=100`, `overrides={"sampling.rows": 32}` for config keys.

    Raises ConfigError where they can't be used.
    """
    overrides = flags.pop("overrides", {})
    arguments = flags | ({} if out is None else {"out": out})
    words = [f"--{name.replace('_', '-')}" + ("" if v is True else f"={v}") for name, v in arguments.items() if v]
    return evaluate_command.evaluate(
        evaluate_command.parsed([*words, *(f"--config.{key}={value}" for key, value in overrides.items())])
    )


def read_run(workdir: str | Path) -> Run:
    """A run's settings, metrics, scores and episodes. Raises ConfigError for a folder that holds no run."""
    return Run(Path(workdir))


def show(policy: Policy, episode: Episode) -> str:
    """An episode as text: prompts, responses, verdicts and rewards, turn by turn."""
    penalty = policy.config.reward.invalid_penalty
    return format_episode(episode, policy.chat.tokenizer.show, invalid_penalty=penalty)
