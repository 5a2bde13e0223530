"""From a configuration to the parts of a run: policy and tokenizer, meshes, samplers, judge, learner."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlef_jax.config import base_config, flat
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.errors import ConfigError
from rlef_jax.execution.cores import auto_workers, whole_cores
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.isolation import IsolationError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.results import JudgeOptions
from rlef_jax.model.parameters import init_adapters, init_params, with_adapters
from rlef_jax.model.peft_folder import read_adapters
from rlef_jax.model.pretrained import Weights, load_pretrained, open_weights
from rlef_jax.model.sharding import make_mesh, param_shardings, place
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.model.weights import SHAPE_KEYS, load_params, model_config, path_of, resolve
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings, PackSettings, PpoSettings, TargetSettings
from rlef_jax.ppo.update import ForwardSettings, Learner, make_optimizer
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import KINDS, SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.rollout import RolloutSettings
from rlef_jax.types import Limits, Problem


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model's sizes, its first weights and its chat format."""

    cfg: ModelConfig
    params: Params
    chat: ChatFormat


def with_model_shape(config: ConfigDict) -> ConfigDict:
    """The configuration with its model's shape, where `config.model.init` is a Hugging Face folder or a GGUF file.

    The files decide. A key of the shape (or the tokenizer) that has base_config's value is filled in; one that was set
    to another must be what the files say. With any other `init`, and done again, it changes nothing.

    Raises ConfigError naming each key that clashes, or weights that can't be used.
    """
    weights = open_weights(config.model.init)
    return config if weights is None else _filled(config, weights)


def _filled(config: ConfigDict, weights: Weights) -> ConfigDict:
    config, defaults = config.copy_and_resolve_references(), base_config().model
    found = {name: getattr(weights.cfg, name) for name in SHAPE_KEYS}
    found["rope_scaling"] = tuple(found["rope_scaling"] or ())
    model, faults = config.model, []
    for name, value in found.items():
        if model[name] != defaults[name] and not _same(model[name], value):
            faults.append(f"config.model.{name}: {model[name]!r} was set, {weights.path} has {value!r}: leave it out")
        model[name] = value
    if faults:
        raise ConfigError("\n".join(faults))
    if model.tokenizer == defaults.tokenizer:
        model.tokenizer = model.init
    return config


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6)  # GGUF files hold float32
    return bool(a == b)


def build_policy(config: ConfigDict, mesh: Mesh | None = None) -> Policy:
    """Tokenizer and weights as `config.model` names them; random weights where `init` is empty.

    The weights of a folder or GGUF file go to their shards on `mesh` one by one (without it, to the first device).

    Raises ConfigError where they can't be used, aren't finite, or rows may be longer than the model was made for.
    """
    cfg, chat, weights = describe_policy(config)
    return Policy(cfg, first_weights(config, cfg, weights, mesh), chat)


def first_weights(config: ConfigDict, cfg: ModelConfig, weights: Weights | None, mesh: Mesh | None = None) -> Params:
    """The weights that `config.model.init` names, of a model that `describe_policy` has described, with its adapters.

    Raises ConfigError where they can't be used, or aren't finite.
    """
    model, dtype, cast_to = config.model, jnp.dtype(config.model.param_dtype), (config.model.compute_dtype,)
    if weights is not None:
        shardings = None if mesh is None else mesh_shardings(mesh, cfg.base)
        base = load_pretrained(weights, cfg.base, dtype, shardings, cast_to)
    elif model.init:
        base = load_params(resolve(model.init, ".npz", "model.init"), cfg.base, dtype, cast_to)
    else:
        base = init_params(jax.random.PRNGKey(config.seed), cfg.base, dtype)
    return base if cfg.lora is None else _with_first_adapters(config, cfg, base, mesh)


