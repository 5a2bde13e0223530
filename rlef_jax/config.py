"""The configuration: one tree of every key, checked when it is loaded.

A config file under `configs/` defines `get_config(variant="") -> ConfigDict`: it starts from `base_config()` and
changes what it must. The tree is locked: a key that is not in `base_config` is an error that names the nearest key that
is. A test fails for a key that no code reads. Values default to the paper's where it gives one (Gehring et al., 2025).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlef_jax.config_checks import validate
from rlef_jax.config_ppo import ppo_section
from rlef_jax.config_renamed import RENAMED, RENAMED_VALUES
from rlef_jax.config_sft import sft_section
from rlef_jax.errors import ConfigError
from rlef_jax.files import write_json
from rlef_jax.paths import local_text

SAVED_NAME = "config.json"
COMMAND = "command"  # a key of that file alone
# An empty tuple does not say what its elements are: texts of these keys, numbers of others.
_PROBLEM_FILES = ("data.train_files", "data.valid_files", "data.test_files", "data.mix")
TEXT_TUPLES = ("data.exclude", "data.families", *_PROBLEM_FILES, "model.lora_targets", "sft.data")
# Keys that may hold a path: what has no slash in execution.python is a version; package:NAME ships with rlef_jax.
PATH_KEYS = (
    "model.init", "model.lora_init", "model.tokenizer", "model.chat", "data.dir", "data.failures", "execution.python",
    "sft.data", *_PROBLEM_FILES,
)  # fmt: skip


def base_config() -> ConfigDict:
    """Every key there is, with its default. Sizes are the tiny model's; the method's constants are the paper's."""
    config = ConfigDict(
        dict(
            seed=0,
            model=_model(),
            data=dict(
                name="mini_contests",  # which problem source
                train_split="train",
                dir="",  # code_contests: the folder that python -m rlef_jax.data.code_contests has built
                exclude=(),  # code_contests: rules that leave problems out, see docs/code_contests.md
                train_files=(),  # jsonl: the files of each split's problems (docs/own_problems.md)
                valid_files=(),
                test_files=(),
                mix=(),  # training problems from several sources by weight: ("code_contests:3", "my/problems.jsonl:1")
                max_prompt_tokens=0,  # not mini_contests: problems with longer first prompts are left out; 0 = no rule
                families=(),  # mini_contests: only these; () = all
                failures="",  # a run's folder: each episode repairs one of its failed first responses (B.4)
                even_questions=0.0,  # mini_contests: share of training problems with all open questions alike often
            ),
            episode=dict(
                max_turns=3,  # responses per episode (3.1)
                context=256,  # tokens of a whole episode: prompts, feedback and responses
                max_new_tokens=96,  # of one response
                feedback="true",  # or "random" (C.2), "none" (B.5): docs/method.md
                max_failures_shown=0,  # failed tests named in one feedback message; 0 = all
                max_text_chars=0,  # of each input, output or stack trace shown; 0 = no cut
                syntax_errors="once",  # one message (ours); "per_test": a stack trace for each public test (C.1)
                system_prompt="",
                thinking="keep",  # "cut": later turns don't see the thinking of earlier responses (docs/method.md)
            ),
            sampling=dict(
                temperature=1.0,  # A.1
                top_p=1.0,
                top_k=0,  # 0 = no limit
                rows=256,  # responses that are decoded together
                cache_gib=0.0,  # GiB of a device for keys and values; 0 = what `rows` dialogues of a full context need
                page_slots=64,  # tokens of a page, in which that memory is given out; a power of two for GPUs
                workers=2,  # threads with rows // workers rows each: more than one for CPU cores only
                min_ready_fraction=0.5,  # of a worker's dialogues must have work before it goes on; 0 never waits
                decode_steps=8,  # decoding steps between two looks at what came and what ended
                cache_lengths=(128,),  # lengths of row that decoding is compiled for, beside the context; not on GPUs
                prefill_chunks=(32, 64),  # lengths of chunk in which prompts are prefilled
                prefill_tokens=512,  # of the chunks that are prefilled together, about
                data=1,  # devices that share the rows
                tensor=1,  # devices that share heads, feed-forward layer and vocabulary
                own_devices=False,  # those after the mesh's and the critic's instead of the mesh's first ones
            ),
            execution=dict(
                workers=0,  # 0 = as many as leave a quarter of the cores (or of a CPU quota), at least one, to JAX
                require_isolation="",  # "full", "namespaces", "user" or "process", at least; "" = the best there is
                clean_exit=True,  # a right answer counts only with a clean end (ours)
                exact_integers=True,  # integers match if they are equal, not as doubles (ours)
                python="3.10",  # the version that candidate programs run under (A.2); or a path, with its packages
                require_python=False,  # refuse another version instead of warning
                wall_s=10.0,  # per test, where the problem has no limit of its own (A.2)
                memory_mb=1024,  # the same
                output_kb=1024,
                max_wall_s=0.0,  # caps the problem's own time limit; 0 = never
                wall_patience=10.0,  # a test may take so many limits if it had less processor time than one; 1 = never
                wall_scale=1.0,  # factor on every time limit after the cap, for slower machines
                stop_hidden_at_first_failure=True,
            ),
            reward=dict(invalid_penalty=-0.2),  # a non-final response without valid code (2.2)
            ppo=ppo_section(),
            mesh=dict(
                data=1,  # devices along each axis
                fsdp=1,
                tensor=1,
                reduce_dtype="float32",  # in which gradients are added up over fsdp
                critic="shared",  # on the policy's devices; "separate": on as many after them
                reference="trainer",  # where rho lies; "sampler": on the sampler's devices
            ),
            train=dict(
                max_staleness=0,  # iterations that rollouts may be ahead of the learner's weights; 0 = synchronous
                bad_update="stop",  # gradient not finite or over ppo.max_grad_norm: "stop" or "skip" the update
                max_skipped=20,  # updates in a row that are not applied, after which the run ends; 0 = no limit
                iterations=3000,  # each makes ppo.updates updates: 12,000 updates for 8B (A.1)
                checkpoint_every=50,  # iterations
                keep_checkpoints=3,
                save_episodes=True,
                log_every=1,  # iterations between progress lines
                plots=True,  # drawn at a run's end; rlef_jax.analysis.report draws them too
            ),
            eval=dict(
                split="test_500",  # evaluated before and after training
                valid_split="valid",  # evaluated during training, for model selection
                valid_feedback="",  # under this feedback; "" = episode.feedback
                rollouts=1,  # of each problem, in training's evaluations; rlef_jax.evaluate has --samples
                temperature=0.2,  # 3.2, for 1@3
                temperature_range=(),  # (low, high): drawn for each response instead (A.3: 0.1 to 1); () = temperature
                top_p=0.95,
                problems=0,  # the first n of the split; 0 = all
                random_feedback=True,  # evaluate under random feedback too
                every=0,  # iterations between evaluations on valid_split; 0 = none, and the last weights are scored
                patience=0,  # stop after so many evaluations on valid_split without a better one; 0 = never
                bootstrap_samples=1000,  # resamplings of the problems for an interval
            ),
            sft=sft_section(),
            plan=dict(  # what rlef_jax.plan compiles for; a run doesn't read it (docs/hardware.md)
                target="cpu",  # or h100, h200, a100, b200, tpu-v5p, tpu-v6e
                sampler_devices=0,  # devices that sample beside the mesh's; 0 = the mesh's own, in turn with training
            ),
        )
    )
    return config.lock()


