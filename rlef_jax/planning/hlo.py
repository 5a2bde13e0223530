"""Reads the costs of a compiled program from its text (HLO): matrix products, memory traffic and collectives.

Loop bodies count as often as they run. XLA's own cost analysis counts them once, and doesn't know the mesh's axes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8,
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)\}?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTROL = ("while", "conditional", "call")
_FREE = (
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota", "partition-id", "replica-id",
)  # fmt: skip
_READS = ("slice", "dynamic-slice", "gather")  # they read only as much of their first argument as their result holds
_SLICES = (*_READS, "dynamic-update-slice")
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All of a program's exchanges of one kind between devices that differ in `axes`.

    Each exchange is between `size` devices within a range of `span` consecutive ones. `bytes` is the total that a
    device sends with ring algorithms, `count` the number of exchanges.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    span: int
    bytes: float
    count: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One device's work in one run of a program: operations of matrix products, bytes read and written by everything
    else, and exchanges."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    rest: str


def read_work(
    text: str, mesh_shape: Sequence[int], axes: Sequence[str], *, open_trips: float = 1.0, float_bytes: int = 4
) -> Work:
    """The work of a compiled program, from `compiled.as_text()`.

    Args:
      text: the module as XLA prints it.
      mesh_shape, axes: sizes and names of the mesh's axes; device i is the i-th in row-major order.
      open_trips: assumed trip count of loops without a known one.
      float_bytes: bytes counted for a float32 value: 2 if it computes in bfloat16, which CPUs keep as float32.
    """
    computations, entry = _computations(text)
    flops, moved = 0.0, 0.0
    fused = _fused(computations)
    totals: dict[tuple[str, tuple[str, ...], int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, times in _run_counts(computations, entry, open_trips).items():
        shapes = {i.name: i.shape for i in computations[name]}
        for i in computations[name]:
            if name not in fused:
                moved += times * _bytes_moved(i, shapes, computations, float_bytes)
            if i.kind == "dot":
                flops += times * _dot_flops(i, shapes)
            elif (kind := i.kind.removesuffix("-start")) in _KINDS:
                members = _first_group(i.rest, math.prod(mesh_shape))
                sent = _bytes_sent(kind, _bytes(i.shape, float_bytes, last=i.kind != kind), len(members))
                span = max(members) - min(members) + 1
                total = totals[kind, _varying_axes(members, mesh_shape, axes), len(members), span]
                total[0] += times * sent
                total[1] += times
    collectives = (Collective(*key, *total) for key, total in totals.items() if key[2] > 1)
    return Work(flops, moved, tuple(sorted(collectives, key=lambda c: -c.bytes)))


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """({name: instructions}, name of the entry computation)."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_Instruction(*match.groups()))
    return computations, entry


def _run_counts(computations: dict[str, list[_Instruction]], entry: str, open_trips: float) -> dict[str, float]:
    """{computation: number of runs}, for those reachable from the entry."""
    times: dict[str, float] = defaultdict(float)

    def visit(name: str, count: float) -> None:
        times[name] += count
        for i in computations[name]:
            trips = 1.0
            if i.kind == "while":
                match = _TRIPS.search(i.rest)
                trips = float(match[1]) if match else open_trips
            for called in _called(i.rest):
                visit(called, count * trips)

    visit(entry, 1.0)
    return times


def _called(rest: str) -> Iterator[str]:
    for match in _CALLED.finditer(rest):
        yield from re.findall(r"%([\w.\-]+)", match[1])


def _sizes(shape: str) -> list[int]:
    """Dimensions of the first array in a shape."""
    match = _SHAPE.search(shape)
    return [int(n) for n in match[2].split(",") if n] if match else []


