"""The sampler's programs compiled for H100s on a machine without one: memory, donation, bytes, no copy of the cache.

    make test-gpu-compile        (in the environment of `make gpu-env`; without its CUDA plugin all of this is skipped)

What a compilation can't show: which kernels autotuning would choose for the matrix products, and that the programs
compute what they should; the kernel's arithmetic is tested in the interpreter (tests/model/test_paged_attention.py).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import pytest

import rlef_jax
from rlef_jax.model.parameters import count_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.sampling.programs import Programs, Shapes
from tests.helpers import hlo_text

if importlib.util.find_spec("jax_cuda12_plugin") is None:
    pytest.skip("no CUDA plugin to compile with: see `make gpu-env`", allow_module_level=True)

pytestmark = pytest.mark.gpu_compile
DEVICE = Path(rlef_jax.__file__).parent / "planning" / "targets" / "h100.txtpb"
OPTIONS = {"xla_gpu_autotune_level": 0}  # there is no card to time kernels on
GIB = 2**30
SMALL = dict(vocab_size=128_256, d_model=4096, n_heads=32, n_kv_heads=8, d_head=128, d_ff=14336, tie_embeddings=False)
LARGE = dict(vocab_size=128_256, d_model=8192, n_heads=64, n_kv_heads=8, d_head=128, d_ff=28672, tie_embeddings=False)
SLOTS = 64


def programs_of(sizes, layers, *, rows, tensor=1, whole_layers=32, cache_gib=40):
    """Programs with the per-layer shapes of a model of `whole_layers` layers with so much memory for its cache."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=DEVICE.read_text(), topology="1x1x8")
    cfg = ModelConfig(n_layers=layers, max_positions=8192, **sizes)
    heads = cfg.n_kv_heads // tensor
    pages = cache_gib * GIB // (2 * whole_layers * heads * SLOTS * cfg.d_head * 2)
    shapes = Shapes(
        rows=rows, max_len=8192, cache_lengths=(), prefill_chunks=(512,), prefill_tokens=2048, decode_steps=16,
        page_slots=SLOTS, pages=pages,
    )  # fmt: skip
    return Programs(cfg, shapes, make_mesh(tensor=tensor, devices=topology.devices), dtype=jnp.bfloat16)


def array_of(programs):
    """The shape of one layer's keys on one device."""
    cfg = programs.cfg
    return programs.pages, cfg.n_kv_heads // programs.mesh.shape["tensor"], SLOTS, cfg.d_head


@pytest.mark.parametrize("sizes, tensor, whole_layers", [(SMALL, 1, 32), (LARGE, 8, 80)], ids=["8b", "70b"])
def test_no_program_copies_the_cache(sizes, tensor, whole_layers):
    """Of two layers: the others are the same. Arguments are donated, temporary memory is far below one layer's keys."""
    programs = programs_of(sizes, 2, rows=64, tensor=tensor, whole_layers=whole_layers)
    cache, least = array_of(programs), {"take": 0, "prepare": 0}
    one = 2 * cache[0] * cache[1] * cache[2] * cache[3]
    lowered = programs.lowered()
    assert set(lowered) == {
        "decode 8192 plain", "decode 8192 cut", "prefill 512 first", "prefill 512 later", "take", "put", "prepare"
    }  # fmt: skip
    for name, program in lowered.items():
        if name == "prepare":  # before there is a cache
            continue
        made = program.compile(OPTIONS)
        memory, text = made.memory_analysis(), made.as_text()
        assert hlo_text.copies_of(hlo_text.read(text), cache) == [], name
        assert memory.alias_size_in_bytes >= least.get(name, 4 * one), name
        assert memory.temp_size_in_bytes < min(one, 0.4 * GIB), (name, memory.temp_size_in_bytes / GIB)
        assert ('custom_call_target="__gpu$xla.gpu.triton"' in text) == name.startswith("decode"), name
        assert ("__cudnn$fmha" in text) == name.startswith("prefill"), name
        print(name, "arguments", memory.argument_size_in_bytes / GIB, "temporary", memory.temp_size_in_bytes / GIB)


@pytest.mark.parametrize("rows, tokens", [(8, 1500), (64, 5120)], ids=["8 dialogues of 1500", "full pool"])
def test_a_step_reads_little_more_than_weights_and_live_tokens(rows, tokens):
    """At most 1.1 times the weights that a step needs, and the keys and values of tokens, for 8B on one card.

    The kernel reads whole pages, and its programs' parts are written and read again; so is every intermediate result
    here, though most would stay in the card's 50 MB of second-level cache. Two layers are compiled and counted for 32.
    """
    few, more = (step_bytes(programs_of(SMALL, layers, rows=rows)) for layers in (1, 2))
    step = few + (more - few) * 31
    whole = ModelConfig(n_layers=32, **SMALL)
    pages = rows * -(-tokens // SLOTS)
    read = 2 * 2 * whole.n_layers * whole.n_kv_heads * whole.d_head * SLOTS * pages
    weights = 2 * (count_params(whole) - whole.vocab_size * whole.d_model)
    live = 2 * 2 * whole.n_layers * whole.n_kv_heads * whole.d_head * tokens * rows
    share = (step + read) / (weights + live)
    print(f"{rows} x {tokens}: {(step + read) / 1e9:.2f} GB a step, {share:.3f} of {(weights + live) / 1e9:.2f}")
    assert share <= 1.1


def step_bytes(programs):
    """Bytes of one decoding step, the kernel's reading of pages apart; and its share of what comes after the loop."""
    text = programs.lowered()["decode 8192 plain"].compile(OPTIONS).as_text()
    program = hlo_text.read(text)
    cache = array_of(programs)
    after = hlo_text.traffic(program, "ENTRY", cache)
    return hlo_text.traffic(program, hlo_text.loop_body(program), cache) + after / programs.shapes.decode_steps


def test_the_checker_sees_a_copy():
    """The text of a program that copies an array that it should change in place."""
    text = """
ENTRY %main (p: bf16[4096,8,64,128]) -> bf16[4096,8,64,128] {
  %p = bf16[4096,8,64,128]{3,2,1,0} parameter(0)
  ROOT %copy.1 = bf16[4096,8,64,128]{3,2,1,0} copy(%p)
}
"""
    assert len(hlo_text.copies_of(hlo_text.read(text), (4096, 8, 64, 128))) == 1
