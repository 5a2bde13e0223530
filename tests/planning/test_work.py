"""Costs of compiled programs: of a hand-written module, of those that XLA compiles, and of saved ones for H100s."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rlef_jax.model.parameters import count_params
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning import target
from rlef_jax.planning.costs import exchange_seconds, flops_per_token
from rlef_jax.planning.exchanges import Collective
from rlef_jax.planning.hlo import parse
from rlef_jax.planning.work import Kernel, read_work, work_of
from tests.helpers.hlo_texts import saved

MODULE = """\
HloModule jit_f, entry_computation_layout={(f32[16,8]{1,0})->f32[16,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%fused (p: f32[16,8], q: f32[8,32]) -> f32[16,32] {
  %p = f32[16,8]{1,0} parameter(0)
  %q = f32[8,32]{1,0} parameter(1)
  ROOT %dot.1 = f32[16,32]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %t = (s32[], f32[16,8]{1,0}) parameter(0)
  %x = f32[16,8]{1,0} get-tuple-element(%t), index=1
  %w = bf16[8,32]{1,0} all-gather(%x), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}
  %f = f32[16,32]{1,0} fusion(%x, %w), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[16,8]{1,0}) tuple(%x, %x)
}

%condition (c: (s32[], f32[16,8])) -> pred[] {
  ROOT %k = pred[] constant(false)
}

%open (t: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %x.1 = f32[16,8]{1,0} parameter(0)
  ROOT %dot.2 = f32[16,16]{1,0} dot(f32[16,8]{1,0} %x.1, f32[16,8]{1,0} %x.1), lhs_contracting_dims={1}
}

