"""What a compiled program must and must not do, read from its text: each check gives its complaints, none if it holds.

Bytes of exchanges are those of their results on one device, times the runs of their loops.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from rlef_jax.planning.exchanges import Exchange, read_exchanges
from rlef_jax.planning.hlo import Instruction, Module, arrays, size_of, sizes

_MIB = 2.0**20
_PASSES_ON = (
    "parameter", "tuple", "get-tuple-element", "while", "conditional", "call", "bitcast", "opt-barrier", "custom-call",
    "custom-call-start", "custom-call-done", "copy-done",
)  # fmt: skip
_WRITES = ("dynamic-update-slice", "scatter")


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """A program's exchanges, for questions about their bytes."""

    exchanges: tuple[Exchange, ...]

    def bytes_of(self, kind: str, axis: str | None = None) -> dict[str, float]:
        """{dtype: bytes} of exchanges of a kind; with an `axis`, of those along it, and perhaps along others too."""
        totals: dict[str, float] = defaultdict(float)
        for e in self.exchanges:
            if e.kind == kind and (axis is None or axis in e.axes):
                totals[e.dtype] += e.output * e.times
        return dict(totals)

    def along(self, axis: str) -> float:
        """Bytes of all exchanges along a mesh axis."""
        return sum(e.output * e.times for e in self.exchanges if axis in e.axes)

    def reduced_in_loops(self, least: float = _MIB) -> list[Exchange]:
        """All-reduces inside of loops, of `least` bytes each or more: gradients that are added up again and again."""
        return [e for e in self.exchanges if e.kind == "all-reduce" and e.loops and e.output >= least]


def exchanged(module: Module, mesh_shape: Sequence[int], axes: Sequence[str], *, open_trips: float = 1.0) -> Exchanged:
    """A module's exchanges; arguments as in `work.read_work`."""
    return Exchanged(tuple(read_exchanges(module, mesh_shape, axes, open_trips=open_trips)))


def gathers_faults(found: Exchanged, *, most: float, dtype: str, least: float = _MIB) -> list[str]:
    """Weights are gathered in `dtype` only, `most` bytes in all. Exchanges below `least` bytes are no weights."""
    total = sum(found.bytes_of("all-gather").values())
    faults = [
        f"{e.name}: {e.output * e.times / 1e9:.2f} GB are gathered as {e.dtype}, not {dtype}"
        for e in found.exchanges
        if e.kind == "all-gather" and e.dtype != dtype and e.output >= least
    ]
    return faults + ([f"{total / 1e9:.1f} GB are gathered, more than {most / 1e9:.1f}"] if total > most else [])


def reduces_faults(found: Exchanged, *, least: float = _MIB) -> list[str]:
    """Gradients are reduced and scattered, and no loop adds them up whole."""
    faults = [
        f"{e.name}: {e.output / 1e6:.0f} MB of {e.dtype} are all-reduced over {'+'.join(e.axes)} {e.times:.0f} times"
        for e in found.reduced_in_loops(least)
    ]
    return faults + ([] if found.bytes_of("reduce-scatter") else ["nothing is reduced and scattered"])


def axis_faults(found: Exchanged, axis: str, *, most: float) -> list[str]:
    """At most `most` bytes travel along a mesh axis."""
    total = found.along(axis)
    return [f"{total / 1e9:.1f} GB travel along {axis}, more than {most / 1e9:.1f}"] if total > most else []


def donation_faults(module: Module, *, least: float = _MIB) -> list[str]:
    """Every parameter of `least` bytes or more whose shape some result has is taken over by a result.

    Of arrays that a program changes, what is not taken over lies there twice.
    """
    entry = module.computations[module.entry]
    given = {
        int(i.rest.partition(")")[0]): i.shape for i in entry if i.kind == "parameter" and size_of(i.shape) >= least
    }
    left = Counter(arrays(next(i for i in entry if i.root).shape))
    left.subtract(array for number in module.aliased & given.keys() for array in arrays(given[number]))
    return [
        f"parameter {number}, {shape.partition('{')[0]}, is not donated to a result"
        for number, shape in sorted(given.items())
        if number not in module.aliased and any(left[array] > 0 for array in arrays(shape))
    ]


def cache_arrays(module: Module, *, least: float = _MIB) -> set[tuple[str, int]]:
    """(dtype, elements) of the arrays that a sampler's program is given to change: large parameters that it aliases."""
    found = set()
    for i in module.computations[module.entry]:
        if i.kind == "parameter" and int(i.rest.partition(")")[0]) in module.aliased and size_of(i.shape) >= least:
            found |= {(dtype, math.prod(dims)) for dtype, dims in arrays(i.shape)}
    return found


def cache_faults(module: Module, cache: Collection[tuple[str, int]], *, slices: float = 1 / 8) -> list[str]:
    """No array of the cache, (dtype, elements) each, is copied, or touched but by kernels, writes in its place, and
    reads of a slice or of pages that are at most the fraction `slices` of it."""
    faults = [] if cache else ["no array of the cache's is taken over"]
    for name in module.runs():
        if name in module.fused:
            continue
        shapes = module.shapes[name]
        for i in module.computations[name]:
            given = [a for a in i.arguments if _is_any(shapes.get(a, ""), cache)]
            if given and not _leaves_in_place(i, module, cache, slices):
                what = "copies" if i.kind.startswith("copy") or _is_any(i.shape, cache) else "reads"
                faults.append(f"{i.name} ({i.kind}) {what} {given[0]}, {shapes[given[0]].partition('{')[0]}")
    return faults


def _is_any(shape: str, cache: Collection[tuple[str, int]]) -> bool:
    return not shape.startswith("(") and any((dtype, math.prod(dims)) in cache for dtype, dims in arrays(shape))


def _leaves_in_place(i: Instruction, module: Module, cache: Collection[tuple[str, int]], slices: float) -> bool:
    if i.kind not in ("fusion", "fusion-start"):
        return i.kind in _PASSES_ON or i.kind in _WRITES or _is_slice(i, cache, slices)
    body = module.computations[i.called[0]]
    return all(
        user.kind in ("bitcast", "tuple")
        or (user.kind in _WRITES and user.arguments[0] == part.name)
        or _is_slice(user, cache, slices)
        for part in _cached(body, cache)
        for user in body
        if part.name in user.arguments
    )


def _is_slice(i: Instruction, cache: Collection[tuple[str, int]], slices: float) -> bool:
    whole = min((elements for _, elements in cache), default=0)
    return i.kind in ("slice", "dynamic-slice", "gather") and math.prod(sizes(i.shape)) <= slices * whole


def _cached(body: Sequence[Instruction], cache: Collection[tuple[str, int]]) -> Iterator[Instruction]:
    """A fusion's parameters that are of the cache, and what they are called after a bitcast."""
    return (i for i in body if i.kind in ("parameter", "bitcast") and _is_any(i.shape, cache))


def kernel_faults(module: Module, *targets: str) -> list[str]:
    """Every one of the kernels is called, by the beginning of its name."""
    called = {i.target for name in module.runs() for i in module.computations[name] if i.kind == "custom-call"}
    return [f"no kernel {target}" for target in targets if not any(name.startswith(target) for name in called)]