def _with_first_adapters(config: ConfigDict, cfg: ModelConfig, base: Params, mesh: Mesh | None) -> Params:
    """The base with the adapters that `config.model.lora_init` names, or random ones, all on the mesh (if there is
    one): whoever puts the base there finds it and makes no copy."""
    if config.model.lora_init:
        adapters = read_adapters(path_of(config.model.lora_init), cfg, (config.model.compute_dtype,))
    else:
        key = jax.random.fold_in(jax.random.PRNGKey(config.seed), 1)
        adapters = init_adapters(key, cfg, jnp.dtype(config.model.param_dtype))
    params = with_adapters(base, adapters)
    return params if mesh is None else place(params, mesh_shardings(mesh, cfg))


def describe_policy(config: ConfigDict) -> tuple[ModelConfig, ChatFormat, Weights | None]:
    """The model, its chat format, and the folder or GGUF file that holds its first weights, if one does.

    Raises ConfigError as `build_policy`; reads no weights.
    """
    weights = open_weights(config.model.init)
    model = (config if weights is None else _filled(config, weights)).model
    chat = load_chat(model.tokenizer, model.chat, model.chat_options)
    rows = max(config.episode.context, *config.ppo.buckets)  # the trainer's rows are padded to a bucket
    if weights is not None:
        _check_length(config, weights, rows)
    return model_config(model, chat.tokenizer.vocab_size, rows), chat, weights


def _check_length(config: ConfigDict, weights: Weights, rows: int) -> None:
    if rows > (most := weights.cfg.max_positions):
        key = "episode.context" if config.episode.context == rows else "ppo.buckets"
        raise ConfigError(f"config.{key}: {rows} tokens; the model in {weights.path} was made for {most} at most")


def build_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The policy's devices in training, and the critic's where they share them: the first of `devices` (default: all).

    Raises ConfigError where there are fewer, or parts are to lie on devices of their own in a job of several processes.
    """
    _check_processes(config)
    try:
        return make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=devices)
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from error


def build_critic_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The critic's own devices, those after the policy's in a mesh of the same shape; None where it has none.

    Raises ConfigError as `build_mesh`.
    """
    m = config.mesh
    if m.critic == "shared":
        return None
    _check_processes(config)
    policy = m.data * m.fsdp * m.tensor
    try:
        return make_mesh(m.data, m.fsdp, m.tensor, devices=(jax.devices() if devices is None else devices)[policy:])
    except ValueError as error:
        mend = 'make config.mesh smaller or set config.mesh.critic="shared"'
        raise ConfigError(f"config.mesh.critic: {error} after the policy's {policy}: {mend}") from error


# The values of the keys that place parts on other devices, where they don't.
_IN_ONE_PLACE = {"mesh.critic": "shared", "mesh.reference": "trainer", "sampling.own_devices": False}


def _check_processes(config: ConfigDict) -> None:
    count, values = jax.process_count(), flat(config)
    apart = [f"config.{key}" for key, value in _IN_ONE_PLACE.items() if values[key] != value]
    if count > 1 and apart:
        raise ConfigError(
            f"{', '.join(apart)}: not in a job of several processes, and this one has {count}: leave out what"
            " is named, or start one process (docs/cluster.md)"
        )


def build_sampler_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """The sampler's devices: with `sampling.own_devices` those after the trainer's, else this process's first ones.

    `devices` are those of all parts together (default: all that there are).

    Raises ConfigError as `build_mesh`.
    """
    s, m = config.sampling, config.mesh
    _check_processes(config)
    trainer = m.data * m.fsdp * m.tensor * (1 if m.critic == "shared" else 2)
    everywhere, local = (jax.devices(), jax.local_devices()) if devices is None else (devices, devices)
    devices = everywhere[trainer:] if s.own_devices else local
    try:
        return make_mesh(data=s.data, tensor=s.tensor, devices=devices)
    except ValueError as error:
        left = f" after the trainer's {trainer}" if s.own_devices else ""
        raise ConfigError(f"config.sampling.data, config.sampling.tensor: {error}{left}") from error


