"""From a configuration to the parts of a run: model, tokenizer, sampler, judge. Only here whole sections are read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.isolation import IsolationError
from rlef_jax.execution.pool import ExecutionPool, auto_workers
from rlef_jax.execution.results import JudgeOptions
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, Params, init_params
from rlef_jax.model.weights import load_params, model_config, resolve
from rlef_jax.ppo.losses import LossSettings
from rlef_jax.ppo.update import ForwardSettings, Learner, make_optimizer
from rlef_jax.sampling.sampler import Sampler, SamplingConfig
from rlef_jax.training.rollout import RolloutSettings
from rlef_jax.types import Limits


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model's sizes, its first weights and its chat format."""

    cfg: ModelConfig
    params: Params
    chat: ChatFormat


def build_policy(config: ConfigDict) -> Policy:
    """Tokenizer and weights as `config.model` names them; random weights where `init` is empty."""
    tokenizer = Tokenizer.load(resolve(config.model.tokenizer, ".model", "model.tokenizer"))
    rows = max(config.episode.context, *config.ppo.buckets)  # the trainer's rows are padded to a bucket
    cfg = model_config(config.model, tokenizer.vocab_size, rows)
    dtype = jnp.dtype(config.model.param_dtype)
    if config.model.init:
        params = load_params(resolve(config.model.init, ".npz", "model.init"), cfg, dtype)
    else:
        params = init_params(jax.random.PRNGKey(config.seed), cfg, dtype)
    return Policy(cfg, params, ChatFormat(tokenizer))


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


def build_sampler(config: ConfigDict, policy: Policy, *, temperature: float, top_p: float, top_k: int) -> Sampler:
    """A sampler without weights; prompts may be as long as the context.

    Raises ConfigError where `sampling.own_device` asks for a device that isn't there.
    """
    mesh, devices = config.mesh, jax.devices()
    trainer = mesh.data * mesh.fsdp * mesh.tensor
    if config.sampling.own_device and trainer >= len(devices):
        raise ConfigError(
            f"config.sampling.own_device: the mesh takes {trainer} devices and jax sees {len(devices)}, none is left"
        )
    return Sampler(
        policy.cfg,
        SamplingConfig(temperature, top_p, top_k, policy.chat.stop_ids, config.episode.max_new_tokens),
        batch_size=config.sampling.group_size,
        max_len=config.episode.context,
        prompt_buckets=tuple(config.sampling.prompt_buckets),
        compute_dtype=jnp.dtype(config.model.compute_dtype),
        device=devices[trainer] if config.sampling.own_device else None,
    )


def rollout_settings(config: ConfigDict, feedback: str) -> RolloutSettings:
    """How episodes are made, under one kind of feedback."""
    e, x = config.episode, config.execution
    return RolloutSettings(
        max_turns=e.max_turns,
        context=e.context,
        max_new_tokens=e.max_new_tokens,
        feedback=feedback,
        max_failures=e.max_failures_shown,
        max_chars=e.max_text_chars,
        system_prompt=e.system_prompt,
        limits=Limits(
            wall_s=x.wall_s, memory_bytes=x.memory_mb << 20, output_bytes=x.output_kb << 10, patience=x.wall_patience
        ),
        max_wall_s=x.max_wall_s or None,
        stop_hidden_at_first_failure=x.stop_hidden_at_first_failure,
        groups_in_flight=config.sampling.groups_in_flight,
        sampling_threads=config.sampling.threads,
    )


def build_learner(config: ConfigDict, cfg: ModelConfig) -> Learner:
    """The update's compiled functions, on a mesh of the configured shape.

    Raises ConfigError where the devices don't match the mesh, or the mesh doesn't divide the model.
    """
    p, m = config.ppo, config.model
    optimizer = make_optimizer(p.learning_rate, p.warmup_steps, p.weight_decay, p.clip_norm, b1=p.adam_b1, b2=p.adam_b2)
    loss = LossSettings(
        clip_eps=p.clip_eps,
        value_clip=p.value_clip,
        value_coef=p.value_coef,
        importance=p.importance,
        importance_cap=p.importance_cap,
        importance_mode=p.importance_mode,
    )
    how: dict[str, Any] = dict(
        compute_dtype=jnp.dtype(m.compute_dtype), remat=m.remat, unroll=m.unroll, attention=m.attention,
        logit_tokens=m.logit_tokens,
    )  # fmt: skip
    try:
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        return Learner(
            cfg, optimizer, loss=loss, separate_critic=p.separate_critic, mesh=mesh, how=ForwardSettings(**how),
            max_grad_norm=p.max_grad_norm,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"config.mesh: {error}") from error