def _model() -> dict[str, Any]:
    """Where `init` is a folder or GGUF file, its own config gives the keys up to `tokenizer` (docs/models.md)."""
    return dict(
        vocab_size=0,  # rows of the embedding; 0 = as many as the tokenizer has ids
        d_model=96,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_head=24,
        d_ff=256,
        rope_theta=10000.0,
        rope_scaling=(),  # Llama 3.1's: (factor, low_freq_factor, high_freq_factor, original positions); () = none;
        # linear: (factor,); YaRN: (factor, original positions, beta_fast, beta_slow, attention_factor, truncate)
        norm_eps=1e-5,
        tie_embeddings=True,
        qkv_bias=False,  # Qwen 2
        qk_norm=False,  # Qwen 3
        qk_norm_whole=False,  # over all heads together: OLMo 2
        norms="before",  # attention and feed-forward layer; "after" them: OLMo 2; both, "around" them: Gemma 3
        norm_plus_one=False,  # norms multiply by 1 + weight: Gemma 3
        activation="silu",  # or "gelu_tanh": Gemma 3
        scale_embeddings=False,  # by sqrt(d_model): Gemma 3
        query_scalar=0.0,  # queries are divided by its root; 0 = d_head
        window=0,  # tokens that a token sees in layers with a sliding window: Mistral, Gemma 3; 0 = all
        window_layers=(),  # which layers have it: 1 or 0 for each, over again where there are more; () = every layer
        window_rope_theta=0.0,  # rotary base of those, without scaling: Gemma 3; 0 = rope_theta
        rope_layers=(),  # which layers have rotary embeddings, as window_layers: SmolLM3
        family="",  # what its files are called, a name in model/families.py; "" = by the options above
        tokenizer="package:tokenizer",  # package:NAME or a path: .model, Hugging Face folder, tokenizer.json, .gguf
        chat="",  # a file of a chat template (.jinja); "" = the tokenizer's own
        chat_options="",  # what the template is given, as JSON: '{"enable_thinking": false}'
        init="package:warm_start",  # first weights: package:NAME, .npz, Hugging Face folder or .gguf; "" = random
        lora_rank=0,  # of the adapters that are trained beside frozen weights; 0 = no adapters, all weights are trained
        lora_alpha=32.0,  # what they add is multiplied by lora_alpha / lora_rank
        lora_targets=(),  # projections that have them: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
        # () = all of these
        lora_layers=0,  # so many layers have them, the last ones; 0 = all
        lora_keep_below=False,  # what the layers below adapters say of a token is computed once an iteration, and kept
        lora_init="",  # first adapters: a folder as PEFT has them; "" = random, adding nothing
        param_dtype="float32",  # master weights; with adapters the base's, which may be "bfloat16"
        compute_dtype="float32",
        remat="none",  # computed again in the backward pass: "none", all but products ("dots") or all ("full")
        attention="blocks",  # "dot_product": JAX's own, cuDNN on a GPU; it needs ppo.row_episodes=1
        logit_tokens=1024,  # tokens whose logits a device holds at a time
        unroll=True,  # layers as straight code instead of a scan: faster to run, slower to compile
    )


