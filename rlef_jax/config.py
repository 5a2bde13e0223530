"""The configuration: one tree of every key, checked when it is loaded.

A config file under `configs/` defines `get_config(variant="") -> ConfigDict`: it starts from `base_config()` and
changes what it must. The tree is locked: a key that is not in `base_config` is an error that names the nearest key that
is. A test fails for a key that no code reads. Values default to the paper's where it gives one (Gehring et al., 2025).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key and says how to mend it."""


def base_config() -> ConfigDict:
    """Every key there is, with its default. Sizes are the tiny model's; the method's constants are the paper's."""
    config = ConfigDict(
        dict(
            seed=0,
            model=_model(),
            data=dict(
                name="mini_contests",  # which problem source
                train_split="train",
            ),
            episode=dict(
                max_turns=3,  # responses per episode (3.1)
                context=256,  # tokens of a whole episode: prompts, feedback and responses
                max_new_tokens=96,  # of one response
                feedback="true",  # "true"; "random" (C.2): another problem's failures; "none" (B.5)
                max_failures_shown=0,  # failed tests named in one feedback message; 0 = all
                max_text_chars=0,  # of each input, output or stack trace shown; 0 = no cut
                system_prompt="",
            ),
            sampling=dict(
                temperature=1.0,  # A.1
                top_p=1.0,
                top_k=0,  # 0 = no limit
                group_size=64,  # episodes sampled in lockstep
                groups_in_flight=4,  # some are sampled while the others' programs run
                threads=2,  # groups that are sampled at the same time
                prompt_buckets=(32, 64, 128, 192),  # a prompt is padded to the shortest of these that holds it
            ),
            execution=dict(
                workers=0,  # 0 = as many as leave a quarter of the cores, at least one, to JAX
                require_isolation="",  # "full", "namespaces", "user" or "process", at least; "" = the best there is
                clean_exit=True,  # a right answer counts only with a clean end (ours)
                exact_integers=True,  # integers match if they are equal, not as doubles (ours)
                python="3.10",  # the version that candidate programs run under (B.3)
                require_python=False,  # refuse another version instead of warning
                wall_s=10.0,  # per test, where the problem has no limit of its own (A.2)
                memory_mb=1024,  # the same
                output_kb=1024,
                max_wall_s=0.0,  # caps the problem's own time limit; 0 = never
                wall_scale=1.0,  # factor on every time limit after the cap, for slower machines
                stop_hidden_at_first_failure=True,
            ),
            reward=dict(invalid_penalty=-0.2),  # a non-final response without valid code (2.2)
            ppo=_ppo(),
            mesh=dict(data=1, fsdp=1, tensor=1),  # devices along each axis
            train=dict(
                iterations=3000,  # each makes ppo.updates updates: 12,000 updates for 8B (A.1)
                checkpoint_every=50,  # iterations
                keep_checkpoints=3,
                save_episodes=True,
                log_every=1,  # iterations between progress lines
            ),
            eval=dict(
                split="test_500",  # evaluated before and after training
                valid_split="valid",  # evaluated during training, for model selection
                temperature=0.2,  # 3.2, for 1@3
                top_p=0.95,
                problems=0,  # the first n of the split; 0 = all
                random_feedback=True,  # evaluate under random feedback too
                every=0,  # iterations between evaluations on valid_split; 0 = none
                bootstrap_samples=1000,  # resamplings of the problems for an interval
            ),
            sft=_sft(),
        )
    )
    return config.lock()


def _model() -> dict[str, Any]:
    return dict(
        d_model=96,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_head=24,
        d_ff=256,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tie_embeddings=True,
        tokenizer="package:tokenizer",  # "package:NAME" ships with rlef_jax; otherwise a path. It gives the vocabulary.
        init="package:warm_start",  # the policy's first weights, the same way; "" = random
        param_dtype="float32",  # master weights
        compute_dtype="float32",
        remat=False,  # recompute activations in the backward pass
        unroll=True,  # layers as straight code instead of a scan: faster to run, slower to compile
    )


