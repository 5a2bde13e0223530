"""Compiles a run's programs for virtual devices, from shapes alone: nothing is allocated or run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rlef_jax.model import kv_cache, transformer
from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.sharding import AXES, make_mesh, param_shardings
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.planning.hlo import Work, read_work
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.train_state import first_params, init_state, partition
from rlef_jax.ppo.update import Learner
from rlef_jax.types import TokenBatch

UPDATE_PROGRAMS = ("gradients", "apply", "score")


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, per device: its work, and the sizes of its buffers in bytes.

    `results` excludes results that reuse an argument's buffer, `temporary` is further memory in use while it runs.
    `xla_flops` is XLA's own count of operations.
    """

    work: Work
    arguments: int
    results: int
    temporary: int
    xla_flops: float


def compiled(lowered: Any, mesh_shape: tuple[int, ...], dtype: Any, open_trips: float = 1.0) -> Program:
    """Compiles a program that computes in `dtype` and reads its costs; `open_trips` as in `read_work`."""
    program = lowered.compile()
    memory = program.memory_analysis()
    return Program(
        work=read_work(
            program.as_text(), mesh_shape, AXES, open_trips=open_trips, float_bytes=jnp.dtype(dtype).itemsize
        ),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        xla_flops=float((program.cost_analysis() or {}).get("flops", 0.0)),
    )


def shape_of(tree: Any) -> Any:
    """The tree's ShapeDtypeStructs."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def state_shapes(learner: Learner, dtype: Any) -> Any:
    """A learner's TrainState with ShapeDtypeStructs as leaves; `dtype` of the weights."""
    cfg = learner.model_cfg

    def make(policy: Params) -> Any:
        params = first_params(jax.random.PRNGKey(0), policy, cfg, learner.separate_critic)
        return init_state(*partition(params, learner.trainable), learner.optimizer.init)

    return jax.eval_shape(make, abstract_params(cfg, dtype))


def update_programs(
    learner: Learner,
    dtype: Any,
    *,
    microbatches: int,
    rows: int,
    length: int,
    turns: int,
    action_share: float,
    names: Collection[str] = UPDATE_PROGRAMS,
) -> dict[str, Program]:
    """The programs of one update with these `names` (see `MeshTrainer.lowered`), on micro-batches of `rows` rows of
    `length` tokens.

    Policy and critic must share a mesh. `action_share` is the fraction of sampled tokens.
    """
    [trainer] = learner.trainers
    batch = shape_of(TokenBatch(**empty_arrays(rows, length, turns)))
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((microbatches, *a.shape), a.dtype), batch)
    mesh_shape = tuple(trainer.mesh.shape[axis] for axis in AXES)
    # Only the loop over chunks of logits has no fixed trip count.
    shards = trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]
    chunk = max(trainer.forward_settings.logit_tokens * shards // rows, 1)
    trips = -(-int(length * action_share) // chunk)
    lowered = trainer.lowered(state_shapes(learner, dtype), stacked)
    dtypes = {"apply": dtype}  # the optimizer computes in the weights' dtype
    return {
        name: compiled(program, mesh_shape, dtypes.get(name, trainer.forward_settings.compute_dtype), trips)
        for name, program in lowered.items()
        if name in names
    }


def decode_program(cfg: ModelConfig, dtype: Any, *, tensor: int, rows: int, length: int, tail: int) -> Program:
    """One decoding step of `rows` rows after `length` tokens each, the model split over `tensor` devices.

    `tail` is the number of slots of the recent cache.
    """
    mesh = make_mesh(tensor=tensor)
    heads = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    params = abstract_params(cfg, dtype, param_shardings(mesh, cfg))
    prefix, recent = (
        jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=heads),
            jax.eval_shape(functools.partial(kv_cache.init_cache, cfg, rows, capacity, dtype)),
        )
        for capacity in (length, tail)
    )
    per_row = jax.ShapeDtypeStruct((rows,), jnp.int32)

    def step(params: Any, prefix: Any, recent: Any, tokens: jax.Array, lengths: jax.Array, offset: jax.Array) -> Any:
        hidden, recent = kv_cache.decode_step(
            kv_cache.unstack(params, cfg), cfg, prefix, recent, tokens, lengths, offset
        )
        return transformer.unembed(params, cfg, hidden[:, None]), recent

    lowered = jax.jit(step, donate_argnums=(2,)).lower(
        params, prefix, recent, per_row, per_row, jax.ShapeDtypeStruct((), jnp.int32)
    )
    return compiled(lowered, (1, 1, tensor), dtype)