ENTRY %main (p0: f32[16,8]) -> f32[16,8] {
  %p0 = f32[16,8]{1,0} parameter(0)
  %init = (s32[], f32[16,8]{1,0}) tuple(%p0, %p0)
  %loop = (s32[], f32[16,8]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"},"other":1}
  %again = (s32[], f32[16,8]{1,0}) while(%init), condition=%condition, body=%open
  %sum = (f32[16,8]{1,0}, f32[4]{0}) all-reduce(%p0, %p0), channel_id=2, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = f32[16,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_count_as_often_as_they_run():
    work = read_work(MODULE, (2, 2, 2), ("data", "fsdp", "tensor"), open_trips=3)
    inside = 2 * 16 * 32 * 8
    assert work.flops == 5 * inside + 3 * (2 * 16 * 16 * 8)
    gathered, reduced = sorted(work.collectives, key=lambda c: c.kind)
    # Half of 8 x 32 bfloat16, five times, between devices 0 and 2: they differ along fsdp.
    whole = 8 * 32 * 2
    assert gathered == Collective("all-gather", ("fsdp",), 2, 3, 5 * 0.5 * whole, 5, "bf16", 5 * whole, (5.0,))
    whole = (16 * 8 + 4) * 4
    assert reduced == Collective("all-reduce", ("fsdp", "tensor"), 4, 4, 2 * 0.75 * whole, 1, "f32", whole)


def test_what_is_no_product_moves_its_arguments_and_results():
    """Bodies of fusions, products and exchanges don't count; of a stack that a loop fills, only the slices."""
    x = jnp.ones((64, 32))

    def moved(function, *arguments):
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return read_work(text, (1, 1, 1), ("data", "fsdp", "tensor")).bytes

    assert moved(lambda x: jnp.tanh(x) * 2 + x, x) == 2 * x.nbytes
    assert moved(lambda x, y: x @ y, x, x.T) == 0
    product = jax.jit(lambda x, y: x @ y).lower(x, x.T).compile().as_text()
    assert read_work(product, (1, 1, 1), ("data", "fsdp", "tensor")).product_bytes == 2 * x.nbytes + 64 * 64 * 4
    stacked = moved(lambda xs: jax.lax.scan(lambda c, x: (c, jnp.sin(x)), 0.0, xs)[1], jnp.ones((50, 64, 32)))
    # A slice read and one written each time; the whole stack each time would be 50 times that.
    assert 2 * 50 * x.nbytes <= stacked < 4 * 50 * x.nbytes


def test_groups_may_be_named_by_axes():
    groups = "replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'data','tensor'}"
    named = MODULE.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", groups)
    work = read_work(named, (2, 2, 2), ("data", "fsdp", "tensor"), float_bytes=2)
    [reduced] = [c for c in work.collectives if c.kind == "all-reduce"]
    assert (reduced.axes, reduced.size, reduced.span) == (("data", "tensor"), 4, 6)
    assert reduced.bytes == 2 * 0.75 * (16 * 8 + 4) * 2


def test_the_compilers_own_text_is_read():
    def repeated(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    text = jax.jit(repeated).lower(jnp.ones((6, 8)), jnp.ones((7, 8, 8))).compile().as_text()
    assert read_work(text, (1, 1, 1), ("data", "fsdp", "tensor")).flops == 7 * 2 * 6 * 8 * 8


AXES = ("data", "fsdp", "tensor")


def test_a_gpus_fsdp_step():
    """Four layers h + tanh(h W) W', W of bfloat16 [1024, 4096], 8 x 512 tokens a card, on 2 x 8 cards.

    A layer is two products, of which the first is made again for the backward pass, and four there. Weights are
    gathered for both passes, and gradients are reduced and scattered once for each layer.
    """
    work = work_of(parse(saved("fsdp")), (2, 8, 1), AXES)
    one = 2 * 8 * 512 * 1024 * 4096
    assert work.flops == 4 * (2 + 1 + 4) * one
    by_kind = {}
    for c in work.collectives:
        by_kind[c.kind] = by_kind.get(c.kind, 0) + c.output
    layer = 1024 * 4096 * 2
    assert by_kind["all-gather"] == 4 * 2 * layer
    assert by_kind["reduce-scatter"] == 4 * layer / 8
    assert all(c.axes == ("fsdp",) and c.dtype == "bf16" for c in work.collectives if c.kind != "all-reduce")


def test_kernels_are_counted_by_formula():
    """cuDNN's causal attention of 2,048 tokens, 32 heads of 128: two products forward, five backward, half of each."""
    forward, backward = work_of(parse(saved("cudnn")), (2, 8, 1), AXES).kernels
    square = 2 * 32 * 2048 * 2048 * 128 / 2
    assert forward == Kernel("__cudnn$fmhaSoftmax", 1, 2 * square, forward.bytes)
    assert backward.flops == 5 * square
    assert forward.bytes == 2 * 2048 * 128 * (32 + 8 + 8 + 32) + 4 * 32 * 2048


def test_cublas_products_are_read_from_their_configuration():
    text = """\
HloModule m

ENTRY %main () -> f32[16,32] {
  %p = f32[16,8]{1,0} parameter(0)
  %q = f32[8,32]{1,0} parameter(1)
  ROOT %g = (f32[16,32]{1,0}, s8[4194304]{0}) custom-call(%p, %q), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""
    assert work_of(parse(text), (1, 1, 1), AXES).flops == 2 * 16 * 32 * 8
    with pytest.raises(ValueError, match="lhs_contracting_dimensions"):
        work_of(parse(text.replace("lhs_contr", "contr")), (1, 1, 1), AXES)


@pytest.mark.parametrize(
    "left, right, result, how, products",
    [
        ("512,1024", "1024,2048", "512,2048", "dim_labels=bf_io->bf", 512 * 1024 * 2048),
        (
            "8,512,128", "8,512,128", "8,512,512",
            "window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf", 2**28,
        ),
        (
            "2,512,1,9", "9,8,128,1", "2,512,8,128",
            "window={size=1x8 pad=0_0x7_7}, dim_labels=0b1f_i1o0->0b1f", 9 * 2**20,
        ),
        ("16,32,64", "32,64,128", "16,1,128", "window={size=32}, dim_labels=b0f_0io->b0f", 16 * 32 * 64 * 128),
    ],
    ids=["plain", "batch", "free", "summed"],
)  # fmt: skip
def test_a_tpus_products_are_convolutions(left, right, result, how, products):
    text = f"""\
HloModule m

ENTRY %main () -> f32[] {{
  %p = bf16[{left}]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %q = bf16[{right}]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  ROOT %c = bf16[{result}]{{2,1,0:T(8,128)(2,1)}} convolution(%p, %q), {how}
}}
"""
    assert work_of(parse(text), (1, 1, 1), AXES).flops == 2 * products


def test_a_row_put_into_a_cache_moves_the_row():
    work = work_of(parse(saved("put")), (1, 1, 1), AXES)
    row = 8 * 1024 * 128 * 2
    assert 2 * row <= work.bytes <= 3 * row + 100  # the row, its slot, and what was there


def test_exchanges_within_a_node_take_its_links():
    card = target.card("h100")
    near = Collective("all-gather", ("fsdp",), 8, 8, 450e9, 1)
    far = Collective("all-reduce", ("data",), 16, 121, 50e9, 1)
    assert exchange_seconds([near, far], card, 0.5) == pytest.approx(4.0)


def test_llama_8b_by_hand():
    cfg = ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, tie_embeddings=False)
    assert count_params(cfg) == 8_030_261_248  # as its authors count
    # 2 operations a weight but the input embedding's, and 2 * 2 * 32 layers * 4096 a token that is looked at.
    weights = 2 * (8_030_261_248 - 128256 * 4096)
    assert flops_per_token(cfg, 2048, 1.0) == pytest.approx(weights + 2 * 2 * 32 * 4096 * 1024, rel=1e-4)
    half = dataclasses.replace(cfg, window=512, window_layers=(1, 0))
    seen = 512 * 1536 + sum(range(512))  # by all tokens together, in a layer with the window
    assert flops_per_token(half, 2048, 1.0) == pytest.approx(
        weights + 2 * 2 * 16 * 4096 * (1024 + seen / 2048), rel=1e-3
    )