def mesh_shardings(mesh: Mesh, cfg: ModelConfig, section: str = "mesh") -> Params:
    """Where each parameter lies. Raises ConfigError, naming the section, where the mesh doesn't divide it."""
    try:
        return param_shardings(mesh, cfg)
    except ValueError as error:
        raise ConfigError(f"config.{section}: {error}") from error


def build_pool(execution: ConfigDict) -> ExecutionPool:
    """The judge's workers: `workers` of them, or as many as leave cores to JAX. ConfigError without the isolation."""
    interpreter = find_python(execution.python, required=execution.require_python)
    try:
        return ExecutionPool(
            execution.workers or auto_workers(),
            interpreter,
            require=execution.require_isolation,
            options=JudgeOptions(execution.clean_exit, execution.exact_integers),
            wall_scale=execution.wall_scale,
        )
    except IsolationError as exc:
        raise ConfigError(f"execution.require_isolation: {exc}") from exc


def build_sampler(
    config: ConfigDict, cfg: ModelConfig, stop_ids: Sequence[int], kinds: Sequence[str] = KINDS
) -> Sampler:
    """A sampler of a model of these sizes, without weights, for these kinds of distribution.

    Raises ConfigError where their devices aren't there or don't divide the model, or where the longest dialogue doesn't
    fit the memory for keys and values.
    """
    mesh = build_sampler_mesh(config)
    mesh_shardings(mesh, cfg, "sampling")
    programs = build_sampling_programs(config, cfg, mesh, len(stop_ids), kinds)
    s = config.sampling
    return Sampler(programs, workers=s.workers, min_ready_fraction=s.min_ready_fraction)


def build_sampling_programs(
    config: ConfigDict, cfg: ModelConfig, mesh: Mesh, stop_ids: int, kinds: Sequence[str] = KINDS
) -> Programs:
    """A sampler's programs on a mesh, whose devices needn't be there, for at most so many stop ids.

    Raises ConfigError where the longest dialogue doesn't fit the memory for keys and values.
    """
    s, dtype = config.sampling, jnp.dtype(config.model.compute_dtype)
    shapes = Shapes(
        rows=s.rows // s.workers,
        max_len=config.episode.context,
        cache_lengths=tuple(s.cache_lengths),
        prefill_chunks=tuple(s.prefill_chunks),
        prefill_tokens=s.prefill_tokens,
        decode_steps=s.decode_steps,
        stop_ids=stop_ids,
        page_slots=s.page_slots,
        kinds=tuple(kinds),
    )
    if s.cache_gib:
        page = shapes.page_bytes(cfg, dtype, s.tensor)
        pages = int(s.cache_gib * 2**30 / s.workers) // page
        if pages < shapes.row_pages:
            least = math.ceil(shapes.row_pages * page * s.workers / 2**30 * 1000) / 1000
            raise ConfigError(
                f"config.sampling.cache_gib: {s.cache_gib} GiB can't hold the keys and values of one dialogue of"
                f" episode.context={shapes.max_len} tokens{' for each worker' if s.workers > 1 else ''}: raise it to"
                f" {least} or more, lower config.episode.context, or raise config.sampling.tensor"
            )
        shapes = dataclasses.replace(shapes, pages=pages)
    return Programs(cfg, shapes, mesh, dtype=dtype, one_thread=s.workers >= whole_cores())


def first_prompt_of(config: ConfigDict, chat: ChatFormat) -> Callable[[Problem], list[int]]:
    """From a problem to the ids of its first prompt, as rollouts have it."""
    system = config.episode.system_prompt
    return lambda problem: chat.first_prompt(first_message(problem), system, start=problem.start)


def limits_of(execution: ConfigDict) -> Limits:
    """Of one test, where the problem has none of its own."""
    return Limits(
        wall_s=execution.wall_s,
        memory_bytes=execution.memory_mb << 20,
        output_bytes=execution.output_kb << 10,
        wall_patience=execution.wall_patience,
    )


