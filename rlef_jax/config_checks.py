"""What a configuration must satisfy to run. Each check names the key, what is wrong with its value, and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from rlef_jax.errors import ConfigError

_ABOVE_0 = (
    "model.rope_theta", "model.norm_eps", "sampling.temperature", "execution.wall_s", "execution.wall_scale",
    "ppo.learning_rate", "ppo.clip_eps", "ppo.value_clip", "ppo.importance_cap", "sft.learning_rate",
    "model.lora_alpha",
)  # fmt: skip
_AT_LEAST_1 = (
    "model.d_model", "model.n_layers", "model.n_heads", "model.n_kv_heads", "model.d_head", "model.d_ff",
    "episode.max_turns", "episode.context", "episode.max_new_tokens",
    "sampling.rows", "sampling.workers", "sampling.decode_steps", "sampling.prefill_tokens", "sampling.data",
    "sampling.tensor", "sampling.page_slots",
    "execution.memory_mb", "execution.output_kb", "execution.wall_patience",
    "ppo.rollouts", "ppo.updates", "ppo.group_size", "ppo.microbatch_rows", "ppo.row_episodes", "model.logit_tokens",
    "mesh.data", "mesh.fsdp", "mesh.tensor",
    "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "eval.bootstrap_samples", "eval.rollouts",
    "sft.dialogues", "sft.batch_rows", "sft.epochs", "sft.checkpoint_every", "sft.log_every", "sft.probe_problems",
)  # fmt: skip
_AT_LEAST_0 = (
    "seed", "model.vocab_size", "model.window", "model.window_rope_theta", "model.query_scalar",
    "episode.max_failures_shown", "episode.max_text_chars", "sampling.top_k", "sampling.cache_gib",
    "execution.workers", "execution.max_wall_s", "ppo.warmup_steps", "ppo.weight_decay", "ppo.clip_norm",
    "ppo.max_grad_norm", "ppo.kl_beta", "ppo.value_coef", "train.iterations", "train.max_staleness",
    "train.max_skipped", "eval.temperature", "eval.problems", "eval.every", "eval.patience",
    "data.max_prompt_tokens", "plan.sampler_devices", "sft.steps", "sft.warmup_steps", "sft.weight_decay",
    "sft.clip_norm", "model.lora_rank", "model.lora_layers",
)  # fmt: skip
_SHARES = (
    "data.even_questions", "sampling.min_ready_fraction", "sft.marked_share", "sft.unmarked_right_repairs",
    "sft.unmarked_habit", "sft.final_rate", "sft.valid_share", "ppo.gamma", "ppo.gae_lambda",
)  # fmt: skip
CHOICES = {
    "plan.target": ("cpu", "a100", "b200", "h100", "h200", "tpu-v5p", "tpu-v6e"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("blocks", "dot_product"),
    "model.norms": ("before", "after", "around"),
    "model.activation": ("silu", "gelu_tanh"),
    "episode.feedback": ("true", "random", "none"),
    "episode.syntax_errors": ("once", "per_test"),
    "episode.thinking": ("keep", "cut"),
    "eval.valid_feedback": ("", "true", "random", "none"),
    "mesh.reduce_dtype": ("float32", "bfloat16"),
    "mesh.critic": ("shared", "separate"),
    "mesh.reference": ("trainer", "sampler"),
    "ppo.kl": ("mean", "product"),
    "ppo.value_level": ("turn", "token"),
    "ppo.baseline": ("critic", "rloo", "grpo", "dr_grpo"),
    "ppo.importance": ("paper", "decoupled", "none"),
    "ppo.importance_mode": ("cap", "mask"),
    "ppo.decay": ("none", "linear"),
    "train.bad_update": ("stop", "skip"),
    "sft.source": ("authors", "episodes", "repairs", "solutions", "messages"),
    "sft.learned": ("last", "all"),
    "execution.require_isolation": ("", "full", "namespaces", "user", "process"),
}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EXCLUSIONS = ("several_answers", "files", "references_fail")  # code_contests.reader applies them
_SOURCES = ("mini_contests", "code_contests", "jsonl")  # data.sources has them
_KEYS_OF_SOURCES = {
    "exclude": ("code_contests",),
    "max_prompt_tokens": ("code_contests", "jsonl"),
    "families": ("mini_contests",),
    "even_questions": ("mini_contests",),
    "train_files": ("jsonl",),
    "valid_files": ("jsonl",),
    "test_files": ("jsonl",),
}
_MOST_WORKERS = 4096
_MOST_SEEDS = 2**31  # seeds are folded into 32 bits, and evaluations add to them

Faults = Iterator[tuple[bool, str, str]]


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming every key whose value cannot run, and how to mend it."""
    faults = [f"config.{key}: {fault}" for bad, key, fault in _check_each(config) if bad]
    if not faults:  # what follows computes with the values
        faults = [f"config.{key}: {fault}" for check in _TOGETHER for bad, key, fault in check(config) if bad]
    if faults:
        raise ConfigError("\n".join(faults))


