"""The sampler's compiled programs: a few static shapes, all compiled before the first token.

`decode` for each length of row and kind of distribution, `prefill` for each length of chunk, and a pair that moves one
row's keys and values out of the cache and back. Nothing is compiled later: an argument of another shape is an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model import kv_cache
from rlef_jax.model.kv_cache import KVCache
from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.sharding import ROWS, param_shardings
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.decode import Drawn, Rows, decode

# Kinds of distribution: every row plain, or some row greedy or cut (see `decode`).
_KINDS = (True, False)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static shapes of a sampler.

    Attributes:
      rows: rows of the cache that are decoded together.
      max_len: most tokens of a row.
      cache_lengths: lengths of row for which decoding is compiled, ascending; `max_len` is one more. The shortest that
        holds all rows is used.
      prefill_chunks: lengths of chunk in which prompts are prefilled, ascending.
      prefill_tokens: of the chunks that are prefilled together, about.
      decode_steps: decoding steps of one dispatch.
      stop_ids: most stop ids of a request.
    Raises ValueError for shapes that can't be.
    """

    rows: int
    max_len: int
    cache_lengths: tuple[int, ...]
    prefill_chunks: tuple[int, ...]
    prefill_tokens: int
    decode_steps: int
    stop_ids: int = 4

    def __post_init__(self) -> None:
        for name in ("rows", "max_len", "prefill_tokens", "decode_steps", "stop_ids"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cache_lengths", "prefill_chunks"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or min(values, default=1) < 1:
                raise ValueError(f"{name} must be ascending and at least 1, not {values}")
        if not self.prefill_chunks:
            raise ValueError("prefill_chunks must name at least one length")

    @property
    def slots(self) -> int:
        """Slots of a row: a chunk or a dispatch may begin at its last token."""
        return self.max_len + max(self.decode_steps, self.prefill_chunks[-1])

    def chunk_rows(self, chunk: int) -> int:
        """Chunks of a length that are prefilled together."""
        return min(self.rows, max(1, self.prefill_tokens // chunk))

    def cache_length(self, longest: int) -> int:
        """The shortest cache length that holds rows of `longest` tokens.

        To look at less than the whole cache costs a copy each dispatch; that isn't worth an eighth more to read.
        """
        whole = self.slots if self.slots <= self.max_len * 9 // 8 else self.max_len
        return next((c for c in self.cache_lengths if longest <= c < self.max_len), whole)

    def split(self, count: int) -> list[tuple[int, int]]:
        """(tokens, length of chunk) of the chunks of a prompt of `count` tokens: a function of the prompt alone."""
        longest = self.prefill_chunks[-1]
        whole, rest = divmod(count, longest)
        last = [(rest, next(c for c in self.prefill_chunks if rest <= c))] if rest else []
        return [(longest, longest)] * whole + last


class Programs:
    """The compiled programs of one model and set of shapes, on the devices of `mesh`.

    They hold no state. Weights are given as `prepare` makes them, cache and arrays as `new_cache` and `Rows` say.
    """

    def __init__(
        self, cfg: ModelConfig, shapes: Shapes, mesh: Mesh, *, dtype: Any = jnp.float32, one_thread: bool = False
    ) -> None:
        """Args:
          one_thread: on CPUs, a program runs on one core, for as many workers as there are cores: workers that share
            all of the cores wait for each other's products.

        Raises ValueError where the model is too short for the rows or the mesh doesn't divide them.
        """
        if shapes.max_len > cfg.max_positions:
            raise ValueError(f"max_len={shapes.max_len} is over the model's max_positions={cfg.max_positions}")
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if shapes.rows % shards:
            raise ValueError(f"mesh axes data * fsdp = {shards} don't divide {shapes.rows} rows")
        self.cfg, self.shapes, self.mesh, self.dtype = cfg, shapes, mesh, jnp.dtype(dtype)
        self.compiled = 0
        cpu = mesh.devices.flat[0].platform == "cpu"
        self._options = {"xla_cpu_multi_thread_eigen": False} if one_thread and cpu else None
        self._rows = NamedSharding(mesh, ROWS)
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._cache = NamedSharding(mesh, PartitionSpec(*ROWS, "tensor"))
        self._weights = jax.tree.map(
            lambda s: NamedSharding(mesh, PartitionSpec(*(None if a == "fsdp" else a for a in s.spec))),
            param_shardings(mesh, cfg),
        )
        self._turned = kv_cache.unstacked_shardings(self._weights, cfg)
        # A copy even where nothing is to be cast: jit would hand an array that it doesn't change through.
        self._unstack = jax.jit(
            lambda params: kv_cache.unstack(jax.tree.map(lambda a: jnp.copy(a).astype(self.dtype), params), cfg),
            out_shardings=self._turned,
        )
        self._decode: dict[tuple[int, bool], Any] = {}
        self._prefill: dict[tuple[int, bool], Any] = {}
        self._take: Any = None
        self._put: Any = None

    def prepare(self, params: Params) -> Params:
        """A copy of parameters as the programs take them, in their dtype: the caller may donate its own afterwards."""
        return self._unstack(jax.device_put(params, self._weights))

    def new_cache(self) -> KVCache:
        """An empty cache."""
        return jax.device_put(
            kv_cache.init_cache(self.cfg, self.shapes.rows, self.shapes.slots, self.dtype), self._cache
        )

    def lowered(self, dtype: Any = jnp.float32) -> dict[str, jax.stages.Lowered]:
        """Each program by its name, from shapes and shardings alone: the mesh's devices needn't be there.

        "decode LENGTH plain" and "decode LENGTH cut" (see `decode`), "prefill CHUNK first" and "prefill CHUNK later",
        "take", "put", and "prepare" from the trainer's stacked weights, kept in `dtype`.
        """
        found = {name: lower() for name, lower in self._lowerings()}
        return found | {"prepare": self._unstack.lower(abstract_params(self.cfg, dtype, self._weights))}

    def compile(self, on_progress: Callable[[int, int], None] | None = None, threads: int = 2) -> None:
        """Compiles what isn't yet; `on_progress(done, all)` is told."""
        if self._put is not None:
            return

        def build(job: tuple[str, Callable[[], jax.stages.Lowered]]) -> tuple[str, Any]:
            return job[0], job[1]().compile(self._options)

        jobs, made = list(self._lowerings()), {}
        with ThreadPoolExecutor(threads, "compile") as pool:
            for done, (name, program) in enumerate(pool.map(build, jobs), 1):
                made[name] = program
                if on_progress is not None:
                    on_progress(done, len(jobs))
        self.compiled += len(made)
        for name, program in made.items():
            what, *which = name.split()
            if what == "decode":
                self._decode[int(which[0]), which[1] == "plain"] = program
            elif what == "prefill":
                self._prefill[int(which[0]), which[1] == "first"] = program
        self._take, self._put = made["take"], made["put"]

    def _lowerings(self) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
        """(name, what lowers it) of each program of a session."""
        s = self.shapes
        weights, cache, rows = self._abstract_weights(), self._abstract_cache(), self._abstract_rows()

        def program(function: Any, donate: tuple[int, ...], out: Any, *args: Any) -> Callable[[], jax.stages.Lowered]:
            return lambda: jax.jit(function, donate_argnums=donate, out_shardings=out).lower(*args)

        for capacity in sorted({s.cache_length(length) for length in range(1, s.max_len + 1)}):
            for plain in _KINDS:
                run = functools.partial(decode, cfg=self.cfg, steps=s.decode_steps, capacity=capacity, plain=plain)
                name = f"decode {capacity} {'plain' if plain else 'cut'}"
                yield name, program(run, (1,), (self._cache, None), weights, cache, rows)
        for chunk in s.prefill_chunks:
            count = s.chunk_rows(chunk)
            tokens = jax.ShapeDtypeStruct((count, chunk), jnp.int32, sharding=self._whole)
            each = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=self._whole)
            for first in (True, False):
                fill = functools.partial(_prefill, cfg=self.cfg, capacity=0 if first else s.max_len)
                name = f"prefill {chunk} {'first' if first else 'later'}"
                yield name, program(fill, (1,), self._cache, weights, cache, each, tokens, each)
        one = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._whole)
        row = jax.eval_shape(_take, cache, one)
        row = jax.ShapeDtypeStruct(row.shape, row.dtype, sharding=self._whole)
        yield "take", program(_take, (), self._whole, cache, one)
        yield "put", program(_put, (0,), self._cache, cache, one, row)

    def decode(self, weights: Params, cache: KVCache, rows: Rows) -> tuple[KVCache, Drawn]:
        """One dispatch; `rows` holds numpy arrays. The cache is consumed."""
        plain = bool(np.all((rows.temperature > 0) & (rows.top_k == 0) & (rows.top_p >= 1.0)))
        capacity = self.shapes.cache_length(int(np.max(np.where(rows.room > 0, rows.lengths, 0), initial=1)))
        return self._decode[capacity, plain](weights, cache, jax.device_put(rows, self._rows))

    def prefill(
        self, weights: Params, cache: KVCache, rows: np.ndarray, tokens: np.ndarray, starts: np.ndarray
    ) -> KVCache:
        """Prefills chunks [R, C], all at the start of their rows or none. The cache is consumed."""
        program = self._prefill[tokens.shape[1], not starts.any()]
        return program(weights, cache, *jax.device_put((rows, tokens, starts), self._whole))

    def take(self, cache: KVCache, row: int, length: int) -> np.ndarray:
        """The keys and values [L, 2, K, length, H] of a row, on the host."""
        taken = self._take(cache, jax.device_put(np.int32(row), self._whole))
        return np.array(np.asarray(taken)[:, :, :, :length])

    def put(self, cache: KVCache, row: int, taken: np.ndarray) -> KVCache:
        """Puts a row's keys and values back, bit for bit, into any row. The cache is consumed."""
        padding = self.shapes.slots - taken.shape[3]
        whole = np.pad(taken, ((0, 0), (0, 0), (0, 0), (0, padding), (0, 0)))
        return self._put(cache, *jax.device_put((np.int32(row), whole), self._whole))

    def _abstract_weights(self) -> Params:
        return jax.tree.map(
            lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
            jax.eval_shape(
                functools.partial(kv_cache.unstack, cfg=self.cfg),
                abstract_params(self.cfg, self.dtype, self._weights),
            ),
            self._turned,
        )

    def _abstract_cache(self) -> KVCache:
        made = jax.eval_shape(
            functools.partial(kv_cache.init_cache, self.cfg, self.shapes.rows, self.shapes.slots, self.dtype)
        )
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._cache), made)

    def _abstract_rows(self) -> Rows:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._rows),
            empty_rows(self.shapes.rows, self.shapes.stop_ids),
        )


