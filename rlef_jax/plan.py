"""Predicts a run's memory, communication and time: python -m rlef_jax.plan --config=configs/llama31_8b.py

Compiles the run's programs, learner's and sampler's, for the hardware that the configuration names in `plan.target`
(or --target: h100, h200, a100, b200, tpu-v5p, tpu-v6e, cpu), from shapes alone and without that hardware. Prints memory
of a card, communication by kind and mesh axis, what it is hidden behind, and the time of an iteration; then whether it
fits. Exit code 1: it does not. --config.KEY=VALUE overrides a key, --all plans every configuration that names hardware.

Compiling for GPUs and TPUs happens in the environment of `make gpu-env` or `make tpu-env`. On CPUs the programs have a
GPU's shapes, shardings and exchanges, but not its fusions, temporary memory and fused attention.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlef_jax import arguments
from rlef_jax import config as config_lib
from rlef_jax.command_line import errors_as_lines, parse
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.errors import EXIT_FAILED, ConfigError
from rlef_jax.model.weights import model_config, resolve
from rlef_jax.planning import environment, report, target
from rlef_jax.planning.machine import measure
from rlef_jax.planning.mend import mended
from rlef_jax.planning.programs import (
    OutOfMemoryError,
    Program,
    resident_bytes,
    sampler_programs,
    update_programs,
)
from rlef_jax.planning.report import Assumptions, Plan
from rlef_jax.planning.schedule import Speeds
from rlef_jax.ppo.update import Learner
from rlef_jax.training.build import (
    build_learner,
    build_sampler_mesh,
    build_sampling_programs,
    kinds_drawn,
    ppo_settings,
)

LLAMA3_VOCABULARY = 128_256
MEASURED = "measured"
STOP_IDS = 4
# Configurations that name hardware, for --all.
MATRIX = (
    "configs/llama31_8b.py", "configs/llama31_8b.py:node", "configs/llama31_8b.py:64", "configs/llama31_70b.py",
    "configs/llama30_8b.py", "configs/llama32_1b.py",
)  # fmt: skip


def parser() -> arguments.Parser:
    """The command line's parser."""
    options = arguments.Parser(description=__doc__)
    options.add_argument("--config", help="e.g. configs/llama31_8b.py")
    options.add_argument(
        "--all", action="store_true", help="every configuration that names hardware, one after the other"
    )
    options.add_argument("--target", choices=[*target.names(), target.CPU], help="default: config.plan.target")
    options.add_argument("--devices", type=int, default=0, help="that train; sets mesh.data (default: the mesh's)")
    options.add_argument(
        "--sampler-devices", type=int, default=0, help="others, that sample (default: config.plan.sampler_devices)"
    )
    options.add_argument("--length", type=int, default=0, help="tokens of a row (default: the longest bucket)")
    options.add_argument("--action-share", type=float, default=0.5, help="of the tokens, sampled ones")
    options.add_argument("--vocabulary", type=int, default=0, help="default: the tokenizer's, else Llama 3's")
    options.add_argument(
        "--card",
        choices=[*target.names(), MEASURED],
        help=f"whose speeds (default: the target's, h100 for cpu); {MEASURED}: this machine's",
    )
    options.add_argument("--mfu", type=float, default=0.4, help="share of the card's peak that products reach")
    options.add_argument("--bandwidth-share", type=float, default=0.8, help="share of each bandwidth that is reached")
    return options


