"""Predicts a run's memory, communication and time: python -m rlef_jax.plan --config=configs/llama31_8b.py --devices=128

Compiles the run's update and decoding step for that number of virtual devices, from shapes alone. Prints memory per
device, operations, communication by kind and mesh axis, and the time of an iteration on the given hardware. The mesh is
as configured, except that `data` is the number of devices / (fsdp * tensor). --config.KEY=VALUE overrides a key.

Compiled for CPUs, the programs have a GPU's shapes, shardings and exchanges, but not its fusions, temporary memory and
fused attention, nor its reduce-scatters, which appear as all-reduces.
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
from rlef_jax.errors import ConfigError
from rlef_jax.model.weights import model_config, resolve
from rlef_jax.planning import report
from rlef_jax.planning.costs import CARDS
from rlef_jax.planning.machine import measure
from rlef_jax.planning.programs import UPDATE_PROGRAMS, decode_program, update_programs
from rlef_jax.planning.report import Assumptions, Plan
from rlef_jax.training.build import build_learner

LLAMA3_VOCABULARY = 128_256
MEASURED = "measured"
PROGRAMS = (*UPDATE_PROGRAMS, "decode")


def parser() -> arguments.Parser:
    """The command line's parser."""
    options = arguments.Parser(description=__doc__)
    options.add_argument("--config", required=True, help="e.g. configs/llama31_8b.py")
    options.add_argument("--devices", type=int, required=True, help="that train")
    options.add_argument("--sampler-devices", type=int, default=0, help="that sample (default: as many)")
    options.add_argument("--sampler-tensor", type=int, default=1, help="devices that share a sampling model")
    options.add_argument("--length", type=int, default=0, help="tokens of a row (default: the longest bucket)")
    options.add_argument("--action-share", type=float, default=0.5, help="of the tokens, sampled ones")
    options.add_argument("--vocabulary", type=int, default=0, help="default: the tokenizer's, else Llama 3's")
    options.add_argument("--card", choices=[*CARDS, MEASURED], default="h100", help=f"{MEASURED}: this machine")
    options.add_argument("--mfu", type=float, default=0.4, help="share of the card's peak that products reach")
    options.add_argument("--bandwidth-share", type=float, default=0.8, help="share of each bandwidth that is reached")
    return options


def make_plan(config: ConfigDict, args: argparse.Namespace, names: Collection[str] = PROGRAMS) -> Plan:
    """Compiles the programs of these `names`, by default all that a table needs.

    Raises ConfigError for what can't be compiled.
    """
    began = time.perf_counter()
    length = args.length or config.ppo.buckets[-1]
    cfg = model_config(config.model, args.vocabulary or _vocabulary(config), max(length, config.episode.context))
    learner = build_learner(config, cfg)
    dtype = jnp.dtype(config.model.param_dtype)
    p = config.ppo
    per_update = -(-p.rollouts // (p.updates * p.microbatch_rows))
    programs = update_programs(
        learner, dtype, microbatches=per_update, rows=p.microbatch_rows, length=length,
        turns=config.episode.max_turns * p.row_episodes, action_share=args.action_share, names=names,
    )  # fmt: skip
    sampler_devices = args.sampler_devices or args.devices
    group = min(
        config.sampling.rows // config.sampling.workers, -(-p.rollouts * args.sampler_tensor // sampler_devices)
    )
    if "decode" in names:
        programs["decode"] = decode_program(
            cfg, jnp.dtype(config.model.compute_dtype), tensor=args.sampler_tensor, rows=group,
            length=length, tail=config.sampling.decode_steps,
        )  # fmt: skip
    # A measured card's speeds are those that are reached, so their fractions are 1.
    measured = args.card == MEASURED
    card = measure(cfg, p.microbatch_rows * length // learner.mesh.size) if measured else CARDS[args.card]
    return Plan(
        cfg=cfg, mesh=dict(learner.mesh.shape), programs=programs, separate_critic=p.separate_critic,
        param_bytes=dtype.itemsize, compile_seconds=time.perf_counter() - began,
        assumed=Assumptions(
            card=card, mfu=1.0 if measured else args.mfu, share=1.0 if measured else args.bandwidth_share,
            measured=measured, length=length,
            action_share=args.action_share, updates=p.updates, microbatches=per_update, rows=p.microbatch_rows,
            iterations=config.train.iterations, group=group, sampler_tensor=args.sampler_tensor,
            sampler_devices=sampler_devices,
        ),
    )  # fmt: skip


def _vocabulary(config: ConfigDict) -> int:
    """The tokenizer's vocabulary size; Llama 3's if its file is missing, so that a plan doesn't need the weights."""
    try:
        return Tokenizer.load(resolve(config.model.tokenizer, ".model", "model.tokenizer")).vocab_size
    except ConfigError:
        return LLAMA3_VOCABULARY


def configured(path: str, overrides: Mapping[str, Any], devices: int) -> ConfigDict:
    """The configuration with the overrides, and with `mesh.data` set for `devices` devices. Raises ConfigError."""
    config = config_lib.load(path, overrides=overrides)
    if config.mesh.critic != "shared":
        raise ConfigError(
            "config.mesh.critic: a plan counts policy and critic on the same devices: add --config.mesh.critic=shared"
        )
    devices_per_replica = config.mesh.fsdp * config.mesh.tensor
    if devices % devices_per_replica:
        raise ConfigError(f"--devices={devices} must be a multiple of mesh.fsdp * mesh.tensor = {devices_per_replica}")
    config.mesh.data = devices // devices_per_replica
    config_lib.check(config)
    return config


def main() -> None:
    """Prints the table."""
    with errors_as_lines():
        args = parse(parser())
        config = configured(args.config, args.overrides, args.devices)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(args.devices, args.sampler_tensor))
        print(report.table(make_plan(config, args), title=f"{Path(args.config).stem}: {' '.join(sys.argv[1:])}"))


if __name__ == "__main__":
    main()
