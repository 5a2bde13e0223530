"""The sampler's compiled programs: a few static shapes, all compiled before the first token.

`decode` for each length of row and kind of distribution, `prefill` for each length of chunk, and a pair that moves a
few pages of keys and values out of the cache and back. Nothing is compiled later: an argument of another shape is an
error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model import kv_cache
from rlef_jax.model.kv_cache import KVCache, Where
from rlef_jax.model.lora import split
from rlef_jax.model.parameters import abstract_params, adapted_layers
from rlef_jax.model.resharding import reshard
from rlef_jax.model.sharding import ROWS, param_shardings
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.decode import Drawn, Rows, decode
from rlef_jax.sampling.request import CUT, KINDS, PLAIN


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static shapes of a sampler.

    Attributes:
      rows: rows of the cache that are decoded together.
      max_len: most tokens of a row.
      cache_lengths: lengths of row for which decoding is compiled, ascending; `max_len` is one more. The shortest that
        holds all rows is used. A kernel that reads pages looks at none of them.
      prefill_chunks: lengths of chunk in which prompts are prefilled, ascending.
      prefill_tokens: of the chunks that are prefilled together, about.
      decode_steps: decoding steps of one dispatch.
      stop_ids: most stop ids of a request.
      page_slots: tokens of a page of keys and values.
      pages: of each device's rows (of each worker); 0 is as many as its rows need at `max_len` tokens each.
      kinds: of distribution that are drawn from, one or both of KINDS; what is made for "cut" ones draws from "plain"
        ones too, in more passes over the vocabulary.
    Raises ValueError for shapes that can't be.
    """

    rows: int
    max_len: int
    cache_lengths: tuple[int, ...]
    prefill_chunks: tuple[int, ...]
    prefill_tokens: int
    decode_steps: int
    stop_ids: int = 4
    page_slots: int = 64
    pages: int = 0
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        for name in ("rows", "max_len", "prefill_tokens", "decode_steps", "stop_ids", "page_slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cache_lengths", "prefill_chunks"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or min(values, default=1) < 1:
                raise ValueError(f"{name} must be ascending and at least 1, not {values}")
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds must be one or both of {', '.join(KINDS)}, not {self.kinds}")
        if not self.prefill_chunks:
            raise ValueError("prefill_chunks must name at least one length")
        if self.pages and self.pages < self.row_pages:
            raise ValueError(f"pages={self.pages} can't hold a row of {self.max_len} tokens, {self.row_pages} pages")

    @property
    def row_pages(self) -> int:
        """Pages of the longest row."""
        return -(-self.max_len // self.page_slots)

    def page_bytes(self, cfg: ModelConfig, dtype: Any, tensor: int) -> int:
        """Bytes of a page's keys and values on each of the `tensor` devices that share the heads."""
        heads = cfg.n_kv_heads // tensor
        return 2 * cfg.n_layers * heads * self.page_slots * cfg.d_head * jnp.dtype(dtype).itemsize

    @property
    def moved_pages(self) -> int:
        """Pages that are moved together, out of the cache or back: some hundred tokens."""
        return min(self.row_pages, max(1, 512 // self.page_slots))

    def chunk_rows(self, chunk: int, shards: int = 1) -> int:
        """Chunks of a length that are prefilled together, as many in each of the shards of rows."""
        each = max(1, self.prefill_tokens // chunk // shards)
        return shards * min(self.rows // shards, each)

    def cache_length(self, longest: int) -> int:
        """The shortest cache length that holds rows of `longest` tokens."""
        return next((c for c in self.cache_lengths if longest <= c < self.max_len), self.max_len)

    def split(self, count: int) -> list[tuple[int, int]]:
        """(tokens, length of chunk) of the chunks of a prompt of `count` tokens: a function of the prompt alone."""
        longest = self.prefill_chunks[-1]
        whole, rest = divmod(count, longest)
        last = [(rest, next(c for c in self.prefill_chunks if rest <= c))] if rest else []
        return [(longest, longest)] * whole + last


class Programs:
    """The compiled programs of one model and set of shapes, on the devices of `mesh`.

    Attributes: `shards` of rows, each with a pool of `pages`. Pages that aren't there have the number `pages`.

    They hold no state. Weights are given as `prepare` makes them, cache and arrays as `new_cache` and `Rows` say.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        shapes: Shapes,
        mesh: Mesh,
        *,
        dtype: Any = jnp.float32,
        one_thread: bool = False,
        where: Where | None = None,
    ) -> None:
        """Args:
          one_thread: on CPUs, a program runs on one core, for as many workers as there are cores: workers that share
            all of the cores wait for each other's products.
          where: how attention reaches the cache, if not as it is best on the mesh's devices.

        Raises ValueError where the model is too short for the rows or the mesh doesn't divide them.
        """
        if shapes.max_len > cfg.max_positions:
            raise ValueError(f"max_len={shapes.max_len} is over the model's max_positions={cfg.max_positions}")
        self.shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if shapes.rows % self.shards:
            raise ValueError(f"mesh axes data * fsdp = {self.shards} don't divide {shapes.rows} rows")
        self.cfg, self.shapes, self.mesh, self.dtype = cfg, shapes, mesh, jnp.dtype(dtype)
        self.pages = shapes.pages or shapes.rows // self.shards * shapes.row_pages
        self.where = kv_cache.reached(mesh, cfg, shapes.page_slots, dtype) if where is None else where
        self.compiled = 0
        cpu = mesh.devices.flat[0].platform == "cpu"
        self._options = {"xla_cpu_multi_thread_eigen": False} if one_thread and cpu else None
        self._rows = NamedSharding(mesh, ROWS)
        self._cache = NamedSharding(mesh, kv_cache.POOL)
        self._moved = NamedSharding(mesh, kv_cache.MOVED)
        self._weights = jax.tree.map(
            lambda s: NamedSharding(mesh, PartitionSpec(*(None if a == "fsdp" else a for a in s.spec))),
            param_shardings(mesh, cfg),
        )
        self._turned = kv_cache.unstacked_shardings(self._weights, cfg)
        self._layer = jax.jit(lambda layers, index: kv_cache.turned_layer(layers, index, cfg, self.dtype))
        make = functools.partial(kv_cache.init_cache, cfg, self.shards * self.pages, shapes.page_slots, self.dtype)
        self._empty = jax.jit(make, out_shardings=self._cache)
        self._decode: dict[tuple[int, str], Any] = {}
        self._prefill: dict[tuple[int, bool], Any] = {}
        self._take: Any = None
        self._put: Any = None

    def prepare(self, params: Params, before: Params | None = None) -> Params:
        """A copy of parameters as the programs take them, in their dtype: the caller may donate its own afterwards.

        One layer after the other is cast and turned where it lies, and then travels: beside the weights themselves no
        device holds more than a layer. Of a model with adapters only they travel where `before` is what an earlier
        call gave for the same base. Raises ValueError where the trainer's devices aren't a multiple of the shards.
        """

        def moved(tree: Any, shardings: Any) -> Any:
            return jax.tree.map(lambda array, sharding: reshard(array, sharding, self.dtype), tree, shardings)

        def turned(stack: Params, layers: Sequence[Params]) -> list[Params]:
            """The layers of a stack; `layers` are the shardings of all that they have."""
            return [
                moved(self._layer(stack, np.int32(index)), {name: shardings[name] for name in stack})
                for index, shardings in enumerate(layers)
            ]

        base, adapters = split(params["layers"])
        if before is None:
            others = {name: moved(tree, self._turned[name]) for name, tree in params.items() if name != "layers"}
            layers = turned(base, self._turned["layers"])
        else:
            others, layers = before, [split(layer)[0] for layer in before["layers"]]
        first = self.cfg.n_layers - adapted_layers(self.cfg)
        added = turned(adapters, self._turned["layers"][first:])
        return {**others, "layers": (*layers[:first], *[a | b for a, b in zip(layers[first:], added, strict=True)])}

    def new_cache(self) -> KVCache:
        """An empty cache."""
        return self._empty()

    def lowered(self, dtype: Any = jnp.float32, trainer: Params | None = None) -> dict[str, jax.stages.Lowered]:
        """Each program by its name, from shapes and shardings alone: the mesh's devices needn't be there.

        "decode LENGTH plain" and "decode LENGTH cut" (see `decode`), "prefill CHUNK first" and "prefill CHUNK later",
        "take", "put", and "prepare", which makes one layer out of the trainer's stacked weights, where they lie: one
        layer's adapters, of a model that has some.

        Args:
          dtype, trainer: of the trainer's weights, and where they lie (by default split as the sampler's).
        """
        layers = abstract_params(self.cfg, dtype, self._weights if trainer is None else trainer)["layers"]
        layers = split(layers)[1] or layers
        [mesh] = {array.sharding.mesh for array in jax.tree.leaves(layers)}
        index = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        found = {name: lower() for name, lower in self._lowerings()}
        return found | {"prepare": self._layer.lower(layers, index)}

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
                self._decode[int(which[0]), which[1]] = program
            elif what == "prefill":
                self._prefill[int(which[0]), which[1] == "first"] = program
        self._take, self._put = made["take"], made["put"]

    def _lowerings(self) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
        """(name, what lowers it) of each program of a session."""
        s = self.shapes
        weights, cache, rows = self._abstract_weights(), self._abstract_cache(), self._abstract_rows()

        def program(function: Any, donate: tuple[int, ...], out: Any, *args: Any) -> Callable[[], jax.stages.Lowered]:
            def lower() -> jax.stages.Lowered:
                jitted = jax.jit(function, donate_argnums=donate, out_shardings=out)
                if not self.where.kernel:
                    return jitted.lower(*args)
                with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):  # a kernel asks it what GPU there is
                    return jitted.lower(*args)

            return lower

        def per_row(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._rows)

        for capacity in self._capacities():
            for kind in s.kinds:
                run = functools.partial(
                    decode, cfg=self.cfg, where=self.where, steps=s.decode_steps, capacity=capacity, plain=kind == PLAIN
                )
                yield f"decode {capacity} {kind}", program(run, (1,), (self._cache, None), weights, cache, rows)
        for chunk in s.prefill_chunks:
            count = s.chunk_rows(chunk, self.shards)
            args = per_row(count, s.row_pages), per_row(count, chunk), per_row(count)
            for first in (True, False):
                fill = functools.partial(_prefill, cfg=self.cfg, capacity=0 if first else s.max_len, where=self.where)
                name = f"prefill {chunk} {'first' if first else 'later'}"
                yield name, program(fill, (1,), self._cache, weights, cache, *args)
        pages = per_row(self.shards, s.moved_pages)
        take, put = (functools.partial(f, where=self.where) for f in (kv_cache.take, kv_cache.put))
        moved = jax.eval_shape(take, cache, pages)
        moved = jax.ShapeDtypeStruct(moved.shape, moved.dtype, sharding=self._moved)
        yield "take", program(take, (), self._moved, cache, pages)
        yield "put", program(put, (0,), self._cache, cache, pages, moved)

    def _capacities(self) -> list[int]:
        """The lengths that decoding is compiled for."""
        s = self.shapes
        return [s.max_len] if self.where.kernel else sorted({s.cache_length(n) for n in range(1, s.max_len + 1)})

    def decode(self, weights: Params, cache: KVCache, rows: Rows) -> tuple[KVCache, Drawn]:
        """One dispatch; `rows` holds numpy arrays. The cache is consumed.

        Raises ValueError where a row's distribution is of no kind that is compiled.
        """
        plain = bool(np.all((rows.temperature > 0) & (rows.top_k == 0) & (rows.top_p >= 1.0)))
        kind = PLAIN if plain and PLAIN in self.shapes.kinds else CUT
        if kind not in self.shapes.kinds:
            raise ValueError("decoding is compiled for neither temperature 0 nor top_k or top_p (Shapes.kinds)")
        longest = int(np.max(np.where(rows.room > 0, rows.lengths, 0), initial=1))
        capacity = self.shapes.max_len if self.where.kernel else self.shapes.cache_length(longest)
        return self._decode[capacity, kind](weights, cache, jax.device_put(rows, self._rows))

    def prefill(
        self, weights: Params, cache: KVCache, tables: np.ndarray, tokens: np.ndarray, starts: np.ndarray
    ) -> KVCache:
        """Prefills chunks [R, C] of rows with `tables` [R, N], all at the start of their rows or none.

        The R places are shared evenly and in order by the shards. The cache is consumed.
        """
        program = self._prefill[tokens.shape[1], not starts.any()]
        return program(weights, cache, *jax.device_put((tables, tokens, starts), self._rows))

    def take(self, cache: KVCache, shard: int, pages: Sequence[int]) -> np.ndarray:
        """The contents [L, 2, M, K, S, H] of M pages of a shard, on the host."""
        parts = [
            np.asarray(self._take(cache, numbers))[shard, :, :, :count] for numbers, count in self._moves(shard, pages)
        ]
        return np.concatenate(parts, axis=2)

    def put(self, cache: KVCache, shard: int, pages: Sequence[int], taken: np.ndarray) -> KVCache:
        """Puts pages' contents back, bit for bit, into any pages of any shard. The cache is consumed."""
        together, at = self.shapes.moved_pages, 0
        for numbers, count in self._moves(shard, pages):
            part = np.zeros((self.shards, *taken.shape[:2], together, *taken.shape[3:]), taken.dtype)
            part[shard, :, :, :count] = taken[:, :, at : at + count]
            cache, at = self._put(cache, numbers, jax.device_put(part, self._moved)), at + count
        return cache

    def _moves(self, shard: int, pages: Sequence[int]) -> Iterator[tuple[jax.Array, int]]:
        """(page numbers as `take` and `put` are given them, how many of them are meant), in order."""
        together = self.shapes.moved_pages
        for at in range(0, len(pages), together):
            part = pages[at : at + together]
            numbers = np.full((self.shards, together), self.pages, np.int32)
            numbers[shard, : len(part)] = part
            yield jax.device_put(numbers, self._rows), len(part)

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
        made = jax.eval_shape(self._empty)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._cache), made)

    def _abstract_rows(self) -> Rows:
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._rows),
            self.empty_rows(),
        )

    def empty_rows(self) -> Rows:
        """Idle rows, as numpy arrays."""

        def filled(value: float, dtype: Any, *shape: int) -> Any:
            return np.full((self.shapes.rows, *shape), value, dtype)

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
            stop_ids=filled(-1, np.int32, self.shapes.stop_ids),
            tables=filled(self.pages, np.int32, self.shapes.row_pages),
        )


def _prefill(
    params: Params,
    cache: KVCache,
    tables: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    *,
    cfg: ModelConfig,
    capacity: int,
    where: Where,
) -> KVCache:
    return kv_cache.prefill(params, cfg, cache, tables, tokens, starts, capacity=capacity, where=where)
