"""Compiles a run's programs for virtual or described devices, from shapes alone: nothing is allocated or run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.sharding import AXES
from rlef_jax.model.transformer import Params
from rlef_jax.planning.hlo import Module, parse
from rlef_jax.planning.work import Work, work_of
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.train_state import first_params, init_state, kept_once, partition, select_parts
from rlef_jax.ppo.update import Learner

UPDATE_PROGRAMS = ("gradients", "apply", "score")


class OutOfMemoryError(Exception):
    """A compiler found that a program doesn't fit in its device's memory, and said so in this message."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, per device: its work, and the sizes of its buffers in bytes.

    `results` excludes results that reuse an argument's buffer, which are `aliased`; `temporary` is further memory in
    use while it runs. `xla_flops` is XLA's own count of operations, 0 where it gives none. `open_trips` is assumed for
    loops without a known count, `float_bytes` are counted for a float32 value.
    """

    module: Module = dataclasses.field(repr=False)
    work: Work
    mesh_shape: tuple[int, ...]
    arguments: int
    results: int
    temporary: int
    aliased: int
    xla_flops: float
    seconds: float
    open_trips: float = 1.0
    float_bytes: int = 4


def compiled(
    lowered: Any, mesh_shape: tuple[int, ...], dtype: Any = jnp.float32, open_trips: float = 1.0, options: Any = None
) -> Program:
    """Compiles a program and reads its costs; `open_trips` as in `read_work`.

    On CPUs, which keep bfloat16 as float32, float32 values are counted in `dtype`, in which it computes.

    Raises OutOfMemoryError where the compiler knows that it doesn't fit.
    """
    began = time.perf_counter()
    try:
        program = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise OutOfMemoryError(str(error).strip().splitlines()[0]) from error
    memory = program.memory_analysis()
    width = jnp.dtype(dtype).itemsize if _platform(program) == "cpu" else 4
    module = parse(program.as_text())
    return Program(
        module=module,
        work=work_of(module, mesh_shape, AXES, open_trips=open_trips, float_bytes=width),
        mesh_shape=mesh_shape,
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        xla_flops=float((program.cost_analysis() or {}).get("flops", 0.0)),
        seconds=time.perf_counter() - began,
        open_trips=open_trips,
        float_bytes=width,
    )


def _platform(program: Any) -> str:
    shardings = jax.tree.leaves((program.input_shardings, program.output_shardings))
    devices = next(iter(shardings)).device_set if shardings else jax.devices()
    return str(next(iter(devices)).platform)


def shape_of(tree: Any) -> Any:
    """The tree's ShapeDtypeStructs."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def bytes_of(tree: Any, shardings: Any) -> float:
    """Bytes of a tree of shapes on one device, its leaves laid out as the tree `shardings` says."""
    parts = jax.tree.map(lambda a, s: math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize, tree, shardings)
    return float(sum(jax.tree.leaves(parts)))


def state_shapes(learner: Learner, dtype: Any) -> Any:
    """A learner's TrainState with ShapeDtypeStructs as leaves; `dtype` of the weights."""
    cfg = learner.model_cfg

    def make(policy: Params) -> Any:
        params = first_params(jax.random.PRNGKey(0), policy, cfg, learner.separate_critic)
        names = [name for trainer in learner.trainers for name in trainer.names]
        return init_state(*partition(select_parts(params, names), learner.trainable), learner.optimizer.init)

    return jax.eval_shape(make, abstract_params(cfg, dtype))


def resident_bytes(learner: Learner, dtype: Any) -> dict[str, float]:
    """{"weights", "moments", "reference": bytes of a device} of what a learner holds between its programs, policy and
    critic on one mesh."""
    [trainer] = learner.trainers
    state = state_shapes(learner, dtype)
    where = trainer.state_shardings(state)
    once = [kept_once(tree.frozen, learner.trainable) for tree in (state, where)]
    weights = bytes_of((state.trainable, once[0]), (where.trainable, once[1]))
    reference = bytes_of(abstract_params(learner.model_cfg, dtype), learner.reference_shardings)
    return {"weights": weights, "moments": bytes_of(state.opt_state, where.opt_state), "reference": reference}


def update_programs(
    learner: Learner,
    dtype: Any,
    *,
    microbatches: int,
    rows: int,
    length: int,
    turns: int,
    action_share: float,
    value_kind: str = "turn",
    names: Collection[str] | None = UPDATE_PROGRAMS,
) -> dict[str, Program]:
    """The programs of one update with these `names` (see `MeshTrainer.lowered`), all for None, on micro-batches of
    `rows` rows of `length` tokens; and with them the reference policy's scores, "reference", and "below", the states
    that are kept of layers below adapters.

    Policy and critic must share a mesh. `action_share` is the fraction of sampled tokens.
    """
    [trainer] = learner.trainers
    batch = shape_of(TokenBatch(**empty_arrays(rows, length, turns, value_kind)))
    settings, cfg = trainer.forward_settings, learner.model_cfg
    if settings.keep_below and cfg.layers_below:
        states = jax.ShapeDtypeStruct((rows, length, cfg.d_model), settings.compute_dtype)
        batch = dataclasses.replace(batch, below=states)
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((microbatches, *a.shape), a.dtype), batch)
    mesh_shape = tuple(trainer.mesh.shape[axis] for axis in AXES)
    # Only the loop over chunks of logits has no fixed trip count.
    shards = trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]
    chunk = max(trainer.forward_settings.logit_tokens * shards // rows, 1)
    trips = -(-int(length * action_share) // chunk)
    lowered = dict(trainer.lowered(state_shapes(learner, dtype), stacked))
    if names is None or {"reference", "below"} & set(names):
        lowered |= learner.lowered_reference(dtype, batch)
    trained = dtype if learner.model_cfg.lora is None else jnp.promote_types(dtype, jnp.float32)
    dtypes = {"apply": trained, "reduce": trained}  # what computes in the dtype of what is trained
    return {
        name: compiled(program, mesh_shape, dtypes.get(name, trainer.forward_settings.compute_dtype), trips)
        for name, program in lowered.items()
        if names is None or name in names
    }


def sampler_programs(
    lowered: Mapping[str, Any], mesh: Any, dtype: Any, *, decode_steps: int, kinds: Collection[str] | None = None
) -> dict[str, Program]:
    """A sampler's programs on `mesh`, of `Programs.lowered`: the `largest` of these `kinds`, by default of all.

    `mesh` is the sampler's, or the trainer's for "prepare" alone, which runs there. A dispatch of decoding ends when
    its rows do, after `decode_steps` at most: those are counted.
    """
    shape = tuple(mesh.shape[axis] for axis in AXES)
    chosen = [name for name in largest(lowered) if kinds is None or name.split()[0] in kinds]
    return {name: compiled(lowered[name], shape, dtype, decode_steps) for name in chosen}


def largest(names: Collection[str]) -> list[str]:
    """Of a sampler's programs those that need most: of each kind but one the longest, of decoding the plain one.

    Names are "KIND", or "KIND LENGTH VARIANT".
    """
    return list(_largest(names))


def _largest(names: Collection[str]) -> Iterator[str]:
    longest: dict[tuple[str, str], tuple[int, str]] = {}
    for name in names:
        kind, *rest = name.split()
        length = next((int(word) for word in rest if word.isdigit()), 0)
        variant = " ".join(word for word in rest if not word.isdigit())
        if kind == "decode" and variant == "cut":
            continue
        longest[kind, variant] = max(longest.get((kind, variant), (0, name)), (length, name))
    for _, name in longest.values():
        yield name