def _at(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _check_each(config: ConfigDict) -> Faults:
    for keys, low in ((_AT_LEAST_1, 1), (_AT_LEAST_0, 0)):
        for key in keys:
            value = _at(config, key)
            yield not low <= value < math.inf, key, f"{low} or more; it is {value}"
    for key in _ABOVE_0:
        yield not 0 < _at(config, key) < math.inf, key, f"above 0; it is {_at(config, key)}"
    for key in _SHARES:
        yield not 0 <= _at(config, key) <= 1, key, f"a share from 0 to 1; it is {_at(config, key)}"
    for key in ("sampling.top_p", "eval.top_p"):
        yield not 0 < _at(config, key) <= 1, key, f"above 0, at most 1; it is {_at(config, key)}"
    span = tuple(config.eval.temperature_range)
    bad_span = bool(span) and not (len(span) == 2 and 0 < span[0] <= span[1] < math.inf)
    yield bad_span, "eval.temperature_range", f"() or two numbers above 0, the lower first; it is {span}"
    for key in ("ppo.adam_b1", "ppo.adam_b2", "sft.adam_b2"):
        yield not 0 <= _at(config, key) < 1, key, f"from 0 to below 1; it is {_at(config, key)}"
    for key, choices in CHOICES.items():
        known = " or ".join(f'"{choice}"' for choice in choices)
        yield _at(config, key) not in choices, key, f"{known}, not {_at(config, key)!r}"
    penalty = config.reward.invalid_penalty
    yield not math.isfinite(penalty), "reward.invalid_penalty", f"a number; it is {penalty}"
    many = f"at most {_MOST_WORKERS}; it is {config.execution.workers}"
    yield config.execution.workers > _MOST_WORKERS, "execution.workers", many
    yield config.seed >= _MOST_SEEDS, "seed", f"below {_MOST_SEEDS}; it is {config.seed}"


def _check_data(config: ConfigDict) -> Faults:
    d = config.data
    unknown = [rule for rule in d.exclude if rule not in _EXCLUSIONS]
    yield bool(unknown), "data.exclude", f"of {', '.join(_EXCLUSIONS)}; not {', '.join(map(repr, unknown))}"
    try:
        mixed = [name for name, _ in mix_entries(d.mix)]
    except ValueError as error:
        yield True, "data.mix", str(error)
        return
    sources = {d.name, *("jsonl" if is_problem_file(name) else name for name in mixed)}
    unread = bool(d.train_files) and bool(mixed) and "jsonl" not in mixed
    yield unread, "data.train_files", 'are read for "jsonl:WEIGHT" in data.mix only, which has none'
    for key, names in _KEYS_OF_SOURCES.items():
        only = " or ".join(f'"{name}"' for name in names)
        stray = bool(d[key]) and sources <= set(_SOURCES) - set(names)
        yield stray, f"data.{key}", f"is for data.name={only} only; data.name is {d.name!r}"
    all_families = "must be 0 where data.families are given: not each has all questions"
    yield bool(d.families) and d.even_questions > 0, "data.even_questions", all_families
    no_room = f"must leave room for a response in episode.context={config.episode.context}; it is"
    yield d.max_prompt_tokens >= config.episode.context, "data.max_prompt_tokens", f"{no_room} {d.max_prompt_tokens}"


def is_problem_file(name: str) -> bool:
    """Whether an entry of `data.mix` is a file of problems, not a source by its name."""
    return name.endswith((".jsonl", ".jsonl.gz"))


def mix_entries(mix: Sequence[str]) -> list[tuple[str, float]]:
    """(source or file, weight) of each entry of `data.mix`. Raises ValueError for what isn't one."""
    entries = []
    for entry in mix:
        name, _, number = str(entry).rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not name or not 0 < weight < math.inf:
            raise ValueError(f'of entries "NAME:WEIGHT", with a weight above 0; not {entry!r}')
        if name not in _SOURCES and not is_problem_file(name):
            raise ValueError(f"of {', '.join(_SOURCES)} and files of problems (.jsonl, .jsonl.gz); not {name!r}")
        entries.append((name, weight))
    labels = [name.rpartition("/")[2].partition(".")[0] for name, _ in entries]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"of names that differ, as metrics have them; {twice[0]!r} stands there twice")
    total = sum(weight for _, weight in entries)
    if small := [name for name, weight in entries if weight < total / 1000]:
        raise ValueError(f"of weights that are a thousandth of all, or more; that of {small[0]!r} is less")
    return entries