def make_plan(config: ConfigDict, args: argparse.Namespace, names: Collection[str] | None = None) -> Plan:
    """Compiles the programs of these `names`, by default all that a table needs, for `config.plan.target`.

    Raises ConfigError for what can't be compiled, OutOfMemoryError where the compiler says that it doesn't fit.
    """
    began = time.perf_counter()
    length = args.length or config.ppo.buckets[-1]
    cfg = model_config(config.model, args.vocabulary or _vocabulary(config), max(length, config.episode.context))
    trainer_devices, sampler_devices = _devices(config)
    learner = build_learner(config, cfg, trainer_devices)
    dtype, compute_dtype = jnp.dtype(config.model.param_dtype), jnp.dtype(config.model.compute_dtype)
    p, s, ppo = config.ppo, config.sampling, ppo_settings(config)
    per_update = -(-p.rollouts // (p.updates * p.microbatch_rows))
    others = args.sampler_devices or config.plan.sampler_devices
    training = update_programs(
        learner, dtype, microbatches=per_update, rows=p.microbatch_rows, length=length,
        turns=config.episode.max_turns * p.row_episodes, action_share=args.action_share,
        value_kind=ppo.value_kind, names=names,
    )  # fmt: skip
    sampling, prepared = _sampling(config, learner, sampler_devices, names)
    training |= prepared
    # A measured card's speeds are those that are reached, so their fractions are 1.
    measured = args.card == MEASURED
    if measured:
        card = measure(cfg, p.microbatch_rows * length // learner.mesh.size)
    else:
        named = args.card or (config.plan.target if config.plan.target != target.CPU else "h100")
        card = target.card(named)
    group = s.data * s.tensor
    replicas = (others or learner.mesh.size) / group
    return Plan(
        cfg=cfg, mesh=dict(learner.mesh.shape), training=training, sampling=sampling,
        resident=resident_bytes(learner, dtype),
        separate_critic=ppo.has_critic and p.separate_critic, shared=not others,
        in_turn=not others and config.train.max_staleness == 0, compile_seconds=time.perf_counter() - began,
        assumed=Assumptions(
            speeds=Speeds(card, 1.0 if measured else args.mfu, 1.0 if measured else args.bandwidth_share),
            measured=measured, target=config.plan.target, length=length, action_share=args.action_share,
            updates=p.updates, microbatches=per_update, rows=p.microbatch_rows, iterations=config.train.iterations,
            group=max(1, min(s.rows // s.workers, int(-(-p.rollouts // replicas)))), decode_steps=s.decode_steps,
            sampler_group=group, tensor=s.tensor, sampler_devices=others or learner.mesh.size,
            longest=min(config.episode.max_turns * config.episode.max_new_tokens, config.episode.context),
            cache_token_bytes=2 * cfg.n_layers * cfg.n_kv_heads * cfg.d_head * compute_dtype.itemsize / s.tensor,
        ),
    )  # fmt: skip


def _devices(config: ConfigDict) -> tuple[list[Any] | None, list[Any] | None]:
    """The trainer's and the sampler's devices; None on CPUs, where they are JAX's."""
    m, s = config.mesh, config.sampling
    if config.plan.target == target.CPU:
        return None, None
    hardware = target.read(config.plan.target)
    return hardware.devices(m.data * m.fsdp * m.tensor), hardware.devices(s.data * s.tensor)


def _sampling(
    config: ConfigDict, learner: Learner, devices: list[Any] | None, names: Collection[str] | None
) -> tuple[dict[str, Program], dict[str, Program]]:
    """(the sampler's programs of these kinds, by default of all, on devices of its own; those that make its weights
    where the trainer's lie)."""
    if names is not None and "decode" not in names:
        return {}, {}
    alone = config.copy_and_resolve_references()
    alone.sampling.own_devices = False
    mesh = build_sampler_mesh(alone, devices)
    kinds = kinds_drawn(config, evaluates=bool(config.eval.split or config.eval.every))
    programs = build_sampling_programs(config, learner.model_cfg, mesh, STOP_IDS, kinds)
    dtype, steps = jnp.dtype(config.model.compute_dtype), config.sampling.decode_steps
    lowered = programs.lowered(jnp.dtype(config.model.param_dtype), learner.param_shardings["policy"])
    prepare = {"prepare": lowered.pop("prepare")}
    return (
        sampler_programs(lowered, mesh, dtype, decode_steps=steps, kinds=names),
        sampler_programs(prepare, learner.mesh, dtype, decode_steps=steps, kinds=names),
    )


def _vocabulary(config: ConfigDict) -> int:
    """The tokenizer's vocabulary size; Llama 3's if its file is missing, so that a plan doesn't need the weights."""
    try:
        return Tokenizer.load(resolve(config.model.tokenizer, ".model", "model.tokenizer")).vocab_size
    except ConfigError:
        return LLAMA3_VOCABULARY


def configured(path: str, overrides: Mapping[str, Any], devices: int = 0, hardware: str | None = None) -> ConfigDict:
    """The configuration with the overrides, with `mesh.data` set for `devices` devices (0: as it is) and `hardware` as
    its target. Raises ConfigError."""
    config = config_lib.load(path, overrides=overrides)
    if config.mesh.critic != "shared":
        raise ConfigError(
            "config.mesh.critic: a plan counts policy and critic on the same devices: add --config.mesh.critic=shared"
        )
    devices_per_replica = config.mesh.fsdp * config.mesh.tensor
    if devices % devices_per_replica:
        raise ConfigError(f"--devices={devices} must be a multiple of mesh.fsdp * mesh.tensor = {devices_per_replica}")
    config.mesh.data = devices // devices_per_replica if devices else config.mesh.data
    config.plan.target = hardware or config.plan.target
    config_lib.check(config)
    return config


def _one(path: str, args: argparse.Namespace) -> bool:
    """Plans one configuration and prints its table. Whether it fits."""
    config = configured(path, args.overrides, args.devices, args.target)
    if config.plan.target == target.CPU:
        s = config.sampling
        jax.config.update("jax_platforms", "cpu")
        count = max(config.mesh.data * config.mesh.fsdp * config.mesh.tensor, s.data * s.tensor)
        jax.config.update("jax_num_cpu_devices", count)
    title = f"{Path(path).name.removesuffix('.py')}: {' '.join(sys.argv[1:])}"
    try:
        plan = make_plan(config, args)
    except OutOfMemoryError as error:
        print(f"{title}\ndoes not fit: {error}")
        return False
    print(report.table(plan, title))
    print(f"\n{path} on {config.plan.target}: {report.line(plan)}", end="")
    fits = not plan.too_large()
    print(
        "" if fits else f": {mended(config, plan, lambda changed, names: make_plan(changed, args, names))}", flush=True
    )
    return fits


def _platform(path: str, args: argparse.Namespace) -> str:
    hardware = configured(path, args.overrides, args.devices, args.target).plan.target
    return target.CPU if hardware == target.CPU else target.read(hardware).platform


def main() -> None:
    """Prints the tables. Exits with 1 where something does not fit."""
    with errors_as_lines():
        args = parse(parser())
        if not args.all and not args.config:
            raise ConfigError("--config is needed, e.g. --config=configs/llama31_8b.py; or --all")
        rest = [word for word in sys.argv[1:] if word != "--all"]
        fits = True
        for path in MATRIX if args.all else (args.config,):
            platform = _platform(path, args)
            if environment.is_ready(platform):
                fits &= _one(path, args)
            else:
                words = [f"--config={path}", *rest] if args.all else rest
                fits &= _result_of(environment.run_again(platform, "rlef_jax.plan", words))
    if not fits:
        raise SystemExit(EXIT_FAILED)


def _result_of(code: int) -> bool:
    if code not in (0, EXIT_FAILED):
        raise SystemExit(code)
    return code == 0


if __name__ == "__main__":
    main()