def _bytes(shape: str, float_bytes: int, *, last: bool) -> float:
    """Bytes of all arrays of a shape, or only of the last (an asynchronous start lists its input first)."""
    arrays = _SHAPE.findall(shape)[-1 if last else 0 :]
    sizes = _BYTES | {"f32": float_bytes}
    return float(sum(sizes[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in arrays))


def _dot_flops(i: _Instruction, shapes: dict[str, str]) -> float:
    left = re.search(r"%([\w.\-]+)", i.rest)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
    assert left is not None and contracted is not None, i
    sizes = _sizes(shapes[left[1]])
    return 2.0 * math.prod(_sizes(i.shape)) * math.prod(sizes[int(d)] for d in contracted[1].split(",") if d)


def _fused(computations: dict[str, list[_Instruction]]) -> set[str]:
    """Computations whose values never reach memory: bodies of fusions and the functions of reductions."""
    callers = [i for body in computations.values() for i in body if i.kind not in _CONTROL]
    return {called for i in callers for called in _called(i.rest)}


def _bytes_moved(
    i: _Instruction, shapes: dict[str, str], computations: dict[str, list[_Instruction]], float_bytes: int
) -> float:
    """Bytes that an instruction reads and writes, each argument once; 0 for products, exchanges and control.

    For operations on a slice only the slice counts, since the rest of the array isn't touched.
    """
    if i.kind in _FREE or i.kind in _CONTROL or i.kind.removesuffix("-start").removesuffix("-done") in _KINDS:
        return 0.0
    body = computations[next(_called(i.rest))] if i.kind == "fusion" else [i]
    if any(part.kind == "dot" for part in body):
        return 0.0
    arguments = [name for name in _arguments(i) if name in shapes]
    if i.kind != "fusion":
        return _bytes_touched(i, [shapes[name] for name in arguments], float_bytes)
    local = {part.name: part for part in body}
    total, replaced = 0.0, 0.0
    for part in body:
        if part.kind == "dynamic-update-slice":
            replaced += _bytes(local[_arguments(part)[1]].shape, float_bytes, last=False)
        elif part.kind == "parameter":
            users = [user for user in body if part.name in _arguments(user)]
            if all(user.kind in _SLICES and _arguments(user)[0] == part.name for user in users):
                total += sum(_bytes(user.shape, float_bytes, last=False) for user in users if user.kind in _READS)
            else:
                total += _bytes(part.shape, float_bytes, last=False)
    return total + (replaced if replaced else _bytes(i.shape, float_bytes, last=False))


def _bytes_touched(i: _Instruction, arguments: Sequence[str], float_bytes: int) -> float:
    """Bytes that an instruction outside of a fusion reads and writes."""
    result = _bytes(i.shape, float_bytes, last=False)
    if i.kind in _READS:
        return 2 * result
    if i.kind in ("dynamic-update-slice", "scatter"):
        return 2 * _bytes(arguments[-1 if i.kind == "scatter" else 1], float_bytes, last=False)
    return result + sum(_bytes(shape, float_bytes, last=False) for shape in arguments)


def _arguments(i: _Instruction) -> list[str]:
    """Names of an instruction's arguments, in order."""
    return re.findall(r"%([\w.\-]+)", i.rest.partition(")")[0])


def _first_group(rest: str, devices: int) -> list[int]:
    """The devices of an instruction's first group."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        chosen = re.findall(r"'(\w+)'", match[2])
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
    return list(range(devices))


def _varying_axes(members: Sequence[int], mesh_shape: Sequence[int], axes: Sequence[str]) -> tuple[str, ...]:
    """The axes along which the members' coordinates differ."""
    places = np.stack(np.unravel_index(np.asarray(members), tuple(mesh_shape)))
    return tuple(axis for axis, row in zip(axes, places) if len(set(row.tolist())) > 1)


def _bytes_sent(kind: str, result: float, size: int) -> float:
    """Bytes that a device sends for a `result` of so many bytes, with ring algorithms."""
    share = (size - 1) / size
    return {
        "all-reduce": 2 * share * result,
        "all-gather": share * result,
        "reduce-scatter": share * size * result,
        "all-to-all": share * result,
        "collective-permute": result,
    }[kind]