def _ppo() -> dict[str, Any]:
    return dict(
        rollouts=1024,  # episodes per iteration (A.1)
        updates=4,  # disjoint updates per iteration, one pass
        microbatch_rows=32,  # rows per forward and backward pass; changes speed and memory, never the result
        buckets=(128, 192, 256),  # row lengths; each episode goes into the shortest that holds it
        learning_rate=2e-7,
        warmup_steps=50,
        weight_decay=0.1,
        clip_norm=0.0,  # global gradient norm; 0 = no clipping
        adam_b1=0.9,
        adam_b2=0.999,
        kl_beta=0.05,  # weight of the KL penalty in the reward (2.2)
        clip_eps=0.2,  # policy ratio
        value_clip=0.2,
        value_coef=1.0,  # matters with a shared trunk only
        importance="paper",  # "paper" (A.1), "decoupled" (pi_old / pi_b outside the clip) or "none"
        importance_cap=5.0,  # decoupled: the weight's bound c
        importance_mode="cap",  # decoupled, above c: "cap" the weight or "mask" the token
        separate_critic=True,  # value network of its own, from the same weights (A.1); False = shared trunk
        normalize_advantages=True,
    )


def _sft() -> dict[str, Any]:
    return dict(
        dialogues=128_000,
        steps=0,  # 0 = one pass over the dialogues
        batch_rows=64,
        learning_rate=1e-3,
        warmup_steps=100,
        weight_decay=0.1,
        clip_norm=1.0,
        marked_share=0.4,  # dialogues opened by the careful author's system line, every repair right
        unmarked_right_repairs=0.15,  # share of right repairs in the others
        unmarked_habit=0.0,  # share of what else is written there that takes a statement's commonest reading
        checkpoint_every=500,  # steps
        log_every=20,  # steps
    )


def leaf_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values, sections excluded, in order."""
    for key in config:
        value = config.get_ref(key).get()
        if isinstance(value, ConfigDict):
            yield from leaf_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def nearest_key(key: str, config: ConfigDict) -> str:
    """The dotted key of `config` most like `key`: its own name in another section, its initials, or its spelling."""
    known = list(leaf_keys(config))
    section, _, name = key.rpartition(".")

    def likeness(candidate: str) -> tuple[float, float]:
        other_section, _, other = candidate.rpartition(".")
        initials = "".join(word[0] for word in other.split("_"))
        same = 1.0 if name in (other, initials) else difflib.SequenceMatcher(None, name, other).ratio()
        return same + 0.5 * (section == other_section), difflib.SequenceMatcher(None, key, candidate).ratio()

    return max(known, key=likeness)


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """Sets dotted keys in place and returns `config`.

    Raises ConfigError for a key that doesn't exist, naming the nearest one, or a value of another type.
    """
    known = set(leaf_keys(config))
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(f"unknown config key {key!r}; did you mean {nearest_key(key, config)!r}?")
        section, _, name = key.rpartition(".")
        node = config
        for part in filter(None, section.split(".")):
            node = node[part]
        try:
            node[name] = value
        except (TypeError, ValueError) as error:
            expected = type(node[name]).__name__
            raise ConfigError(f"config key {key!r} takes a value of type {expected}, not {value!r}") from error
    return config


def load(path: str, variant: str = "", overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The locked, validated configuration of a file ("configs/tiny.py", "configs/tiny.py:single_turn") or module.

    Raises ConfigError for a file that isn't there, an unknown variant or key, or values that cannot run together.
    """
    if not variant and ":" in path:
        path, variant = path.split(":", 1)
    module = _import_config(path)
    try:
        config = module.get_config(variant)
    except AttributeError as error:
        match = re.search(r'Key "(\w+)" does not exist', str(error))
        if match is None:
            raise
        raise ConfigError(
            f"{path} sets an unknown config key {match[1]!r}; did you mean {nearest_key(match[1], base_config())!r}?"
        ) from error
    config.lock()
    validate(apply_overrides(config, overrides or {}))
    return config