def rollout_settings(
    config: ConfigDict, stop_ids: tuple[int, ...], feedback: str, *, evaluation: bool
) -> RolloutSettings:
    """How episodes are made, under one kind of feedback, for training or for an evaluation."""
    e, x, s = config.episode, config.execution, config.sampling
    temperature, top_p = (config.eval.temperature, config.eval.top_p) if evaluation else (s.temperature, s.top_p)
    return RolloutSettings(
        sampling=SamplingConfig(temperature, top_p, 0 if evaluation else s.top_k, stop_ids, e.max_new_tokens),
        max_turns=e.max_turns,
        context=e.context,
        feedback=feedback,
        max_failures=e.max_failures_shown,
        max_chars=e.max_text_chars,
        syntax_errors=e.syntax_errors,
        system_prompt=e.system_prompt,
        cut_thinking=e.thinking == "cut",
        temperature_range=tuple(config.eval.temperature_range) if evaluation else (),
        limits=limits_of(x),
        max_wall_s=x.max_wall_s or None,
        stop_hidden_at_first_failure=x.stop_hidden_at_first_failure,
    )


def kinds_drawn(config: ConfigDict, *, evaluates: bool) -> tuple[str, ...]:
    """The kinds of distribution that a training run draws from, one that `evaluates` or not."""
    settings = [rollout_settings(config, (0,), "true", evaluation=e) for e in (False, True)[: 1 + evaluates]]
    return tuple(dict.fromkeys(s.kind for s in settings))


def ppo_settings(config: ConfigDict) -> PpoSettings:
    """PPO's settings, of the sections `ppo`, `reward` and `episode`."""
    p = config.ppo
    given = {"invalid_penalty": config.reward.invalid_penalty, "max_turns": config.episode.max_turns}
    given["decay_steps"] = config.train.iterations * p.updates if p.decay == "linear" else 0
    given |= {name: tuple(value) if name == "buckets" else value for name, value in p.items()}

    def made[T](kind: type[T], **parts: Any) -> T:
        names = {field.name for field in dataclasses.fields(kind)} - parts.keys()  # type: ignore[arg-type]
        return kind(**{name: given[name] for name in names}, **parts)

    return made(
        PpoSettings, packing=made(PackSettings), targets=made(TargetSettings), loss=made(LossSettings),
        optimizer=made(OptimizerSettings),
    )  # fmt: skip


def forward_settings(config: ConfigDict) -> ForwardSettings:
    """How the trainer runs the model."""
    m = config.model
    return ForwardSettings(
        compute_dtype=jnp.dtype(m.compute_dtype), remat=m.remat, unroll=m.unroll, attention=m.attention,
        logit_tokens=m.logit_tokens, reduce_dtype=jnp.dtype(config.mesh.reduce_dtype), keep_below=m.lora_keep_below,
    )  # fmt: skip


def build_learner(config: ConfigDict, cfg: ModelConfig, devices: Sequence[Any] | None = None) -> Learner:
    """The update's compiled functions, on meshes of the configured shape over `devices` (default: all there are).

    Raises ConfigError where the devices don't match the mesh, or the mesh doesn't divide the model.
    """
    p = ppo_settings(config)
    mesh = build_mesh(config, devices)
    mesh_shardings(mesh, cfg)  # whether it divides the model
    return Learner(
        cfg, make_optimizer(cfg, p.optimizer), loss=p.loss, separate_critic=p.separate_critic, critic=p.has_critic,
        mesh=mesh, forward_settings=forward_settings(config), max_grad_norm=p.max_grad_norm,
        critic_mesh=build_critic_mesh(config, devices),
        reference_mesh=build_sampler_mesh(config, devices) if config.mesh.reference == "sampler" else None,
    )  # fmt: skip