def empty_rows(count: int, stop_ids: int) -> Rows:
    """Idle rows, as numpy arrays."""

    def filled(value: float, dtype: Any, *shape: int) -> Any:
        return np.full((count, *shape), value, dtype)

    return Rows(
        tokens=filled(0, np.int32),
        lengths=filled(0, np.int32),
        room=filled(0, np.int32),
        seed=filled(0, np.uint32),
        step=filled(0, np.int32),
        episode=filled(0, np.int32),
        turn=filled(0, np.int32),
        drawn=filled(0, np.int32),
        temperature=filled(1, np.float32),
        top_k=filled(0, np.int32),
        top_p=filled(1, np.float32),
        stop_ids=filled(-1, np.int32, stop_ids),
    )


def _prefill(
    params: Params,
    cache: KVCache,
    rows: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    *,
    cfg: ModelConfig,
    capacity: int,
) -> KVCache:
    return kv_cache.prefill(params, cfg, cache, rows, tokens, starts, capacity=capacity)


def _take(cache: KVCache, row: jax.Array) -> jax.Array:
    """[L, 2, K, S, H]"""
    return jnp.stack([jnp.stack([slots[row] for slots in pair]) for pair in cache.layers])


def _put(cache: KVCache, row: jax.Array, taken: jax.Array) -> KVCache:
    return KVCache(
        tuple(
            (keys.at[row].set(taken[layer, 0]), values.at[row].set(taken[layer, 1]))
            for layer, (keys, values) in enumerate(cache.layers)
        )
    )