def _import_config(path: str) -> Any:
    if not path.endswith(".py"):
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            raise ConfigError(f"no config module {path!r}; give a file such as configs/tiny.py") from error
    if not Path(path).is_file():
        raise ConfigError(f"no config file {path!r} (from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location("rlef_jax_config_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unknown_variant(variant: str, known: Sequence[str]) -> ConfigError:
    """The error that a config file raises for a variant that it doesn't have."""
    return ConfigError(f"unknown variant {variant!r}; known: {', '.join(repr(k) for k in known)}")


def save(config: ConfigDict, workdir: Path) -> None:
    """Writes `workdir/config.json`, so that a run can be read without the file that launched it."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def load_saved(workdir: Path) -> ConfigDict:
    """The configuration that `save` wrote. Keys that were added since then keep their defaults."""
    config = base_config()

    def fill(node: ConfigDict, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key not in node:
                continue
            if isinstance(value, dict):
                fill(node[key], value)
            else:
                node[key] = tuple(value) if isinstance(value, list) else value

    fill(config, json.loads((workdir / "config.json").read_text()))
    return config


def validate(config: ConfigDict) -> None:
    """Raises ConfigError naming every key whose value cannot run, and how to mend it."""
    faults = [f"config.{key}: {fault}" for check in _CHECKS for bad, key, fault in check(config) if bad]
    if faults:
        raise ConfigError("\n".join(faults))


Faults = Iterator[tuple[bool, str, str]]


def _increasing(numbers: Sequence[int]) -> bool:
    return len(numbers) > 0 and all(a < b for a, b in zip(numbers, numbers[1:]))


def _check_model(config: ConfigDict) -> Faults:
    m = config.model
    yield m.n_heads % m.n_kv_heads != 0, "model.n_kv_heads", f"must divide n_heads={m.n_heads}; it is {m.n_kv_heads}"
    yield m.d_head % 2 != 0, "model.d_head", f"must be even (rotary pairs); it is {m.d_head}"
    for key in ("param_dtype", "compute_dtype"):
        yield m[key] not in ("float32", "bfloat16"), f"model.{key}", f'"float32" or "bfloat16", not {m[key]!r}'
    too_coarse = m.param_dtype != "float32" and min(config.ppo.learning_rate, config.sft.learning_rate) < 1e-5
    yield (
        too_coarse,
        "model.param_dtype",
        f'{m.param_dtype} weights do not move at a learning rate below 1e-5: use "float32" master weights',
    )


def _check_episode(config: ConfigDict) -> Faults:
    e = config.episode
    yield e.max_turns < 1, "episode.max_turns", f"at least 1; it is {e.max_turns}"
    yield (
        e.feedback not in ("true", "random", "none"),
        "episode.feedback",
        f'"true", "random" or "none": {e.feedback!r}',
    )
    no_room = f"must leave room for a prompt in context={e.context}; it is {e.max_new_tokens}"
    yield not 0 < e.max_new_tokens < e.context, "episode.max_new_tokens", no_room
    s = config.sampling
    yield s.temperature <= 0, "sampling.temperature", f"above 0, or nothing is explored; it is {s.temperature}"
    yield config.eval.temperature < 0, "eval.temperature", f"0 (greedy) or more; it is {config.eval.temperature}"
    for section in ("sampling", "eval"):
        top_p = config[section].top_p
        yield not 0 < top_p <= 1, f"{section}.top_p", f"above 0, at most 1; it is {top_p}"
    yield s.top_k < 0, "sampling.top_k", f"0 (no limit) or more; it is {s.top_k}"
    for key in ("group_size", "groups_in_flight", "threads"):
        yield s[key] < 1, f"sampling.{key}", f"at least 1; it is {s[key]}"
    yield not _increasing(s.prompt_buckets), "sampling.prompt_buckets", f"must increase; they are {s.prompt_buckets}"
    levels = ("", "full", "namespaces", "user", "process")
    required = config.execution.require_isolation
    yield required not in levels, "execution.require_isolation", f"one of {levels}, not {required!r}"
    for key in ("wall_s", "memory_mb", "output_kb", "wall_scale"):
        yield config.execution[key] <= 0, f"execution.{key}", f"above 0; it is {config.execution[key]}"


def _check_ppo(config: ConfigDict) -> Faults:
    p = config.ppo
    uneven = f"must be a multiple of updates={p.updates}, so that all updates have as many; it is {p.rollouts}"
    yield p.updates < 1 or p.rollouts % max(p.updates, 1) != 0, "ppo.rollouts", uneven
    buckets = tuple(p.buckets)
    yield not _increasing(buckets), "ppo.buckets", f"must increase; they are {buckets}"
    short = f"the longest must hold a whole episode of context={config.episode.context}; they are {buckets}"
    yield not buckets or buckets[-1] < config.episode.context, "ppo.buckets", short
    shards = config.mesh.data * config.mesh.fsdp
    unshared = f"must be a multiple of mesh.data * mesh.fsdp = {shards}; it is {p.microbatch_rows}"
    yield p.microbatch_rows < 1 or p.microbatch_rows % shards != 0, "ppo.microbatch_rows", unshared
    for axis in ("data", "fsdp", "tensor"):
        yield config.mesh[axis] < 1, f"mesh.{axis}", f"at least 1; it is {config.mesh[axis]}"
    kinds = ("paper", "decoupled", "none")
    yield p.importance not in kinds, "ppo.importance", f"one of {kinds}, not {p.importance!r}"
    yield p.importance_mode not in ("cap", "mask"), "ppo.importance_mode", f'"cap" or "mask": {p.importance_mode!r}'
    for key in ("learning_rate", "clip_eps", "value_clip"):
        yield p[key] <= 0, f"ppo.{key}", f"above 0; it is {p[key]}"
    yield p.kl_beta < 0, "ppo.kl_beta", f"0 or more; it is {p.kl_beta}"


def _check_schedule(config: ConfigDict) -> Faults:
    t, s = config.train, config.sft
    yield t.iterations < 0, "train.iterations", f"0 or more; it is {t.iterations}"
    for section, key in (("train", "checkpoint_every"), ("train", "keep_checkpoints"), ("train", "log_every")):
        yield config[section][key] < 1, f"{section}.{key}", f"at least 1; it is {config[section][key]}"
    for key in ("marked_share", "unmarked_right_repairs", "unmarked_habit"):
        yield not 0 <= s[key] <= 1, f"sft.{key}", f"a share from 0 to 1; it is {s[key]}"


_CHECKS = (_check_model, _check_episode, _check_ppo, _check_schedule)


def define_flags() -> None:
    """Defines --config (a file under configs/, `:variant` after it) and --workdir. Overrides are --config.KEY=VALUE."""
    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/tiny.py or configs/tiny.py:single_turn.")
    flags.DEFINE_string("workdir", None, "Folder for metrics, checkpoints, episodes and plots.")


def main(fn: Callable[[ConfigDict, Path], None]) -> None:
    """Runs `fn(config, workdir)` with the command line's configuration; a bad one is a line on stderr and exit 2."""
    if "config" not in flags.FLAGS:
        define_flags()

    def run(_: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # or JAX and Orbax talk of every backend and folder they look at
        try:
            fn(flags.FLAGS.config, Path(flags.FLAGS.workdir))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(run, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        _check_override_names(argv)
        rest = flags.FLAGS(argv)
        for name in ("config", "workdir"):
            if not getattr(flags.FLAGS, name):
                raise ConfigError(f"--{name} is needed, e.g. --config=configs/tiny.py --workdir=runs/x")
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}")
        validate(flags.FLAGS.config)
    except (ConfigError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return rest


def _check_override_names(argv: Sequence[str]) -> None:
    """ml_collections answers a misspelt or misplaced key with a stack trace; this answers in a line."""
    config, known = None, set[str]()
    for i, arg in enumerate(argv):
        if match := re.match(r"--?config(?:=(.*)|$)", arg):
            config = load(match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2]))
            known = set(leaf_keys(config))
        elif match := re.match(r"--?(?:no)?config\.([\w.]+)", arg):
            if config is None:
                raise ConfigError(f"{arg} must come after --config=FILE")
            if match[1] in config and match[1] not in known:
                raise ConfigError(f"{match[1]!r} is a section; set one of its keys, as --config.{match[1]}.KEY=VALUE")
            if match[1] not in known:
                raise ConfigError(f"unknown key {match[1]!r}; did you mean --config.{nearest_key(match[1], config)}?")
