"""What `gpu_check.py` checks: a configuration on all devices, and a wrong number for a stage that is to fail."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlef_jax import config as config_lib
from rlef_jax.model.parameters import init_params
from rlef_jax.model.pretrained import load_pretrained, open_weights
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.model.weights import model_config
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import build_sampler_mesh, build_sampling_programs

LLAMA3_VOCABULARY, NODE, GIB = 128_256, 8, 2**30
FLOAT32, HALF = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
MICROBATCHES = 4
# Of --quick, on CPUs.
TINY: dict[str, Any] = {
    "model.init": "", "model.d_model": 32, "model.n_layers": 2, "model.n_heads": 4, "model.n_kv_heads": 2,
    "model.d_head": 16, "model.d_ff": 64, "episode.context": 128, "episode.max_new_tokens": 8, "sampling.rows": 4,
    "sampling.workers": 1, "sampling.cache_lengths": (), "sampling.prefill_chunks": (16,), "sampling.page_slots": 16,
    "ppo.microbatch_rows": 2, "ppo.buckets": (128,), "ppo.updates": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is checked: a configuration on all devices, its model, and lengths of requests: prompt, new, feedback.

    The stages in `spoil` get a wrong number and must fail.
    """

    config: ConfigDict
    cfg: ModelConfig
    overrides: dict[str, Any]
    path: str
    init: str
    lengths: tuple[int, int, int]
    quick: bool = False
    spoil: tuple[str, ...] = ()

    def spoiled(self, stage: str, tree: Any, factor: float = 1.05) -> Any:
        """A tree of arrays; times `factor` in a stage that must fail."""
        return jax.tree.map(lambda array: array * factor, tree) if stage in self.spoil else tree

    def params(self, dtype: Any, shardings: Any = None) -> Params:
        """The model's weights, random ones without `init`; by default on the first device."""
        if self.init:
            weights = open_weights(self.init)
            assert weights is not None
            return load_pretrained(weights, self.cfg, dtype, shardings, ())
        return jax.jit(init_params, static_argnums=(1, 2), out_shardings=shardings)(
            jax.random.PRNGKey(0), self.cfg, dtype
        )


def subject(args: argparse.Namespace, devices: int, local: int) -> Subject:
    """The configuration for so many devices, `local` of them this process's: fsdp within a node, data between."""
    quick = args.quick
    path, base = ("configs/tiny.py", TINY) if quick else (args.config, {"model.init": ""})
    given = config_lib.load(path, overrides=base)
    fsdp = math.gcd(devices, 2 if quick else NODE)
    rows = given.ppo.microbatch_rows * devices
    changed = {
        "mesh.data": devices // fsdp, "mesh.fsdp": fsdp, "mesh.tensor": 1, "ppo.microbatch_rows": rows,
        "ppo.rollouts": given.ppo.updates * MICROBATCHES * rows, "sampling.data": local, "sampling.tensor": 1,
        "sampling.rows": given.sampling.rows * local, "plan.sampler_devices": 0,
    }  # fmt: skip
    config = config_lib.load(path, overrides=base | changed)
    weights = open_weights(args.init)
    length = max(config.episode.context, *config.ppo.buckets)
    cfg = weights.cfg if weights else model_config(config.model, 256 if quick else LLAMA3_VOCABULARY, length)
    lengths = (12, 8, 5) if quick else (512, 512, 100)
    return Subject(config, cfg, changed, path, args.init, lengths, quick, tuple(args.spoil))


def build_sampler(config: ConfigDict, cfg: ModelConfig, params: Params) -> Sampler:
    """The run's sampler on this process's devices."""
    sampler = Sampler(build_sampling_programs(config, cfg, build_sampler_mesh(config), 1))
    sampler.set_weights(params, 0)
    return sampler
