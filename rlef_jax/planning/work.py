"""What a compiled program computes and moves: operations of matrix products, bytes of everything else, its kernels.

Loop bodies count as often as they run. XLA's own cost analysis counts them once, and on GPUs there is none.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence

from rlef_jax.planning.exchanges import KINDS, Collective, read_collectives
from rlef_jax.planning.hlo import Instruction, Module, parse, size_of, sizes

_CONTROL = ("while", "conditional", "call")
_FREE = (
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota", "partition-id", "replica-id",
    "opt-barrier", "fusion-done", "copy-done", "async-done", "async-update",
)  # fmt: skip
_READS = ("slice", "dynamic-slice", "gather")  # they read only as much of their first argument as their result holds
_WRITES = ("dynamic-update-slice", "scatter")  # the rest of their first argument stays where it is
_SLICES = (*_READS, *_WRITES)
_PRODUCTS = ("dot", "convolution")  # TPUs' products are convolutions
_CUBLAS, _FMHA = "__cublas$", "__cudnn$fmha"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All of a program's calls of one library's or hand-written kernel.

    `count` calls have operations `flops` and operands and results of `bytes` together. A kernel that looks at part of
    an operand, such as attention over a cache, moves less.
    """

    target: str
    count: float
    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One device's work in one run of a program: operations of matrix products, bytes read and written by everything
    else (kernels apart), exchanges, kernels, and the bytes that matrix products read and write."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    kernels: tuple[Kernel, ...] = ()
    product_bytes: float = 0.0


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
    return work_of(parse(text), mesh_shape, axes, open_trips=open_trips, float_bytes=float_bytes)


def work_of(
    module: Module, mesh_shape: Sequence[int], axes: Sequence[str], *, open_trips: float = 1.0, float_bytes: int = 4
) -> Work:
    """`read_work` of a parsed module."""
    flops, moved, by_products = 0.0, 0.0, 0.0
    kernels: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, (times, _) in module.runs(open_trips).items():
        shapes = module.shapes[name]
        for i in module.computations[name]:
            products = flops_of(i, shapes)
            flops += times * products
            if i.kind == "custom-call" and not i.target.startswith(_CUBLAS):
                totals = kernels[i.target]
                whole = size_of(i.shape, float_bytes) + sum(
                    size_of(shapes.get(a, ""), float_bytes) for a in i.arguments
                )
                kernels[i.target] = [totals[0] + times, totals[1] + times * products, totals[2] + times * whole]
            elif name not in module.fused:
                through = times * bytes_moved(i, module, shapes, float_bytes)
                moved, by_products = (
                    (moved, by_products + through) if is_product(i, module) else (moved + through, by_products)
                )
    return Work(
        flops, moved,
        read_collectives(module, mesh_shape, axes, open_trips=open_trips, float_bytes=float_bytes),
        tuple(Kernel(target, *totals) for target, totals in sorted(kernels.items())), by_products,
    )  # fmt: skip


def flops_of(i: Instruction, shapes: dict[str, str]) -> float:
    """Operations of an instruction's own matrix products: a dot or convolution, a cuBLAS call, cuDNN attention."""
    if i.kind in _PRODUCTS:
        return _dot_flops(i, shapes) if i.kind == "dot" else _convolution_flops(i, shapes)
    if i.kind != "custom-call":
        return 0.0
    if i.target.startswith(_CUBLAS):
        return _cublas_flops(i, shapes)
    return _attention_flops(i, shapes) if i.target.startswith(_FMHA) else 0.0


