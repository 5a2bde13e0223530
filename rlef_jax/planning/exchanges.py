"""Reads what a compiled program's devices exchange: kind, dtype, mesh axes, bytes, loops around it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from rlef_jax.planning.hlo import Instruction, Module, arrays, size_of

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One instruction's exchange between `size` devices that differ in `axes`, within `span` consecutive ones.

    Attributes:
      name, computation: of the instruction, of the start if it is asynchronous.
      kind: of `KINDS`.
      dtype: what travels; those of several arrays are joined by "+".
      output: bytes of its results on a device, once.
      bytes: that a device sends with ring algorithms, once.
      times: runs of it in one run of the program.
      loops: trips of the loops around it, outermost first.
      asynchronous: whether it has a start and an end, with other instructions between.
    """

    name: str
    computation: str
    kind: str
    dtype: str
    axes: tuple[str, ...]
    size: int
    span: int
    output: float
    bytes: float
    times: float
    loops: tuple[float, ...]
    asynchronous: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """All of a program's exchanges of one kind and dtype, in loops alike, between devices that differ in `axes`.

    Each exchange is between `size` devices within a range of `span` consecutive ones. `bytes` is the total that a
    device sends with ring algorithms, `count` the number of exchanges, `output` the total of their results' bytes, and
    `hidden` the part of `output` whose exchange is asynchronous.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    span: int
    bytes: float
    count: float
    dtype: str = "f32"
    output: float = 0.0
    loops: tuple[float, ...] = ()
    hidden: float = 0.0


def read_collectives(
    module: Module, mesh_shape: Sequence[int], axes: Sequence[str], *, open_trips: float = 1.0, float_bytes: int = 4
) -> tuple[Collective, ...]:
    """A module's exchanges between several devices, most bytes first. Arguments as in `work.read_work`."""
    totals: dict[tuple, list[float]] = defaultdict(lambda: [0.0] * 4)
    for e in read_exchanges(module, mesh_shape, axes, open_trips=open_trips, float_bytes=float_bytes):
        total = totals[e.kind, e.axes, e.size, e.span, e.dtype, e.loops]
        sums = (e.bytes, 1.0, e.output, e.output if e.asynchronous else 0.0)
        totals[e.kind, e.axes, e.size, e.span, e.dtype, e.loops] = [t + e.times * s for t, s in zip(total, sums)]
    found = (
        Collective(kind, over, size, span, sent, count, dtype, output, loops, hidden)
        for (kind, over, size, span, dtype, loops), (sent, count, output, hidden) in totals.items()
    )
    return tuple(sorted(found, key=lambda c: -c.bytes))


def read_exchanges(
    module: Module, mesh_shape: Sequence[int], axes: Sequence[str], *, open_trips: float = 1.0, float_bytes: int = 4
) -> Iterator[Exchange]:
    """Each exchange between several devices, in the order in which the computations are first run."""
    wrapped = {
        called for body in module.computations.values() for i in body if i.kind == "async-start" for called in i.called
    }
    for name, (times, loops) in module.runs(open_trips).items():
        for i in module.computations[name]:
            kind = exchange_kind(i, module)
            if not kind or name in wrapped:
                continue
            shape = _result(i, module.computations[name])
            members = first_group(_attributes(i, module), math.prod(mesh_shape))
            if len(members) < 2:
                continue
            output = size_of(shape, float_bytes)
            yield Exchange(
                i.name, name, kind, "+".join(sorted({dtype for dtype, _ in arrays(shape)})),
                _varying_axes(members, mesh_shape, axes), len(members), max(members) - min(members) + 1,
                output, _bytes_sent(kind, output, len(members)), times, loops, i.kind.endswith("-start"),
            )  # fmt: skip


def exchange_kind(i: Instruction, module: Module) -> str:
    """Which of `KINDS` an instruction begins or is, "" for others and for the ends of asynchronous ones."""
    if (kind := i.kind.removesuffix("-start")) in KINDS:
        return kind
    if i.kind == "async-start":
        return next((part.kind for name in i.called for part in module.computations[name] if part.kind in KINDS), "")
    return ""


def _attributes(i: Instruction, module: Module) -> str:
    """The text that says which devices take part: of a wrapper it is the wrapped instruction's."""
    if i.kind != "async-start":
        return i.rest
    return next(part.rest for name in i.called for part in module.computations[name] if part.kind in KINDS)


def end_of(start: Instruction, body: Sequence[Instruction]) -> Instruction | None:
    """The instruction that waits for an asynchronous `start`, through those that only pass it on."""
    names = {start.name}
    for i in body:
        if names & set(i.arguments):
            if i.kind.endswith("-done"):
                return i
            if i.kind.endswith("-update"):
                names.add(i.name)
    return None


def _result(i: Instruction, body: Sequence[Instruction]) -> str:
    """The shape of what an exchange gives. A start's own shape holds its operands too."""
    end = end_of(i, body) if i.kind.endswith("-start") else None
    if end is not None:
        return end.shape
    if not i.kind.endswith("-start"):
        return i.shape
    kind, dims = arrays(i.shape)[-1]
    return f"{kind}[{','.join(map(str, dims))}]"


def first_group(rest: str, devices: int) -> list[int]:
    """The devices of an instruction's first group. Raises ValueError for groups written in a way that isn't known."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        chosen = re.findall(r"'(\w+)'", match[2])
        if ":(" not in match[2] and math.prod(sizes.values()) == devices:
            at = tuple(slice(None) if name in chosen else 0 for name in sizes)
            return np.arange(devices).reshape(tuple(sizes.values()))[at].ravel().tolist()
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        ids = np.arange(devices).reshape([int(n) for n in match[3].split(",")])
        if match[4]:
            ids = ids.transpose([int(n) for n in match[4].split(",")])
        return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(n) for n in match[1].split(",")]
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        pairs = re.findall(r"\{?(\d+),(\d+)", match[1])
        return next(([int(a), int(b)] for a, b in pairs if a != b), [0])
    if match := re.search(r"replica_groups=(?!\{\})\S+", rest):
        raise ValueError(f"groups of devices that aren't understood: {match[0][:200]}")
    return list(range(devices))


def _varying_axes(members: Sequence[int], mesh_shape: Sequence[int], axes: Sequence[str]) -> tuple[str, ...]:
    """The axes along which the members' coordinates differ."""
    places = np.stack(np.unravel_index(np.asarray(members), tuple(mesh_shape)))
    return tuple(axis for axis, row in zip(axes, places) if len(set(row.tolist())) > 1)


def _bytes_sent(kind: str, result: float, size: int) -> float:
    """Bytes that a device sends for a `result` of so many bytes, with ring algorithms."""
    share = (size - 1) / size
    factors = {"all-reduce": 2 * share, "reduce-scatter": share * size, "collective-permute": 1.0}
    return factors.get(kind, share) * result