def _check_failures(config: ConfigDict) -> Faults:
    """A repairer's episodes begin behind another model's failed responses, its evaluations would begin without any."""
    if not config.data.failures:
        return
    yield bool(config.data.mix), "data.mix", f"must be () {_REPAIRER}: the failures' problems are trained on"
    yield config.episode.feedback == "random", "episode.feedback", f'"true" or "none" {_REPAIRER}, not "random"'
    pair = f"{_REPAIRER}, which is evaluated behind the policy that it repairs: rlef_jax.evaluate --repairer"
    yield bool(config.eval.split), "eval.split", f'must be "" {pair}'
    yield config.eval.every > 0, "eval.every", f"must be 0 {pair}"


_REPAIRER = "for a repairer (data.failures is set)"


def _check_model(config: ConfigDict) -> Faults:
    m = config.model
    yield m.n_heads % m.n_kv_heads != 0, "model.n_kv_heads", f"must divide n_heads={m.n_heads}; it is {m.n_kv_heads}"
    scaling = tuple(m.rope_scaling)
    numbers = all(isinstance(n, int | float) and 0 < n < math.inf for n in scaling[:5])
    fits = len(scaling) in (0, 1, 6) or (len(scaling) == 4 and numbers and scaling[1] < scaling[2])
    four = "four numbers above 0, the second below the third, or () (or one for linear scaling, six for YaRN)"
    yield not (numbers and fits), "model.rope_scaling", f"{four}; it is {scaling}"
    for key in ("window_layers", "rope_layers"):
        yield bool(set(m[key]) - {0, 1}), f"model.{key}", f"a 1 or a 0 for each layer; it is {tuple(m[key])}"
    yield m.d_head % 2 != 0, "model.d_head", f"must be even (rotary pairs); it is {m.d_head}"
    slow = min(config.ppo.learning_rate, config.sft.learning_rate) < 1e-5
    too_coarse = m.param_dtype != "float32" and slow and not m.lora_rank  # adapters are float32
    still = f'{m.param_dtype} weights do not move at a learning rate below 1e-5: use "float32" master weights'
    yield too_coarse, "model.param_dtype", still


def _check_lora(config: ConfigDict) -> Faults:
    m = config.model
    unknown = [target for target in m.lora_targets if target not in LORA_TARGETS]
    yield bool(unknown), "model.lora_targets", f"of {', '.join(LORA_TARGETS)}; not {', '.join(map(repr, unknown))}"
    for key in ("lora_targets", "lora_layers", "lora_keep_below", "lora_init"):
        yield bool(m[key]) and not m.lora_rank, f"model.{key}", "needs adapters: set model.lora_rank too"
    nothing_below = m.lora_keep_below and not m.lora_layers
    yield nothing_below, "model.lora_keep_below", "needs layers below adapters: set model.lora_layers too"


def _check_episode(config: ConfigDict) -> Faults:
    e = config.episode
    no_room = f"must leave room for a prompt in context={e.context}; it is {e.max_new_tokens}"
    yield e.max_new_tokens >= e.context, "episode.max_new_tokens", no_room
    knows_none = 'must be "blocks" with episode.thinking="cut": an episode is then several sequences; it is'
    apart = e.thinking == "cut" and config.model.attention == "dot_product"
    yield apart, "model.attention", f"{knows_none} {config.model.attention!r}"
    yield not _increase(config.ppo.buckets), "ppo.buckets", _LENGTHS.format(tuple(config.ppo.buckets))
    if _increase(config.ppo.buckets):
        longest = f"the longest must hold a whole episode of config.episode.context={e.context}"
        most = e.context
        if e.thinking == "cut":
            longest += f', and with episode.thinking="cut" a context for each of its {e.max_turns} turns'
            most *= e.max_turns
        yield config.ppo.buckets[-1] < most, "ppo.buckets", f"{longest}; they are {tuple(config.ppo.buckets)}"


def _check_random_feedback(config: ConfigDict) -> Faults:
    """It comes from another problem; single-turn episodes see none."""
    e, v = config.episode, config.eval
    lonely = "must be 2 or more with {}, which shows another problem's failures; it is 1"
    alone = e.max_turns > 1 and e.feedback == "random" and config.ppo.rollouts // config.ppo.group_size == 1
    groups = f" group of {config.ppo.group_size} (ppo.group_size)" if config.ppo.group_size > 1 else ""
    yield alone, "ppo.rollouts", lonely.format('episode.feedback="random"') + groups
    alone = e.max_turns > 1 and v.random_feedback and bool(v.split) and v.problems == 1
    yield alone, "eval.problems", lonely.format("eval.random_feedback")