def leaf_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values, sections excluded, in order."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from leaf_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def nearest_key(key: str, config: ConfigDict) -> str:
    """The dotted key of `config` that `key` was renamed to, or the one most like it: its own name in another section,
    its initials, or its spelling."""
    for old, new in RENAMED.items():
        if key in (old, old.rpartition(".")[2]):
            return new
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


def make_paths_local(config: ConfigDict) -> ConfigDict:
    """Expands `~` in the keys that hold paths, in place. Raises ConfigError for addresses (rlef_jax.paths)."""
    for key in PATH_KEYS:
        section, name = key.split(".")
        value = config[section][name]
        if isinstance(value, str) and value:
            config[section][name] = local_text(value, f"config.{key}")
        elif isinstance(value, tuple):
            config[section][name] = tuple(local_text(str(one), f"config.{key}") for one in value)
    return config


def check(config: ConfigDict) -> None:
    """Raises ConfigError, naming every key, for values of another type than the default's or that cannot run."""
    defaults = flat(base_config())
    faults = [
        f"config.{key}: takes a value of type {type(default).__name__}, not {value!r:.80}"
        for key, default in defaults.items()
        if not _of_type(value := _value_at(config, key), default)
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    validate(config)


def _of_type(value: Any, default: Any) -> bool:
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def load(path: str, variant: str = "", overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The locked, validated configuration of a file ("configs/tiny.py", "configs/tiny.py:single_turn") or module.

    Raises ConfigError for a file that isn't there, an unknown variant or key, or values that cannot run together.
    """
    path = local_text(path, "--config")
    if not variant and ":" in path:
        path, variant = path.split(":", 1)
    module = _import_config(path)
    try:
        config = module.get_config(variant)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's file may raise
        match = re.search(r'Key "(\w+)" does not exist', str(error))
        if match is None:
            raise ConfigError(f"{path}: get_config({variant!r}) failed: {type(error).__name__}: {error}") from error
        raise ConfigError(
            f"{path} sets an unknown config key {match[1]!r}; did you mean {nearest_key(match[1], base_config())!r}?"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config must return a ConfigDict, not {type(config).__name__}")
    config.lock()
    check(make_paths_local(apply_overrides(config, overrides or {})))
    return config


def _import_config(path: str) -> Any:
    module = _load_file(path) if path.endswith(".py") else _load_module(path)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path} defines no get_config(variant); give a file such as configs/tiny.py")
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # an empty or relative name, no such module, or what its code raises
        raise ConfigError(f"no config module {name!r} ({error}); give a file such as configs/tiny.py") from error


def _load_file(path: str) -> Any:
    if "\0" in path or not Path(path).is_file():
        raise ConfigError(f"no config file {path!r} (from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location("rlef_jax_config_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return module


def unknown_variant(variant: str, known: Sequence[str]) -> ConfigError:
    """The error that a config file raises for a variant that it doesn't have."""
    return ConfigError(f"unknown variant {variant!r}; known: {', '.join(repr(k) for k in known)}")


def flat(config: ConfigDict) -> dict[str, Any]:
    """{dotted key: value} of all values."""
    return {key: _value_at(config, key) for key in leaf_keys(config)}


def _value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def save(config: ConfigDict, workdir: Path, command: str = "") -> None:
    """Writes `workdir/config.json`, so that a run can be read without the file that launched it; and in it, where that
    is known, the command that makes the run."""
    write_json(workdir / SAVED_NAME, ({COMMAND: command} if command else {}) | config.to_dict())


def read_saved(workdir: Path) -> dict[str, Any]:
    """{dotted key: value} as `save` wrote them, by the names of today, lists for tuples; and the command as `COMMAND`.

    Raises ConfigError where there is no run, or its file can't be read.
    """
    path = workdir / SAVED_NAME
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no run (no {SAVED_NAME})")
    try:
        saved = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not what a run wrote: {error}") from error
    if "seed" not in saved:  # a model's folder has such a file too
        raise ConfigError(f"{path} is not what a run wrote: it has no seed")
    return {RENAMED.get(key, key): _value_of_today(key, value) for key, value in saved.items()}


def _value_of_today(key: str, value: Any) -> Any:
    new_values = RENAMED_VALUES.get(key, {})
    return new_values.get(value, value) if isinstance(value, str) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def load_saved(workdir: Path) -> ConfigDict:
    """The configuration that `save` wrote. Keys that were added since then keep their defaults.

    Raises ConfigError where there is none, or its values cannot run.
    """
    config = base_config()
    known = set(leaf_keys(config))
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in read_saved(workdir).items() if k in known}
    check(make_paths_local(apply_overrides(config, saved)))
    return config