def _dot_flops(i: Instruction, shapes: dict[str, str]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
    assert contracted is not None, i
    return _product(i.shape, shapes[i.arguments[0]], [int(d) for d in contracted[1].split(",") if d])


def _convolution_flops(i: Instruction, shapes: dict[str, str]) -> float:
    """Operations of a product as TPUs have it: a convolution over features ("i" of the right side's labels).

    Its other axes are numbered. Of those that a product sums over the result has one place, and all of the left side's
    count; the rest, batches and free axes, meet one place each.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
    assert labels is not None, i
    left, right = (sizes(shapes[name]) for name in i.arguments[:2])
    result = sizes(i.shape)
    summed = right[labels[2].index("i")]
    for axis in filter(str.isdigit, labels[1]):
        if result[labels[3].index(axis)] == 1:
            summed *= left[labels[1].index(axis)]
    return 2.0 * math.prod(result) * summed


def _cublas_flops(i: Instruction, shapes: dict[str, str]) -> float:
    """Operations of `__cublas$gemm` and `__cublas$lt$matmul`, whose dimensions are in their configuration."""
    contracted = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', i.rest)
    if contracted is None:
        raise ValueError(f"{i.name}: a {i.target} without lhs_contracting_dimensions")
    return _product(i.shape, shapes[i.arguments[0]], [int(d) for d in re.findall(r"\d+", contracted[1])])


def _product(result: str, left: str, contracted: Sequence[int]) -> float:
    return 2.0 * math.prod(sizes(result)) * math.prod(sizes(left)[d] for d in contracted)


def _attention_flops(i: Instruction, shapes: dict[str, str]) -> float:
    """Operations of cuDNN's fused attention: two products forward, five backward; half of them under a causal mask."""
    match = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*(\[[^\]]*\])', i.rest)
    if match is None:
        raise ValueError(f"{i.name}: a {i.target} without intermediate_tensor_shape")
    scores = math.prod(int(n) for n in json.loads(match[1]))  # batch, heads, queries, keys
    products = 5 if "Backward" in i.target else 2
    share = 0.5 if '"CAUSAL"' in i.rest or '"PADDING_CAUSAL"' in i.rest else 1.0
    return 2.0 * products * scores * sizes(shapes[i.arguments[0]])[-1] * share


def is_product(i: Instruction, module: Module) -> bool:
    """Whether an instruction is a matrix product, alone or in a fusion."""
    if i.kind in ("fusion", "fusion-start"):
        return any(is_product(part, module) for part in module.computations[i.called[0]])
    return i.kind in _PRODUCTS or (i.kind == "custom-call" and i.target.startswith(_CUBLAS))


def bytes_moved(i: Instruction, module: Module, shapes: dict[str, str], float_bytes: int) -> float:
    """Bytes that an instruction reads and writes, each argument once; 0 for exchanges, kernels and control.

    For operations on a slice only the slice counts, since the rest of the array isn't touched.
    """
    if i.kind in _FREE or i.kind in _CONTROL or i.kind.removesuffix("-start").removesuffix("-done") in KINDS:
        return 0.0
    if i.kind == "custom-call" and not i.target.startswith(_CUBLAS):
        return 0.0
    if i.kind not in ("fusion", "fusion-start"):
        return _bytes_touched(i, [shapes[name] for name in i.arguments if name in shapes], float_bytes)
    body = module.computations[i.called[0]]
    local = {part.name: part for part in body}
    total, replaced = 0.0, 0.0
    for part in body:
        if part.kind in _WRITES:
            written = local.get(part.arguments[-1 if part.kind == "scatter" else 1])
            replaced += size_of(written.shape, float_bytes) if written else 0.0
        elif part.kind == "parameter":
            users = [user for user in body if part.name in user.arguments]
            if all(user.kind in _SLICES and user.arguments[0] == part.name for user in users):
                total += sum(size_of(user.shape, float_bytes) for user in users if user.kind in _READS)
            else:
                total += size_of(part.shape, float_bytes)
    if replaced:
        return total + replaced
    results = [part for part in body if part.root]
    return total + size_of(results[0].shape if results else i.shape, float_bytes)


def _bytes_touched(i: Instruction, arguments: Sequence[str], float_bytes: int) -> float:
    """Bytes that an instruction outside of a fusion reads and writes."""
    result = size_of(i.shape, float_bytes)
    if i.kind in _READS:
        return 2 * result
    if i.kind in _WRITES:
        return 2 * size_of(arguments[-1 if i.kind == "scatter" else 1], float_bytes)
    if i.kind == "copy-start":
        return 2 * sum(size_of(shape, float_bytes) for shape in arguments)
    return result + sum(size_of(shape, float_bytes) for shape in arguments)