def _check_sampling(config: ConfigDict) -> Faults:
    s = config.sampling
    yield s.rows % s.workers != 0, "sampling.rows", f"must be a multiple of workers={s.workers}; it is {s.rows}"
    unshared = f"must be a multiple of workers * data = {s.workers * s.data}; it is {s.rows}"
    yield s.rows % s.workers == 0 and s.rows % (s.workers * s.data) != 0, "sampling.rows", unshared
    crossing = f"must be 1 on several devices (data * tensor = {s.data * s.tensor}); it is {s.workers}"
    yield s.workers > 1 and s.data * s.tensor > 1, "sampling.workers", crossing
    yield not _increase(s.prefill_chunks), "sampling.prefill_chunks", _LENGTHS.format(tuple(s.prefill_chunks))
    unordered = bool(s.cache_lengths) and not _increase(s.cache_lengths)
    yield unordered, "sampling.cache_lengths", _LENGTHS.format(tuple(s.cache_lengths))


_LENGTHS = "whole numbers above 0 that increase; they are {}"


def _increase(values: Sequence[int]) -> bool:
    """Whether the values are lengths, one or more, in ascending order."""
    positive = bool(values) and all(isinstance(n, int) and n > 0 for n in values)
    return positive and all(a < b for a, b in zip(values, values[1:]))


def _check_ppo(config: ConfigDict) -> Faults:
    p = config.ppo
    uneven = f"must be a multiple of updates={p.updates}, so that all updates have as many; it is {p.rollouts}"
    yield p.rollouts % p.updates != 0, "ppo.rollouts", uneven
    shards = config.mesh.data * config.mesh.fsdp
    unshared = f"must be a multiple of mesh.data * mesh.fsdp = {shards}; it is {p.microbatch_rows}"
    yield p.microbatch_rows % shards != 0, "ppo.microbatch_rows", unshared
    scored = f'must be a multiple of sampling.data={config.sampling.data} with mesh.reference="sampler"'
    apart = config.mesh.reference == "sampler" and p.microbatch_rows % config.sampling.data != 0
    yield apart, "ppo.microbatch_rows", f"{scored}; it is {p.microbatch_rows}"
    one_trunk = config.mesh.critic == "separate" and not p.separate_critic
    yield one_trunk, "mesh.critic", 'must be "shared" with ppo.separate_critic=False: it is the policy\'s own trunk'
    own = "must be False with ppo.separate_critic=True, a trunk of its own, or without a critic"
    yield p.detach_critic and (p.separate_critic or p.baseline != "critic"), "ppo.detach_critic", own
    mixed = f'must be 1 with model.attention="dot_product", which knows no episodes; it is {p.row_episodes}'
    yield config.model.attention == "dot_product" and p.row_episodes > 1, "ppo.row_episodes", mixed


def _check_groups(config: ConfigDict) -> Faults:
    p = config.ppo
    ungrouped = f"must be a multiple of ppo.group_size={p.group_size}, the rollouts of a problem; it is {p.rollouts}"
    yield p.rollouts % p.group_size != 0, "ppo.rollouts", ungrouped
    if p.baseline == "critic":
        return
    chosen = f"with ppo.baseline={p.baseline!r}, which has no critic"
    alone = f"must be 2 or more with ppo.baseline={p.baseline!r}, which compares a problem's rollouts; it is 1"
    yield p.group_size == 1, "ppo.group_size", alone
    yield p.normalize_advantages, "ppo.normalize_advantages", f"must be False {chosen}: a group's own scale holds"
    yield p.value_level != "turn", "ppo.value_level", f'must be "turn", the default, {chosen}; it is {p.value_level!r}'
    yield p.gae_lambda != 1, "ppo.gae_lambda", f"must be 1 {chosen}; it is {p.gae_lambda}"
    yield config.mesh.critic == "separate", "mesh.critic", f'must be "shared" {chosen}'


def _check_sft(config: ConfigDict) -> Faults:
    s = config.sft
    if s.source != "authors":
        yield not s.data, "sft.data", f"must name what sft.source={s.source!r} is read from (docs/supervised.md)"
        return
    yield bool(s.data), "sft.data", 'is for other sources than sft.source="authors": which do you mean?'
    for key, default in (("epochs", 1), ("valid_share", 0.0)):
        yield s[key] != default, f"sft.{key}", f'is for other sources than sft.source="authors"; it is {s[key]}'


def _check_schedule(config: ConfigDict) -> Faults:
    needless = "needs evaluations to count: set config.eval.every too"
    yield config.eval.patience > 0 and config.eval.every == 0, "eval.patience", needless


_TOGETHER = (
    _check_data,
    _check_failures,
    _check_model,
    _check_lora,
    _check_episode,
    _check_random_feedback,
    _check_sampling,
    _check_ppo,
    _check_groups,
    _check_sft,
    _check_schedule,
)
